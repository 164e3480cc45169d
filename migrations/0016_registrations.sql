-- Registrations that have shown the registration token and wait for their second stage, by the ID of their session.
CREATE TABLE registrations (
    session  TEXT    PRIMARY KEY,
    until_ts INTEGER NOT NULL                    -- good for nothing from then on; milliseconds since the epoch
) WITHOUT ROWID;
