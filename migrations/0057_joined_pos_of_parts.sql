-- Of rooms that were joined in part, `joined_pos` had gone on to where their members became known.
UPDATE rooms SET joined_pos = (SELECT e.pos FROM partial_rooms AS p CROSS JOIN events AS e ON e.event_id = p.event_id WHERE p.room_id = rooms.room_id)
WHERE room_id IN (SELECT p.room_id FROM partial_rooms AS p CROSS JOIN events AS e ON e.event_id = p.event_id WHERE e.pos IS NOT NULL);
