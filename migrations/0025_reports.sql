-- What local users reported, for the operator to read. The last ones are kept: each takes the place of one long before it.
CREATE TABLE reports (
    place       INTEGER PRIMARY KEY,
    number      INTEGER NOT NULL,                -- counts up; the place is what is left of it
    reporter    TEXT    NOT NULL,
    room_id     TEXT,                            -- NULL: a user was reported
    event_id    TEXT,                            -- NULL: not an event, but the room or the user
    user_id     TEXT,                            -- who was reported; of an event, its sender
    reason      TEXT    NOT NULL,
    reported_ts INTEGER NOT NULL                 -- milliseconds since the epoch
);
INSERT INTO streams (name, position) VALUES ('reports', 0);
