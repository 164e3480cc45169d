//! A destination that was away gets the newest event of each room first.
//!
//! What it lacks may be the work of days, and its users look at what is new: it fetches what comes before that itself, as far as
//! anybody wants to read it. All that it lacks follows in the order of our commits nevertheless, so that nothing rests on that.
//! Which events are the newest of their rooms is fixed by the position `catch_up_to`, so that a repeated transaction is the
//! same.

use super::{
    Store,
    events::shown_columns,
    queue::{Claim, OutgoingPdu, outgoing_pdu, pending},
};
use crate::platform::{DatabaseError, Statement};

/// Whoever lacks no more than this after an outage gets it in order: it is one transaction.
const FEW: i64 = 50;

/// For each room (and each stretch of time in which it was in it) the newest event `o` that the destination `d` lacks.
macro_rules! newest {
    () => {
        "CROSS JOIN room_servers AS s ON s.server = d.destination CROSS JOIN outbox AS o ON o.pos = ( \
           SELECT n.pos FROM outbox AS n WHERE n.room_id = s.room_id AND n.pos > MAX(s.from_pos, d.caught_up) \
             AND n.pos <= MIN(COALESCE(s.to_pos, d.catch_up_to), d.catch_up_to) \
             AND (n.exclude IS NULL OR n.exclude <> d.destination) ORDER BY n.pos DESC LIMIT 1)"
    };
}

/// ?3: how many events may be lacking without any being sent out of turn. Whoever was away again while it was catching up goes on
/// from where it was.
const START: &str = concat!(
    "UPDATE destinations AS d SET caught_up = COALESCE(caught_up, cursor), \
       catch_up_to = (SELECT position FROM streams WHERE name = 'outbox') \
     WHERE d.destination = ?1 AND d.lease_owner = ?2 AND d.txn_id IS NULL \
       AND (SELECT COUNT(*) FROM (SELECT 1 ",
    pending!(),
    " LIMIT ?3 + 1)) > ?3"
);

/// Begins a transaction of the next of the newest events, where none is in flight.
const BEGIN: &str = concat!(
    "UPDATE destinations SET txn_id = ?3, txn_ts = ?4, txn_newest = (SELECT MAX(pos) FROM ( \
       SELECT o.pos AS pos FROM destinations AS d ",
    newest!(),
    " WHERE d.destination = ?1 ORDER BY o.pos LIMIT (SELECT max_pdus FROM destinations WHERE destination = ?1))) \
     WHERE destination = ?1 AND lease_owner = ?2 AND txn_id IS NULL AND catch_up_to IS NOT NULL \
       AND EXISTS (SELECT 1 FROM destinations AS d ",
    newest!(),
    " WHERE d.destination = ?1)"
);

/// The destination will never take the transaction: it gets all in order, which finds out what it is that it refuses.
const GIVE_UP: &str = "\
    UPDATE destinations SET txn_id = NULL, txn_newest = NULL, txn_ts = NULL, catch_up_to = NULL, caught_up = NULL, \
      refusals = 0, refused_since = NULL \
    WHERE destination = ?1 AND lease_owner = ?2 AND txn_id = ?3";

const PDUS: &str = concat!(
    "SELECT ",
    shown_columns!(),
    " FROM destinations AS d ",
    newest!(),
    " CROSS JOIN events AS e ON e.event_nid = o.event_nid CROSS JOIN rooms AS r ON r.room_id = e.room_id \
     WHERE d.destination = ?1 AND d.lease_owner = ?2 AND o.pos <= d.txn_newest ORDER BY o.pos"
);

impl Store {
    /// The PDUs of the transaction in flight, which is one of newest events.
    pub(super) async fn newest_pdus(&self, claim: Claim<'_>) -> Result<Vec<OutgoingPdu>, DatabaseError> {
        let rows = self.query(Statement::new(PDUS, claim.parameters([]))).await?;
        rows.iter().map(outgoing_pdu).collect()
    }
}

impl Claim<'_> {
    /// Lets the destination, which was away, catch up, where it lacks much.
    pub(super) fn start_catching_up(&self) -> Statement {
        Statement::new(START, self.parameters([FEW.into()]))
    }

    /// Begins the next transaction of newest events, where the destination is catching up and there is one.
    pub(super) fn begin_newest(&self) -> Statement {
        Statement::new(BEGIN, self.parameters([self.new_txn_id.into(), self.now.into()]))
    }

    /// Ends the catching up, where the transaction `txn_id` will never be taken.
    pub(super) fn give_up_catching_up(&self, txn_id: &str) -> Statement {
        Statement::new(GIVE_UP, self.parameters([txn_id.into()]))
    }
}
