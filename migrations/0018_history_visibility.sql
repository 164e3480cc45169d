-- Rooms whose history some m.room.history_visibility event that we hold keeps from those who came later (`invited`, `joined`),
-- wherever that event stands. Of all other rooms whoever is in the room may see every event, and nothing more is read to tell.
CREATE TABLE restricted_history (
    room_id TEXT PRIMARY KEY
) WITHOUT ROWID;

INSERT INTO restricted_history (room_id)
SELECT DISTINCT e.room_id FROM events AS e WHERE e.event_type = 'm.room.history_visibility'
    AND json_extract(e.json, '$.content.history_visibility') IN ('invited', 'joined');

-- The users of each server by whose membership it may see an event: all who were ever invited or joined by an event that we
-- hold. Whether one of them was in the room at an event is for the state at that event to tell; this says whom to look for there.
CREATE TABLE server_members (
    room_id TEXT    NOT NULL,
    server  TEXT    NOT NULL,
    user_id TEXT    NOT NULL,
    depth   INTEGER NOT NULL,                    -- the least depth of such an event: what is less deep came before it
    PRIMARY KEY (room_id, server, user_id)
) WITHOUT ROWID;

INSERT INTO server_members (room_id, server, user_id, depth)
SELECT e.room_id, substr(e.state_key, instr(e.state_key, ':') + 1), e.state_key, MIN(e.depth)
FROM events AS e WHERE e.event_type = 'm.room.member' AND instr(e.state_key, ':') > 0
    AND json_extract(e.json, '$.content.membership') IN ('invite', 'join')
GROUP BY e.room_id, e.state_key;
