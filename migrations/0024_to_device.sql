-- Messages to devices, and what clients keep here of their own keys, encrypted.

-- Messages to devices of local users. A device has acknowledged one when it syncs from a position at or behind it; then it goes.
CREATE TABLE to_device_messages (
    user_id   TEXT    NOT NULL,
    device_id TEXT    NOT NULL,
    pos       INTEGER NOT NULL,                  -- in the stream 'to_device'
    upto      INTEGER NOT NULL,                  -- how long this and those before it are, since none were waiting
    message   TEXT    NOT NULL,                  -- JSON object: type, sender and content
    PRIMARY KEY (user_id, device_id, pos)
) WITHOUT ROWID;
INSERT INTO streams (name, position) VALUES ('to_device', 0);

-- Requests to send messages that a device named with a transaction ID: a repetition sends nothing.
CREATE TABLE sent_to_device (
    user_id    TEXT    NOT NULL,
    device_id  TEXT    NOT NULL,
    event_type TEXT    NOT NULL,
    txn_id     TEXT    NOT NULL,
    created_ts INTEGER NOT NULL,
    PRIMARY KEY (user_id, device_id, event_type, txn_id)
) WITHOUT ROWID;

-- What other servers have sent to devices, by their names for it: they may send it again in another transaction.
CREATE TABLE received_to_device (
    origin      TEXT    NOT NULL,
    message_id  TEXT    NOT NULL,
    received_ts INTEGER NOT NULL,
    PRIMARY KEY (origin, message_id)
) WITHOUT ROWID;

-- Backups of room keys.
CREATE TABLE key_backups (
    user_id   TEXT    NOT NULL,
    version   INTEGER NOT NULL,
    algorithm TEXT    NOT NULL,
    auth_data TEXT    NOT NULL,                  -- JSON object
    etag      INTEGER NOT NULL,                  -- one more with each change of the keys
    sessions  INTEGER NOT NULL,                  -- how many keys there are,
    length    INTEGER NOT NULL,                  --   and how long they are together
    PRIMARY KEY (user_id, version)
) WITHOUT ROWID;

-- The newest version that a user has made: no other has its number, though it is deleted.
CREATE TABLE key_backup_versions (
    user_id TEXT    PRIMARY KEY,
    newest  INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE key_backup_sessions (
    user_id             TEXT    NOT NULL,
    version             INTEGER NOT NULL,
    room_id             TEXT    NOT NULL,
    session_id          TEXT    NOT NULL,
    first_message_index INTEGER NOT NULL,
    forwarded_count     INTEGER NOT NULL,
    is_verified         INTEGER NOT NULL,
    session_data        TEXT    NOT NULL,        -- JSON object, encrypted by the client
    PRIMARY KEY (user_id, version, room_id, session_id)
) WITHOUT ROWID;

-- Until when somebody is fetching the list, so that others wait for it.
ALTER TABLE remote_device_lists ADD COLUMN fetching_until INTEGER NOT NULL DEFAULT 0;
