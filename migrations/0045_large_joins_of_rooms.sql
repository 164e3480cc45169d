-- A user who leaves ends the joins of theirs that are under way.
CREATE INDEX large_joins_of_room ON large_joins (room_id);
