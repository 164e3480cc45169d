-- A state event that was held when it was rejected for good may stand in states that other servers have claimed: until these were
-- looked through.
ALTER TABLE rejected_events ADD COLUMN may_stand INTEGER NOT NULL DEFAULT 0;

CREATE INDEX rejected_events_that_may_stand ON rejected_events (room_id) WHERE may_stand;
