-- Of an invite to a room, or a knock on one, that we need not be in: the version of the room as who sent the invite, or let the knock in,
-- says. By it the event that ends it is read. NULL: what came with it may say so.
ALTER TABLE local_memberships ADD COLUMN room_version TEXT;
