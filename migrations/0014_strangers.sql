-- What strangers can make us remember is bounded. Times in milliseconds since the epoch.

-- Most of it has a fixed number of places each, so that no flood makes these tables grow: where
-- something is kept follows from a hash of its name, and what comes later to the same place takes it over. All of it can be
-- had again.

-- Keys that have verified a request or an event, but no event that is kept. Eight places for each server.
CREATE TABLE passing_keys (
    place          INTEGER PRIMARY KEY,
    server         TEXT    NOT NULL,
    key_id         TEXT    NOT NULL,
    public_key     TEXT    NOT NULL,             -- unpadded base64
    valid_until_ts INTEGER NOT NULL,             -- already capped to 7 days after fetched_ts; of an old key: expired_ts
    expired_ts     INTEGER,                      -- NULL: a current key, which may sign requests
    fetched_ts     INTEGER NOT NULL
);

-- When a server's keys were asked for in vain, and when they may be asked for again.
DROP TABLE key_fetches;
CREATE TABLE key_fetches (
    place    INTEGER PRIMARY KEY,
    server   TEXT    NOT NULL,
    failures INTEGER NOT NULL,                   -- fetches in a row that did not bring what was needed
    retry_at INTEGER NOT NULL
);

-- The answers of `/.well-known/matrix/server`, and their absence.
DROP TABLE well_known;
CREATE TABLE well_known (
    place           INTEGER PRIMARY KEY,
    host            TEXT    NOT NULL,
    delegated       TEXT,                        -- NULL: there is no delegation
    fresh_until_ts  INTEGER NOT NULL,            -- not asked again before
    usable_until_ts INTEGER NOT NULL,            -- used until then where asking again fails
    failures        INTEGER NOT NULL             -- in a row
);

-- The answers to transactions received: the same origin and id get the same answer. Eight places for each origin, which repeats
-- a transaction until it has the answer and only then sends the next.
DROP TABLE transactions;
CREATE TABLE transactions (
    place       INTEGER PRIMARY KEY,
    origin      TEXT    NOT NULL,
    txn_id      TEXT    NOT NULL,
    response    TEXT    NOT NULL,
    received_ts INTEGER NOT NULL
);

-- The server from which an invite came by itself, to a room as we do not hold it; it stays when that invite has ended. NULL: the
-- membership is one in a room that we are or were in.
ALTER TABLE local_memberships ADD COLUMN outside_from TEXT;
-- How many characters came with it.
ALTER TABLE local_memberships ADD COLUMN outside_bytes INTEGER NOT NULL DEFAULT 0;
UPDATE local_memberships SET outside_bytes = length(invite_state), outside_from = (
    SELECT substr(j.value ->> 'sender', instr(j.value ->> 'sender', ':') + 1) FROM json_each(invite_state) AS j
    WHERE j.value ->> 'type' = 'm.room.member' AND j.value ->> 'state_key' = local_memberships.user_id LIMIT 1)
WHERE invite_state IS NOT NULL;
-- What each server has pending,
CREATE INDEX local_invites_by_server ON local_memberships (outside_from, outside_bytes)
    WHERE outside_from IS NOT NULL AND membership = 'invite';
-- and each user; and the invites of theirs that have ended, the oldest first.
CREATE INDEX local_invites_by_user ON local_memberships (user_id, membership, pos) WHERE outside_from IS NOT NULL;
