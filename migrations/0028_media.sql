-- Media. Their bytes are in the object store, under keys that follow from the primary keys here.

-- What local users have uploaded, or have reserved an ID for.
CREATE TABLE local_media (
    media_id     TEXT    PRIMARY KEY,
    user_id      TEXT    NOT NULL,
    created_ts   INTEGER NOT NULL,               -- milliseconds since the epoch, as all times here
    until_ts     INTEGER NOT NULL,               -- until when an upload must have begun
    upload       TEXT,                           -- names the upload that is under way, or that brought the bytes
    upload_until INTEGER,                        -- until when the one under way must have ended
    size         INTEGER,                        -- NULL: the bytes are not there yet
    content_type TEXT,
    filename     TEXT
) WITHOUT ROWID;
-- What is waited for: no row is in it once it is there.
CREATE INDEX local_media_awaited ON local_media (user_id, until_ts) WHERE size IS NULL;

-- How many bytes of each local user are kept.
CREATE TABLE media_usage (
    user_id TEXT    PRIMARY KEY,
    bytes   INTEGER NOT NULL
) WITHOUT ROWID;
