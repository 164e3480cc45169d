-- Whom to ask about a staged PDU, and what bounds how much is staged.

-- Further servers that have sent it, as a JSON list: of several one may be malicious, or away.
ALTER TABLE staged_pdus ADD COLUMN also TEXT NOT NULL DEFAULT '[]';
-- Whether, by our state, none of those servers was in the room: few of such PDUs may wait.
ALTER TABLE staged_pdus ADD COLUMN stranger INTEGER NOT NULL DEFAULT 0;
-- The length of `json`.
ALTER TABLE staged_pdus ADD COLUMN bytes INTEGER NOT NULL DEFAULT 0;
-- Until when the work that has it in hand may take; 0 while there is none.
ALTER TABLE staged_pdus ADD COLUMN look_until INTEGER NOT NULL DEFAULT 0;

UPDATE staged_pdus SET bytes = length(CAST(json AS BLOB)), retry_at = MAX(retry_at, received_ts);

DROP INDEX staged_pdus_by_origin;
-- Holds all that the budgets of a server are counted by.
CREATE INDEX staged_pdus_by_origin ON staged_pdus (origin, stranger, bytes);
-- The same for what strangers have staged of a room.
CREATE INDEX staged_pdus_of_strangers ON staged_pdus (room_id, bytes) WHERE stranger;
-- Which rooms are due, those first that have been so for longest.
CREATE INDEX staged_pdus_due ON staged_pdus (retry_at, room_id);
