-- Where an event stands in its room's timeline, beside the event itself: nothing but the timeline led there, and an index
-- on it would be one more row written for each event.
ALTER TABLE events ADD COLUMN pos INTEGER;       -- NULL: not in the timeline

UPDATE events SET pos = t.pos FROM timeline AS t WHERE t.event_nid = events.event_nid AND t.room_id = events.room_id;
