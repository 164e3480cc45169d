-- The position in `timeline` of the join by which this server came into the room last; 0 where it made the room, or came before this
-- column. What a gap at or below it leads to is history.
ALTER TABLE rooms ADD COLUMN joined_pos INTEGER NOT NULL DEFAULT 0;
