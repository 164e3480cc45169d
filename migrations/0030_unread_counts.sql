-- How much of a room a user had not read at some position. A sync counts what is newer, and writes a row here only now and then.
CREATE TABLE unread_counts (
    user_id      TEXT    NOT NULL,
    room_id      TEXT    NOT NULL,
    receipts_pos INTEGER NOT NULL,               -- the newest of the user's receipts in the room then; 0 for none
    upto         INTEGER NOT NULL,               -- the 'events' position up to which it was counted
    counts       TEXT    NOT NULL,               -- JSON object: by thread, [notifications, highlights]
    PRIMARY KEY (user_id, room_id)
) WITHOUT ROWID;
