-- Rooms, their events, and the queue of what other servers must hear. ARCHITECTURE.md ("The tables") explains the shape.

-- One event. The columns above the line are facts and never change; those below are what we think of it, and may.
CREATE TABLE events (
    event_nid        INTEGER PRIMARY KEY,
    event_id         TEXT    NOT NULL UNIQUE,
    room_id          TEXT    NOT NULL,
    event_type       TEXT    NOT NULL,
    state_key        TEXT,                       -- NULL: not a state event
    sender           TEXT    NOT NULL,
    depth            INTEGER NOT NULL,
    origin_server_ts INTEGER NOT NULL,
    json             TEXT    NOT NULL,           -- canonical JSON without `unsigned`; redacted where the content hash was wrong
    ----------------------------------------------------------------------------------------------------------------------
    outlier          INTEGER NOT NULL,           -- 1: known only as an auth or state event; stands nowhere in our graph
    rejected         TEXT,                       -- why it was rejected; NULL: it was not
    soft_failed      INTEGER NOT NULL DEFAULT 0,
    redacted_by      TEXT,                       -- the event ID of the accepted redaction
    state_before     TEXT,                       -- trie root of the state before it; NULL: not known (outliers, backfilled)
    state_after      TEXT                        -- the same for the state after it
);

-- What may change about a room, in one row. Every commit moves `version` and aborts when somebody else moved it.
CREATE TABLE rooms (
    room_id      TEXT    PRIMARY KEY,
    room_version TEXT    NOT NULL,
    version      INTEGER NOT NULL,
    extremities  TEXT    NOT NULL,               -- JSON list of [event ID, depth]: the forward extremities
    state        TEXT    NOT NULL,               -- trie root of the current state
    latest_pos   INTEGER NOT NULL,               -- the newest position in `timeline`
    outbox_pos   INTEGER NOT NULL                -- the newest position in `outbox`
) WITHOUT ROWID;

-- The nodes of all state snapshots (matrix::state_trie). Written once, shared by rooms and snapshots.
CREATE TABLE state_nodes (
    node_id TEXT PRIMARY KEY,
    node    TEXT NOT NULL
) WITHOUT ROWID;

-- The current state root of a room from `pos` on: how sync finds what changed in the state between two positions.
CREATE TABLE room_states (
    room_id TEXT    NOT NULL,
    pos     INTEGER NOT NULL,
    state   TEXT    NOT NULL,
    PRIMARY KEY (room_id, pos)
) WITHOUT ROWID;

-- The events that local users may page through: positive positions in the order of commits, negative ones backfilled,
-- counting down. Rejected and soft-failed events and outliers have no place here.
CREATE TABLE timeline (
    room_id   TEXT    NOT NULL,
    pos       INTEGER NOT NULL,
    event_nid INTEGER NOT NULL,
    PRIMARY KEY (room_id, pos)
) WITHOUT ROWID;

-- Positions handed out: 'events' for the timeline and all that a sync token names, 'outbox' for the outbox.
CREATE TABLE streams (
    name     TEXT    PRIMARY KEY,
    position INTEGER NOT NULL
) WITHOUT ROWID;
INSERT INTO streams (name, position) VALUES ('events', 0), ('outbox', 0);

-- Which servers have joined members in a room, over which stretch of the outbox: a server hears of the outbox positions
-- in (from_pos, to_pos]. At most one stretch of a server in a room is open (to_pos NULL). A server that was never in the room
-- has a stretch of one position for the event that ends an invite of its user.
CREATE TABLE room_servers (
    room_id  TEXT    NOT NULL,
    server   TEXT    NOT NULL,
    from_pos INTEGER NOT NULL,
    to_pos   INTEGER,
    joined   INTEGER NOT NULL,                   -- how many of its users are joined
    PRIMARY KEY (room_id, server, from_pos)
) WITHOUT ROWID;

CREATE INDEX room_servers_by_server ON room_servers (server, room_id);

-- Local users' memberships, as their syncs and room lists need them.
CREATE TABLE local_memberships (
    user_id      TEXT    NOT NULL,
    room_id      TEXT    NOT NULL,
    membership   TEXT    NOT NULL,
    event_id     TEXT    NOT NULL,
    pos          INTEGER NOT NULL,               -- the 'events' position at which it became so
    invite_state TEXT,                           -- JSON list of state events, for an invite to a room we are not in
    PRIMARY KEY (user_id, room_id)
) WITHOUT ROWID;

-- Events that other servers must hear of: one row each, whatever the number of destinations.
CREATE TABLE outbox (
    pos       INTEGER PRIMARY KEY,
    room_id   TEXT    NOT NULL,
    event_nid INTEGER NOT NULL,
    exclude   TEXT                               -- the server that gave it to us, which needs no copy
);
CREATE INDEX outbox_by_room ON outbox (room_id, pos);

-- A server we send to: a cursor into the outbox, the transaction in flight, its backoff, and a lease so that one isolate
-- at a time sends to it. Times in milliseconds since the epoch.
CREATE TABLE destinations (
    destination TEXT    PRIMARY KEY,
    cursor      INTEGER NOT NULL DEFAULT 0,      -- everything up to this outbox position is done
    txn_id      TEXT,                            -- the transaction in flight: its id,
    txn_to      INTEGER,                         --   the last outbox position it covers,
    txn_ts      INTEGER,                         --   its origin_server_ts
    failures    INTEGER NOT NULL DEFAULT 0,      -- in a row
    retry_at    INTEGER NOT NULL DEFAULT 0,      -- not before this time
    lease_until INTEGER NOT NULL DEFAULT 0,
    lease_owner TEXT
) WITHOUT ROWID;

-- Accepted redactions: what each redacts, which may arrive after it. The redaction takes effect on an event of the same
-- room if `any_sender` (its sender had the power) or if the event's sender is of the server `server`.
CREATE TABLE redactions (
    redacts      TEXT    NOT NULL,
    redaction_id TEXT    NOT NULL,
    room_id      TEXT    NOT NULL,
    any_sender   INTEGER NOT NULL,
    server       TEXT    NOT NULL,
    PRIMARY KEY (redacts, redaction_id)
) WITHOUT ROWID;

-- The answers to transactions received: the same origin and id get the same answer.
CREATE TABLE transactions (
    origin      TEXT    NOT NULL,
    txn_id      TEXT    NOT NULL,
    response    TEXT    NOT NULL,
    received_ts INTEGER NOT NULL,
    PRIMARY KEY (origin, txn_id)
) WITHOUT ROWID;

-- PDUs acknowledged but not yet judged, because something they cite must first be fetched. Their signatures and hashes
-- were checked; nothing reads them but the work that judges them.
CREATE TABLE staged_pdus (
    room_id     TEXT    NOT NULL,
    event_id    TEXT    NOT NULL,
    origin      TEXT    NOT NULL,                -- who sent it, and can be asked for what it cites
    json        TEXT    NOT NULL,
    received_ts INTEGER NOT NULL,
    attempts    INTEGER NOT NULL DEFAULT 0,
    retry_at    INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (room_id, event_id)
) WITHOUT ROWID;
CREATE INDEX staged_pdus_by_origin ON staged_pdus (origin);
