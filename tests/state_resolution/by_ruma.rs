//! State resolution by ruma. Auth chains and the conflicted state subgraph come from plain walks here, straight from the
//! definitions, and not from our code.

// The test and the bench each use a part of it.
#![allow(dead_code)]

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    rc::Rc,
};

use ruma_common::{EventId, OwnedEventId};
use ruma_state_res::{StateMap, utils::event_id_set::EventIdSet};
use verge::matrix::{event::Event, room_version::RoomVersion};

use crate::common::ruma::{RumaEvent, rules};

/// `(type, state_key)` and the event id: a whole state.
pub(crate) type PlainState = BTreeMap<(String, String), String>;

/// The events of a room as ruma takes them.
pub(crate) struct RumaRoom {
    version: &'static RoomVersion,
    events: HashMap<OwnedEventId, Rc<RumaEvent>>,
}

impl RumaRoom {
    /// `None` where ruma cannot read an event.
    pub(crate) fn new<'a>(
        version: &'static RoomVersion,
        events: impl IntoIterator<Item = (&'a Event, bool)>,
    ) -> Option<Self> {
        let mut map = HashMap::new();
        for (event, rejected) in events {
            let id = EventId::parse(event.event_id().as_str()).ok()?;
            map.insert(id, Rc::new(RumaEvent::new(event, rejected)?));
        }
        Some(Self { version, events: map })
    }

    /// The resolved state.
    pub(crate) fn resolve(&self, states: &[PlainState]) -> Result<PlainState, String> {
        let states: Vec<StateMap<OwnedEventId>> = states.iter().map(to_ruma).collect();
        let chains = self.chains(&states);
        let resolved = self.resolve_with(&states, chains, |conflicted| self.subgraph(conflicted))?;
        Ok(resolved.into_iter().map(|((t, k), id)| ((t.to_string(), k), id.to_string())).collect())
    }

    /// The resolved state, of states with their full auth chains.
    pub(crate) fn resolve_with(
        &self,
        states: &[StateMap<OwnedEventId>],
        chains: Vec<EventIdSet<OwnedEventId>>,
        subgraph: impl Fn(&StateMap<Vec<OwnedEventId>>) -> EventIdSet<OwnedEventId>,
    ) -> Result<StateMap<OwnedEventId>, String> {
        let rules = rules(self.version);
        let resolved = ruma_state_res::resolve(
            &rules.authorization,
            rules.state_res.v2_rules().unwrap(),
            states,
            chains,
            |id| self.events.get(id).cloned().map(ByRc),
            |conflicted| Some(subgraph(conflicted)),
        );
        resolved.map_err(|error| error.to_string())
    }

    /// The full auth chains of states.
    pub(crate) fn chains(&self, states: &[StateMap<OwnedEventId>]) -> Vec<EventIdSet<OwnedEventId>> {
        states.iter().map(|state| self.chain(state.values())).collect()
    }

    /// The events and their auth chains.
    pub(crate) fn chain<'a>(&'a self, events: impl Iterator<Item = &'a OwnedEventId>) -> EventIdSet<OwnedEventId> {
        let mut seen: HashSet<&OwnedEventId> = HashSet::new();
        let mut stack: Vec<&OwnedEventId> = events.collect();
        while let Some(id) = stack.pop() {
            if let Some(event) = self.events.get(id)
                && seen.insert(id)
            {
                stack.extend(event.auth_event_ids());
            }
        }
        seen.into_iter().cloned().collect()
    }

    /// The events on the paths between conflicted events: of those that a conflicted event stands on, the ones that stand
    /// on a conflicted event themselves.
    pub(crate) fn subgraph(&self, conflicted: &StateMap<Vec<OwnedEventId>>) -> EventIdSet<OwnedEventId> {
        let below = self.chain(conflicted.values().flatten());
        let mut cited_by: HashMap<&EventId, Vec<&OwnedEventId>> = HashMap::new();
        for id in below.iter() {
            for cited in self.events.get(id).map(|event| event.auth_event_ids()).unwrap_or_default() {
                cited_by.entry(cited).or_default().push(id);
            }
        }
        let mut subgraph: HashSet<&OwnedEventId> = HashSet::new();
        let mut stack: Vec<&OwnedEventId> = conflicted.values().flatten().collect();
        while let Some(id) = stack.pop() {
            if subgraph.insert(id) {
                stack.extend(cited_by.get(&**id).into_iter().flatten());
            }
        }
        subgraph.into_iter().cloned().collect()
    }
}

/// A state as ruma takes it.
pub(crate) fn to_ruma(state: &PlainState) -> StateMap<OwnedEventId> {
    state
        .iter()
        .map(|((event_type, state_key), id)| {
            ((event_type.as_str().into(), state_key.clone()), id.as_str().try_into().unwrap())
        })
        .collect()
}

/// What ruma clones: an event by reference count.
#[derive(Clone)]
pub(crate) struct ByRc(Rc<RumaEvent>);

impl ruma_state_res::Event for ByRc {
    type Id = OwnedEventId;

    fn event_id(&self) -> &Self::Id {
        self.0.event_id()
    }

    fn room_id(&self) -> Option<&ruma_common::RoomId> {
        self.0.room_id()
    }

    fn sender(&self) -> &ruma_common::UserId {
        self.0.sender()
    }

    fn origin_server_ts(&self) -> ruma_common::MilliSecondsSinceUnixEpoch {
        self.0.origin_server_ts()
    }

    fn event_type(&self) -> &ruma_events::TimelineEventType {
        self.0.event_type()
    }

    fn content(&self) -> &serde_json::value::RawValue {
        self.0.content()
    }

    fn state_key(&self) -> Option<&str> {
        self.0.state_key()
    }

    fn prev_events(&self) -> Box<dyn DoubleEndedIterator<Item = &Self::Id> + '_> {
        self.0.prev_events()
    }

    fn auth_events(&self) -> Box<dyn DoubleEndedIterator<Item = &Self::Id> + '_> {
        self.0.auth_events()
    }

    fn redacts(&self) -> Option<&Self::Id> {
        self.0.redacts()
    }

    fn rejected(&self) -> bool {
        self.0.rejected()
    }
}
