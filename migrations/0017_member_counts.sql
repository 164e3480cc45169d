-- How many members a room has by its current state: a sync tells of it with each change of a membership.
ALTER TABLE rooms ADD COLUMN joined INTEGER NOT NULL DEFAULT 0;
ALTER TABLE rooms ADD COLUMN invited INTEGER NOT NULL DEFAULT 0;

UPDATE rooms SET
  joined = (SELECT COALESCE(SUM(s.joined), 0) FROM room_servers AS s WHERE s.room_id = rooms.room_id AND s.to_pos IS NULL),
  invited = (
    WITH RECURSIVE slot(at) AS (SELECT 2 UNION ALL SELECT at + 22 FROM slot WHERE at < 332),
      tree(node_id) AS (
        SELECT rooms.state
        UNION
        SELECT substr(node, at, 22) FROM tree CROSS JOIN state_nodes USING (node_id) CROSS JOIN slot
        WHERE substr(node, 1, 1) = 'I')
    SELECT count(*) FROM tree CROSS JOIN state_nodes USING (node_id) CROSS JOIN json_each(node) AS item
      CROSS JOIN events AS e ON e.event_id = item.value
    WHERE substr(node, 1, 1) = '{' AND e.event_type = 'm.room.member' AND e.state_key GLOB '@?*:?*'
      AND e.json ->> '$.content.membership' = 'invite');
