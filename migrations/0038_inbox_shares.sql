-- Who has sent what waits for a device: a server, or a local user. Each may fill only a part of what one device's messages may take.
ALTER TABLE to_device_messages ADD COLUMN origin TEXT NOT NULL DEFAULT '';
-- As `upto`, of what this origin has sent.
ALTER TABLE to_device_messages ADD COLUMN origin_upto INTEGER NOT NULL DEFAULT 0;
CREATE INDEX to_device_messages_by_origin ON to_device_messages (user_id, device_id, origin, pos);
