-- Where a local user shares rooms with more servers than are told at a time: after which room and server in a circle, a JSON list, those
-- are who hear of the user for as long as they are there; and up to which they were told, after which those are who hear when they come
-- the next time (NULL where all were told). NULL for users of other servers.
ALTER TABLE presence ADD COLUMN told_after TEXT;
ALTER TABLE presence ADD COLUMN told_until TEXT;
