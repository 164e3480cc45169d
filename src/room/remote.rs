//! What other servers and we do to each other's memberships: joins, leaves and invites.
//!
//! Server-Server API, "Joining Rooms", "Inviting to a room", "Leaving Rooms (Rejecting Invites)". As the resident server
//! we judge another server's membership event and pass it on; as the joining server we take over the state that a
//! resident server vouches for, after checking all of it.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::{RoomError, Rooms, changes::membership, judge::Source, view::View};
use crate::{
    matrix::{
        auth_rules::{self, AuthEvent},
        event::{Event, PduError},
        identifiers::{EventId, RoomId, ServerName, UserId},
        json::{Object, Value},
        room_version::RoomVersion,
        state_trie::{self, NodeId, StateKeyHash},
    },
    store::{
        commit::{Before, Committed, MembershipChange, Missing, NewEvent, Place, RoomCommit, StateFrom},
        memberships::{end_invite, remember_membership},
    },
};

/// The most bytes of the state that comes with an invite: it is kept in one row, and goes with each sync of the invited user.
/// On its way into the database it is a string in JSON, which may double it, and D1 takes 2 MB.
const MAX_INVITE_STATE_BYTES: usize = 900_000;

/// Another server's membership event that we as a resident server let in.
#[derive(Debug, Clone)]
pub struct Admitted {
    /// The state before the event: what the other server is told.
    pub state_before: NodeId,
}

/// What a resident server answered to our join. Signatures and hashes of all events were checked.
#[derive(Debug, Clone)]
pub struct RemoteJoin {
    /// Our join.
    pub join: Event,
    /// The state before it.
    pub state: Vec<Event>,
    /// The auth chain of the join and of the state.
    pub auth_chain: Vec<Event>,
}

/// Events that stand outside our graph, and which of them were rejected.
#[derive(Default)]
pub(super) struct Outliers {
    pub(super) new: Vec<NewEvent>,
    pub(super) by_id: HashMap<EventId, (Event, Option<String>)>,
}

impl Rooms {
    /// Judges a membership event that `origin` asks us, as a resident server, to let in (`send_join`, `send_leave`,
    /// `send_knock`), commits it, and has the room's other servers told of it.
    ///
    /// # Errors
    /// [`RoomError::NotAllowed`] where the room's rules forbid it, [`RoomError::MissingEvents`] where it was not made from
    /// our template, [`RoomError::UnknownRoom`], [`RoomError::Busy`].
    pub async fn admit(&self, origin: &ServerName, event: &Event) -> Result<Admitted, RoomError> {
        let source = Source::PassOn { given_by: Some(origin.clone()) };
        Ok(Admitted { state_before: self.commit_one(event, &source).await? })
    }

    /// Takes over a room from the answer to our `send_join`: every event is judged by its auth events, in order, and
    /// what the rules forbid stays out of the state.
    ///
    /// # Errors
    /// [`RoomError::Invalid`] where the answer is not a room that our join could be in, [`RoomError::MissingEvents`] where
    /// somebody here came into the room meanwhile and the join cites what we do not hold, [`RoomError::Busy`].
    pub async fn install_join(&self, answer: &RemoteJoin) -> Result<(), RoomError> {
        let join = &answer.join;
        let version = join.version();
        let known = self.held_auth_events(answer.auth_chain.iter().chain(&answer.state)).await?;
        let events = answer.auth_chain.iter().chain(&answer.state);
        let outliers = judge_outliers_with(join.room_id(), accepted(known), events);
        let state: Vec<&Event> = answer
            .state
            .iter()
            .filter(|event| outliers.by_id.get(event.event_id()).is_some_and(|(_, rejected)| rejected.is_none()))
            .collect();
        let snapshot = snapshot(&state)?;
        check_create(&state, version)?;
        let state_events: Vec<Event> = state.iter().map(|event| (*event).clone()).collect();
        let find = |id: &EventId| {
            let (event, rejected) = outliers.by_id.get(id)?;
            Some(AuthEvent { event, rejected: rejected.is_some() })
        };
        auth_rules::check_auth_event_list(join, find)
            .and_then(|()| auth_rules::check(join, &StateIndex::new(&state_events)))
            .map_err(|error| {
                RoomError::Invalid(format!("The room that was answered does not allow our join: {error}."))
            })?;
        self.until_committed(async || {
            let mut view = View::new(&self.store, self.server_name());
            let ids = join.prev_events().iter().chain([join.event_id()]).cloned().collect();
            let held = view.load_rooms(vec![join.room_id().clone()], &[], ids, Vec::new()).await?.pop();
            if held.as_ref().is_some_and(|room| room.local_joined > 0) {
                // Another local user joined meanwhile: the join is an event like any other, if the room has not got it by then.
                let key = ("m.room.member", join.sender().as_str());
                let current = self.current(join.room_id(), &[key]).await?.map(|(_, state)| state).unwrap_or_default();
                let is_there = current.iter().any(|event| event.event_id() == join.event_id());
                if !is_there {
                    self.receive_own(join).await?;
                }
                return Ok(Committed::Done(()));
            }
            for (id, text) in &snapshot.nodes {
                view.add_made(*id, text.clone())?;
            }
            let after = view.with_event(snapshot.root, join).await?;
            let mut new = outliers.new.clone();
            new.push(NewEvent {
                event: join.clone(),
                place: Place::Newest,
                rejected: None,
                soft_failed: false,
                state_before: Some(snapshot.root),
                state_after: Some(after),
                outbox: None,
            });
            let missing = join.prev_events().iter().filter(|id| !view.is_placed(id));
            let missing =
                missing.map(|id| Missing { event_id: id.clone(), before: Before::Newest(0), passed: 0 }).collect();
            let (joined, memberships) = self.members_of(state.iter().copied().chain([join]));
            let commit = RoomCommit {
                from_version: held.as_ref().map(|room| room.version),
                extremities: vec![(join.event_id().clone(), join.depth())],
                states: vec![StateFrom { later: 0, state: after }],
                events: new,
                nodes: view.take_made(),
                joined,
                memberships,
                missing,
                joins_anew: true,
                ..RoomCommit::new(join.room_id().clone(), version, after)
            };
            Ok(self.store.commit(&[commit], Vec::new()).await?)
        })
        .await
    }

    /// Remembers an invite of a local user. `invite_state` is the room's state as the inviting server describes it,
    /// stripped or whole. In a room that we are in the invite also becomes part of the room, where we hold what it cites.
    ///
    /// # Errors
    /// [`RoomError::NotAllowed`] where the user is joined already, and as the database says.
    pub async fn receive_invite(&self, invite: &Event, invite_state: Vec<Object>) -> Result<(), RoomError> {
        let Some(Ok(user_id)) = invite.state_key().map(UserId::parse) else {
            return Err(RoomError::Invalid("The invite's state key is no user ID.".to_owned()));
        };
        let current = self.current(invite.room_id(), &[("m.room.member", user_id.as_str())]).await?;
        if let Some((room, members)) = current
            && room.local_joined > 0
        {
            if membership(members.first()) == "join" {
                return Err(RoomError::NotAllowed("the user is in the room already".to_owned()));
            }
            match self.receive_own(invite).await {
                Err(RoomError::MissingEvents(_)) => {}
                other => return other,
            }
        }
        let mut state: Vec<Value> = invite_state.into_iter().map(Value::Object).collect();
        state.retain(|event| {
            let is = |name: &str, value: &str| event.get(name).and_then(Value::as_str) == Some(value);
            !(is("type", "m.room.member") && is("state_key", user_id.as_str()))
        });
        state.push(Value::Object(invite.object().clone()));
        let invite_state = Value::Array(state).to_text();
        if invite_state.len() > MAX_INVITE_STATE_BYTES {
            return Err(PduError::TooLarge("invite_room_state").into());
        }
        let change = MembershipChange {
            user_id,
            membership: "invite".to_owned(),
            event_id: invite.event_id().clone(),
            invite_state: Some(invite_state),
            later: 0,
        };
        Ok(self.store.batch(remember_membership(invite.room_id(), &change)).await.map(|_| ())?)
    }

    /// Judges one event of a room that we are in, which came by another way than a transaction.
    ///
    /// # Errors
    /// [`RoomError::NotAllowed`] where it is not accepted, [`RoomError::MissingEvents`] where it cannot be judged,
    /// [`RoomError::UnknownRoom`], [`RoomError::Busy`].
    pub async fn receive_own(&self, event: &Event) -> Result<(), RoomError> {
        let received = self.receive_fetched(event.room_id(), std::slice::from_ref(event)).await?;
        if !received.missing.is_empty() {
            return Err(RoomError::MissingEvents(event.prev_events().to_vec()));
        }
        match self.event(event.event_id()).await? {
            Some(stored) if stored.rejected.is_none() && !stored.soft_failed => Ok(()),
            Some(stored) => {
                Err(RoomError::NotAllowed(stored.rejected.unwrap_or_else(|| "it was soft-failed".to_owned())))
            }
            None => Err(RoomError::UnknownRoom),
        }
    }

    /// Remembers that a local user left a room that we are not in, by way of another server: a rejected invite. `event` is
    /// what the user's clients are told.
    ///
    /// # Errors
    /// As the database says.
    pub async fn left_elsewhere(
        &self,
        user_id: &UserId,
        room_id: &RoomId,
        event_id: &EventId,
        event: &Object,
    ) -> Result<(), RoomError> {
        let change = MembershipChange {
            user_id: user_id.clone(),
            membership: "leave".to_owned(),
            event_id: event_id.clone(),
            invite_state: Some(told(event_id, event)),
            later: 0,
        };
        Ok(self.store.batch(remember_membership(room_id, &change)).await.map(|_| ())?)
    }

    /// Remembers the event that ended the invite `invite` of a local user to a room that we are not in.
    ///
    /// # Errors
    /// As the database says.
    pub async fn invite_ended(&self, user_id: &UserId, invite: &EventId, event: &Event) -> Result<(), RoomError> {
        let change = MembershipChange {
            user_id: user_id.clone(),
            membership: membership(Some(event)).to_owned(),
            event_id: event.event_id().clone(),
            invite_state: Some(told(event.event_id(), event.object())),
            later: 0,
        };
        Ok(self.store.batch(end_invite(event.room_id(), invite, &change)).await.map(|_| ())?)
    }

    /// The auth events of `events` that did not come with them and that we hold.
    pub(super) async fn held_auth_events(
        &self,
        events: impl Iterator<Item = &Event> + Clone,
    ) -> Result<Vec<Event>, RoomError> {
        let given: HashSet<&EventId> = events.clone().map(Event::event_id).collect();
        let mut lacking: Vec<EventId> =
            events.flat_map(Event::auth_events).filter(|id| !given.contains(id)).cloned().collect();
        lacking.sort();
        lacking.dedup();
        let held = self.store.events(&lacking).await?;
        Ok(held.into_iter().filter(|stored| stored.rejected.is_none()).map(|stored| stored.event).collect())
    }

    /// How many users of each server are joined, and what local users' memberships are, in a whole state.
    fn members_of<'a>(
        &self,
        state: impl Iterator<Item = &'a Event>,
    ) -> (Vec<(ServerName, i64)>, Vec<MembershipChange>) {
        let mut current: BTreeMap<UserId, &Event> = BTreeMap::new();
        for event in state.filter(|event| event.event_type() == "m.room.member") {
            if let Some(Ok(user_id)) = event.state_key().map(UserId::parse) {
                current.insert(user_id, event);
            }
        }
        let mut joined: BTreeMap<ServerName, i64> = BTreeMap::new();
        let mut memberships = Vec::new();
        for (user_id, event) in current {
            let membership = membership(Some(event));
            if let Ok(server) = ServerName::parse(user_id.server_name())
                && membership == "join"
            {
                *joined.entry(server).or_default() += 1;
            }
            if user_id.server_name() == self.server_name().as_str() {
                memberships.push(MembershipChange {
                    user_id,
                    membership: membership.to_owned(),
                    event_id: event.event_id().clone(),
                    invite_state: None,
                    later: 0,
                });
            }
        }
        (joined.into_iter().collect(), memberships)
    }
}

/// The one event that is kept of a room that we are not in, once the invite has ended.
fn told(event_id: &EventId, event: &Object) -> String {
    let mut event = event.clone();
    event.insert("event_id", event_id.as_str());
    Value::Array(vec![Value::Object(event)]).to_text()
}

/// Events that were accepted before, for [`judge_outliers_with`].
pub(super) fn accepted(events: Vec<Event>) -> impl Iterator<Item = (Event, Option<String>)> {
    events.into_iter().map(|event| (event, None))
}

/// Judges events that come without a place in our graph, each by its auth events (check 4), auth events first. Some events,
/// `known`, were judged before; with each is why it was rejected, if it was.
pub(super) fn judge_outliers_with<'a>(
    room_id: &RoomId,
    known: impl Iterator<Item = (Event, Option<String>)>,
    events: impl Iterator<Item = &'a Event>,
) -> Outliers {
    let mut waiting: HashMap<EventId, Event> = HashMap::new();
    for event in events {
        let held = waiting.entry(event.event_id().clone()).or_insert_with(|| event.clone());
        if event.completes(held) {
            *held = event.clone();
        }
    }
    let mut outliers = Outliers { new: Vec::new(), by_id: HashMap::new() };
    for (event, rejected) in known {
        waiting.remove(event.event_id());
        outliers.by_id.insert(event.event_id().clone(), (event, rejected));
    }
    let mut order: Vec<EventId> = waiting.keys().cloned().collect();
    // No event cites the create event from room version 12 on, and all need it.
    order.sort_by_key(|id| (*id != room_id.create_event_id(), id.clone()));
    // Depth first without recursion: an event is judged after all of its auth events that came with it.
    for start in order {
        let mut stack = vec![(start, false)];
        while let Some((id, auth_events_done)) = stack.pop() {
            let Some(event) = waiting.get(&id) else { continue };
            if !auth_events_done {
                let auth_events: Vec<EventId> =
                    event.auth_events().iter().filter(|id| waiting.contains_key(*id)).cloned().collect();
                stack.push((id.clone(), true));
                // An event whose auth events lead back to itself is on the stack already and has no place to go.
                stack.extend(auth_events.into_iter().filter(|next| *next != id).map(|id| (id, false)));
                if stack.len() > 10 * waiting.len() + 10 {
                    break;
                }
                continue;
            }
            if let Some(event) = waiting.remove(&id) {
                outliers.judge(room_id, event);
            }
        }
    }
    outliers
}

impl Outliers {
    /// An event that lacks an auth event is left out: as a rejected one it would count for ever, and with it what cites it.
    fn judge(&mut self, room_id: &RoomId, event: Event) {
        if event.auth_events().iter().any(|id| !self.by_id.contains_key(id)) {
            return;
        }
        let find = |id: &EventId| {
            let (event, rejected) = self.by_id.get(id)?;
            Some(AuthEvent { event, rejected: rejected.is_some() })
        };
        let rejected = if event.room_id() != room_id {
            Some("it is of another room".to_owned())
        } else if let Some(member) = event.oversized_member() {
            Some(format!("`{member}` is too long"))
        } else {
            let mut auth_events: Vec<Event> =
                event.auth_events().iter().filter_map(|id| Some(self.by_id.get(id)?.0.clone())).collect();
            if event.version().room_id_is_create_hash
                && let Some((create, _)) = self.by_id.get(&room_id.create_event_id())
            {
                auth_events.push(create.clone());
            }
            auth_rules::check_auth_event_list(&event, find)
                .and_then(|()| auth_rules::check(&event, auth_events.as_slice()))
                .err()
                .map(|error| error.to_string())
        };
        self.new.push(NewEvent {
            event: event.clone(),
            place: Place::Outlier,
            rejected: rejected.clone(),
            soft_failed: false,
            state_before: None,
            state_after: None,
            outbox: None,
        });
        self.by_id.insert(event.event_id().clone(), (event, rejected));
    }
}

/// The snapshot of a whole state.
pub(super) fn snapshot(state: &[&Event]) -> Result<state_trie::Updated, RoomError> {
    let mut entries: HashMap<StateKeyHash, std::rc::Rc<str>> = HashMap::new();
    for event in state {
        let Some(state_key) = event.state_key() else {
            return Err(RoomError::Invalid(format!("{} in the state is no state event.", event.event_id())));
        };
        let key = StateKeyHash::new(event.event_type(), state_key);
        let id: std::rc::Rc<str> = event.event_id().as_str().into();
        if entries.insert(key, id.clone()).is_some_and(|other| other != id) {
            return Err(RoomError::Invalid(format!(
                "The state has two events for {:?}, {state_key:?}.",
                event.event_type()
            )));
        }
    }
    Ok(state_trie::build(entries))
}

/// The state of a room has a create event, of the version that we were told.
pub(super) fn check_create(state: &[&Event], version: &RoomVersion) -> Result<(), RoomError> {
    let create = state
        .iter()
        .find(|event| event.is_state("m.room.create", ""))
        .ok_or_else(|| RoomError::Invalid("The state has no valid create event.".to_owned()))?;
    let stated = create.content().get("room_version").map_or(Some("1"), Value::as_str);
    if stated != Some(version.id) {
        return Err(RoomError::Invalid(format!("The room is not of version {version}, as the resident server said.")));
    }
    Ok(())
}

/// A whole state, to look up by key.
pub(super) struct StateIndex<'a>(HashMap<(&'a str, &'a str), &'a Event>);

impl<'a> StateIndex<'a> {
    pub(super) fn new(state: &'a [Event]) -> Self {
        Self(state.iter().filter_map(|event| Some(((event.event_type(), event.state_key()?), event))).collect())
    }
}

impl auth_rules::AuthState for StateIndex<'_> {
    fn get(&self, event_type: &str, state_key: &str) -> Option<&Event> {
        self.0.get(&(event_type, state_key)).copied()
    }
}
