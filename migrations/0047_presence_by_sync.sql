-- Whoever is there because a client of theirs syncs is so until this time, unless it does again; NULL where a client has said so itself.
ALTER TABLE presence ADD COLUMN synced_until INTEGER;
CREATE INDEX presence_by_sync ON presence (synced_until) WHERE synced_until IS NOT NULL;
