-- What other servers published of their keys, word for word, to be passed on with our signature as their notary. Strangers
-- can have us ask any server, so the table has a fixed number of places: a name has one, and takes it from whoever had it.
CREATE TABLE key_responses (
    slot           INTEGER PRIMARY KEY,          -- a hash of the server's name
    server         TEXT    NOT NULL,
    response       TEXT    NOT NULL,             -- canonical JSON
    valid_until_ts INTEGER NOT NULL,             -- capped to 7 days after it was fetched; milliseconds since the epoch
    fetched_ts     INTEGER NOT NULL
);
