-- Rooms in which something rests on another server's claim of a state, to be judged again once the history before it is held.
CREATE TABLE unsettled_rooms (
    room_id  TEXT    PRIMARY KEY,
    since    INTEGER NOT NULL DEFAULT 0,         -- milliseconds; 0 until somebody has looked
    attempts INTEGER NOT NULL DEFAULT 0,
    retry_at INTEGER NOT NULL DEFAULT 0          -- not to be looked at before this time
) WITHOUT ROWID;
CREATE INDEX unsettled_rooms_due ON unsettled_rooms (retry_at);

-- Where that walk begins, besides the forward extremities: what nothing may cite that counts. All else that rests on a claim
-- is found from there, so that a message in such a room is no row more.
CREATE INDEX events_claimed ON events (room_id) WHERE claimed AND (outlier OR soft_failed);

INSERT INTO unsettled_rooms (room_id) SELECT DISTINCT room_id FROM events WHERE claimed
UNION SELECT room_id FROM rejected_events WHERE provisional;
