//! `GET /sync` (Client-Server API, "Syncing").
//!
//! A sync with nothing new costs one round trip a look, and looks again when the platform says that there may be news. One with new messages costs one more for what the state
//! says about them, where it says anything: see [`Plan`].
//!
//! Rooms are told in the order of their IDs. What one answer may hold is bounded; where there is more, its token says
//! which rooms are still to come ([`Rest`]), and these are told next as they were when the first answer was made.

use std::collections::BTreeSet;

use futures_util::future::try_join;
use http::StatusCode;

use super::{
    account_data,
    auth::{self, Session},
    bundles::{Bundles, Shown},
    device_lists::{DeviceLists, MemberChanges},
    events::{self, Telling},
    filters::Filter,
    fleeting::Fleeting,
    keys, presence, to_device,
    tokens::{Rest, SyncToken, Token},
    unread::Unread,
    visibility::{self, Reader},
};
use crate::{
    error::MatrixError,
    log::LogRecord,
    matrix::{
        identifiers::{RoomId, UserId},
        json::{self, Object, Value},
        state_content::{Membership, STRIPPED_STATE},
        state_trie::{NodeId, StateKeyHash},
    },
    platform::{DatabaseError, news::Subject},
    router::{Call, Handled, raw_json_response},
    server::Server,
    store::{
        snapshots::{Members, StateCut, StateFound, StateReads},
        sync::{MemberCounts, MembersKnown, NewEvents, RestRead, SyncFound, SyncRead, SyncRoom},
        sync_fleeting::{FleetingAt, FleetingRead},
        timeline::{SeenEvent, TimelineEvent},
    },
};

/// The longest a sync waits, in milliseconds.
const MAX_TIMEOUT_MS: i64 = 30_000;

/// How many characters of state events an answer holds at most, of one room or several.
const MAX_STATE: i64 = 8_000_000;
/// How many of the state that rooms are told without their members, and as many of what has changed in rooms. Where there is more of
/// one room, its state is told in several answers.
const MAX_PARTS: i64 = 4_000_000;
/// How many a part of a room's state is taken for.
const PART_OF_STATE: i64 = 40_000;

/// `GET /sync`
pub(super) async fn sync(server: &Server, call: &Call) -> Handled {
    let session = auth::session(server, call).await?;
    let filter = Filter::asked(server, &session, call.query("filter").as_deref()).await?;
    let since =
        call.query("since").filter(|since| !since.is_empty()).map(|since| SyncToken::parse(&since)).transpose()?;
    let is_first = since.is_none();
    let SyncToken { at: from, rest } = since.unwrap_or_default();
    let full_state = boolean(call, "full_state")? || rest.as_ref().is_some_and(|rest| rest.whole);
    let state_after = boolean(call, "use_state_after")?;
    if let Some(asked) = presence::asked(call)? {
        presence::note(server, &session.user, asked);
    }
    let timeout = match call.query("timeout") {
        Some(text) => text.parse::<i64>().map_err(|_| MatrixError::invalid_param("\"timeout\" must be an integer."))?,
        None => 0,
    };
    // A token from /messages may stand before the beginning of what syncs tell.
    let events_since = rest.as_ref().map_or(from.events, |rest| rest.since).max(0);
    let mut read = SyncRead {
        user_id: session.user.as_str(),
        device_id: &session.device_id,
        since: events_since,
        checked: events_since,
        account_data_since: from.account_data,
        device_lists_since: (!is_first).then_some(from.device_lists),
        to_device_since: Some(from.to_device),
        key_counts: true,
        fleeting: None,
        all_joined: full_state || events_since == 0,
        include_leave: filter.include_leave,
        limit: filter.timeline.limit(),
        rest: rest.as_ref().map(|rest| RestRead { after: &rest.after, again: rest.cut.is_some(), to: from.events }),
    };
    let wait = !is_first && !full_state && rest.is_none();
    let deadline = server.platform.clock.now_ms().saturating_add(timeout.clamp(0, MAX_TIMEOUT_MS));
    let mut listener = server.platform.news.listen();
    let mut fleeting_since = (!is_first).then_some(from.fleeting);
    let (mut found, fleeting) = loop {
        let now = server.platform.clock.now_ms();
        read.fleeting = Some(FleetingRead { since: fleeting_since, now });
        let mut found = server.store.sync(&read).await?;
        let fleeting = Fleeting::of(std::mem::take(&mut found.fleeting), &filter, now);
        if found.is_empty_but_for_keys() && fleeting.is_empty() {
            // Somebody's keys change all the time: it is news for those who share a room with them.
            let others = std::mem::take(&mut found.changed_keys.others);
            let own_server = server.config.server_name.as_str();
            found.changed_keys.others = server.store.sharing(own_server, session.user.as_str(), others).await?;
        }
        let left = deadline.saturating_sub(server.platform.clock.now_ms());
        if !found.is_empty() || !fleeting.is_empty() || !wait || left <= 0 {
            break (found, fleeting);
        }
        read.checked = found.events;
        fleeting_since = Some(fleeting.at);
        read.account_data_since = found.account_data.max(read.account_data_since);
        read.device_lists_since = Some(found.device_lists);
        read.key_counts = false;
        if fleeting.is_cut {
            continue;
        }
        if listener.is_choosy() {
            let rooms = server.store.rooms_of(&session.user, Membership::Join).await?;
            let rooms = rooms.into_iter().map(|room_id| Subject::Room(room_id.to_string()));
            let mine = [Subject::User(session.user.to_string()), Subject::Presence, Subject::Keys];
            listener.listen_to(rooms.chain(mine).collect());
        }
        // Nothing is written when somebody who was told to be typing is so no more.
        let until = fleeting.at.typing_until;
        let longest = if until > 0 { left.min(until.saturating_sub(now)) } else { left };
        listener.next(u32::try_from(longest).unwrap_or(u32::MAX)).await;
    };
    let (events, account_data, at) = match &rest {
        None => (found.events, found.account_data, fleeting.at),
        // The rest is told as it was.
        Some(_) => (from.events, from.account_data, from.fleeting),
    };
    let to_device = found.inbox.told_upto.unwrap_or(found.to_device).max(from.to_device);
    let now = Token { events, account_data, device_lists: found.device_lists, to_device, fleeting: at };
    if !read.key_counts {
        // Others take keys meanwhile, and the device uploads new ones.
        found.key_counts = server.store.key_counts(session.user.as_str(), &session.device_id).await?;
    }
    // Where rooms are still to come, or have just come, what is fleeting is told again: it may be of those.
    let known = if is_first { fleeting.at } else { from.fleeting };
    let answer = Answer {
        server,
        session: &session,
        filter: &filter,
        is_first,
        since: events_since,
        now,
        known,
        fleeting,
        full_state,
        state_after,
        goes_on_in: rest.and_then(|rest| Some((rest.after, rest.cut?))),
    };
    answer.write(found).await
}

/// What an answer is made for.
struct Answer<'a> {
    server: &'a Server,
    session: &'a Session,
    filter: &'a Filter,
    is_first: bool,
    since: i64,
    /// What the rooms are told up to.
    now: Token,
    /// Up to where typing, receipts and presence are known.
    known: FleetingAt,
    fleeting: Fleeting,
    full_state: bool,
    state_after: bool,
    /// The room of which the answer before told only a part of the state, and where that was cut.
    goes_on_in: Option<(String, StateCut)>,
}

/// What is sent of one joined or left room, and what must be read of its state for it.
struct Plan {
    room: SyncRoom,
    /// The state now, or when the user left.
    state: NodeId,
    reader: Reader,
    timeline: Vec<TimelineEvent>,
    limited: bool,
    prev_batch: i64,
    /// Where the state to send comes from.
    source: StateSource,
    /// Whether the whole state is sent without the members who do not matter for it.
    lazy: bool,
    /// Whether events must be judged by what the user may see: a member sees everything from the join on.
    judged: bool,
    /// Whether the numbers of members are sent.
    summary: bool,
}

/// What was read for an answer.
#[derive(Clone, Copy)]
struct Read<'a> {
    found: &'a SyncFound,
    state: &'a StateFound,
    /// Of rooms without a name, some members.
    heroes: &'a StateFound,
    bundles: &'a Bundles,
    unread: &'a Unread,
}

/// A room with something new.
enum Entry {
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

impl Entry {
    fn room_id(&self) -> &RoomId {
        match self {
            Self::Room(plan) => &plan.room.room_id,
            Self::Elsewhere(room) | Self::Invite(room) | Self::Knock(room) => &room.room_id,
            Self::None(room_id) => room_id,
        }
    }

    /// The state of a joined room whose numbers of members are sent, and that has no name.
    fn unnamed(&self, found: &StateFound) -> Option<NodeId> {
        let Self::Room(plan) = self else { return None };
        let is_told = plan.summary && plan.room.membership == Membership::Join;
        (is_told && !has_name(plan.state, found)).then_some(plan.state)
    }

    /// Where the reading of its state was cut short, if it was.
    fn cut_in<'f>(&self, found: &'f StateFound) -> Option<&'f StateCut> {
        let Self::Room(plan) = self else { return None };
        let is_bounded = match plan.source {
            StateSource::Whole => plan.lazy,
            StateSource::Since(_) => true,
            StateSource::Timeline => false,
        };
        found.cut().iter().find(|cut| is_bounded && cut.root == plan.state)
    }
}

/// Where the state that a room is sent with comes from.
#[derive(Clone, Copy)]
enum StateSource {
    /// The whole snapshot.
    Whole,
    /// What changed since the snapshot that the client knows.
    Since(NodeId),
    /// Nothing changed but by the events of the timeline.
    Timeline,
}

impl Answer<'_> {
    async fn write(&self, mut found: SyncFound) -> Handled {
        let mut entries = Vec::new();
        for room in std::mem::take(&mut found.rooms) {
            let timeline = found.timelines.remove(&room.room_id).unwrap_or_default();
            entries.push(match room.membership {
                _ if !self.filter.room(room.room_id.as_str()) => Entry::None(room.room_id),
                Membership::Invite => Entry::Invite(room),
                Membership::Knock => Entry::Knock(room),
                // Whoever does not load members lazily takes those whom they are told of for all that there are.
                Membership::Join if room.members == MembersKnown::NotYet && !self.is_lazy() => {
                    Entry::None(room.room_id)
                }
                Membership::Join | Membership::Leave | Membership::Ban => match self.plan(room, timeline) {
                    Ok(plan) => Entry::Room(plan),
                    Err(room) => Entry::Elsewhere(*room),
                },
            });
        }
        self.cut(&mut entries, &mut found.is_cut).await?;
        let after = self.go_on(&mut entries);
        let mut reads = StateReads { most: Some(MAX_PARTS), after, ..StateReads::default() };
        for entry in &entries {
            match entry {
                Entry::Room(plan) => plan.wants(&mut reads),
                Entry::Invite(room) | Entry::Knock(room) => shown_outside_wants(room, &self.session.user, &mut reads),
                Entry::Elsewhere(_) | Entry::None(_) => {}
            }
        }
        let mut members: Vec<MemberChanges> = entries.iter().map(|entry| self.members(entry)).collect();
        members.iter().for_each(|members| members.wants(&mut reads));
        // Of what relates to events that the client does not miss, it is told by those that do.
        let limited = entries.iter().filter_map(|entry| match entry {
            Entry::Room(plan) if plan.limited => Some((&plan.reader, plan.timeline.as_slice())),
            _ => None,
        });
        let limited: Vec<Shown<'_>> = limited.collect();
        let bundles = Bundles::read(self.server, self.session, &reads, &limited);
        let is_joined = |plan: &Plan| plan.room.membership == Membership::Join;
        let told = entries.iter().filter_map(|entry| match entry {
            Entry::Room(plan) if is_joined(plan) => Some(&plan.room.room_id),
            _ => None,
        });
        let counted: BTreeSet<RoomId> =
            told.chain(self.fleeting.read_by(self.session.user.as_str())).cloned().collect();
        let counted: Vec<RoomId> = counted.into_iter().filter(|room_id| self.filter.room(room_id.as_str())).collect();
        let unread = Unread::count(self.server, &self.session.user, &counted, self.now.events.max(found.events));
        let ((state, bundles), unread) = try_join(bundles, unread).await?;
        // Of the first room whose state was read in part, that part is told, and of those after it nothing.
        let cut = entries.iter().enumerate().find_map(|(at, entry)| Some((at, entry.cut_in(&state)?.clone())));
        if let Some((at, _)) = &cut {
            entries.truncate(at + 1);
            members.truncate(at + 1);
            found.is_cut = true;
        }
        let last = entries.last().map(|entry| entry.room_id().clone());
        // Who a room is named after matters only where it has no name.
        let unnamed = entries.iter().filter_map(|entry| entry.unnamed(&state));
        let reads = StateReads { members: unnamed.collect(), ..StateReads::default() };
        let heroes = self.server.store.read_states(&reads).await?;
        let (mut join, mut leave) = (Object::new(), Object::new());
        let (mut invite, mut knock) = (Object::new(), Object::new());
        let changed_keys = std::mem::take(&mut found.changed_keys);
        let device_lists = DeviceLists::of(self.server, &self.session.user, changed_keys, &members, &state).await?;
        let read = Read { found: &found, state: &state, heroes: &heroes, bundles: &bundles, unread: &unread };
        for entry in entries {
            match entry {
                Entry::Room(plan) => {
                    let room_id = plan.room.room_id.clone();
                    if plan.room.membership == Membership::Join {
                        join.insert(room_id.as_str(), self.joined(plan, &read));
                    } else {
                        leave.insert(room_id.as_str(), self.left(plan, &read));
                    }
                }
                Entry::Elsewhere(room) => {
                    leave.insert(room.room_id.as_str(), self.left_elsewhere(&room)?);
                }
                Entry::Invite(room) => {
                    if found.unwanted.hides_invite(inviter(&room, &self.session.user, &state).as_deref()) {
                        continue;
                    }
                    let events = shown_outside(&room, &self.session.user, &state)?;
                    invite.insert(room.room_id.as_str(), Object::from_iter([("invite_state", events)]));
                }
                Entry::Knock(room) => {
                    let events = shown_outside(&room, &self.session.user, &state)?;
                    knock.insert(room.room_id.as_str(), Object::from_iter([("knock_state", events)]));
                }
                Entry::None(_) => {}
            }
        }
        // Rooms where nothing changed but account data, who is typing, or up to where users have read. Of a room that is still to
        // come all is told then.
        let changed = found.changed_account_data.iter().filter(|changed| changed.is_known_room);
        let quiet = changed.filter(|changed| !changed.room_id.is_empty());
        let mut quiet: Vec<RoomId> =
            quiet.map(|changed| written_room_id(&changed.room_id)).collect::<Result<_, _>>()?;
        let is_whole = self.since > 0 && !found.is_cut;
        quiet.extend(self.fleeting.rooms().filter(|_| is_whole).cloned());
        quiet.retain(|room_id| !join.contains_key(room_id.as_str()) && self.filter.room(room_id.as_str()));
        for room_id in self.known_to_client(quiet).await? {
            join.insert(room_id.as_str(), self.quiet_room(&room_id, &found, &unread));
        }
        let rooms: Object =
            [("join", join), ("invite", invite), ("leave", leave), ("knock", knock)].into_iter().collect();
        let mut answer = Object::new();
        let rest = last.filter(|_| found.is_cut).map(|last| Rest {
            since: self.since,
            after: last.to_string(),
            whole: self.full_state,
            cut: cut.map(|(_, cut)| cut),
        });
        let at = if rest.is_some() { Token { fleeting: self.known, ..self.now } } else { self.now };
        answer.insert("next_batch", SyncToken { at, rest }.to_string());
        answer.insert("rooms", rooms);
        answer.insert("account_data", events_object(self.account_data("", &found)));
        answer.insert("presence", events_object(self.fleeting.presence()));
        answer.insert("to_device", events_object(to_device::told(self.server, &found.inbox)));
        let users = |users: BTreeSet<String>| Value::Array(users.into_iter().map(Value::from).collect());
        let told = [("changed", users(device_lists.changed)), ("left", users(device_lists.left))];
        answer.insert("device_lists", told.into_iter().collect::<Object>());
        let counts = found.key_counts;
        answer.insert("device_one_time_keys_count", keys::told_counts(&counts).into_iter().collect::<Object>());
        let unused = counts.unused_fallback.into_iter().map(Value::from).collect::<Vec<_>>();
        answer.insert("device_unused_fallback_key_types", unused);
        Ok(raw_json_response(StatusCode::OK, answer.to_text()))
    }

    /// Those of the rooms of which the client has been told: whoever does not load members lazily hears of a room when they are known.
    async fn known_to_client(&self, mut rooms: Vec<RoomId>) -> Result<Vec<RoomId>, MatrixError> {
        if !self.is_lazy() && !rooms.is_empty() {
            let unknown = self.server.store.without_members(&rooms).await?;
            rooms.retain(|room_id| !unknown.contains(room_id));
        }
        Ok(rooms)
    }

    /// Where the answer before has told only a part of a room's state, all else of it was told; where it was cut, if the state is
    /// still the one that is to be told.
    fn go_on(&self, entries: &mut [Entry]) -> Option<StateCut> {
        let (room_id, cut) = self.goes_on_in.as_ref()?;
        let plan = entries.iter_mut().find_map(|entry| match entry {
            Entry::Room(plan) if plan.room.room_id.as_str() == room_id => Some(plan),
            _ => None,
        })?;
        if plan.state != cut.root {
            return None;
        }
        plan.timeline.clear();
        (plan.limited, plan.summary) = (false, false);
        Some(cut.clone())
    }

    /// Leaves out the last rooms, where the state to send would be more than an answer holds; one room always stays.
    async fn cut(&self, entries: &mut Vec<Entry>, is_cut: &mut bool) -> Result<(), MatrixError> {
        let whole = |entry: &Entry| match entry {
            Entry::Room(plan) if matches!(plan.source, StateSource::Whole) && !plan.lazy => Some(plan.state),
            _ => None,
        };
        let sizes = self.server.store.state_sizes(entries.iter().filter_map(whole)).await?;
        let mut sum = 0;
        let mut fitting = 0;
        for entry in entries.iter_mut() {
            sum += match entry {
                Entry::Room(plan) => match sizes.get(&plan.state) {
                    Some(size) if !plan.lazy && *size <= MAX_STATE => *size,
                    // All of its members would be more than an answer holds, whatever the client asks for.
                    Some(_) => {
                        plan.lazy = true;
                        PART_OF_STATE
                    }
                    None => PART_OF_STATE,
                },
                _ => 0,
            };
            if fitting > 0 && sum > MAX_STATE {
                break;
            }
            fitting += 1;
        }
        *is_cut |= fitting < entries.len();
        entries.truncate(fitting);
        Ok(())
    }

    /// Whether the client asks for members as they matter to it.
    fn is_lazy(&self) -> bool {
        self.filter.state.lazy_load_members
    }

    /// Plans a joined or left room; the room back where it was left by way of another server.
    fn plan(&self, room: SyncRoom, new: NewEvents) -> Result<Plan, Box<SyncRoom>> {
        let joined = room.membership == Membership::Join;
        let here = room.room.filter(|_| joined || room.invite_state.is_none());
        let Some((_, current)) = here else { return Err(Box::new(room)) };
        // Those who never were in the room are told nothing of its state.
        let state = if joined { current } else { room.state_when_left.unwrap_or(NodeId::EMPTY) };
        let newly = joined && room.pos > self.since;
        let limit = usize::try_from(self.filter.timeline.limit()).unwrap_or(usize::MAX);
        let NewEvents { events: mut timeline, after_gap } = new;
        // Clients page back over a gap from `prev_batch`, and only where they are told of it.
        let grown = matches!(room.members, MembersKnown::From(pos) if pos > self.since);
        // Whoever was not told of the room pages back to what was said meanwhile.
        let limited = after_gap || timeline.len() > limit || (grown && !newly && !self.is_lazy() && self.since > 0);
        // With a limit of none all of it is left to be paged back to.
        let newest = timeline.last().map_or(self.since, |event| event.pos);
        timeline.drain(..timeline.len().saturating_sub(limit));
        let prev_batch = timeline.first().map_or(newest, |event| event.pos - 1);
        let source = match room.state_since {
            // All that they may know of the state was told before.
            _ if !joined && self.since > 0 && room.joined_until.is_none_or(|until| until <= self.since) => {
                StateSource::Timeline
            }
            // Whoever knows the room without its members is told of it anew when they are there, as of one newly joined.
            Some(known) if !newly && !self.full_state && self.since > 0 && !grown => {
                if follows(known, &timeline, state) && !limited && !self.state_after {
                    StateSource::Timeline
                } else {
                    StateSource::Since(known)
                }
            }
            _ => StateSource::Whole,
        };
        let members_changed = timeline.iter().any(|event| event.seen.event.event_type() == "m.room.member");
        let summary = joined && (members_changed || !matches!(source, StateSource::Timeline));
        let reader = Reader::known(&self.session.user, &room.room_id, state, joined, room.joined_until);
        let judged = newly || !joined;
        let lazy = matches!(source, StateSource::Whole) && self.is_lazy();
        Ok(Plan { room, state, reader, timeline, limited, prev_batch, source, lazy, judged, summary })
    }

    /// What became of the members of a room.
    fn members(&self, entry: &Entry) -> MemberChanges {
        let Entry::Room(plan) = entry else { return MemberChanges::Same };
        let timeline = matches!(plan.source, StateSource::Timeline).then_some(plan.timeline.as_slice());
        MemberChanges::of(&plan.room, plan.state, self.since, timeline)
    }

    fn joined(&self, plan: Plan, read: &Read<'_>) -> Value {
        let Read { state, heroes, found, unread, .. } = *read;
        let room_id = plan.room.room_id.as_str();
        let mut answer = Object::new();
        if plan.summary {
            let heroes = (!has_name(plan.state, state)).then(|| heroes.members(plan.state));
            answer.insert("summary", summary(plan.room.counts, heroes, &self.session.user));
        }
        answer.insert("account_data", events_object(self.account_data(room_id, found)));
        answer.insert("ephemeral", events_object(self.fleeting.events(&plan.room.room_id)));
        self.unread(&mut answer, &plan.room.room_id, unread);
        self.timeline_and_state(&mut answer, plan, read);
        Value::Object(answer)
    }

    fn left(&self, plan: Plan, read: &Read<'_>) -> Value {
        let mut answer = Object::new();
        answer.insert("account_data", events_object(Vec::new()));
        self.timeline_and_state(&mut answer, plan, read);
        Value::Object(answer)
    }

    /// A room that the user left when we were not in it: an invite that was rejected or taken back.
    fn left_elsewhere(&self, room: &SyncRoom) -> Result<Value, MatrixError> {
        let room_id = room.room_id.as_str();
        let events = match &room.invite_state {
            Some(text) => stored_events(text)?,
            None => Vec::new(),
        };
        let mut timeline = Object::new();
        timeline.insert("events", Value::Array(if self.filter.timeline.room(room_id) { events } else { Vec::new() }));
        timeline.insert("limited", false);
        timeline.insert("prev_batch", Token::at(0).to_string());
        let mut answer = Object::new();
        answer.insert("account_data", events_object(Vec::new()));
        answer.insert(if self.state_after { "state_after" } else { "state" }, events_object(Vec::new()));
        answer.insert("timeline", timeline);
        Ok(Value::Object(answer))
    }

    fn timeline_and_state(&self, answer: &mut Object, plan: Plan, read: &Read<'_>) {
        let Read { state: found, bundles, found: SyncFound { unwanted, .. }, .. } = *read;
        let room_id = plan.room.room_id.as_str();
        let now_ms = self.server.platform.clock.now_ms();
        let (mut shown, mut sent) = (BTreeSet::new(), Vec::new());
        let mut senders = BTreeSet::from([self.session.user.as_str().to_owned()]);
        let of_interest = plan.members_of_interest();
        let mut timeline = plan.timeline;
        timeline.retain(|event| if plan.judged { plan.reader.sees(event, found) } else { !event.seen.is_powerless });
        timeline.retain(|event| {
            let event = &event.seen.event;
            !unwanted.ignored.hides(event.sender().as_str(), event.state_key().is_some())
        });
        for event in &timeline {
            if !self.filter.timeline.event(room_id, &event.seen.event) {
                continue;
            }
            shown.insert(event.seen.event.event_id().clone());
            senders.insert(event.seen.event.sender().as_str().to_owned());
            // Who sees all that there is was joined all the time.
            let joined = Some(Membership::Join);
            let membership = if plan.judged { plan.reader.membership_at(event, found) } else { joined };
            let (replaces, relations) = (visibility::replaced(event, found), bundles.of(event));
            let erased = !plan.judged || plan.reader.reads(event, found);
            let telling = Telling { now_ms, room_id: false, replaces, membership, erased, relations };
            sent.push(events::timeline_event(event, telling));
        }
        let candidates: Vec<&SeenEvent> = match plan.source {
            StateSource::Whole if plan.lazy => {
                let members = of_interest.iter().filter_map(|(root, key)| found.at(*root, *key));
                found.but_members(plan.state).iter().chain(members).collect()
            }
            StateSource::Whole => found.whole(plan.state).iter().collect(),
            StateSource::Since(known) => found.changes(known, plan.state).iter().collect(),
            StateSource::Timeline => Vec::new(),
        };
        let hidden = timeline
            .iter()
            .filter(|event| matches!(plan.source, StateSource::Timeline) && event.seen.event.state_key().is_some());
        let state = candidates
            .into_iter()
            .chain(hidden.map(|event| &event.seen))
            .filter(|seen| {
                let event = &seen.event;
                let lazily_left_out = plan.lazy
                    && event.event_type() == "m.room.member"
                    && !event.state_key().is_some_and(|user| senders.contains(user));
                (self.state_after || !shown.contains(event.event_id()))
                    && self.filter.state.event(room_id, event)
                    && !lazily_left_out
            })
            .map(|seen| events::client_event(seen, Telling::alone(now_ms, false)))
            .collect();
        answer.insert(if self.state_after { "state_after" } else { "state" }, events_object(state));
        let mut told = Object::new();
        told.insert("events", Value::Array(sent));
        told.insert("limited", plan.limited);
        told.insert("prev_batch", Token::at(plan.prev_batch).to_string());
        answer.insert("timeline", told);
    }

    /// How much of a room is not read, where that was counted.
    fn unread(&self, answer: &mut Object, room_id: &RoomId, unread: &Unread) {
        if !unread.has(room_id) {
            return;
        }
        let (all, by_thread) = unread.told(room_id, self.filter.timeline.unread_thread_notifications);
        answer.insert("unread_notifications", all);
        if let Some(by_thread) = by_thread {
            answer.insert("unread_thread_notifications", by_thread);
        }
    }

    /// A joined room in which nothing happened.
    fn quiet_room(&self, room_id: &RoomId, found: &SyncFound, unread: &Unread) -> Value {
        let mut timeline = Object::new();
        timeline.insert("events", Value::Array(Vec::new()));
        timeline.insert("limited", false);
        timeline.insert("prev_batch", Token::at(found.events).to_string());
        let mut answer = Object::new();
        answer.insert("account_data", events_object(self.account_data(room_id.as_str(), found)));
        answer.insert("ephemeral", events_object(self.fleeting.events(room_id)));
        self.unread(&mut answer, room_id, unread);
        answer.insert(if self.state_after { "state_after" } else { "state" }, events_object(Vec::new()));
        answer.insert("timeline", timeline);
        Value::Object(answer)
    }

    fn account_data(&self, room_id: &str, found: &SyncFound) -> Vec<Value> {
        let filter = if room_id.is_empty() { &self.filter.account_data } else { &self.filter.room_account_data };
        let changed = found.changed_account_data.iter().filter(|changed| changed.room_id == room_id);
        let mut changed: Vec<(&str, Option<&str>)> =
            changed.map(|changed| (changed.event_type.as_str(), Some(changed.content.as_str()))).collect();
        // Everybody has push rules, and clients wait to be told of them at first.
        let has_rules = changed.iter().any(|(event_type, _)| *event_type == account_data::PUSH_RULES);
        if room_id.is_empty() && self.is_first && !has_rules {
            changed.push((account_data::PUSH_RULES, None));
        }
        let mut told = Vec::new();
        for (event_type, content) in changed.into_iter().filter(|(event_type, _)| filter.event_type(event_type)) {
            match account_data::told(self.session.user.as_str(), (room_id, event_type), content) {
                Ok(Some(content)) => {
                    let members = [("type", Value::from(event_type)), ("content", Value::Object(content))];
                    told.push(Value::Object(members.into_iter().collect()));
                }
                Ok(None) => {}
                // All else must not wait for it.
                Err(error) => {
                    let record =
                        LogRecord::error("a client is not told of account data: what is stored cannot be read");
                    self.server.platform.log.write(record.because(&error));
                }
            }
        }
        told
    }
}

impl Plan {
    /// Where the members stand who matter for the timeline: its senders, and the user.
    fn members_of_interest(&self) -> BTreeSet<(NodeId, StateKeyHash)> {
        let senders = self.timeline.iter().map(|event| event.seen.event.sender().as_str());
        let users = senders.chain([self.reader.user()]);
        users.map(|user| (self.state, StateKeyHash::new("m.room.member", user))).collect()
    }

    fn wants(&self, reads: &mut StateReads) {
        match self.source {
            StateSource::Whole if self.lazy => {
                reads.but_members.push(self.state);
                reads.at.extend(self.members_of_interest());
            }
            StateSource::Whole => reads.whole.push(self.state),
            StateSource::Since(known) => reads.changes.push((known, self.state)),
            StateSource::Timeline => {}
        }
        if self.judged {
            self.reader.wants(&self.timeline, reads);
        }
        visibility::wants_replaced(&self.timeline, reads);
        if self.summary {
            reads.at.extend(names(self.state));
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
fn has_name(state: NodeId, found: &StateFound) -> bool {
    let [name, alias] = names(state);
    let says = |(root, key): (NodeId, StateKeyHash), member: &str| {
        let text = found.at(root, key).and_then(|seen| seen.event.content().get(member)?.as_str());
        text.is_some_and(|text| !text.is_empty())
    };
    says(name, "name") || says(alias, "alias")
}

/// The numbers of members and, where the room has no name, who it can be named after: `members` are some of them.
fn summary(counts: MemberCounts, members: Option<&[Members]>, user: &UserId) -> Object {
    let mut summary = Object::new();
    summary.insert("m.joined_member_count", counts.joined);
    summary.insert("m.invited_member_count", counts.invited);
    if let Some(members) = members {
        let of = |memberships: &[Membership]| -> Vec<Value> {
            let groups = memberships.iter().flat_map(|wanted| members.iter().filter(|g| g.membership == *wanted));
            let users = groups.flat_map(|group| &group.first).filter(|other| other.as_str() != user.as_str());
            users.take(5).map(|other| Value::from(other.as_str())).collect()
        };
        let is_alone = counts.joined + counts.invited <= 1;
        let heroes =
            if is_alone { [Membership::Leave, Membership::Ban] } else { [Membership::Join, Membership::Invite] };
        summary.insert("m.heroes", of(&heroes));
    }
    summary
}

fn shown_outside_wants(room: &SyncRoom, user: &UserId, reads: &mut StateReads) {
    if let (None, Some((_, state))) = (&room.invite_state, room.room) {
        reads.at.extend(shown_outside_keys(user).map(|key| (state, key)));
    }
}

/// Where the state stands that is shown to a user who is invited or knocks: what describes the room, and their membership.
fn shown_outside_keys(user: &UserId) -> impl Iterator<Item = StateKeyHash> {
    let keys = STRIPPED_STATE.iter().map(|kind| (*kind, "")).chain([("m.room.member", user.as_str())]);
    keys.map(|(kind, key)| StateKeyHash::new(kind, key))
}

fn shown_outside(room: &SyncRoom, user: &UserId, found: &StateFound) -> Result<Object, MatrixError> {
    let events = match (&room.invite_state, room.room) {
        (Some(text), _) => stored_events(text)?,
        (None, Some((_, state))) => {
            let seen = shown_outside_keys(user).filter_map(|key| found.at(state, key));
            seen.map(|seen| {
                let mut event = seen.event.object().clone();
                event.insert("event_id", seen.event.event_id().as_str());
                events::stripped(&event)
            })
            .collect()
        }
        (None, None) => Vec::new(),
    };
    Ok(events_object(events))
}

/// The events of a JSON list that we have stored, as clients are told of rooms from outside.
fn stored_events(text: &str) -> Result<Vec<Value>, MatrixError> {
    let stored = json::parse(text.as_bytes()).ok().and_then(Value::into_array);
    let list = stored.ok_or_else(|| DatabaseError::Shape("what a room is shown by is no list".to_owned()))?;
    Ok(list.iter().filter_map(|event| event.as_object().map(events::stripped)).collect())
}

/// Who has invited the user: the sender of the invite, which comes first of what came with it.
fn inviter(room: &SyncRoom, user: &UserId, found: &StateFound) -> Option<String> {
    match (&room.invite_state, room.room) {
        (Some(text), _) => {
            let list = json::parse(text.as_bytes()).ok()?.into_array()?;
            Some(list.first()?.as_object()?.get("sender")?.as_str()?.to_owned())
        }
        (None, Some((_, state))) => {
            let invite = found.at(state, StateKeyHash::new("m.room.member", user.as_str()))?;
            Some(invite.event.sender().as_str().to_owned())
        }
        (None, None) => None,
    }
}

fn written_room_id(text: &str) -> Result<RoomId, DatabaseError> {
    RoomId::parse(text).map_err(|_| DatabaseError::Shape("account data of what is no room ID".to_owned()))
}

fn events_object(events: Vec<Value>) -> Object {
    [("events", Value::Array(events))].into_iter().collect()
}

fn boolean(call: &Call, name: &str) -> Result<bool, MatrixError> {
    match call.query(name).as_deref() {
        Some("true") => Ok(true),
        None | Some("false" | "") => Ok(false),
        Some(_) => Err(MatrixError::invalid_param(format!("{name:?} must be true or false."))),
    }
}
