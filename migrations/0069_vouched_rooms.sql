-- Rooms whose state before our join is what a resident server said of it, and how often their history was looked at in vain since: when all
-- of it is held, the state is seen from it.
CREATE TABLE vouched_rooms (
    room_id TEXT    PRIMARY KEY,
    looks   INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
