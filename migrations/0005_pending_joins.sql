-- Rooms that a user of ours is joining through another server: noted before our join is sent. What servers in the room
-- send us before we have taken the room over is staged, and not refused as of an unknown room.
CREATE TABLE pending_joins (
    room_id      TEXT    NOT NULL,
    join_id      TEXT    NOT NULL,               -- a name of the attempt that no other one has
    room_version TEXT    NOT NULL,               -- as the resident server says: by it received PDUs are checked
    until_ts     INTEGER NOT NULL,               -- an attempt that was cut off counts no longer; milliseconds
    PRIMARY KEY (room_id, join_id)
) WITHOUT ROWID;
