-- What other servers told us about themselves: where they are reached, and the keys they sign with.
-- Times in milliseconds since the epoch.

-- Verified signing keys of other servers.
CREATE TABLE server_keys (
    server         TEXT    NOT NULL,
    key_id         TEXT    NOT NULL,
    public_key     TEXT    NOT NULL,             -- unpadded base64
    valid_until_ts INTEGER NOT NULL,             -- already capped to 7 days after fetched_ts; of an old key: expired_ts
    expired_ts     INTEGER,                      -- NULL: a current key, which may sign requests
    fetched_ts     INTEGER NOT NULL,
    PRIMARY KEY (server, key_id)
) WITHOUT ROWID;

-- When a server's keys were asked for, and when they may be asked for again.
CREATE TABLE key_fetches (
    server   TEXT    PRIMARY KEY,
    failures INTEGER NOT NULL,                   -- fetches in a row that did not bring what was needed
    retry_at INTEGER NOT NULL
) WITHOUT ROWID;

-- The answers of `/.well-known/matrix/server`, and their absence.
CREATE TABLE well_known (
    host            TEXT    PRIMARY KEY,
    delegated       TEXT,                        -- NULL: there is no delegation
    fresh_until_ts  INTEGER NOT NULL,            -- not asked again before
    usable_until_ts INTEGER NOT NULL,            -- used until then where asking again fails
    failures        INTEGER NOT NULL             -- in a row
) WITHOUT ROWID;
