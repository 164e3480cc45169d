-- Joins of rooms too large to be judged at once: what the resident server answers is staged while it comes, judged in batches,
-- and made the room's state by one commit at the end. A step that was cut off is repeated.

-- One row for each such join, until it has ended.
CREATE TABLE large_joins (
    join_id      TEXT    PRIMARY KEY,            -- as in pending_joins
    room_id      TEXT    NOT NULL,
    room_version TEXT    NOT NULL,
    resident     TEXT    NOT NULL,               -- the server through which the user joins
    event_id     TEXT    NOT NULL,               -- our join
    json         TEXT    NOT NULL,
    begun_ts     INTEGER NOT NULL,               -- milliseconds
    is_read      INTEGER NOT NULL DEFAULT 0,     -- whether the whole answer is in claimed_events
    kept_to      TEXT    NOT NULL DEFAULT '',    -- what was judged is in `events` up to this event ID
    lease_until  INTEGER NOT NULL                -- whoever is at it may take until then; milliseconds
) WITHOUT ROWID;
CREATE INDEX large_joins_due ON large_joins (lease_until);

-- The events that came with the answer. Their signatures and hashes were checked; nothing but the join reads them.
CREATE TABLE claimed_events (
    join_id    TEXT    NOT NULL,
    event_id   TEXT    NOT NULL,
    is_state   INTEGER NOT NULL,                 -- 0: only in the auth chain
    key        TEXT,                             -- of a state event: the hash of type and state key (matrix::state_trie)
    member     TEXT,                             -- of a membership event: whose,
    membership TEXT,                             --   and which
    json       TEXT    NOT NULL,
    hash_wrong INTEGER NOT NULL,
    verdict    INTEGER NOT NULL DEFAULT 0,       -- 0: not judged, 1: allowed, 2: rejected, 3: cannot be judged
    reason     TEXT,                             -- why it was rejected
    PRIMARY KEY (join_id, event_id)
) WITHOUT ROWID;
