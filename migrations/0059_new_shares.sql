-- Local users who have come into a room: its servers are still to be told of their devices.
CREATE TABLE new_shares (
    room_id  TEXT NOT NULL,
    newcomer TEXT NOT NULL,
    after    TEXT NOT NULL,                      -- up to which of those servers, by name, that is done
    PRIMARY KEY (room_id, newcomer)
) WITHOUT ROWID;
