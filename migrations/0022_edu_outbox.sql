-- EDUs that must reach their destination, however long that is away: a row for each destination, gone once it was taken.
CREATE TABLE edu_outbox (
    destination TEXT    NOT NULL,
    pos         INTEGER NOT NULL,                -- in the stream 'edu_outbox': the order in which they are sent
    edu_type    TEXT    NOT NULL,
    about       TEXT,                            -- a later one of the same type about the same takes its place; NULL: none does
    content     TEXT    NOT NULL,
    PRIMARY KEY (destination, pos)
) WITHOUT ROWID;
INSERT INTO streams (name, position) VALUES ('edu_outbox', 0);

-- A transaction carries events or such EDUs. The last position in `edu_outbox` of the one in flight, if it carries those.
ALTER TABLE destinations ADD COLUMN txn_edus INTEGER;
-- The most EDUs that the next transaction may hold: one after a refusal, twice as many after each that is taken.
ALTER TABLE destinations ADD COLUMN max_edus INTEGER NOT NULL DEFAULT 100;
