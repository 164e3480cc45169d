-- Room is made by forgetting what was not asked for for longest; what could not be had takes up none.
CREATE INDEX remote_media_kept_by_access ON remote_media (last_access_ts) WHERE size > 0;
