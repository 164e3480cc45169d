-- The local users who are joined to a room, who are else found only by reading all memberships of all users.
CREATE INDEX local_members_by_room ON local_memberships (room_id, user_id) WHERE membership = 'join';
