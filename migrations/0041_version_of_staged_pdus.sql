-- The version of the room by which a staged PDU was checked: while we were joining, another server said it. NULL: staged before this was
-- noted.
ALTER TABLE staged_pdus ADD COLUMN room_version TEXT;
