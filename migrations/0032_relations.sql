-- Which events relate to which (Client-Server API, "Forming relationships between events"): a row for each event in the timeline
-- whose content has an `m.relates_to` with a type and an event, and that is not redacted. By type first: the threads of a room
-- are found by going from one parent to the next.
CREATE TABLE relations (
    room_id    TEXT    NOT NULL,
    rel_type   TEXT    NOT NULL,
    parent     TEXT    NOT NULL,                 -- the event that it relates to, which we may not hold
    pos        INTEGER NOT NULL,                 -- the event's position in `timeline`
    event_nid  INTEGER NOT NULL,
    event_type TEXT    NOT NULL,
    sender     TEXT    NOT NULL,
    PRIMARY KEY (room_id, rel_type, parent, pos)
) WITHOUT ROWID;

INSERT INTO relations (room_id, rel_type, parent, pos, event_nid, event_type, sender)
SELECT t.room_id, e.json ->> '$.content."m.relates_to".rel_type', e.json ->> '$.content."m.relates_to".event_id', t.pos,
    e.event_nid, e.event_type, e.sender
FROM timeline AS t CROSS JOIN events AS e ON e.event_nid = t.event_nid
WHERE e.redacted_by IS NULL AND e.event_type <> 'm.room.redaction'
    AND json_type(e.json, '$.content."m.relates_to".rel_type') = 'text'
    AND json_type(e.json, '$.content."m.relates_to".event_id') = 'text'
    AND length(e.json ->> '$.content."m.relates_to".rel_type') BETWEEN 1 AND 255
    AND length(e.json ->> '$.content."m.relates_to".event_id') <= 255;
