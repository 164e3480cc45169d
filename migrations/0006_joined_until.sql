-- Up to which position a local user was joined who is so no more: what is shared with members they see up to there.
-- NULL: they are joined, or never were.
ALTER TABLE local_memberships ADD COLUMN joined_until INTEGER;
