-- End-to-end encryption: what users and their devices publish of their keys. The server reads none of what they encrypt.

-- The identity keys of a local device, as it has signed them. Other users' signatures are in `key_signatures`.
CREATE TABLE device_keys (
    user_id   TEXT NOT NULL,
    device_id TEXT NOT NULL,
    keys      TEXT NOT NULL,                     -- canonical JSON
    PRIMARY KEY (user_id, device_id)
) WITHOUT ROWID;

-- One-time keys of local devices. Each is deleted by the statement that gives it out.
CREATE TABLE one_time_keys (
    user_id     TEXT    NOT NULL,
    device_id   TEXT    NOT NULL,
    algorithm   TEXT    NOT NULL,
    key_id      TEXT    NOT NULL,
    key         TEXT    NOT NULL,                -- canonical JSON
    uploaded_ts INTEGER NOT NULL,                -- they are given out in this order
    PRIMARY KEY (user_id, device_id, algorithm, key_id)
) WITHOUT ROWID;

-- What is given out, more than once, where a device has no one-time keys left.
CREATE TABLE fallback_keys (
    user_id   TEXT    NOT NULL,
    device_id TEXT    NOT NULL,
    algorithm TEXT    NOT NULL,
    key_id    TEXT    NOT NULL,
    key       TEXT    NOT NULL,                  -- canonical JSON
    used      INTEGER NOT NULL,                  -- 1: it was given out
    PRIMARY KEY (user_id, device_id, algorithm)
) WITHOUT ROWID;

-- The cross-signing keys of local users.
CREATE TABLE cross_signing_keys (
    user_id TEXT NOT NULL,
    usage   TEXT NOT NULL,                       -- 'master', 'self_signing' or 'user_signing'
    key     TEXT NOT NULL,                       -- canonical JSON
    PRIMARY KEY (user_id, usage)
) WITHOUT ROWID;

-- Signatures that local users have added to keys: to their own devices' and master keys, which everybody sees, and to other
-- users' master keys, which only they themselves see.
CREATE TABLE key_signatures (
    user_id   TEXT    NOT NULL,                  -- whose key is signed,
    signer    TEXT    NOT NULL,                  -- and by whom
    key_name  TEXT    NOT NULL,                  -- the device ID, or the public part of the master key
    key_id    TEXT    NOT NULL,                  -- the key that has signed
    signature TEXT    NOT NULL,
    pos       INTEGER NOT NULL,                  -- in the stream 'device_lists'
    PRIMARY KEY (user_id, signer, key_name, key_id)
) WITHOUT ROWID;
CREATE INDEX key_signatures_by_signer ON key_signatures (signer, pos);

-- When the keys of a user have last changed, local users and others.
CREATE TABLE device_list_changes (
    user_id   TEXT    PRIMARY KEY,
    pos       INTEGER NOT NULL,                  -- in the stream 'device_lists'
    stream_id INTEGER,                           -- of a local user: the position of the newest change of a device,
    prev_id   INTEGER                            --   and of the one before it, as other servers hear of them
) WITHOUT ROWID;
CREATE INDEX device_list_changes_by_pos ON device_list_changes (pos);
INSERT INTO streams (name, position) VALUES ('device_lists', 0);

-- Other servers' users' keys, one row for each user whose keys a local user who shares a room with them has asked for.
CREATE TABLE remote_device_lists (
    user_id          TEXT    PRIMARY KEY,
    stream_id        INTEGER,                    -- the newest update that it holds; NULL: not known
    is_current       INTEGER NOT NULL,           -- 0: it must be fetched again
    as_of            INTEGER NOT NULL,           -- the newest `event_nid` when it was fetched
    devices          TEXT    NOT NULL,           -- JSON object: the device keys by device ID
    master_key       TEXT,                       -- canonical JSON
    self_signing_key TEXT                        -- canonical JSON
) WITHOUT ROWID;
