-- Where the timeline lacks history: events without a place that events in it cite as previous ones (backward extremities).
-- The history that they end belongs just before `pos`, the position of the oldest event that leads to it. A row counts no
-- longer once the event is there by itself.
CREATE TABLE gaps (
    room_id  TEXT    NOT NULL,
    pos      INTEGER NOT NULL,
    event_id TEXT    NOT NULL,
    PRIMARY KEY (room_id, pos, event_id)
) WITHOUT ROWID;

-- Of the rooms that are here already, history was fetched at the oldest end only.
INSERT INTO gaps (room_id, pos, event_id)
SELECT DISTINCT t.room_id, (SELECT MIN(o.pos) FROM timeline AS o WHERE o.room_id = t.room_id),
    CASE p.type WHEN 'array' THEN p.value ->> 0 ELSE p.value END AS previous
FROM timeline AS t JOIN events AS e ON e.event_nid = t.event_nid, json_each(e.json, '$.prev_events') AS p
WHERE NOT EXISTS (SELECT 1 FROM events AS held WHERE held.event_id = previous AND NOT held.outlier);
