//! Receiving PDUs and EDUs of which the database refuses some, as they are more than it can store: those alone are lost.

use super::{
    RoomError, Rooms,
    order::{by_room, in_order},
    receipt::{Received, Record, Transaction, about, answer},
};
use crate::{
    log::LogRecord,
    matrix::{
        event::Event,
        identifiers::{EventId, RoomId},
    },
    platform::{DatabaseError, Statement},
    store::{commit::Committed, transactions::record_transaction},
};

/// How many EDUs of a transaction are looked for by themselves that cannot be stored; after that whole parts are given up.
const MAX_LOST_EDUS: usize = 10;

impl Rooms {
    /// Receives a transaction of which something cannot be stored: that gets an answer of its own, and all else its due. The
    /// answer is recorded when all are received; until then a repetition begins again, which does no harm.
    pub(super) async fn receive_in_parts(
        &self,
        record: Record<'_>,
        events: &[Event],
        refused: &[(EventId, String)],
    ) -> Result<Received, RoomError> {
        let part = Record { is_part: true, ..record };
        let receive = async |events: &[Event]| {
            let ids: Vec<RoomId> = by_room(events).into_iter().map(|(room_id, _)| room_id).collect();
            match self.begin_again(record, &ids).await?.transaction {
                Transaction::Answered(answer) => Ok(Received { answer, ..Received::default() }),
                Transaction::New(rooms) => self.receive_whole(part, rooms, events, &[]).await,
            }
        };
        let mut received = self.part_by_part(events, receive).await?;
        received.results.extend(refused.iter().map(|(id, why)| (id.clone(), Some(why.clone()))));
        received.answer = answer(&received.results);
        let before = match self.record(record, &received.answer, record.edus.all()).await {
            Err(RoomError::Database(DatabaseError::Refused(_))) => {
                self.edus_part_by_part(record).await?;
                match self.record(record, &received.answer, Vec::new()).await {
                    Err(RoomError::Database(DatabaseError::Refused(_))) => None,
                    recorded => recorded?,
                }
            }
            recorded => recorded?,
        };
        received.answer = before.unwrap_or(received.answer);
        Ok(received)
    }

    /// Records the answer to a transaction with what else belongs into the batch; or returns the answer that it got before.
    async fn record(
        &self,
        record: Record<'_>,
        answer: &str,
        also: Vec<Statement>,
    ) -> Result<Option<String>, RoomError> {
        self.until_committed(async || match self.begin_again(record, &[]).await?.transaction {
            Transaction::Answered(answer) => Ok(Committed::Done(Some(answer))),
            Transaction::New(_) => {
                let now = self.clock.now_ms();
                let mut others = vec![record_transaction(record.origin, record.txn_id, answer, now)];
                others.extend(also.iter().cloned());
                Ok(self.store.commit(&[], others).await?.with(None))
            }
        })
        .await
    }

    /// Takes the EDUs of a transaction of which some cannot be stored, in halves of halves, so that only those are lost. A
    /// repetition of the transaction takes them again, which does no harm.
    async fn edus_part_by_part(&self, record: Record<'_>) -> Result<(), RoomError> {
        let whole = 0..record.edus.count();
        let (mut parts, mut lost) = (Vec::from_iter([whole]), 0);
        while let Some(part) = parts.pop() {
            if part.is_empty() {
                continue;
            }
            let statements = record.edus.statements(part.clone());
            let taken = self.until_committed(async || Ok(self.store.commit(&[], statements.clone()).await?.with(())));
            match taken.await {
                Ok(()) => {}
                Err(RoomError::Database(DatabaseError::Refused(why))) if part.len() == 1 || lost >= MAX_LOST_EDUS => {
                    lost += part.len();
                    let told = LogRecord::warning("an EDU cannot be stored").count(part.len());
                    self.log.write(about(Some(record), told).because(&DatabaseError::Refused(why)));
                }
                Err(RoomError::Database(DatabaseError::Refused(_))) => {
                    let middle = part.start + part.len() / 2;
                    parts.extend([middle..part.end, part.start..middle]);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Receives events of which some cannot be stored, in halves of halves, so that only those are refused.
    pub(super) async fn part_by_part(
        &self,
        events: &[Event],
        receive: impl AsyncFn(&[Event]) -> Result<Received, RoomError>,
    ) -> Result<Received, RoomError> {
        let mut all = Received::default();
        let mut parts = vec![in_order(events.to_vec())];
        while let Some(mut part) = parts.pop() {
            match receive(&part).await {
                Ok(received) => {
                    all.to_look_at.extend(received.to_look_at);
                    all.accepted += received.accepted;
                    all.results.extend(received.results);
                    all.missing.extend(received.missing);
                    all.too_much.extend(received.too_much);
                }
                Err(RoomError::Database(DatabaseError::Refused(why))) => {
                    let rest = part.split_off(part.len() / 2);
                    if !part.is_empty() {
                        parts.extend([rest, part]);
                        continue;
                    }
                    let error = DatabaseError::Refused(why);
                    let Some(event) = rest.first() else { return Err(error.into()) };
                    let record = LogRecord::warning("a PDU cannot be stored").room(event.room_id());
                    self.log.write(record.event(event.event_id()).because(&error));
                    all.results.insert(
                        event.event_id().clone(),
                        Some("The event is more than this server can store.".to_owned()),
                    );
                }
                Err(error) => return Err(error),
            }
        }
        all.to_look_at.sort();
        all.to_look_at.dedup();
        Ok(all)
    }
}
