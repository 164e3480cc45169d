-- Which state events have an event in their `auth_events`: how state resolution decides, without loading auth chains, that
-- an event is also in the auth chain of what two forks share. A row for each auth event of each state event.
CREATE TABLE citations (
    cited  TEXT NOT NULL,
    citing TEXT NOT NULL,
    key    TEXT NOT NULL,                        -- the citing event's key in a snapshot
    PRIMARY KEY (cited, citing)
) WITHOUT ROWID;
