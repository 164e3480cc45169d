//! What a sync tells of each room, and what must be read of the room's state for it.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    client::{
        auth::Session,
        device_lists::MemberChanges,
        filters::Filter,
        fleeting::Fleeting,
        tokens::Token,
        visibility::{self, Reader},
    },
    matrix::{
        identifiers::RoomId,
        state_content::Membership,
        state_trie::{NodeId, StateKeyHash},
    },
    server::Server,
    store::{
        positions::TimelinePos,
        snapshots::{StateCut, StateFound, StateReads},
        sync::{NewEvents, SyncRoom},
        sync_fleeting::FleetingAt,
        timeline::{SeenEvent, TimelineEvent},
    },
};

/// What an answer is made for.
pub(super) struct Answer<'a> {
    pub(super) server: &'a Server,
    pub(super) session: &'a Session,
    pub(super) filter: &'a Filter,
    pub(super) is_first: bool,
    pub(super) since: TimelinePos,
    /// What the rooms are told up to.
    pub(super) now: Token,
    /// Up to where typing, receipts and presence are known.
    pub(super) known: FleetingAt,
    pub(super) fleeting: Fleeting,
    pub(super) full_state: bool,
    pub(super) state_after: bool,
    /// The room of which the answer before told only a part of the state, and where that was cut.
    pub(super) goes_on_in: Option<(String, StateCut)>,
}

/// A room with something new.
pub(super) enum Entry {
    /// One that the user is in, or was when we were.
    Room(Plan),
    /// One that the user left when we were not in it.
    Elsewhere(SyncRoom),
    /// One that the user is invited to.
    Invite(SyncRoom),
    /// One that the user knocks on.
    Knock(SyncRoom),
    /// One of which nothing is told.
    None(RoomId),
}

/// What is sent of one joined or left room, and what must be read of its state for it.
pub(super) struct Plan {
    pub(super) room: SyncRoom,
    /// The state now, or when the user left.
    pub(super) state: NodeId,
    pub(super) reader: Reader,
    pub(super) timeline: Vec<TimelineEvent>,
    pub(super) limited: bool,
    pub(super) prev_batch: TimelinePos,
    /// Where the state to send comes from.
    pub(super) source: StateSource,
    /// Whether members are sent as they matter: the whole state without all others, and any other with them.
    pub(super) lazy: bool,
    /// Whether they are sent as they were when they first spoke: the timeline tells what has become of them since.
    as_they_spoke: bool,
    /// What the client knows of the state that the timeline's events have replaced.
    pub(super) known_before: KnownBefore,
    /// Whether events must be judged by what the user may see: a member sees everything from the join on.
    pub(super) judged: bool,
    /// Whether the numbers of members are sent.
    pub(super) summary: bool,
}

/// Where the state that a room is sent with comes from.
#[derive(Clone, Copy)]
pub(super) enum StateSource {
    /// The whole snapshot.
    Whole,
    /// What changed since the snapshot that the client knows.
    Since(NodeId),
    /// Nothing changed but by the events of the timeline.
    Timeline,
}

/// What a client knows of the state before a timeline without being told with it: to that state it adds the timeline's events.
#[derive(Clone, Copy)]
pub(super) enum KnownBefore {
    /// All of it; or it is told the state after the timeline.
    All,
    /// What is in this snapshot: more came between it and the timeline.
    Of(NodeId),
    /// Nothing.
    Nothing,
}

impl Answer<'_> {
    /// Plans a joined or left room; the room back where it was left by way of another server.
    pub(super) fn plan(&self, room: SyncRoom, new: NewEvents) -> Result<Plan, Box<SyncRoom>> {
        let joined = room.membership == Membership::Join;
        let here = room.room.filter(|_| joined || room.invite_state.is_none());
        let Some((_, current)) = here else { return Err(Box::new(room)) };
        // Those who never were in the room are told nothing of its state.
        let state = if joined { current } else { room.state_when_left.unwrap_or(NodeId::EMPTY) };
        let is_later = self.since > TimelinePos::START;
        let newly = joined && room.pos > self.since;
        let limit = usize::try_from(self.filter.timeline.limit()).unwrap_or(usize::MAX);
        let NewEvents { events: mut timeline, after_gap } = new;
        // Clients page back over a gap from `prev_batch`, and only where they are told of it.
        let grown = room.members.since(self.since);
        let is_told_all = !joined && is_later && room.joined_until.is_none_or(|until| until <= self.since);
        // Who came and went since then is told of the room as one newly joined, and only from then on.
        let unseen = !joined && is_later && !is_told_all && room.state_since.is_none();
        // Whoever was not told of the room pages back to what was said meanwhile.
        let limited = after_gap || unseen || timeline.len() > limit || (grown && !newly && !self.is_lazy() && is_later);
        // Where nothing is told, for a limit of none or as a filter leaves it out, all of it is left to be paged back to.
        let newest = timeline.last().map_or(self.now.events, |event| event.pos);
        timeline.drain(..timeline.len().saturating_sub(limit));
        let prev_batch = timeline.first().map_or(newest, |event| event.pos.before());
        let source = match room.state_since {
            // All that they may know of the state was told before.
            _ if is_told_all => StateSource::Timeline,
            // Whoever knows the room without its members is told of it anew when they are there, as of one newly joined.
            Some(known) if !newly && !self.full_state && is_later && !grown => {
                if follows(known, &timeline, state) && !limited && !self.state_after {
                    StateSource::Timeline
                } else {
                    StateSource::Since(known)
                }
            }
            _ => StateSource::Whole,
        };
        // Who is in the room, and whether it needs to be called after them.
        let is_of_summary = |event: &TimelineEvent| {
            matches!(event.seen.event.event_type(), "m.room.member" | "m.room.name" | "m.room.canonical_alias")
        };
        let summary = joined && (timeline.iter().any(is_of_summary) || !matches!(source, StateSource::Timeline));
        let reader = Reader::known(&self.session.user, &room.room_id, state, joined, room.joined_until);
        let judged = newly || !joined;
        let lazy = self.is_lazy();
        // Those who have left may know of nothing later.
        let as_they_spoke = joined && !self.state_after && !matches!(source, StateSource::Whole);
        let known_before = match source {
            _ if self.state_after => KnownBefore::All,
            StateSource::Whole => KnownBefore::Nothing,
            StateSource::Since(known) if limited => KnownBefore::Of(known),
            StateSource::Since(_) | StateSource::Timeline => KnownBefore::All,
        };
        Ok(Plan {
            room,
            state,
            reader,
            timeline,
            limited,
            prev_batch,
            source,
            lazy,
            as_they_spoke,
            known_before,
            judged,
            summary,
        })
    }

    /// What became of the members of a room.
    pub(super) fn members(&self, entry: &Entry) -> MemberChanges {
        let Entry::Room(plan) = entry else { return MemberChanges::Same };
        let timeline = matches!(plan.source, StateSource::Timeline).then_some(plan.timeline.as_slice());
        MemberChanges::of(&plan.room, plan.state, self.since, !self.is_lazy(), timeline)
    }

    /// Whether the client asks for members as they matter to it.
    pub(super) fn is_lazy(&self) -> bool {
        self.filter.state.lazy_load_members
    }
}

impl Entry {
    pub(super) fn room_id(&self) -> &RoomId {
        match self {
            Self::Room(plan) => &plan.room.room_id,
            Self::Elsewhere(room) | Self::Invite(room) | Self::Knock(room) => &room.room_id,
            Self::None(room_id) => room_id,
        }
    }

    /// A joined room whose numbers of members are sent, and that has no name.
    pub(super) fn unnamed(&self, found: &StateFound) -> Option<&Plan> {
        let Self::Room(plan) = self else { return None };
        let is_told = plan.summary && plan.room.membership == Membership::Join;
        (is_told && !has_name(plan.state, found)).then_some(plan)
    }

    /// Where the reading of its state was cut short, if it was.
    pub(super) fn cut_in<'f>(&self, found: &'f StateFound) -> Option<&'f StateCut> {
        let Self::Room(plan) = self else { return None };
        let is_bounded = match plan.source {
            StateSource::Whole => plan.lazy,
            StateSource::Since(_) => true,
            StateSource::Timeline => false,
        };
        found.cut().iter().find(|cut| is_bounded && cut.root == plan.state)
    }
}

impl Plan {
    /// Where the members stand who matter for the timeline: its senders and, in a whole state, the user.
    pub(super) fn members_of_interest(&self) -> BTreeSet<(NodeId, StateKeyHash)> {
        let mut states = BTreeMap::new();
        for TimelineEvent { seen, .. } in &self.timeline {
            let then = seen.state_before.filter(|_| self.as_they_spoke);
            states.entry(seen.event.sender().as_str()).or_insert(then.unwrap_or(self.state));
        }
        if matches!(self.source, StateSource::Whole) {
            states.insert(self.reader.user(), self.state);
        }
        states.into_iter().map(|(user, state)| (state, StateKeyHash::member(user))).collect()
    }

    pub(super) fn wants(&self, reads: &mut StateReads) {
        if self.lazy {
            reads.at.extend(self.members_of_interest());
        }
        match self.source {
            StateSource::Whole if self.lazy => reads.but_members.push(self.state),
            StateSource::Whole => reads.whole.push(self.state),
            StateSource::Since(known) => reads.changes.push((known, self.state)),
            StateSource::Timeline => {}
        }
        if self.judged {
            self.reader.wants(&self.timeline, reads);
        }
        visibility::wants_replaced(&self.timeline, reads);
        if let KnownBefore::Of(known) = self.known_before {
            reads
                .at
                .extend(self.timeline.iter().filter_map(|event| Some((known, StateKeyHash::of(&event.seen.event)?))));
        }
        if self.summary {
            reads.at.extend(names(self.state));
        }
    }
}

impl KnownBefore {
    /// Whether the client is to be told of this event, which one of the timeline has replaced. What [`Plan::wants`] asks for must
    /// have been read.
    pub(super) fn lacks(self, replaced: &SeenEvent, found: &StateFound) -> bool {
        match self {
            Self::All => false,
            Self::Of(known) => {
                let stood = StateKeyHash::of(&replaced.event).and_then(|key| found.at(known, key));
                stood.is_none_or(|stood| stood.event.event_id() != replaced.event.event_id())
            }
            Self::Nothing => true,
        }
    }
}

/// Whether the state went from `known` to `state` by the events of `timeline` alone, one after the other.
fn follows(known: NodeId, timeline: &[TimelineEvent], state: NodeId) -> bool {
    let mut at = known;
    for event in timeline {
        match (event.seen.state_before, event.seen.state_after) {
            (Some(before), Some(after)) if before == at => at = after,
            _ => return false,
        }
    }
    at == state
}

/// What gives a room a name of its own.
fn names(state: NodeId) -> [(NodeId, StateKeyHash); 2] {
    [(state, StateKeyHash::new("m.room.name", "")), (state, StateKeyHash::new("m.room.canonical_alias", ""))]
}

/// Whether the room has a name of its own.
pub(super) fn has_name(state: NodeId, found: &StateFound) -> bool {
    let [name, alias] = names(state);
    let says = |(root, key): (NodeId, StateKeyHash), member: &str| {
        let text = found.at(root, key).and_then(|seen| seen.event.content().get(member)?.as_str());
        text.is_some_and(|text| !text.is_empty())
    };
    says(name, "name") || says(alias, "alias")
}
