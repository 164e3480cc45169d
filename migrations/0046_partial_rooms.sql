-- Rooms that were joined by an answer without their members, until the rest of the state before our join is had and all that was
-- judged without it is judged again.
CREATE TABLE partial_rooms (
    room_id   TEXT    PRIMARY KEY,
    join_id   TEXT    NOT NULL,                  -- as in large_joins: the work that completes it
    event_id  TEXT    NOT NULL,                  -- our join, the state before which was answered in part
    stage     INTEGER NOT NULL DEFAULT 0,        -- 0: members are lacking, 1: what was judged so is judged again, 2: a room like any
    whole_pos INTEGER NOT NULL DEFAULT 0         -- the 'events' position from which on the current state is whole; 0 until then
) WITHOUT ROWID;

-- A row of large_joins may also be the rest of the state of such a room; 'attempts' is how often other servers were asked for it.
ALTER TABLE large_joins ADD COLUMN completes INTEGER NOT NULL DEFAULT 0;
ALTER TABLE large_joins ADD COLUMN attempts  INTEGER NOT NULL DEFAULT 0;
