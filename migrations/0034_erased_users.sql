-- Deactivated users who wanted to be erased, with the rooms in which they ever were: what they sent there is told without its content to
-- those who were not in the room when it was sent.
CREATE TABLE erased_users (
    room_id TEXT NOT NULL,
    user_id TEXT NOT NULL,
    PRIMARY KEY (room_id, user_id)
) WITHOUT ROWID;

-- Rooms that local users have left and forgotten, so that they are found when such a user is erased.
CREATE TABLE forgotten_rooms (
    user_id TEXT NOT NULL,
    room_id TEXT NOT NULL,
    PRIMARY KEY (user_id, room_id)
) WITHOUT ROWID;

INSERT INTO forgotten_rooms (user_id, room_id)
SELECT s.user_id, s.room_id FROM server_members AS s CROSS JOIN users AS u ON u.user_id = s.user_id
WHERE NOT EXISTS (SELECT 1 FROM local_memberships AS m WHERE m.room_id = s.room_id AND m.user_id = s.user_id);
