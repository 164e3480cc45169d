-- The same of state events that were rejected before there was `may_stand`: the claimed states were never looked through for them.
UPDATE rejected_events SET may_stand = 1
WHERE NOT provisional AND EXISTS (SELECT 1 FROM events AS e WHERE e.event_id = rejected_events.event_id AND e.state_key IS NOT NULL);

INSERT INTO unsettled_rooms (room_id) SELECT DISTINCT room_id FROM rejected_events WHERE may_stand
ON CONFLICT (room_id) DO UPDATE SET since = 0, attempts = 0, retry_at = 0;
