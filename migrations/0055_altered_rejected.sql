-- Whether `json` is what is left of an altered copy, as in `events`.
ALTER TABLE rejected_events ADD COLUMN hash_wrong INTEGER NOT NULL DEFAULT 0;
