-- Until this time a client syncs whose user is not at it, while another one has them be online by its syncs.
ALTER TABLE presence ADD COLUMN idle_until INTEGER;
