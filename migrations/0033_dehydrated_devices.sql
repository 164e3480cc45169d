-- The dehydrated device of a user (MSC3814), which takes messages to devices for the next one that logs in. It has a row in `devices`,
-- whose access token nobody has.
CREATE TABLE dehydrated_devices (
    user_id     TEXT PRIMARY KEY,
    device_id   TEXT NOT NULL,
    device_data TEXT NOT NULL                    -- JSON object, encrypted by the client
) WITHOUT ROWID;
