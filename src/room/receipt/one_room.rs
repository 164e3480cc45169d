//! What becomes of the PDUs of one room among those that are received.

use super::{Lacking, OfRoom, Receipt, about};
use crate::{
    log::{LogRecord, Why},
    matrix::{event::Event, identifiers::RoomId},
    platform::Statement,
    room::{
        Room, RoomError, Rooms,
        acl::acl_in,
        checks::check_version,
        judge::{Judgement, Rejection, Source, Verdict},
        order::in_order,
        policy::ASKING_MS,
        view::View,
    },
    store::staging::{StagedPdu, stage},
};

/// What the sender of a PDU is told that can neither be judged nor wait.
const TOO_MANY_WAIT: &str = "The event cannot be judged yet, and too many events are already waiting.";

/// What the sender of a PDU is told that is not taken: see [`crate::room`]'s `strangers`.
const TOO_MUCH_KEPT: &str = "Your server is not in the room, and this server keeps no more of what it sends there.";

/// What the sender of a PDU is told that the room's server ACL keeps out.
const DENIED: &str = "The server ACL of the room denies your server access.";

impl Receipt<'_> {
    /// Judges the PDUs of a room of ours, unless its server ACL keeps out who sends them.
    pub(super) async fn judge_room(
        &mut self,
        rooms: &Rooms,
        view: &mut View<'_>,
        room: &Room,
        events: Vec<Event>,
    ) -> Result<OfRoom, RoomError> {
        let record = self.record;
        let received = &mut self.received;
        if let Some(record) = record
            && !acl_in(view, room.state).await?.allows(record.origin)
        {
            let denied = events.iter().map(|event| (event.event_id().clone(), Some(DENIED.to_owned())));
            received.results.extend(denied);
            return Ok(OfRoom::default());
        }
        let (mut lacking, mut judged) = (Vec::new(), Vec::new());
        let mut judgement = Judgement::new(room.clone());
        for event in in_order(events) {
            let id = event.event_id().clone();
            match check_version(room, &event) {
                Ok(()) => {}
                // Its version was that of the room when it was not ours yet, as another server said.
                Err(other) if record.is_some() => {
                    received.results.insert(id, Some(other.to_string()));
                    continue;
                }
                Err(other) => return Err(other),
            }
            let told = |what| about(record, LogRecord::info(what).room(&room.room_id).event(&id));
            // While a server waits for the answer to its transaction, no other is asked anything.
            let ask_until = record.map_or(self.now + ASKING_MS, |_| self.now);
            let (event, verdict, _) =
                rooms.judge_signed(&mut judgement, view, &event, &Source::Transaction, ask_until).await?;
            if matches!(verdict, Verdict::Accepted | Verdict::SoftFailed(_) | Verdict::Rejected(_)) {
                judged.push(id.clone());
            }
            let result = match verdict {
                Verdict::Accepted => {
                    received.accepted += 1;
                    None
                }
                Verdict::SoftFailed(why) => {
                    received.notable.push(told("a PDU is soft-failed").because(&Rejection::for_good(why)));
                    None
                }
                Verdict::Known(None) => None,
                Verdict::Known(Some(why)) => Some(rejected(&why)),
                Verdict::Rejected(rejection) => {
                    received.notable.push(told("a PDU is rejected").because(&rejection));
                    Some(rejected(&rejection.why))
                }
                Verdict::Unsigned(_) => {
                    lacking.push(Lacking { event, previous: Vec::new(), auth: Vec::new() });
                    None
                }
                Verdict::Missing { previous, auth } => {
                    lacking.push(Lacking { event, previous, auth });
                    None
                }
            };
            received.results.insert(id, result);
        }
        Ok(OfRoom { lacking, judged, judgement: Some(judgement) })
    }

    /// Refuses PDUs whose senders are not in the room, and have brought their share already.
    pub(super) fn refuse_what_is_too_much(&mut self, too_much: &[Event]) {
        for event in too_much {
            let told = LogRecord::info("a PDU is refused").room(event.room_id()).event(event.event_id());
            self.received.notable.push(about(self.record, told).because(&Why::stated(TOO_MUCH_KEPT)));
            self.received.results.insert(event.event_id().clone(), Some(TOO_MUCH_KEPT.to_owned()));
            self.received.too_much.push(event.event_id().clone());
        }
    }

    /// Refuses the PDUs of a room that we do not know; those of one that we are joining can be judged later.
    pub(super) fn refuse_or_stage_unknown(
        &mut self,
        room_id: &RoomId,
        is_joining: bool,
        events: Vec<Event>,
    ) -> Vec<Lacking> {
        let mut lacking = Vec::new();
        for event in events {
            let refusal = (!is_joining).then(|| RoomError::UnknownRoom.to_string());
            self.received.results.insert(event.event_id().clone(), refusal);
            if is_joining {
                lacking.push(Lacking { event, previous: Vec::new(), auth: Vec::new() });
            } else {
                let told = LogRecord::info("a PDU is refused").room(room_id).event(event.event_id());
                self.received.notable.push(about(self.record, told).because(&RoomError::UnknownRoom));
            }
        }
        lacking
    }

    /// Stages what cannot be judged yet, as far as its sender may have us keep that. What was fetched is only named.
    pub(super) fn stage_what_waits(
        &mut self,
        room_id: &RoomId,
        is_joining: bool,
        lacking: Vec<Lacking>,
    ) -> Vec<Statement> {
        let Some(record) = self.record else {
            self.received.missing.extend(lacking);
            return Vec::new();
        };
        let mut waiting = Vec::with_capacity(lacking.len());
        for Lacking { event, .. } in &lacking {
            match self.allowance.take(room_id, is_joining, event.json().len()) {
                Some(by) => {
                    waiting.push(StagedPdu { event, origin: record.origin, by, received_ts: self.now });
                }
                None => {
                    let told = LogRecord::info("a PDU is refused").room(room_id).event(event.event_id());
                    let told = about(Some(record), told).because(&Why::stated(TOO_MANY_WAIT));
                    self.received.notable.push(told);
                    self.received.results.insert(event.event_id().clone(), Some(TOO_MANY_WAIT.to_owned()));
                }
            }
        }
        if !waiting.is_empty() {
            self.received.to_look_at.push(room_id.clone());
        }
        stage(waiting.into_iter())
    }
}

fn rejected(why: &str) -> String {
    format!("The event was rejected: {why}.")
}
