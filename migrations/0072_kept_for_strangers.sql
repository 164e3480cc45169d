-- How many bytes are kept for good because servers sent or gave them that were not in the room of which they are: of each room for each
-- such server. Under the empty room is what is kept of all rooms, and under the empty server what is for all servers.
CREATE TABLE kept_for_strangers (
    room_id TEXT    NOT NULL,
    server  TEXT    NOT NULL,
    bytes   INTEGER NOT NULL,
    PRIMARY KEY (room_id, server)
) WITHOUT ROWID;
