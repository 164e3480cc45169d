-- Of an event that was not passed over: how often servers answered, and gave nothing that led to it. Those that were asked for less often
-- come first, so that however many events are nowhere, the one is asked for that history goes on with.
ALTER TABLE gaps ADD COLUMN asked INTEGER NOT NULL DEFAULT 0;
CREATE INDEX gaps_by_asked ON gaps (room_id, pos DESC, asked, event_id);
