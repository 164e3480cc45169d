-- Of a knock on a room that we are not in: the server through which it was made, which can take it back.
ALTER TABLE local_memberships ADD COLUMN via TEXT;
