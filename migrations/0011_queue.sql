-- What a destination makes of our transactions, and what the scheduled trigger has to look after. Times in milliseconds since
-- the epoch.

-- The most PDUs that the next transaction may hold: halved where one is refused, one more after each that is taken.
ALTER TABLE destinations ADD COLUMN max_pdus INTEGER NOT NULL DEFAULT 50;
-- How often the transaction in flight was answered with 400, and when first.
ALTER TABLE destinations ADD COLUMN refusals INTEGER NOT NULL DEFAULT 0;
ALTER TABLE destinations ADD COLUMN refused_since INTEGER;
-- A transaction that ended at this outbox position was refused for good: what it refuses of that is halved at once.
ALTER TABLE destinations ADD COLUMN refused_to INTEGER;
-- Not before this time, even where the destination is heard from before `retry_at`.
ALTER TABLE destinations ADD COLUMN not_before INTEGER NOT NULL DEFAULT 0;
-- 1: it lacks something of the outbox, and the scheduled trigger must see to it from `retry_at` on.
ALTER TABLE destinations ADD COLUMN behind INTEGER NOT NULL DEFAULT 0;
CREATE INDEX destinations_behind ON destinations (retry_at) WHERE behind = 1;

-- Whoever lacks something of the outbox up to here is marked as `behind`.
INSERT INTO streams (name, position) VALUES ('outbox_swept', 0);

-- How far a walk through a table has come that looks for old rows: the key of the last row seen, as a JSON list.
CREATE TABLE walks (
    name  TEXT PRIMARY KEY,
    after TEXT NOT NULL
) WITHOUT ROWID;
