-- Local users: their accounts and devices, and what their clients keep here.

CREATE TABLE users (
    user_id     TEXT    PRIMARY KEY,
    password    TEXT    NOT NULL,                -- Argon2id, as a PHC string with its salt and cost
    displayname TEXT,
    avatar_url  TEXT,
    created_ts  INTEGER NOT NULL
) WITHOUT ROWID;

-- A device is one login: it goes when its access token goes.
CREATE TABLE devices (
    user_id      TEXT    NOT NULL,
    device_id    TEXT    NOT NULL,
    token_hash   TEXT    NOT NULL UNIQUE,        -- SHA-256 of the access token, which itself is kept nowhere
    display_name TEXT,
    created_ts   INTEGER NOT NULL,
    PRIMARY KEY (user_id, device_id)
) WITHOUT ROWID;

-- Requests that a device named with a transaction ID, and the event that each made: a repetition makes none.
CREATE TABLE client_transactions (
    user_id    TEXT    NOT NULL,
    device_id  TEXT    NOT NULL,
    endpoint   TEXT    NOT NULL,                 -- what the ID is unique for, besides the device
    txn_id     TEXT    NOT NULL,
    event_id   TEXT    NOT NULL,
    created_ts INTEGER NOT NULL,
    PRIMARY KEY (user_id, device_id, endpoint, txn_id)
) WITHOUT ROWID;
CREATE INDEX client_transactions_by_event ON client_transactions (event_id);

CREATE TABLE filters (
    user_id   TEXT NOT NULL,
    filter_id TEXT NOT NULL,                     -- a hash of the filter: the same filter has one ID
    filter    TEXT NOT NULL,
    PRIMARY KEY (user_id, filter_id)
) WITHOUT ROWID;

-- Account data; `room_id` is '' for what belongs to no room.
CREATE TABLE account_data (
    user_id    TEXT    NOT NULL,
    room_id    TEXT    NOT NULL,
    event_type TEXT    NOT NULL,
    content    TEXT    NOT NULL,
    pos        INTEGER NOT NULL,                 -- in the stream 'account_data'
    PRIMARY KEY (user_id, room_id, event_type)
) WITHOUT ROWID;
INSERT INTO streams (name, position) VALUES ('account_data', 0);

-- Room aliases of this server.
CREATE TABLE room_aliases (
    alias      TEXT    PRIMARY KEY,
    room_id    TEXT    NOT NULL,
    creator    TEXT    NOT NULL,
    created_ts INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX room_aliases_by_room ON room_aliases (room_id);

-- Rooms in this server's published room directory.
CREATE TABLE published_rooms (
    room_id TEXT PRIMARY KEY
) WITHOUT ROWID;
