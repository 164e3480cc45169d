//! What is told of events that others relate to, in `unsigned.m.relations` (Client-Server API, "Aggregations of child events").
//!
//! What relates to events is asked for with the state that decides who may see them, in one call. Only where something does, one more
//! tells whether the reader may see that, too, and one more what relates to the newest events of threads in a room that restricts
//! its history.

use std::collections::HashMap;

use super::{
    auth::Session,
    events::{self, Telling},
    visibility::{self, Reader},
};
use crate::{
    error::MatrixError,
    matrix::{
        json::{Object, Value},
        relation::{REFERENCE, REPLACE, THREAD},
        state_trie::NodeId,
    },
    server::Server,
    store::{
        bundles::{BundlesFound, Newest, Parent},
        positions::TimelinePos,
        snapshots::{StateFound, StateReads},
        timeline::TimelineEvent,
    },
};

/// By event ID, what is told of the events that relate to it.
#[derive(Debug, Default)]
pub(super) struct Bundles(HashMap<String, Object>);

/// Events of a room that are shown to a reader of it.
pub(super) type Shown<'a> = (&'a Reader, &'a [TimelineEvent]);

impl Bundles {
    /// Reads what is wanted of snapshots, and what relates to the events that are shown.
    ///
    /// # Errors
    /// Where the database fails.
    pub(super) async fn read(
        server: &Server,
        session: &Session,
        reads: &StateReads,
        shown: &[Shown<'_>],
    ) -> Result<(StateFound, Self), MatrixError> {
        let parents = shown.iter().flat_map(|(reader, events)| {
            events.iter().filter_map(|event| Parent::of(&reader.room_id, event, reader.last))
        });
        let parents: Vec<Parent<'_>> = parents.collect();
        let store = &server.store;
        let (states, related) = store.read_states_and_bundles(reads, &parents, session.reader()).await?;
        if related.is_empty() {
            return Ok((states, Self::default()));
        }
        let readers: HashMap<&str, &Reader> =
            shown.iter().map(|(reader, _)| (reader.room_id.as_str(), *reader)).collect();
        let readers = Readers(readers);
        // What relates to the newest events of threads is told with them.
        let newest = related.newest.iter().filter(|newest| newest.in_thread);
        let within = newest.filter_map(|newest| {
            let last = readers.of(newest.room_id.as_str())?.last;
            Parent::of(&newest.room_id, &newest.event, last)
        });
        let within: Vec<Parent<'_>> = within.collect();
        let (found, related_within) =
            store.read_states_and_bundles(&readers.wants(&related), &within, session.reader()).await?;
        let found_within = store.read_states(&readers.wants(&related_within)).await?;
        let now_ms = server.platform.clock.now_ms();
        let inner = Told { readers: &readers, found: &found_within, within: &Self::default(), now_ms };
        let within = inner.all(&related_within, session, &[]);
        let outer = Told { readers: &readers, found: &found, within: &within, now_ms };
        Ok((states, outer.all(&related, session, shown)))
    }

    /// An event of the timeline in the client format, with what is told of those that relate to it. What [`Reader::telling`]
    /// needs must have been read.
    pub(super) fn timeline_event(
        &self,
        reader: &Reader,
        event: &TimelineEvent,
        found: &StateFound,
        now_ms: i64,
    ) -> Value {
        events::timeline_event(event, Telling { relations: self.of(event), ..reader.telling(event, found, now_ms) })
    }

    /// What is told of the events that relate to this one.
    pub(super) fn of(&self, event: &TimelineEvent) -> Option<&Object> {
        self.0.get(event.seen.event.event_id().as_str())
    }
}

/// Who reads, by room.
struct Readers<'a>(HashMap<&'a str, &'a Reader>);

impl Readers<'_> {
    fn of(&self, room_id: &str) -> Option<&Reader> {
        self.0.get(room_id).copied()
    }

    /// The reader, where they see all that is sent in the room.
    fn sees_all(&self, room_id: &str, related: &BundlesFound) -> bool {
        !related.restricted.contains(room_id) && self.of(room_id).is_some_and(Reader::shares_all)
    }

    /// What must be read to judge what relates to events.
    fn wants(&self, related: &BundlesFound) -> StateReads {
        let mut reads = StateReads::default();
        for newest in &related.newest {
            if let Some(reader) = self.of(newest.room_id.as_str()) {
                reader.wants(std::slice::from_ref(&newest.event), &mut reads);
                visibility::wants_replaced(std::slice::from_ref(&newest.event), &mut reads);
            }
        }
        let counts = related.counts.iter().map(|of| (&of.room_id, of.state_before));
        let references = related.references.iter().map(|of| (&of.room_id, of.state_before));
        for (room_id, state_before) in counts.chain(references) {
            if let Some(reader) = self.of(room_id).filter(|_| !self.sees_all(room_id, related)) {
                reader.wants_states([state_before].into_iter(), &mut reads);
            }
        }
        reads.at.sort_unstable();
        reads.at.dedup();
        reads
    }
}

/// What is told, and with what.
struct Told<'a> {
    readers: &'a Readers<'a>,
    found: &'a StateFound,
    within: &'a Bundles,
    now_ms: i64,
}

impl Told<'_> {
    fn all(&self, related: &BundlesFound, session: &Session, shown: &[Shown<'_>]) -> Bundles {
        let mut bundles: HashMap<String, Object> = HashMap::new();
        let mut tell = |parent: &str, kind: &str, what: Object| {
            bundles.entry(parent.to_owned()).or_default().insert(kind, what);
        };
        let senders = shown.iter().flat_map(|(_, events)| *events);
        let own = senders.filter(|event| *event.seen.event.sender() == session.user);
        let own: Vec<&str> = own.map(|event| event.seen.event.event_id().as_str()).collect();
        for newest in &related.newest {
            let Some(event) = self.event(newest) else { continue };
            if !newest.in_thread {
                tell(&newest.parent, REPLACE, event);
                continue;
            }
            let counts = related.counts.iter().filter(|count| count.root == newest.parent);
            let (mut count, mut participated) = (0, own.contains(&newest.parent.as_str()));
            for part in counts {
                participated |= part.participated;
                if self.sees(&part.room_id, part.state_before, part.last, related) {
                    count += part.count;
                }
            }
            let thread = Object::from_iter([
                ("latest_event", Value::Object(event)),
                ("count", Value::from(count)),
                ("current_user_participated", Value::from(participated)),
            ]);
            tell(&newest.parent, THREAD, thread);
        }
        let mut references: HashMap<&str, Vec<Value>> = HashMap::new();
        for reference in &related.references {
            if self.sees(&reference.room_id, reference.state_before, reference.pos, related) {
                let event = Object::from_iter([("event_id", Value::from(reference.event_id.as_str()))]);
                references.entry(&reference.parent).or_default().push(Value::Object(event));
            }
        }
        for (parent, chunk) in references {
            tell(parent, REFERENCE, Object::from_iter([("chunk", Value::Array(chunk))]));
        }
        Bundles(bundles)
    }

    /// The event as the reader is told of it, if they may see it.
    fn event(&self, newest: &Newest) -> Option<Object> {
        let reader = self.readers.of(newest.room_id.as_str())?;
        if !reader.sees(&newest.event, self.found) {
            return None;
        }
        self.within.timeline_event(reader, &newest.event, self.found, self.now_ms).into_object()
    }

    fn sees(&self, room_id: &str, state_before: Option<NodeId>, pos: TimelinePos, related: &BundlesFound) -> bool {
        self.readers.sees_all(room_id, related)
            || self.readers.of(room_id).is_some_and(|reader| reader.sees_at(state_before, pos, self.found))
    }
}
