-- Access tokens that expire, and the refresh tokens that they are made anew with. A refresh token is exchanged for the next pair of
-- tokens, and holds, as does the access token, until one of the next pair is used.
ALTER TABLE devices ADD COLUMN expires_ts INTEGER;        -- of the access token; NULL: it does not expire
ALTER TABLE devices ADD COLUMN refresh_hash TEXT;         -- SHA-256 of the refresh token; NULL: there is none
ALTER TABLE devices ADD COLUMN next_token_hash TEXT;      -- SHA-256 of the next pair
ALTER TABLE devices ADD COLUMN next_expires_ts INTEGER;
ALTER TABLE devices ADD COLUMN next_refresh_hash TEXT;
CREATE UNIQUE INDEX devices_by_refresh ON devices (refresh_hash) WHERE refresh_hash IS NOT NULL;
CREATE UNIQUE INDEX devices_by_next_token ON devices (next_token_hash) WHERE next_token_hash IS NOT NULL;
CREATE UNIQUE INDEX devices_by_next_refresh ON devices (next_refresh_hash) WHERE next_refresh_hash IS NOT NULL;

-- Users who have deactivated their accounts, whose `password` is then '', and who have not left all of their rooms yet.
CREATE TABLE departures (
    user_id  TEXT    PRIMARY KEY,
    attempts INTEGER NOT NULL DEFAULT 0,
    retry_at INTEGER NOT NULL                    -- not to be gone on with before this time, in milliseconds since the epoch
) WITHOUT ROWID;
CREATE INDEX departures_due ON departures (retry_at);
