-- Which engine the data is in. No row: no move has touched this database.
CREATE TABLE engine (
    one   INTEGER PRIMARY KEY CHECK (one = 1),
    -- live; leaving, left: the source of a move; emptying, arriving, checking, whole: its target
    state TEXT    NOT NULL,
    step  INTEGER NOT NULL,             -- moved by each step, so that none is made twice
    place TEXT    NOT NULL              -- how far the move is (JSON), of its target
) STRICT;

-- What answers requests begins with DELETE FROM engine WHERE state <> 'live', which this fails with the rest of its batch.
CREATE TRIGGER engine_guard BEFORE DELETE ON engine BEGIN SELECT RAISE(ABORT, 'this database is not live'); END;
