-- Local users and other servers that share a room since somebody has joined it: the servers are still to be told of the users' devices.
CREATE TABLE new_shares (
    room_id  TEXT NOT NULL,
    newcomer TEXT NOT NULL,                      -- a local user, of whom the room's servers hear; or a server, which hears of the local members
    after    TEXT NOT NULL,                      -- up to which of those servers, or members, by name, that is done
    PRIMARY KEY (room_id, newcomer)
) WITHOUT ROWID;
