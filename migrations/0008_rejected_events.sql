-- Events that the room's rules forbid. What is remembered of one is what later events that cite it take: that it was
-- rejected, the events before it, and the state before it. It is a bounded memory, of which the oldest go first: what is
-- forgotten is judged again when it comes again or is cited.
CREATE TABLE rejected_events (
    event_id     TEXT    PRIMARY KEY,
    room_id      TEXT    NOT NULL,
    server       TEXT    NOT NULL,               -- of its sender
    depth        INTEGER NOT NULL,
    reason       TEXT    NOT NULL,
    graph        TEXT    NOT NULL,               -- {"prev_events": [event IDs]}, to be walked through like an event's JSON
    state_before TEXT,                           -- trie root of the state before it; NULL: not known (outliers, history)
    claimed      INTEGER NOT NULL,               -- 1: that state rests on another server's claim
    provisional  INTEGER NOT NULL,               -- 1: so does the verdict
    json         TEXT,                           -- of a provisional one, within a budget: the event, to be judged again
    bytes        INTEGER NOT NULL,               -- the length of `json`; 0 without
    of_room      INTEGER NOT NULL,               -- counts up in the room,
    of_server    INTEGER NOT NULL                -- and in the room for each server: what is far behind the newest is evicted
) WITHOUT ROWID;
CREATE INDEX rejected_events_of_room ON rejected_events (room_id, of_room);
CREATE INDEX rejected_events_of_server ON rejected_events (room_id, server, of_server);
CREATE INDEX rejected_events_provisional ON rejected_events (room_id, bytes) WHERE provisional;

INSERT INTO rejected_events (event_id, room_id, server, depth, reason, graph, state_before, claimed, provisional, bytes,
    of_room, of_server)
SELECT e.event_id, e.room_id, substr(e.sender, instr(e.sender, ':') + 1), e.depth, e.rejected,
    json_object('prev_events', (SELECT json_group_array(CASE p.type WHEN 'array' THEN p.value ->> 0 ELSE p.value END)
        FROM json_each(e.json, '$.prev_events') AS p WHERE p.key < 20)),
    e.state_before, 0, 0, 0,
    row_number() OVER (PARTITION BY e.room_id ORDER BY e.event_nid),
    row_number() OVER (PARTITION BY e.room_id, substr(e.sender, instr(e.sender, ':') + 1) ORDER BY e.event_nid)
FROM events AS e WHERE e.rejected IS NOT NULL AND e.room_id = e.json ->> '$.room_id';

DELETE FROM rejected_events AS r WHERE
    of_room <= (SELECT MAX(of_room) FROM rejected_events AS x WHERE x.room_id = r.room_id) - 5000
    OR of_server <= (SELECT MAX(of_server) FROM rejected_events AS x WHERE x.room_id = r.room_id AND x.server = r.server) - 500;

-- One that was taken in as part of a state before it was judged by itself still stands in that state, and stays an outlier.
DELETE FROM citations WHERE citing IN (SELECT event_id FROM events WHERE rejected IS NOT NULL)
    AND citing NOT IN (SELECT entry.value FROM state_nodes, json_each(state_nodes.node) AS entry
        WHERE substr(state_nodes.node, 1, 1) = '{');
DELETE FROM timeline WHERE event_nid IN (SELECT event_nid FROM events WHERE rejected IS NOT NULL);
DELETE FROM events WHERE rejected IS NOT NULL
    AND event_id NOT IN (SELECT entry.value FROM state_nodes, json_each(state_nodes.node) AS entry
        WHERE substr(state_nodes.node, 1, 1) = '{');
UPDATE events SET outlier = 1, state_before = NULL, state_after = NULL WHERE rejected IS NOT NULL;
ALTER TABLE events DROP COLUMN rejected;

-- 1: the state around the event rests on another server's claim.
ALTER TABLE events ADD COLUMN claimed INTEGER NOT NULL DEFAULT 0;
UPDATE events SET claimed = 1 WHERE outlier AND state_after IS NOT NULL;
