-- Knocks that users of ours are making through another server: noted before they are sent. What rejects one before its answer has
-- come is kept here until then. Times in milliseconds since the epoch.
CREATE TABLE pending_knocks (
    user_id      TEXT    NOT NULL,
    room_id      TEXT    NOT NULL,
    knock        TEXT    NOT NULL,               -- the event
    room_version TEXT    NOT NULL,               -- as the resident server says: by it received PDUs are checked
    until_ts     INTEGER NOT NULL,               -- an attempt that was cut off counts no longer
    membership   TEXT,                           -- what rejected it: 'leave' or 'ban'; NULL: nothing has
    event_id     TEXT,                           -- the event that did,
    told         TEXT,                           -- as clients are told of it: a JSON list
    PRIMARY KEY (user_id, room_id, knock)
) WITHOUT ROWID;
