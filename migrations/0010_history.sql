-- 1: the content hash was wrong, so that `json` is the redacted event (Server-Server API, check 3 on receipt of a PDU). It
-- gives way to a copy with the right hash. Of the events that are here already nobody knows.
ALTER TABLE events ADD COLUMN hash_wrong INTEGER NOT NULL DEFAULT 0;
ALTER TABLE staged_pdus ADD COLUMN hash_wrong INTEGER NOT NULL DEFAULT 0;

-- An event of the past that could not be used (a wrong signature, keys of a server that is gone) is passed over: it stays here,
-- at the position of the event after it, though the history behind it is known; it is asked for again a few times.
ALTER TABLE gaps ADD COLUMN attempts INTEGER NOT NULL DEFAULT 0;   -- 0: the history behind it is not known. Else it was passed
                                                                   -- over, so many times.
ALTER TABLE gaps ADD COLUMN retry_at INTEGER NOT NULL DEFAULT 0;   -- of one that was passed over: not to be asked for before this
-- Of one that was not: how many events in a row were passed over on the way to it. A server could make them up without end.
ALTER TABLE gaps ADD COLUMN passed INTEGER NOT NULL DEFAULT 0;
