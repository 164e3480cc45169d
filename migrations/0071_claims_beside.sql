-- What other servers claimed of the state before events that are accepted by a claim themselves: it counts beside what follows from that, until
-- the state before the event is known for sure. `state_before` is the root of what all comes to.
CREATE TABLE claims_beside (
    room_id      TEXT NOT NULL,
    event_id     TEXT NOT NULL,
    state_before TEXT NOT NULL,
    PRIMARY KEY (room_id, event_id)
) WITHOUT ROWID;
