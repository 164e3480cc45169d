//! Taking over a room that is too large to be judged at once: the claimed events, which are staged, are judged in batches, then
//! kept, and at last made the room's state. Each step may be cut off and is then repeated; until the last one, nothing that
//! reads rooms sees any of it.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    rc::Rc,
};

use super::{
    RoomError, Rooms,
    believed::check_create,
    checks::auth_keys,
    order::CitedFirst,
    outliers::{Apart, Held, Outlier, judge_outliers},
    remote::{Installed, TakenOver},
};
use crate::{
    log::LogRecord,
    matrix::{
        auth_rules,
        event::Event,
        identifiers::{EventId, ServerName},
        state_content::Membership,
        state_trie::{self, StateKeyHash, Updated},
    },
    platform::{
        Budget, Clock,
        turns::{LIGHT_SLICE, turn},
    },
    store::{
        commit::{MembershipChange, NewEvent},
        ended_joins::JoinUnderWay,
        large_joins::{ClaimVerdict, LargeJoin, Outline, kept_to},
        rejected::{NewRejected, RejectedEvent},
    },
};

/// How many events are judged, or kept, in one step, and how long they may be together, in characters, with what they cite.
const STEP: usize = 1_000;
const STEP_LENGTH: usize = 3_000_000;

/// How long a join belongs to whoever works on it, in milliseconds, unless they renew that: a user who asks again after it was cut
/// off waits as long.
pub const LEASE_MS: i64 = 20_000;

/// How far a join has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Progress {
    /// The room is taken over.
    Done,
    /// There is more to do, and no calls to the database are left to do it.
    Unfinished,
    /// The user has left meanwhile, and nothing comes of it.
    GivenUp,
}

impl Rooms {
    /// Goes on with a join whose answer is staged: judges what is not judged, and takes the room over.
    ///
    /// # Errors
    /// As [`Rooms::install_join`].
    pub async fn go_on_joining(&self, large: &LargeJoin, budget: &Budget) -> Result<Progress, RoomError> {
        if large.kept_to.is_empty() {
            if self.judge_all(large, budget).await? == Progress::Unfinished {
                return Ok(Progress::Unfinished);
            }
            self.check_join(large).await?;
            // What is no state is found before any of it is kept.
            self.whole_state(large).await?;
        }
        if self.keep_all(large, budget).await? == Progress::Unfinished || budget.is_spent() {
            return Ok(Progress::Unfinished);
        }
        let WholeState { entries, joined, invited, memberships } = self.whole_state(large).await?;
        if large.completes {
            self.check_against_answer(large, &entries).await?;
        }
        let Updated { root, nodes } = state_trie::build(entries);
        self.keep_apart(large.room_id(), large.join.version(), Apart { nodes, ..Apart::default() }, Vec::new()).await?;
        let snapshot = Updated { root, nodes: Vec::new() };
        let (new, rejected, readmitted) = Default::default();
        let completed_by = None;
        let under_way = JoinUnderWay::staged(&large.join_id);
        let whole =
            TakenOver { snapshot, new, rejected, readmitted, joined, invited, memberships, completed_by, under_way };
        if large.completes {
            self.make_whole(large, &whole, budget).await?;
            return Ok(Progress::Done);
        }
        Ok(match self.take_over(&large.join, &whole).await? {
            Installed::GivenUp => Progress::GivenUp,
            Installed::Done | Installed::InPart => Progress::Done,
        })
    }

    /// Judges all claimed events by their auth events, those first that others cite.
    async fn judge_all(&self, large: &LargeJoin, budget: &Budget) -> Result<Progress, RoomError> {
        let clock = self.clock.as_ref();
        let outlines = self.store.claimed_outlines(clock, &large.join_id).await?;
        let order = order(clock, &outlines, &large.room_id().create_event_id()).await;
        let is_known = self.room(large.room_id()).await?.is_some();
        let mut done = outlines.iter().filter(|outline| outline.verdict != ClaimVerdict::Open).count();
        for step in &steps(clock, &outlines, order).await {
            if budget.is_spent() {
                return Ok(Progress::Unfinished);
            }
            let verdicts = self.judge_step(large, step, is_known).await?;
            self.store.judge_claimed(&large.join_id, &verdicts).await?;
            done += step.len();
            self.log.write(LogRecord::info("events of a large room are judged").room(large.room_id()).count(done));
        }
        Ok(Progress::Done)
    }

    async fn judge_step(
        &self,
        large: &LargeJoin,
        step: &[&Outline],
        is_known: bool,
    ) -> Result<Vec<(EventId, ClaimVerdict)>, RoomError> {
        let (room_id, clock) = (large.room_id(), self.clock.as_ref());
        let wanted: HashSet<&EventId> = step.iter().map(|outline| &outline.event_id).collect();
        let mut ids: HashSet<EventId> = wanted.iter().map(|id| (*id).clone()).collect();
        ids.extend(step.iter().flat_map(|outline| outline.auth_events.iter().cloned()));
        ids.insert(room_id.create_event_id());
        let read = self.store.claimed_events(clock, large, &ids.into_iter().collect::<Vec<_>>()).await?;
        let (mut given, mut held) = (Vec::new(), Held::default());
        for (event, verdict) in read {
            match verdict {
                _ if wanted.contains(event.event_id()) => given.push(event),
                ClaimVerdict::Allowed => held.events.push(event),
                ClaimVerdict::Rejected(reason) => held.rejected.push(rejected(&event, reason)),
                ClaimVerdict::Open | ClaimVerdict::LeftOut => {}
            }
        }
        if is_known {
            // We were in the room before.
            let known = self.held_of(given.iter()).await?;
            held.events.extend(known.events);
            held.rejected.extend(known.rejected);
        }
        let outliers = judge_outliers(clock, room_id, held, given.iter()).await;
        let reasons: HashMap<&EventId, &NewRejected> =
            outliers.rejected.iter().map(|rejected| (rejected.event.event_id(), rejected)).collect();
        let verdict = |id: &EventId| match (outliers.by_id.get(id), reasons.get(id)) {
            (Some(Outlier::Accepted(_)), _) => ClaimVerdict::Allowed,
            (Some(Outlier::Rejected { .. }), Some(rejected)) if !rejected.provisional => {
                ClaimVerdict::Rejected(rejected.reason.clone())
            }
            _ => ClaimVerdict::LeftOut,
        };
        Ok(step.iter().map(|outline| (outline.event_id.clone(), verdict(&outline.event_id))).collect())
    }

    /// Whether what was answered is a room of the right version, which our join can be in.
    async fn check_join(&self, large: &LargeJoin) -> Result<(), RoomError> {
        let join = &large.join;
        let mut keys: Vec<StateKeyHash> =
            auth_keys(join).iter().map(|(event_type, state_key)| StateKeyHash::new(event_type, state_key)).collect();
        keys.push(StateKeyHash::new("m.room.create", ""));
        let state = self.store.claimed_state(large, &keys).await?;
        check_create(&state, join.version())?;
        let mut ids = join.auth_events().to_vec();
        ids.push(join.room_id().create_event_id());
        let clock = self.clock.as_ref();
        let cited = self.store.claimed_events(clock, large, &ids).await?.into_iter();
        let cited = cited.filter(|(_, verdict)| *verdict == ClaimVerdict::Allowed).map(|(event, _)| event);
        let held = Held { events: cited.collect(), rejected: Vec::new() };
        let by_auth_events = judge_outliers(clock, join.room_id(), held, std::iter::empty()).await.broken_rule(join);
        let by_state = || auth_rules::check(join, state.as_slice()).err().map(|error| error.to_string());
        match by_auth_events.map(|rejection| rejection.why).or_else(by_state) {
            Some(why) => Err(RoomError::Invalid(format!(
                "The room state that the other server returned does not allow our join: {why}."
            ))),
            None => Ok(()),
        }
    }

    /// Keeps what was judged among the events that we know, none of which is part of a room yet.
    async fn keep_all(&self, large: &LargeJoin, budget: &Budget) -> Result<Progress, RoomError> {
        let mut after = large.kept_to.clone();
        let mut kept = 0;
        loop {
            if budget.is_spent() {
                return Ok(Progress::Unfinished);
            }
            let step = self.store.next_claimed(self.clock.as_ref(), large, &after, STEP, STEP_LENGTH).await?;
            let Some((last, _)) = step.last() else { return Ok(Progress::Done) };
            let last = last.event_id().clone();
            let mut apart = Apart::default();
            kept += step.len();
            for (event, verdict) in step {
                match verdict {
                    ClaimVerdict::Allowed => {
                        apart.readmitted.push(event.event_id().clone());
                        apart.new.push(NewEvent::outlier(event));
                    }
                    ClaimVerdict::Rejected(reason) => apart.rejected.push(NewRejected {
                        event,
                        reason,
                        state_before: None,
                        claimed: false,
                        provisional: false,
                    }),
                    ClaimVerdict::Open | ClaimVerdict::LeftOut => {}
                }
            }
            let note = kept_to(&large.join_id, &last);
            self.keep_apart(large.room_id(), large.join.version(), apart, vec![note]).await?;
            last.as_str().clone_into(&mut after);
            self.log.write(LogRecord::info("events of a large room are kept").room(large.room_id()).count(kept));
        }
    }

    /// The claimed state, as far as it is allowed.
    async fn whole_state(&self, large: &LargeJoin) -> Result<WholeState, RoomError> {
        let (join, clock) = (&large.join, self.clock.as_ref());
        let claimed = self.store.claimed_entries(clock, &large.join_id).await?;
        let mut entries: HashMap<StateKeyHash, Rc<str>> = HashMap::new();
        for entry in &claimed {
            turn(clock, entries.len(), LIGHT_SLICE).await;
            let Some(key) = entry.key else {
                return Err(RoomError::Invalid(format!("{} in the state is not a state event.", entry.event_id)));
            };
            if entries.insert(key, entry.event_id.as_str().into()).is_some() {
                return Err(RoomError::Invalid("The state has two events for one type and state key.".to_owned()));
            }
        }
        let mut joined: BTreeMap<ServerName, i64> = BTreeMap::new();
        let (mut invited, mut memberships) = (0, Vec::new());
        let members = claimed.into_iter().filter_map(|entry| Some((entry.member?, entry.event_id)));
        let members = members.filter(|((user, _), _)| user != join.sender());
        let ours = ((join.sender().clone(), Membership::Join), join.event_id().clone());
        for (done, ((user_id, membership), event_id)) in members.chain([ours]).enumerate() {
            turn(clock, done, LIGHT_SLICE).await;
            invited += i64::from(membership == Membership::Invite);
            if membership == Membership::Join
                && let Ok(server) = ServerName::parse(user_id.server_name())
            {
                *joined.entry(server).or_default() += 1;
            }
            if user_id.server_name() == self.server_name().as_str() {
                let (invite_state, via, later) = (None, None, 0);
                memberships.push(MembershipChange { user_id, membership, event_id, invite_state, via, later });
            }
        }
        let joined = joined.into_iter().collect();
        Ok(WholeState { entries, joined, invited, memberships })
    }
}

/// The state of a room, with our join in it as far as memberships go.
struct WholeState {
    entries: HashMap<StateKeyHash, Rc<str>>,
    /// How many users of each server are joined.
    joined: Vec<(ServerName, i64)>,
    /// How many users are invited.
    invited: i64,
    /// What local users' memberships are.
    memberships: Vec<MembershipChange>,
}

/// The events that are to be judged, each after those that it cites. Those whose citations lead back to themselves are not
/// among them, as nothing allows them.
async fn order<'o>(clock: &dyn Clock, outlines: &'o [Outline], create: &EventId) -> Vec<&'o Outline> {
    let places: HashMap<&EventId, usize> =
        outlines.iter().enumerate().map(|(place, outline)| (&outline.event_id, place)).collect();
    let is_open = |place: &usize| outlines.get(*place).is_some_and(|outline| outline.verdict == ClaimVerdict::Open);
    // From room version 12 on nobody cites the create event, and all need it.
    let first = places.get(create).copied();
    let given = first.into_iter().chain((0..outlines.len()).filter(|place| Some(*place) != first)).filter(is_open);
    let mut cited_first = CitedFirst::default();
    for (added, place) in given.enumerate() {
        turn(clock, added, LIGHT_SLICE).await;
        let cited = outlines.get(place).into_iter().flat_map(|outline| &outline.auth_events);
        cited_first.add(place, cited.filter_map(|id| places.get(id).copied()).filter(is_open));
    }
    let mut order = Vec::new();
    for place in cited_first {
        turn(clock, order.len(), LIGHT_SLICE).await;
        order.extend(outlines.get(place));
    }
    order
}

/// The events of `order` in steps, of which none takes more memory than there is.
async fn steps<'o>(clock: &dyn Clock, outlines: &'o [Outline], order: Vec<&'o Outline>) -> Vec<Vec<&'o Outline>> {
    let lengths: HashMap<&EventId, usize> =
        outlines.iter().map(|outline| (&outline.event_id, outline.length)).collect();
    let (mut steps, mut step, mut read, mut length) = (Vec::new(), Vec::new(), HashSet::new(), 0_usize);
    for (done, outline) in order.into_iter().enumerate() {
        turn(clock, done, LIGHT_SLICE).await;
        let more = outline.auth_events.iter().chain([&outline.event_id]).filter(|id| !read.contains(id));
        let more: usize = more.filter_map(|id| lengths.get(id)).sum();
        if step.len() >= STEP || (!step.is_empty() && length + more > STEP_LENGTH) {
            steps.push(std::mem::take(&mut step));
            read.clear();
            length = 0;
        }
        length += more;
        read.extend(outline.auth_events.iter().chain([&outline.event_id]));
        step.push(outline);
    }
    steps.push(step);
    steps.retain(|step| !step.is_empty());
    steps
}

fn rejected(event: &Event, reason: String) -> RejectedEvent {
    RejectedEvent {
        event_id: event.event_id().clone(),
        room_id: event.room_id().clone(),
        reason,
        prev_events: Vec::new(),
        state_before: None,
        claimed: false,
        provisional: false,
        content_hash: event.content_hash(),
        event: None,
    }
}
