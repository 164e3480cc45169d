-- Events that are held without their content, because somebody gave us an altered copy: others are asked for a whole one.
CREATE INDEX events_altered ON events (room_id, event_nid) WHERE hash_wrong AND redacted_by IS NULL;

INSERT INTO unsettled_rooms (room_id)
SELECT DISTINCT room_id FROM events WHERE hash_wrong AND redacted_by IS NULL AND NOT outlier
ON CONFLICT (room_id) DO NOTHING;
