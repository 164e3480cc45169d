-- Where a local user shares rooms with more servers than are told at a time: after which room and server in a circle, a JSON list, those
-- are who hear of the user for as long as they are there; and up to which they were told, after which those are who hear when they come
-- the next time (NULL where all were told). NULL for users of other servers.
ALTER TABLE presence ADD COLUMN told_after TEXT;
ALTER TABLE presence ADD COLUMN told_until TEXT;
-- When others were last told of a local user who is there; NULL for one who is not, and for users of other servers. Those who are there
-- when this comes are told of soon.
ALTER TABLE presence ADD COLUMN told_ts INTEGER;
CREATE INDEX presence_by_told ON presence (told_ts) WHERE told_ts IS NOT NULL;
UPDATE presence SET told_ts = 0, told_after = '["",""]'
WHERE presence <> 'offline' AND EXISTS (SELECT 1 FROM users AS u WHERE u.user_id = presence.user_id);
-- Until when a user of another server who is there is taken to be, unless that server tells of them again; NULL for one who is not, and for
-- local users.
ALTER TABLE presence ADD COLUMN heard_until INTEGER;
CREATE INDEX presence_by_heard ON presence (heard_until) WHERE heard_until IS NOT NULL;
UPDATE presence SET heard_until = unixepoch() * 1000 + 1800000
WHERE presence <> 'offline' AND NOT EXISTS (SELECT 1 FROM users AS u WHERE u.user_id = presence.user_id);
