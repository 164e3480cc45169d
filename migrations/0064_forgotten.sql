-- When the user forgot the room, in milliseconds since the epoch; NULL: they did not. The row stays for a while, for those of their
-- devices that have not heard yet that they left; for all else it is as if it were not there.
ALTER TABLE local_memberships ADD COLUMN forgotten_ts INTEGER;
