-- What a backup holds is counted in bytes, as it takes memory when it is read: it was counted in characters.
UPDATE key_backups SET length = COALESCE((
    SELECT SUM(octet_length(s.session_data) + 250) FROM key_backup_sessions AS s
    WHERE s.user_id = key_backups.user_id AND s.version = key_backups.version), 0);
