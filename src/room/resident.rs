//! Events that this server passes on for whoever made them: it judges them and commits them. Of a join that it lets in as the resident
//! server, what the joining server will be told of the room is settled before that.

use std::{collections::HashSet, rc::Rc};

use super::{
    Admitted, RoomError, Rooms, Unsigned,
    changes::membership,
    checks::check_version,
    judge::{Judgement, Rejection, Source, Verdict},
    policy::policy_key,
    view::{View, type_and_key},
};
use crate::{
    admission::Reservation,
    matrix::{
        event::Event,
        identifiers::{EventId, ServerName, UserId},
        state_content::Membership,
        state_trie::{NodeId, StateKeyHash},
    },
    store::{answer_texts::MAX_ANSWER, commit::Committed, remote_reads::StateIds, snapshots::StateReads},
};

/// The most events of a state without its members that are told as such, and the most members that a room is called after.
const MAX_WITHOUT_MEMBERS: usize = 20_000;
const MAX_HEROES: usize = 5;
/// The most bytes that the answer to a join has beside the state and its auth chain: the join, what it cites on another branch, and
/// the servers in the room.
const BESIDE_STATE: usize = 1 << 20;

/// What a server that joins a room is to be told of it.
#[derive(Debug)]
pub struct ToldOfJoin {
    /// The servers with joined members before the join.
    pub servers: Vec<ServerName>,
    /// Of which state.
    pub(super) root: NodeId,
    /// The events of it where members are left out.
    pub(super) without: Option<StateIds>,
    /// What the answer takes of what may be in work.
    pub(super) held: Option<Rc<Reservation>>,
}

/// A state without its members.
pub(super) struct WithoutMembers {
    /// The servers in the room.
    servers: Vec<ServerName>,
    /// Its events; `None` where they are too many to be told so.
    pub(super) events: Option<StateIds>,
    /// How many bytes they have.
    bytes: usize,
}

impl Rooms {
    /// As [`Rooms::admit`], a join; and what the other server is to be told of the room, without its members where it asks for that.
    /// The state is read when nothing else is in the way of the join: for a user who is not let in, nothing is read.
    ///
    /// # Errors
    /// As [`Rooms::admit`]; [`RoomError::TooLarge`] for a room that nobody could be told of, as whoever knows nothing of a room is
    /// not let in, and [`DatabaseError::NoRoom`](crate::platform::DatabaseError::NoRoom) where there is no room to tell of it now.
    pub async fn admit_join(
        &self,
        origin: &ServerName,
        join: &Event,
        omits_members: bool,
    ) -> Result<(Admitted, ToldOfJoin), RoomError> {
        let source = Source::PassOn { given_by: Some(origin.clone()) };
        let tell = async |root| self.to_be_told(join, root, omits_members).await;
        let (event, state_before, told) = self.commit_one_with(join, &source, tell).await?;
        Ok((Admitted { event, state_before }, told))
    }

    async fn to_be_told(&self, join: &Event, root: NodeId, omits_members: bool) -> Result<ToldOfJoin, RoomError> {
        let room_for = |bytes| {
            fits(bytes)?;
            Ok::<_, RoomError>(self.store.room_for_answer(bytes + BESIDE_STATE)?)
        };
        if omits_members {
            let WithoutMembers { servers, events, bytes } = self.without_members(join, root).await?;
            if events.is_some() {
                return Ok(ToldOfJoin { servers, root, without: events, held: room_for(bytes)? });
            }
        }
        let (servers, bytes) = self.store.length_of_state(join.room_id(), root).await?;
        Ok(ToldOfJoin { servers, root, without: None, held: room_for(bytes)? })
    }

    /// The state `root` without its members, except those after whom a room without a name is called; and the auth chain of it and of
    /// the join, without what the state has. Three round trips.
    #[expect(clippy::disallowed_methods, reason = "what is told of it goes through the gate")]
    pub(super) async fn without_members(&self, join: &Event, root: NodeId) -> Result<WithoutMembers, RoomError> {
        let room_id = join.room_id();
        let heroes = self.heroes(root, join.sender().as_str()).await?;
        let read = self.store.servers_and_state_without_members(room_id, root, &heroes, MAX_WITHOUT_MEMBERS + 1);
        let (servers, state) = read.await?;
        if state.ids.len() > MAX_WITHOUT_MEMBERS || fits(state.bytes).is_err() {
            return Ok(WithoutMembers { servers, events: None, bytes: state.bytes });
        }
        // The join itself is not held yet.
        let first: Vec<EventId> = state.ids.iter().chain(join.auth_events()).cloned().collect();
        let chain = self.store.auth_chain(room_id, &first).await?;
        let mut told: HashSet<&EventId> = state.ids.iter().collect();
        let further = chain.ids.iter().chain(join.auth_events()).filter(|id| told.insert(*id));
        let auth_chain = further.cloned().collect();
        let bytes = state.bytes + chain.bytes;
        Ok(WithoutMembers { servers, events: Some(StateIds { state: state.ids, auth_chain }), bytes })
    }

    /// The members after whom a room is called that has no name, as `/sync` has them in `m.heroes`.
    async fn heroes(&self, root: NodeId, joining: &str) -> Result<Vec<String>, RoomError> {
        let names = ["m.room.name", "m.room.canonical_alias"].map(|event_type| StateKeyHash::new(event_type, ""));
        let at = names.map(|key| (root, key)).to_vec();
        let reads = StateReads { at, members: vec![root], ..StateReads::default() };
        let found = self.store.read_states(&reads).await?;
        if names.iter().any(|key| found.at(root, *key).is_some()) {
            return Ok(Vec::new());
        }
        let of = |memberships: &[Membership]| -> Vec<String> {
            let groups = found.members(root).iter().filter(|group| memberships.contains(&group.membership));
            let users = groups.flat_map(|group| &group.first).filter(|user| *user != joining);
            users.take(MAX_HEROES).cloned().collect()
        };
        let here = of(&[Membership::Join, Membership::Invite]);
        Ok(if here.is_empty() { of(&[Membership::Leave, Membership::Ban]) } else { here })
    }

    /// Judges one event that is ours to pass on, and commits it if it is accepted. Returns it as it was committed, with the
    /// signature of the room's policy server, and the state before it.
    pub(super) async fn commit_one(&self, event: &Event, source: &Source) -> Result<(Event, NodeId), RoomError> {
        let (event, before, ()) = self.commit_one_with(event, source, async |_| Ok(())).await?;
        Ok((event, before))
    }

    /// As [`Rooms::commit_one`], with what `prepare` makes of the state before the event once nothing else is in its way; where that
    /// is not stored yet, of the current state. It is asked once.
    async fn commit_one_with<T>(
        &self,
        event: &Event,
        source: &Source,
        prepare: impl AsyncFn(NodeId) -> Result<T, RoomError>,
    ) -> Result<(Event, NodeId, T), RoomError> {
        let mut made = None;
        self.until_committed(async || {
            let mut view = View::new(&self.store, self.server_name());
            let mut ids = vec![event.event_id().clone()];
            ids.extend(event.prev_events().iter().chain(event.auth_events()).cloned());
            let previous = event.prev_events().to_vec();
            let mut keys = super::checks::auth_keys(event);
            keys.push(policy_key());
            let rooms = view.load_rooms(vec![event.room_id().clone()], &keys, ids, previous).await?;
            let room = rooms.into_iter().find(|room| room.local_joined > 0).ok_or(RoomError::UnknownRoom)?;
            check_version(&room, event)?;
            let mut judgement = Judgement::new(room);
            let (event, verdict, unsigned) =
                self.judge_signed(&mut judgement, &mut view, event, source, i64::MAX).await?;
            if let Some(unsigned) = unsigned {
                return Err(unsigned.into());
            }
            match verdict {
                Verdict::Accepted | Verdict::Known(None) => {}
                // Asked for it, the policy server has signed, but the room has come to name another one.
                Verdict::Unsigned(_) => return Err(RoomError::Unsigned(Unsigned::Away)),
                Verdict::SoftFailed(why) | Verdict::Rejected(Rejection { why, .. }) | Verdict::Known(Some(why)) => {
                    return Err(RoomError::NotAllowed(why));
                }
                Verdict::Missing { mut previous, auth } => {
                    previous.extend(auth);
                    return Err(RoomError::MissingEvents(previous));
                }
            }
            let before = view.stored(event.event_id()).and_then(|stored| stored.state_before);
            let before = before.ok_or_else(|| RoomError::Corrupt("an accepted event without a state".to_owned()))?;
            // It may have come before. Whoever asks again because the first answer was lost is told all that goes with a join;
            // whoever was removed since then is not.
            if judgement.is_unchanged()
                && membership(Some(&event)) == Membership::Join
                && !is_joined(&mut view, &judgement, event.sender()).await?
            {
                return Err(RoomError::NotAllowed("the user is not in the room any more".to_owned()));
            }
            let prepared = match made.take() {
                Some(made) => made,
                None => prepare(if view.has_made(before) { judgement.room.state } else { before }).await?,
            };
            if judgement.is_unchanged() {
                return Ok(Committed::Done((event, before, prepared)));
            }
            let commit = self.commit_of(&mut view, judgement).await?;
            match self.store.commit(&[commit], Vec::new()).await? {
                Committed::Done(()) => Ok(Committed::Done((event, before, prepared))),
                Committed::Lost => {
                    made = Some(prepared);
                    Ok(Committed::Lost)
                }
            }
        })
        .await
    }
}

/// Whether an answer has room for texts of so many bytes.
fn fits(bytes: usize) -> Result<(), RoomError> {
    if bytes.saturating_add(BESIDE_STATE) < MAX_ANSWER { Ok(()) } else { Err(RoomError::TooLarge) }
}

/// Whether the user is joined by the current state.
async fn is_joined(view: &mut View<'_>, judgement: &Judgement, user: &UserId) -> Result<bool, RoomError> {
    let members = view.state(judgement.state, &[type_and_key("m.room.member", user.as_str())]).await?;
    Ok(membership(members.first()) == Membership::Join)
}
