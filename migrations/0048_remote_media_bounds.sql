-- What bounds the bytes of other servers' media: for each local user by the day, and for all by what is kept.

-- For whom it is being fetched; NULL: it is not, or came.
ALTER TABLE remote_media ADD COLUMN fetching_for TEXT;
CREATE INDEX remote_media_on_the_way ON remote_media (fetching_for, fetching_until) WHERE fetching_for IS NOT NULL;

-- How many bytes each local user has had fetched on the last day on which they had any.
CREATE TABLE remote_media_fetched (
    user_id TEXT    PRIMARY KEY,
    day     INTEGER NOT NULL,                   -- since the epoch
    bytes   INTEGER NOT NULL
) WITHOUT ROWID;

-- How many bytes are kept of all, in its only row.
CREATE TABLE remote_media_kept (
    one   INTEGER PRIMARY KEY,
    bytes INTEGER NOT NULL
);
INSERT INTO remote_media_kept (one, bytes) SELECT 1, SUM(size) FROM remote_media HAVING SUM(size) > 0;
