-- Other servers' media, fetched when somebody here asked for them and kept while somebody does.
CREATE TABLE remote_media (
    origin         TEXT    NOT NULL,
    media_id       TEXT    NOT NULL,
    fetching_until INTEGER NOT NULL,             -- who fetches it has until then; nobody asks again before
    failure        TEXT,                         -- why it could not be had the last time
    size           INTEGER,                      -- NULL: the bytes are not there
    content_type   TEXT,
    filename       TEXT,
    fetched_ts     INTEGER,                      -- milliseconds since the epoch, as all times here
    last_access_ts INTEGER NOT NULL,             -- to the day
    PRIMARY KEY (origin, media_id)
) WITHOUT ROWID;

-- What nobody has asked for since is forgotten by the hour.
CREATE INDEX remote_media_by_access ON remote_media (last_access_ts);
