//! Which events of a room another server may see.
//!
//! Client-Server API, "Room History Visibility", by the memberships of the server's users: it may see what one of them may. The
//! state at an event decides, whatever was current in the room then; the users by whom it may be decided come from an index.

use crate::{
    matrix::{
        event::Event,
        history_visibility::around,
        identifiers::{RoomId, ServerName, UserId},
        state_content::{HistoryVisibility, Membership},
        state_trie::{NodeId, StateKeyHash},
    },
    platform::DatabaseError,
    store::{
        Store,
        history_visibility::{Restrictions, ServerMember},
        snapshots::{StateFound, StateReads},
    },
};

/// How many members of the server are looked for in the state at an event at first: as a rule one of them is there.
const FIRST: usize = 8;

/// How many are looked for in all states together after that.
const MOST_LOOKUPS: usize = 5_000;

/// An event, and the state before it, where that is known.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment<'e> {
    pub(super) event: &'e Event,
    pub(super) before: Option<NodeId>,
    /// Whether it is held for what cites it, or for a state in which it stands.
    pub(super) is_outlier: bool,
}

impl Moment<'_> {
    /// Whether the event is held as state, or for what cites it, alone.
    fn is_state_alone(&self) -> bool {
        self.is_outlier && self.before.is_none() && self.event.state_key().is_some()
    }
}

/// A moment of which it is not decided yet whether it may be seen.
struct Open<'m> {
    index: usize,
    root: NodeId,
    levels: Vec<HistoryVisibility>,
    /// Whom to look for in its state, the most promising first.
    candidates: Vec<&'m UserId>,
}

/// Of each event whether `server`, which is in the room, may see it, in a room of which not everything may be seen. Two round
/// trips, one more where the first members that are looked for are not found.
///
/// What an erased user has sent is shown to servers that had somebody in the room then, whatever the visibility.
///
/// Where the state before an event is not known (history from another server), it is not shown: what was restricted may have
/// been so then. But state and auth events are, which are held without a place of their own: the server is told whole of the
/// states and auth chains that hold them, fetches one by one what it lacks of those, and might keep a redacted copy for good.
pub(super) async fn visible(
    store: &Store,
    room_id: &RoomId,
    (server, restrictions): (&ServerName, &Restrictions),
    moments: &[Moment<'_>],
) -> Result<Vec<bool>, DatabaseError> {
    let is_erased = |event: &Event| restrictions.erased.contains(event.sender().as_str());
    let is_open = |moment: &Moment<'_>| {
        let is_shown = !restrictions.history || moment.is_state_alone();
        is_of(moment.event.sender(), server) || (is_shown && !is_erased(moment.event))
    };
    let mut visible: Vec<bool> = moments.iter().map(is_open).collect();
    let mut roots: Vec<NodeId> = moments.iter().filter_map(|moment| moment.before).collect();
    roots.sort_unstable();
    roots.dedup();
    if visible.iter().all(|visible| *visible) {
        return Ok(visible);
    }
    let (found, mut members) = store.visibility_at(room_id, server, &roots).await?;
    members.sort_by_key(|member| member.depth);
    let mut open = Vec::new();
    for (index, moment) in moments.iter().enumerate() {
        let Some(seen) = visible.get_mut(index).filter(|seen| !**seen) else { continue };
        let before = moment.before.map(|root| found.at(root, visibility_key()).map(|stored| &stored.event));
        let levels = match is_erased(moment.event) {
            true => vec![HistoryVisibility::Joined],
            false => around(moment.event, before),
        };
        // What an event makes of one of its own users counts as if it had been so before (Client-Server API).
        let after = target_of(moment.event, server).and_then(|_| moment.event.membership());
        *seen = shows(&levels, after.unwrap_or(Membership::Leave));
        if let Some(root) = moment.before.filter(|_| !*seen) {
            let candidates = candidates(moment.event, server, &members);
            open.push(Open { index, root, levels, candidates });
        }
    }
    let left = look_for(store, open, 0, FIRST, &mut visible).await?;
    let each = MOST_LOOKUPS / left.len().max(1);
    look_for(store, left, FIRST, each, &mut visible).await?;
    Ok(visible)
}

/// Looks for `count` candidates of each in its state, from the `first` on, and notes which events may be seen by them. Returns
/// those that may not, and have more candidates.
async fn look_for<'m>(
    store: &Store,
    mut open: Vec<Open<'m>>,
    first: usize,
    count: usize,
    visible: &mut [bool],
) -> Result<Vec<Open<'m>>, DatabaseError> {
    let part = |open: &Open<'m>| open.candidates.iter().skip(first).take(count).copied().collect::<Vec<_>>();
    let mut at: Vec<_> = open
        .iter()
        .flat_map(|open| part(open).into_iter().map(|user| (open.root, StateKeyHash::member(user.as_str()))))
        .collect();
    at.sort_unstable();
    at.dedup();
    let found = store.read_states(&StateReads { at, ..StateReads::default() }).await?;
    open.retain(|open| {
        let is_shown = part(open).into_iter().any(|user| open.is_shown_to(user, &found));
        if let Some(seen) = visible.get_mut(open.index).filter(|_| is_shown) {
            *seen = true;
        }
        !is_shown && open.candidates.len() > first + count
    });
    Ok(open)
}

impl Open<'_> {
    /// Whether the user may see the event by their membership in the state before it.
    fn is_shown_to(&self, user: &UserId, found: &StateFound) -> bool {
        let member =
            found.at(self.root, StateKeyHash::member(user.as_str())).and_then(|stored| stored.event.membership());
        shows(&self.levels, member.unwrap_or(Membership::Leave))
    }
}

/// Whether a user with this membership may see an event under one of the visibilities. The server is in the room now, so its users
/// see what is shared.
fn shows(levels: &[HistoryVisibility], then: Membership) -> bool {
    levels.iter().any(|level| level.shows(then, true))
}

/// Those of `members`, in the order of their depths, who may have been there when `event` was sent: first whom it is about, then
/// in turns who came last and who came first.
fn candidates<'m>(event: &'m Event, server: &ServerName, members: &'m [ServerMember]) -> Vec<&'m UserId> {
    let mut there = members.iter().filter(|member| member.depth <= event.depth()).map(|member| &member.user_id);
    let target = target_of(event, server);
    let mut candidates: Vec<&UserId> =
        members.iter().map(|member| &member.user_id).filter(|user| Some(user.as_str()) == target).collect();
    while let Some(last) = there.next_back() {
        candidates.push(last);
        candidates.extend(there.next());
    }
    candidates
}

/// The user of `server` whose membership the event is about.
fn target_of<'e>(event: &'e Event, server: &ServerName) -> Option<&'e str> {
    let target = event.state_key().filter(|_| event.event_type() == "m.room.member")?;
    UserId::parse(target).is_ok_and(|user| is_of(&user, server)).then_some(target)
}

fn is_of(user: &UserId, server: &ServerName) -> bool {
    user.server_name() == server.as_str()
}

fn visibility_key() -> StateKeyHash {
    StateKeyHash::new("m.room.history_visibility", "")
}
