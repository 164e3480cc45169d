//! Transactions that others send us: what one begins with, and the answer that it is given again when it is repeated.

use super::{
    Answers, Store,
    edus::{self, EduQuestions, EduRooms},
    pending_joins::{joining, joining_statement},
    places::place_within,
    queue,
    rooms::{Room, room, rooms_statement},
    staging::{StagedAlready, ask_staged_already, staged_already},
};
use crate::{
    matrix::{
        identifiers::{RoomId, ServerName},
        room_version::RoomVersion,
    },
    platform::{DatabaseError, Statement},
};

/// What a transaction begins with.
#[derive(Debug, Default)]
pub struct Beginning {
    /// The answer that it got before.
    pub answer: Option<String>,
    /// Those of its rooms that we know.
    pub rooms: Vec<Room>,
    /// Those of its rooms that we are joining, with the version that each is said to have.
    pub joining: Vec<(RoomId, &'static RoomVersion)>,
    /// What bounds how much of it may be staged.
    pub staged: StagedAlready,
    /// What decides whether its EDUs count.
    pub edu_rooms: EduRooms,
    /// Whether its origin could not be reached, lacks something, and may be sent it now that it is heard from.
    pub origin_is_back: bool,
}

/// How many origins have places for their transactions' answers. Should another one take over a place too early, nothing is
/// lost but the answer: the PDUs of a transaction that is repeated are known.
const ORIGINS: i64 = 4_096;

const ANSWER: &str = "SELECT response FROM transactions WHERE place = ?1 AND origin = ?2 AND txn_id = ?3";

/// Breaks a constraint where the transaction was answered before: `response` is NOT NULL.
const RECORD: &str = "\
    INSERT INTO transactions (place, origin, txn_id, response, received_ts) VALUES (?1, ?2, ?3, ?4, ?5) \
    ON CONFLICT (place) DO UPDATE SET origin = excluded.origin, txn_id = excluded.txn_id, \
      response = CASE WHEN origin <> excluded.origin OR txn_id <> excluded.txn_id THEN excluded.response END, \
      received_ts = excluded.received_ts";

/// Records the answer to a transaction. Aborts its batch when the transaction was answered before.
pub(crate) fn record_transaction(origin: &ServerName, txn_id: &str, response: &str, now: i64) -> Statement {
    let place = place_within(origin.as_str(), txn_id, ORIGINS);
    Statement::new(RECORD, [place.into(), origin.as_str().into(), txn_id.into(), response.into(), now.into()])
}

impl Store {
    /// What transaction `txn_id` of `origin`, which came at `now` and whose PDUs are of the rooms `ids`, begins with. `edus` are
    /// what its EDUs name. That the origin is there is noted. One round trip.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn transaction(
        &self,
        own: &ServerName,
        origin: &ServerName,
        txn_id: &str,
        ids: &[RoomId],
        edus: &EduQuestions,
        now: i64,
    ) -> Result<Beginning, DatabaseError> {
        let place = place_within(origin.as_str(), txn_id, ORIGINS);
        let mut statements = vec![
            Statement::new(ANSWER, [place.into(), origin.as_str().into(), txn_id.into()]),
            rooms_statement(own, ids),
            joining_statement(ids, now),
            ask_staged_already(origin, ids),
            queue::heard_from(origin),
        ];
        statements.extend(edus::ask(own, edus));
        let mut answers = Answers::new(self.batch(statements).await?);
        let mut next = || answers.rows();
        let answer = match next()?.first() {
            Some(row) => Some(row.text(0)?.to_owned()),
            None => None,
        };
        let rooms = next()?.iter().map(room).collect::<Result<_, _>>()?;
        let joining = next()?.iter().map(joining).collect::<Result<_, _>>()?;
        let staged = staged_already(&next()?)?;
        let origin_is_back = queue::is_back(&next()?, now)?;
        Ok(Beginning { answer, rooms, joining, staged, edu_rooms: edus::facts(answers.rest())?, origin_is_back })
    }
}
