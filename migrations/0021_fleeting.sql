-- What users of a room see of each other besides events. Each table has a stream of positions, by which sync finds what is new.

-- Who was typing. A row stays for a while after they have ceased, so that syncs can tell that they have.
CREATE TABLE typing (
    room_id  TEXT    NOT NULL,
    user_id  TEXT    NOT NULL,
    until_ts INTEGER NOT NULL,                   -- typing before this time, in milliseconds since the epoch
    pos      INTEGER NOT NULL,                   -- in the stream 'typing': when they began, or were said to have ceased
    PRIMARY KEY (room_id, user_id)
) WITHOUT ROWID;
CREATE INDEX typing_by_pos ON typing (pos);

-- Up to where users have read, the newest of each kind.
CREATE TABLE receipts (
    room_id      TEXT    NOT NULL,
    user_id      TEXT    NOT NULL,
    receipt_type TEXT    NOT NULL,               -- 'm.read' or 'm.read.private'
    thread_id    TEXT    NOT NULL,               -- '': of no thread
    event_id     TEXT    NOT NULL,
    ts           INTEGER NOT NULL,
    pos          INTEGER NOT NULL,               -- in the stream 'receipts'
    PRIMARY KEY (room_id, user_id, receipt_type, thread_id)
) WITHOUT ROWID;
CREATE INDEX receipts_by_pos ON receipts (pos);

-- Who is there, of local users and of those who share a room with one.
CREATE TABLE presence (
    user_id          TEXT    PRIMARY KEY,
    presence         TEXT    NOT NULL,
    status_msg       TEXT,
    last_active_ts   INTEGER NOT NULL,           -- in milliseconds since the epoch
    currently_active INTEGER NOT NULL,
    rooms            TEXT    NOT NULL,           -- JSON list: rooms that they were in then; who is in one of them may see it
    pos              INTEGER NOT NULL            -- in the stream 'presence'
) WITHOUT ROWID;
CREATE INDEX presence_by_pos ON presence (pos);

INSERT INTO streams (name, position) VALUES ('typing', 0), ('receipts', 0), ('presence', 0);
