-- How many bytes are kept of a room for good because servers sent or gave them that were not in it then: of each of these, and, under the
-- empty name, of all together.
CREATE TABLE kept_for_strangers (
    room_id TEXT    NOT NULL,
    server  TEXT    NOT NULL,
    bytes   INTEGER NOT NULL,
    PRIMARY KEY (room_id, server)
) WITHOUT ROWID;
