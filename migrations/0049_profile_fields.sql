-- The fields of local users' profiles but for their names and pictures, which are in 'users'.
CREATE TABLE profile_fields (
    user_id TEXT NOT NULL,
    name    TEXT NOT NULL,
    value   TEXT NOT NULL,                      -- JSON
    PRIMARY KEY (user_id, name)
) WITHOUT ROWID;
