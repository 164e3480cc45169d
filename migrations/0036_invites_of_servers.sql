-- Whose each invite is stands in the index too: where a user has as many as they may, the servers' shares are counted.
DROP INDEX local_invites_by_user;
CREATE INDEX local_invites_by_user ON local_memberships (user_id, membership, pos, outside_from)
    WHERE outside_from IS NOT NULL;
