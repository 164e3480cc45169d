-- A user who leaves ends the joins of theirs that are under way, also where nothing is known of the room yet: 'user_id' is who joins
-- (empty: noted by a server that did not yet say so), and 'has_left' whether they have left since. Nothing comes of such a join.
ALTER TABLE pending_joins ADD COLUMN user_id  TEXT    NOT NULL DEFAULT '';
ALTER TABLE pending_joins ADD COLUMN has_left INTEGER NOT NULL DEFAULT 0;
