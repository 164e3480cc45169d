-- The published room directory lists the rooms with the most members first.
ALTER TABLE published_rooms ADD COLUMN joined INTEGER NOT NULL DEFAULT 0; -- how many users of all servers are joined
UPDATE published_rooms SET joined = COALESCE(
  (SELECT SUM(s.joined) FROM room_servers AS s WHERE s.room_id = published_rooms.room_id AND s.to_pos IS NULL), 0);
CREATE INDEX published_rooms_by_joined ON published_rooms (joined, room_id);
