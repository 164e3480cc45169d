//! Rooms that were joined by an answer without their members (Server-Server API, "Joining Rooms", `members_omitted`): what is
//! known of them in the meantime, and how they are made whole.
//!
//! All that is judged by the state of such a room rests on a claim, as what is judged behind a gap does: whom the state does not
//! know is taken for what the event says that is judged ([`super::checks::fill_in`]). When the whole state before our join is
//! had, it takes the place of what was answered of it, in the states around the events since then as well; then all that rests
//! on them is judged again ([`super::settling`]).

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    rc::Rc,
};

use super::{
    LEASE_MS, RemoteJoin, RoomError, Rooms,
    believed::{Coverage, Examined},
    changes::changed_members,
    outliers::Outliers,
    remote::{Installed, TakenOver},
    view::View,
};
use crate::{
    log::LogRecord,
    matrix::{
        identifiers::{RoomId, ServerName},
        state_content::Membership,
        state_trie::{NodeId, StateKeyHash},
    },
    platform::Budget,
    store::{
        commit::{Committed, Guard, NewEvent, Place, RoomCommit, StateFrom, Unsettled},
        large_joins::LargeJoin,
        partial_rooms::{self, StatesAround},
        rooms::Extent,
    },
};

/// How many events since our join, besides the forward extremities, get new states around them at once; what else there is gets
/// them as it is settled.
const MAX_EVENTS: i64 = 10_000;

/// How often the server that let us in is asked for the rest of the state, before other servers are asked too and what contradicts
/// the answer to our join is believed: by then that server has not stood by its answer for most of a day.
const TRUSTING_ATTEMPTS: i64 = 60;

impl Rooms {
    /// As [`Rooms::install_join`], where the answer leaves out members. `servers` are those in the room, as the resident server has
    /// them, and `rest` is what will complete the state.
    ///
    /// # Errors
    /// As [`Rooms::install_join`].
    pub async fn install_partial_join(
        &self,
        answer: &RemoteJoin,
        servers: &[ServerName],
        rest: LargeJoin,
    ) -> Result<Installed, RoomError> {
        let join = &answer.join;
        let claim = self.examine_answer(answer, Coverage::WithoutMembers).await?;
        let (known, invited, memberships) = self.members_of(claim.state.iter().chain([join]));
        let mut joined: BTreeMap<ServerName, i64> = known.into_iter().collect();
        // One more than the members whom we know, who may leave when others of their server are still there.
        let named: BTreeSet<&ServerName> = servers.iter().chain([&rest.resident]).collect();
        for server in named.into_iter().filter(|server| *server != self.server_name()) {
            *joined.entry(server.clone()).or_default() += 1;
        }
        let Examined { outliers: Outliers { new, rejected, readmitted, .. }, snapshot, .. } = claim;
        let (joined, completed_by) = (joined.into_iter().collect(), Some((rest, self.clock.now_ms() + LEASE_MS)));
        let under_way = answer.under_way();
        let taken =
            TakenOver { snapshot, new, rejected, readmitted, joined, invited, memberships, completed_by, under_way };
        self.take_over(join, &taken).await
    }

    /// Whether this work still has members of the room to find out.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn is_completed_by(&self, large: &LargeJoin) -> Result<bool, RoomError> {
        let Some(room) = self.room(large.room_id()).await? else { return Ok(false) };
        let noted = self.store.partial_room(large.room_id()).await?;
        Ok(room.local_joined > 0
            && room.extent == Extent::Partial
            && noted.is_some_and(|noted| noted.join_id == large.join_id))
    }

    /// Whether the state holds what we were told of it when we joined, but for members: who says something else of the same state
    /// is not believed.
    #[expect(clippy::disallowed_methods, reason = "nobody is told of it")]
    pub(super) async fn check_against_answer(
        &self,
        large: &LargeJoin,
        entries: &HashMap<StateKeyHash, Rc<str>>,
    ) -> Result<(), RoomError> {
        let join = self.event(large.join.event_id()).await?;
        let Some(told) = join.and_then(|join| join.state_before) else { return Ok(()) };
        let told = self.store.state_without_members(told).await?;
        let given: HashSet<&str> = entries.values().map(AsRef::as_ref).collect();
        if !others_may_give(large) && told.iter().any(|id| !given.contains(id.as_str())) {
            return Err(RoomError::Invalid("The state is another one than that by which we joined.".to_owned()));
        }
        Ok(())
    }

    /// Puts the whole state before our join in the place of what was answered of it.
    pub(super) async fn make_whole(
        &self,
        large: &LargeJoin,
        whole: &TakenOver,
        budget: &Budget,
    ) -> Result<(), RoomError> {
        let room_id = large.room_id();
        self.until_committed(async || {
            if !self.is_completed_by(large).await? {
                return Ok(Committed::Done(()));
            }
            self.try_make_whole(large, whole, budget).await
        })
        .await?;
        let members = whole.joined.iter().map(|(_, joined)| usize::try_from(*joined).unwrap_or(0)).sum();
        self.log.write(LogRecord::info("the state of a room is whole").room(room_id).count(members));
        Ok(())
    }

    /// The forward extremities always get their whole states, as all that comes is judged by them; other events as far as the calls
    /// to the database go. Whoever has lost the race tries again with those that are left.
    async fn try_make_whole(
        &self,
        large: &LargeJoin,
        whole: &TakenOver,
        budget: &Budget,
    ) -> Result<Committed, RoomError> {
        let (room_id, join) = (large.room_id(), &large.join);
        let mut view = View::new(&self.store, self.server_name());
        let ids = vec![join.event_id().clone()];
        let room = view.load_rooms(vec![room_id.clone()], &[], ids, Vec::new()).await?.pop();
        let room = room.ok_or(RoomError::UnknownRoom)?;
        let held = view.stored(join.event_id()).and_then(|held| Some((held.state_before?, held.state_after?)));
        let (told_before, told_after) =
            held.ok_or_else(|| RoomError::Corrupt("a room in part without a join".to_owned()))?;
        let before = whole.snapshot.root;
        let after = view.with_event(before, join).await?;
        let mut moved =
            Moved { bases: (told_after, after), known: HashMap::from([(told_before, before), (told_after, after)]) };
        let mut states: Vec<StatesAround> = Vec::new();
        for (place, around) in
            self.store.claimed_states(room_id, join.event_id(), MAX_EVENTS).await?.into_iter().enumerate()
        {
            let is_extremity = place < room.extremities.len();
            let is_free = moved.knows(around.before) && moved.knows(around.after);
            if is_extremity || is_free || !budget.is_spent() {
                let before = moved.of(&mut view, around.before).await?;
                states.push(StatesAround { before, after: moved.of(&mut view, around.after).await?, ..around });
            }
        }
        let current = view.transplant(told_after, room.state, after).await?;
        // Who came and went since the join.
        let mut joined: BTreeMap<ServerName, i64> = whole.joined.iter().cloned().collect();
        let mut invited = whole.invited;
        let mut known: HashSet<String> = HashSet::from([join.sender().to_string()]);
        let differences = view.diff(after, current).await?;
        for changed in changed_members(&mut view, differences).await? {
            invited += changed.more(Membership::Invite);
            if let Ok(server) = ServerName::parse(changed.user_id.server_name()) {
                *joined.entry(server).or_default() += changed.more(Membership::Join);
            }
            known.insert(changed.user_id.to_string());
        }
        // Nor is an invite outdated by this state that came since the join and cites what we do not hold.
        let users: Vec<_> = whole.memberships.iter().map(|change| &change.user_id).collect();
        known.extend(self.store.invited_since(room_id, join.event_id(), &users).await?);
        joined.retain(|_, count| *count > 0);
        let memberships = whole.memberships.iter().filter(|change| !known.contains(change.user_id.as_str()));
        let commit = RoomCommit {
            guard: Guard::Moves(room.version),
            extremities: room.extremities.clone(),
            states: vec![StateFrom { later: 0, state: current }],
            events: vec![NewEvent {
                event: join.clone(),
                place: Place::Hidden,
                soft_failed: false,
                claimed: false,
                state_before: Some(before),
                state_after: Some(after),
                outbox: None,
            }],
            nodes: view.take_made(),
            joined: joined.into_iter().collect(),
            invited,
            memberships: memberships.cloned().collect(),
            unsettled: Some(Unsettled::KnownBetter),
            joins_anew: true,
            ..RoomCommit::new(room_id.clone(), room.room_version, current)
        };
        let mut others = partial_rooms::put(&states);
        others.push(partial_rooms::is_whole(room_id));
        Ok(self.store.commit(&[commit], others).await?)
    }

    /// Notes that the members of the room are not going to be known, as the rest of its state is too large for us.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn give_up_completing(&self, large: &LargeJoin) -> Result<(), RoomError> {
        Ok(self.store.give_up_partial_room(large.room_id(), &large.join_id).await?)
    }

    /// Notes that what was judged while members were not known is settled.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn partial_room_is_settled(&self, room_id: &RoomId) -> Result<(), RoomError> {
        Ok(self.store.partial_room_is_settled(room_id).await?)
    }
}

/// Whether servers other than the one that let us in may give the rest of the state. Nothing in that rest can be examined by
/// what we know: who gives it can leave out a ban. As in a join that waits for the members, that is for the resident server to say.
pub fn others_may_give(large: &LargeJoin) -> bool {
    large.attempts > TRUSTING_ATTEMPTS
}

/// What has become of states that were made from the first of `bases`, when that is the second.
struct Moved {
    bases: (NodeId, NodeId),
    known: HashMap<NodeId, NodeId>,
}

impl Moved {
    fn knows(&self, root: NodeId) -> bool {
        self.known.contains_key(&root)
    }

    async fn of(&mut self, view: &mut View<'_>, root: NodeId) -> Result<NodeId, RoomError> {
        if let Some(known) = self.known.get(&root) {
            return Ok(*known);
        }
        let (told, whole) = self.bases;
        let moved = view.transplant(told, root, whole).await?;
        self.known.insert(root, moved);
        Ok(moved)
    }
}
