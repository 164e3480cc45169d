//! History that a local user pages back to: what other servers tell of a gap in the timeline is judged and put there.
//!
//! Server-Server API, "Backfilling and retrieving missing events".

use std::collections::HashSet;

use super::{
    Room, RoomError, Rooms,
    judge::{REDACTION_KEYS, key, redaction},
    remote::judge_outliers_with,
    view::View,
};
use crate::{
    matrix::{
        event::Event,
        identifiers::{EventId, RoomId},
    },
    store::commit::{Before, Committed, Missing, NewEvent, Place, Redaction, RoomCommit},
};

impl Rooms {
    /// Puts history into the gap that ends at the position `gap_pos` of the room's timeline. `events` were asked for
    /// because events after the gap cite them; what does not lead there from the gap's newer end is left out. Signatures and
    /// hashes were checked; each event is judged by its auth events. `auth_events` are those that came with them.
    ///
    /// Says whether any event has found a place.
    ///
    /// # Errors
    /// [`RoomError::MissingEvents`] where auth events are lacking, [`RoomError::UnknownRoom`], [`RoomError::Busy`].
    pub async fn fill(
        &self,
        room_id: &RoomId,
        gap_pos: i64,
        events: &[Event],
        auth_events: &[Event],
    ) -> Result<bool, RoomError> {
        self.until_committed(async || {
            let mut view = View::new(&self.store, self.server_name());
            let mut ids: Vec<EventId> = events.iter().map(|event| event.event_id().clone()).collect();
            ids.extend(events.iter().flat_map(|event| event.prev_events().iter().cloned()));
            ids.extend(events.iter().chain(auth_events).flat_map(|event| event.auth_events().iter().cloned()));
            if let Some(first) = events.first()
                && first.version().room_id_is_create_hash
            {
                ids.push(room_id.create_event_id());
            }
            let keys = REDACTION_KEYS.map(|(event_type, state_key)| key(event_type, state_key));
            let room = view.load_rooms(vec![room_id.clone()], &keys, ids, Vec::new()).await?.pop();
            let room = room.ok_or(RoomError::UnknownRoom)?;
            let power_now = view.state(room.state, &keys).await?;
            let gap = self.store.newest_gap(room_id, (gap_pos - 1, gap_pos)).await?;
            let Some(gap) = gap else { return Ok(Committed::Done(false)) };
            let mut history = connected(&gap.missing, events, |id| view.is_placed(id));
            // At the oldest end of the timeline there is room without end.
            let end = if gap.below.is_some() { gap.pos } else { gap.pos.min(0) };
            let room_left = gap.below.map_or(i64::MAX, |below| end - below - 1);
            history.truncate(usize::try_from(room_left).unwrap_or(usize::MAX));
            let (new, redactions) = self.judge_history(&view, &room, end, &history, auth_events, &power_now)?;
            let placed: HashSet<&EventId> =
                new.iter().filter(|new| new.place != Place::Outlier).map(|new| new.event.event_id()).collect();
            if placed.is_empty() {
                return Ok(Committed::Done(false));
            }
            let oldest = new.iter().filter_map(|new| match new.place {
                Place::Filled(pos) => Some(pos),
                _ => None,
            });
            let oldest = oldest.min().unwrap_or(gap.pos);
            let previous =
                history.iter().filter(|event| placed.contains(event.event_id())).flat_map(Event::prev_events);
            let lacking: HashSet<&EventId> =
                previous.filter(|id| !placed.contains(*id) && !view.is_placed(id)).collect();
            let missing =
                lacking.into_iter().map(|id| Missing { event_id: id.clone(), before: Before::Position(oldest) });
            let (missing, filled) = (missing.collect(), Some((gap.pos, oldest)));
            let commit = RoomCommit { events: new, missing, filled, redactions, ..RoomCommit::unchanged(&room) };
            Ok(self.store.commit(&[commit], Vec::new()).await?.with(true))
        })
        .await
    }

    /// Judges history, given newest first, by the auth events of each, which are here or among `auth_events`. It goes
    /// just before the position `end`. `power_now` is what decides in the current state whom a redaction may redact; what
    /// decided it then are the redaction's auth events.
    fn judge_history(
        &self,
        view: &View<'_>,
        room: &Room,
        end: i64,
        history: &[Event],
        auth_events: &[Event],
        power_now: &[Event],
    ) -> Result<(Vec<NewEvent>, Vec<Redaction>), RoomError> {
        let mut missing: Vec<EventId> = Vec::new();
        let given: HashSet<&EventId> = history.iter().chain(auth_events).map(Event::event_id).collect();
        let mut known: Vec<Event> = Vec::new();
        for event in history.iter().chain(auth_events) {
            for id in event.auth_events() {
                match view.stored(id) {
                    Some(stored) if stored.rejected.is_none() => known.push(stored.event.clone()),
                    Some(_) => {}
                    None if given.contains(id) => {}
                    None => missing.push(id.clone()),
                }
            }
        }
        if let Some(stored) = view.stored(&room.room_id.create_event_id()) {
            known.push(stored.event.clone());
        }
        if !missing.is_empty() {
            missing.sort();
            missing.dedup();
            return Err(RoomError::MissingEvents(missing));
        }
        // Known events were accepted before and are so again by the same rules, given their own auth events; those that
        // are not at hand are judged by what is stored.
        let judged = judge_outliers_with(&room.room_id, known.into_iter(), history.iter().chain(auth_events));
        let (mut new, mut redactions): (Vec<NewEvent>, Vec<Redaction>) = Default::default();
        let mut pos = end;
        for event in history {
            let Some((_, rejected)) = judged.by_id.get(event.event_id()) else { continue };
            pos -= i64::from(rejected.is_none());
            if rejected.is_none() {
                let create = room.room_id.create_event_id();
                let cited = event.auth_events().iter().chain([&create]).filter_map(|id| judged.by_id.get(id));
                let power_then: Vec<Event> = cited.map(|(event, _)| event.clone()).collect();
                redactions.extend(redaction(event, &power_then, power_now));
            }
            // The state around it may be known, as another server vouched for it.
            let stored = view.stored(event.event_id());
            new.push(NewEvent {
                event: event.clone(),
                place: if rejected.is_some() { Place::Hidden } else { Place::Filled(pos) },
                rejected: rejected.clone(),
                soft_failed: false,
                state_before: stored.and_then(|stored| stored.state_before),
                state_after: stored.and_then(|stored| stored.state_after),
                outbox: None,
            });
        }
        let history: HashSet<&EventId> = history.iter().map(Event::event_id).collect();
        new.extend(judged.new.into_iter().filter(|new| !history.contains(new.event.event_id())));
        Ok((new, redactions))
    }
}

/// Those of `events` that `missing` lead back to, newest first, not past those that have a place already.
fn connected(missing: &[EventId], events: &[Event], is_placed: impl Fn(&EventId) -> bool) -> Vec<Event> {
    let mut reached: HashSet<EventId> = missing.iter().cloned().collect();
    let mut waiting: Vec<&Event> = events.iter().filter(|event| !is_placed(event.event_id())).collect();
    let mut connected = Vec::new();
    loop {
        // Of what is reached the greatest depth comes first: depth orders honest history, and orders only the view of it.
        waiting.sort_by_key(|event| std::cmp::Reverse((event.depth(), event.origin_server_ts())));
        let Some(index) = waiting.iter().position(|event| reached.contains(event.event_id())) else {
            return connected;
        };
        let event = waiting.remove(index);
        reached.extend(event.prev_events().iter().cloned());
        connected.push(event.clone());
    }
}
