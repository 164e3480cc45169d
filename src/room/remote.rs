//! What other servers and we do to each other's memberships: joins, leaves and invites.
//!
//! Server-Server API, "Joining Rooms", "Inviting to a room", "Leaving Rooms (Rejecting Invites)". As the resident server
//! we judge another server's membership event and pass it on; as the joining server we take over the state that a
//! resident server vouches for, after checking all of it.

use std::{collections::BTreeMap, mem};

use super::{
    Claim, RoomError, Rooms,
    acl::{ACL, acl_of},
    believed::{Coverage, Examined},
    changes::membership,
    checks::check_version,
    judge::Source,
    outliers::{Apart, Outliers},
    view::View,
};
use crate::{
    matrix::{
        event::Event,
        identifiers::{EventId, RoomId, ServerName, UserId},
        json::{Object, Value},
        state_content::Membership,
        state_trie::{NodeId, Updated},
    },
    platform::turns::SLICE,
    store::{
        commit::{
            CommitPos, Committed, Guard, MembershipChange, Missing, NewEvent, Place, RoomCommit, StateFrom, Unsettled,
        },
        ended_joins::{JoinUnderWay, still_open},
        events::StoredEvent,
        invites::Invited,
        large_joins::{self, LargeJoin},
        memberships::{end_invite, remember_membership},
        partial_rooms,
        pending_knocks::{knocked, reject},
        rejected::NewRejected,
        rooms::Extremity,
        vouched_rooms::vouch,
    },
};

/// The most bytes that are kept of the state that comes with an invite, beside the invite itself: it goes with
/// each sync of the invited user.
const MAX_INVITE_STATE_BYTES: usize = 65_536;
/// The most bytes of the content that are kept of an event that ended an invite.
const MAX_TOLD_BYTES: usize = 4_096;

/// Another server's membership event that we as a resident server let in.
#[derive(Debug, Clone)]
pub struct Admitted {
    /// The event, signed by the room's policy server, if the room uses one.
    pub event: Event,
    /// The state before the event: what the other server is told.
    pub state_before: NodeId,
}

/// What a resident server answered to our join.
#[derive(Debug, Clone)]
pub struct RemoteJoin {
    /// Our join.
    pub join: Event,
    /// The name of the attempt.
    pub join_id: String,
    /// The state before it.
    pub claim: Claim,
}

impl RemoteJoin {
    /// The join, of which nothing is staged.
    pub(super) fn under_way(&self) -> JoinUnderWay {
        JoinUnderWay { join_id: self.join_id.clone(), is_staged: false }
    }
}

/// A room's state that a resident server vouches for, judged, and what goes with it.
#[derive(Debug)]
pub(super) struct TakenOver {
    /// The state.
    pub(super) snapshot: Updated,
    /// Events of it, and of its auth chain, that are not kept yet.
    pub(super) new: Vec<NewEvent>,
    /// Those that the rules forbid,
    pub(super) rejected: Vec<NewRejected>,
    /// and those that they forbid no more.
    pub(super) readmitted: Vec<EventId>,
    /// How many users of each server are joined.
    pub(super) joined: Vec<(ServerName, i64)>,
    /// How many users are invited.
    pub(super) invited: i64,
    /// What local users' memberships are.
    pub(super) memberships: Vec<MembershipChange>,
    /// What will complete the state, where members are left out of it, and until when whoever begins with that may take.
    pub(super) completed_by: Option<(LargeJoin, i64)>,
    /// The join that it comes from.
    pub(super) under_way: JoinUnderWay,
}

/// What became of a join that another server has let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Installed {
    /// The user is in the room.
    Done,
    /// The same, while it is not known yet who else is in it.
    InPart,
    /// The user has left meanwhile.
    GivenUp,
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
        let (event, state_before) = self.commit_one(event, &source).await?;
        Ok(Admitted { event, state_before })
    }

    /// Takes over a room from the answer to our `send_join`: every event is judged by its auth events, in order, and
    /// what the rules forbid stays out of the state. Nothing comes of it where the user has left meanwhile.
    ///
    /// # Errors
    /// [`RoomError::Invalid`] where the answer is not a room that our join could be in, [`RoomError::MissingEvents`] where
    /// somebody here came into the room meanwhile and the join cites what we do not hold, [`RoomError::Busy`].
    pub async fn install_join(&self, answer: &RemoteJoin) -> Result<Installed, RoomError> {
        let join = &answer.join;
        let claim = self.examine_answer(answer, Coverage::Whole).await?;
        let (joined, invited, memberships) = self.members_of(claim.state.iter().chain([join]));
        let Examined { outliers: Outliers { mut new, mut rejected, readmitted, .. }, mut snapshot, .. } = claim;
        if new.len() + rejected.len() > SLICE {
            // What is rejected for now is forgotten where the room is taken over.
            let (for_good, for_now) = rejected.into_iter().partition(|rejected| !rejected.provisional);
            rejected = for_now;
            let nodes = mem::take(&mut snapshot.nodes);
            let apart = Apart { new: mem::take(&mut new), rejected: for_good, nodes, ..Apart::default() };
            self.keep_apart(join.room_id(), join.version(), apart, Vec::new()).await?;
        }
        let (completed_by, under_way) = (None, answer.under_way());
        let taken =
            TakenOver { snapshot, new, rejected, readmitted, joined, invited, memberships, completed_by, under_way };
        self.take_over(join, &taken).await
    }

    /// Judges what came with our join.
    ///
    /// # Errors
    /// [`RoomError::Invalid`] where this is no room that our join could be in.
    pub(super) async fn examine_answer(&self, answer: &RemoteJoin, coverage: Coverage) -> Result<Examined, RoomError> {
        let claim = self.examine(&answer.join, &answer.claim, coverage).await?;
        match claim.rejection.as_ref().map(|rejection| &rejection.why).or(claim.forbids.as_ref()) {
            Some(why) => Err(RoomError::Invalid(format!(
                "The room state that the other server returned does not allow our join: {why}."
            ))),
            None => Ok(claim),
        }
    }

    /// Makes a room of the state that a resident server vouches for, with our join in it; nothing where the join is there
    /// already.
    pub(super) async fn take_over(&self, join: &Event, taken: &TakenOver) -> Result<Installed, RoomError> {
        let mut is_first = true;
        self.until_committed(async || {
            let mut view = View::new(&self.store, self.server_name());
            let ids = join.prev_events().iter().chain([join.event_id()]).cloned().collect();
            let held = view.load_rooms(vec![join.room_id().clone()], &[], ids, Vec::new()).await?.pop();
            if let Some(room) = &held {
                check_version(room, join)?;
            }
            if held.as_ref().is_some_and(|room| room.local_joined > 0) {
                // Another local user joined meanwhile: the join is an event like any other, if the room has not got it by then.
                let key = ("m.room.member", join.sender().as_str());
                let current = self.current(join.room_id(), &[key]).await?.map(|(_, state)| state).unwrap_or_default();
                let is_there = current.iter().any(|event| event.event_id() == join.event_id());
                if !is_there {
                    if self.store.has_join_ended(join.room_id(), &taken.under_way).await? {
                        return Ok(Committed::Done(Installed::GivenUp));
                    }
                    self.receive_own(join, None).await?;
                    // What puts the user out may wait for it.
                    self.store.wake_upon(join.room_id(), join.event_id(), self.clock.now_ms()).await?;
                }
                // The user may have left before it came in.
                let under_way = JoinUnderWay::taken(&taken.under_way.join_id);
                if self.store.has_join_ended(join.room_id(), &under_way).await? {
                    return Ok(Committed::Done(Installed::GivenUp));
                }
                return Ok(Committed::Done(Installed::Done));
            }
            // The commit of a join that has ended is lost; another one may have come first as well.
            if !mem::take(&mut is_first) && self.store.has_join_ended(join.room_id(), &taken.under_way).await? {
                return Ok(Committed::Done(Installed::GivenUp));
            }
            let before = view.add_snapshot(&taken.snapshot)?;
            let after = view.with_event(before, join).await?;
            let mut new = taken.new.clone();
            new.push(NewEvent {
                event: join.clone(),
                place: Place::Newest,
                soft_failed: false,
                // All that we know of the room rests on this state, and so this room does, unless there is more to come.
                claimed: taken.completed_by.is_some(),
                state_before: Some(before),
                state_after: Some(after),
                outbox: None,
            });
            // What was hidden or rejected because of a claim may be good: the verdict is forgotten here.
            let is_sure = |id: &&EventId| match view.rejected(id) {
                Some(rejected) => !rejected.may_be_overturned(),
                None => view.stored(id).is_some_and(StoredEvent::stands),
            };
            let missing = join.prev_events().iter().filter(|id| !is_sure(id));
            let missing: Vec<Missing> =
                missing.map(|id| Missing { event_id: id.clone(), before: CommitPos::FromEnd(0), passed: 0 }).collect();
            let unsettled = match &taken.completed_by {
                Some(_) => Some(Unsettled::Claimed),
                // The history may show now whether the state was that.
                None => missing.is_empty().then_some(Unsettled::KnownBetter),
            };
            let guard = held.as_ref().map_or(Guard::New, |room| Guard::Moves(room.version));
            let extremities_before = held.into_iter().flat_map(|room| room.extremities);
            let commit = RoomCommit {
                guard,
                extremities: vec![Extremity::of(join)],
                states: vec![StateFrom { later: 0, state: after }],
                events: new,
                nodes: view.take_made(),
                joined: taken.joined.clone(),
                invited: taken.invited,
                memberships: taken.memberships.clone(),
                rejected: taken.rejected.clone(),
                readmitted: taken.readmitted.iter().chain([join.event_id()]).cloned().collect(),
                forgets_claims: Some(extremities_before.map(|one| one.event_id).collect()),
                missing,
                joins_anew: true,
                unsettled,
                ..RoomCommit::new(join.room_id().clone(), join.version(), after)
            };
            let (mut others, installed) = match &taken.completed_by {
                Some((rest, lease_until)) => {
                    let mut others = partial_rooms::begin(join.room_id(), &rest.join_id, join.event_id()).to_vec();
                    others.push(large_joins::begin(rest, *lease_until));
                    (others, Installed::InPart)
                }
                None => (partial_rooms::forget(join.room_id(), join.event_id()).to_vec(), Installed::Done),
            };
            others.extend([vouch(join.room_id()), still_open(join.room_id(), &taken.under_way)]);
            Ok(self.store.commit(&[commit], others).await?.with(installed))
        })
        .await
    }

    /// Remembers an invite of a local user, which came from the server `inviter`. `invite_state` is the room's state as that
    /// server describes it, stripped. In a room that we are in the invite also becomes part of the room, where we hold what it
    /// cites.
    ///
    /// # Errors
    /// [`RoomError::NotAllowed`] where the user is joined already, [`RoomError::Denied`] where the ACL of a room that we are in
    /// keeps the server out, [`RoomError::TooManyInvites`], and where the database fails.
    pub async fn receive_invite(
        &self,
        inviter: &ServerName,
        invite: &Event,
        invite_state: Vec<Object>,
    ) -> Result<(), RoomError> {
        let Some(Ok(user_id)) = invite.state_key().map(UserId::parse) else {
            return Err(RoomError::Invalid("The invite's state key is not a user ID.".to_owned()));
        };
        let current = self.current_stored(invite.room_id(), &[("m.room.member", user_id.as_str()), ACL]).await?;
        if let Some((room, _)) = &current {
            check_version(room, invite)?;
        }
        if let Some((room, state)) = current
            && room.local_joined > 0
        {
            let find = |event_type: &str| state.iter().find(|stored| stored.event.event_type() == event_type);
            if !acl_of(find(ACL.0)).allows(inviter) {
                return Err(RoomError::Denied);
            }
            if membership(find("m.room.member").map(|stored| &stored.event)) == Membership::Join {
                return Err(RoomError::NotAllowed("the user is in the room already".to_owned()));
            }
            match self.receive_own(invite, Some(inviter)).await {
                Err(RoomError::MissingEvents(_)) => {}
                other => return other,
            }
        }
        let invite_state = shown_state(invite, invite_state);
        let invited = self.store.invite(inviter.as_str(), &user_id, invite, &invite_state);
        match invited.await? {
            Invited::Done => Ok(()),
            Invited::TooMany => Err(RoomError::TooManyInvites),
            Invited::IsJoined => Err(RoomError::NotAllowed("the user is in the room already".to_owned())),
        }
    }

    /// Remembers a knock of a local user on a room that we are not in, which the server `via` has let in. `knock_state` is the
    /// room's state as that server describes it, stripped. An invite that is not among `ended` has come since, and stays; what has
    /// rejected the knock since ends it.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn knocked_elsewhere(
        &self,
        knock: &Event,
        knock_state: Vec<Object>,
        via: &ServerName,
        ended: &[EventId],
    ) -> Result<(), RoomError> {
        let change = MembershipChange {
            user_id: knock.sender().clone(),
            membership: Membership::Knock,
            event_id: knock.event_id().clone(),
            invite_state: Some(shown_state(knock, knock_state)),
            via: Some(via.clone()),
            later: 0,
        };
        let mut statements = remember_membership(knock.room_id(), &change, ended);
        statements.extend(knocked(knock.room_id(), &change));
        Ok(self.store.batch(statements).await.map(|_| ())?)
    }

    /// Judges one event of a room that we are in, which came by another way than a transaction: from the server `given_by`, if it is
    /// not ours.
    ///
    /// # Errors
    /// [`RoomError::NotAllowed`] where it is not accepted, [`RoomError::MissingEvents`] where it cannot be judged,
    /// [`RoomError::UnknownRoom`], [`RoomError::Busy`].
    pub async fn receive_own(&self, event: &Event, given_by: Option<&ServerName>) -> Result<(), RoomError> {
        let brought_by = given_by.map(|server| (event.event_id().clone(), server.clone())).into_iter().collect();
        let received = self.receive_fetched(event.room_id(), std::slice::from_ref(event), &brought_by).await?;
        if !received.too_much.is_empty() {
            return Err(RoomError::NotAllowed("the server that gave it is not in the room".to_owned()));
        }
        if !received.missing.is_empty() {
            return Err(RoomError::MissingEvents(event.prev_events().to_vec()));
        }
        match self.event(event.event_id()).await? {
            Some(stored) if !stored.soft_failed => Ok(()),
            Some(_) => Err(RoomError::NotAllowed("it was soft-failed".to_owned())),
            None => match self.store.rejected(self.clock.as_ref(), std::slice::from_ref(event.event_id())).await?.pop()
            {
                Some(rejected) => Err(RoomError::NotAllowed(rejected.reason)),
                None => Err(RoomError::UnknownRoom),
            },
        }
    }

    /// Remembers that a local user left a room that we are not in, by way of another server: a rejected invite. `event` is
    /// what the user's clients are told. An invite that is not among `ended` has come since, and stays.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn left_elsewhere(
        &self,
        user_id: &UserId,
        room_id: &RoomId,
        event_id: &EventId,
        event: &Object,
        ended: &[EventId],
    ) -> Result<(), RoomError> {
        let change = MembershipChange {
            user_id: user_id.clone(),
            membership: Membership::Leave,
            event_id: event_id.clone(),
            invite_state: Some(told(event_id, event)),
            via: None,
            later: 0,
        };
        Ok(self.store.batch(remember_membership(room_id, &change, ended)).await.map(|_| ())?)
    }

    /// Remembers the event that ended the invite, or the knock, `invite` of a local user to a room that we are not in; of a knock that is
    /// still being made, for when that is done.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn invite_ended(&self, user_id: &UserId, invite: &EventId, event: &Event) -> Result<(), RoomError> {
        let change = MembershipChange {
            user_id: user_id.clone(),
            membership: membership(Some(event)),
            event_id: event.event_id().clone(),
            invite_state: Some(told(event.event_id(), event.object())),
            via: None,
            later: 0,
        };
        let mut statements = end_invite(event.room_id(), invite, &change);
        statements.push(reject(event.room_id(), invite, &change));
        Ok(self.store.batch(statements).await.map(|_| ())?)
    }

    /// How many users of each server are joined, how many are invited, and what local users' memberships are, in a whole state.
    pub(super) fn members_of<'a>(
        &self,
        state: impl Iterator<Item = &'a Event>,
    ) -> (Vec<(ServerName, i64)>, i64, Vec<MembershipChange>) {
        let mut current: BTreeMap<UserId, &Event> = BTreeMap::new();
        for event in state.filter(|event| event.event_type() == "m.room.member") {
            if let Some(Ok(user_id)) = event.state_key().map(UserId::parse) {
                current.insert(user_id, event);
            }
        }
        let mut joined: BTreeMap<ServerName, i64> = BTreeMap::new();
        let (mut invited, mut memberships) = (0, Vec::new());
        for (user_id, event) in current {
            let membership = membership(Some(event));
            invited += i64::from(membership == Membership::Invite);
            if let Ok(server) = ServerName::parse(user_id.server_name())
                && membership == Membership::Join
            {
                *joined.entry(server).or_default() += 1;
            }
            if user_id.server_name() == self.server_name().as_str() {
                memberships.push(MembershipChange {
                    user_id,
                    membership,
                    event_id: event.event_id().clone(),
                    invite_state: None,
                    via: None,
                    later: 0,
                });
            }
        }
        (joined.into_iter().collect(), invited, memberships)
    }
}

/// What is kept of the state that came with an invite, as a JSON list: the stripped events as far as they fit, the room's
/// creation before all others; and last the invite.
fn shown_state(invite: &Event, state: Vec<Object>) -> String {
    let is = |event: &Object, name: &str, value: &str| event.get(name).and_then(Value::as_str) == Some(value);
    let is_invite = |event: &Object| {
        is(event, "type", "m.room.member") && event.get("state_key").and_then(Value::as_str) == invite.state_key()
    };
    let is_create = |event: &Object| is(event, "type", "m.room.create");
    let mut left = MAX_INVITE_STATE_BYTES;
    let mut fits = |event: &Object| {
        let length = event.to_text().len();
        let fits = length <= left;
        left -= if fits { length } else { 0 };
        fits
    };
    let mut kept: Vec<bool> = state.iter().map(|event| is_create(event) && fits(event)).collect();
    for (event, kept) in state.iter().zip(&mut kept) {
        *kept = *kept || !is_create(event) && !is_invite(event) && fits(event);
    }
    let state = state.into_iter().zip(kept).filter(|(_, kept)| *kept).map(|(event, _)| Value::Object(event));
    let members = ["content", "sender", "state_key", "type"];
    let invite = members.into_iter().filter_map(|name| Some((name, invite.object().get(name)?.clone())));
    Value::Array(state.chain([Value::Object(invite.collect())]).collect()).to_text()
}

/// The one event that is kept of a room that we are not in, once the invite has ended.
fn told(event_id: &EventId, event: &Object) -> String {
    let members = ["origin_server_ts", "sender", "state_key", "type"];
    let mut told: Object = members.into_iter().filter_map(|name| Some((name, event.get(name)?.clone()))).collect();
    told.insert("event_id", event_id.as_str());
    if let Some(content) = event.get("content").and_then(Value::as_object) {
        let membership = || content.get("membership").map(|membership| ("membership", membership.clone()));
        let fits = content.to_text().len() <= MAX_TOLD_BYTES;
        told.insert("content", if fits { content.clone() } else { membership().into_iter().collect() });
    }
    Value::Array(vec![Value::Object(told)]).to_text()
}
