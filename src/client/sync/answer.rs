//! The answer of a sync, from what was found.
//!
//! Rooms are told in the order of their IDs. What one answer may hold is bounded; where there is more, its token says
//! which rooms are still to come ([`Rest`]), and these are told next as they were when the first answer was made.

use std::collections::BTreeSet;

use futures_util::future::try_join;
use http::StatusCode;

use super::{
    plan::{Answer, Entry, StateSource},
    rooms::Read,
    stripped_state::{inviter, inviter_at, shown_outside, shown_outside_wants},
};
use crate::{
    admission::Reservation,
    client::{
        bundles::{Bundles, Shown},
        device_lists::{DeviceLists, MemberChanges, withhold_unseen},
        events::events_object,
        keys, to_device,
        tokens::{Rest, SyncToken, Token},
        unread::Unread,
    },
    error::MatrixError,
    matrix::{
        identifiers::RoomId,
        json::{Object, Value},
        state_content::Membership,
    },
    platform::DatabaseError,
    router::{Handled, raw_json_response},
    store::{
        positions::TimelinePos,
        snapshots::{StateCut, StateFound, StateReads},
        sync::{MembersKnown, SyncFound},
    },
};

/// How many bytes of state events an answer holds at most, of one room or several.
const MAX_STATE: i64 = 8_000_000;
/// How many characters of the state that rooms are told without their members, and as many of what has changed in rooms. Where there
/// is more of one room, its state is told in several answers.
const MAX_PARTS: i64 = 4_000_000;
/// How many a part of a room's state is taken for.
const PART_OF_STATE: i64 = 40_000;

/// The rooms of an answer, by what the user is to them.
#[derive(Default)]
struct Rooms {
    join: Object,
    invite: Object,
    leave: Object,
    knock: Object,
}

impl Answer<'_> {
    pub(super) async fn write(&self, mut found: SyncFound) -> Handled {
        withhold_unseen(self.server, &self.session.user, self.since, !self.is_lazy(), &mut found.rooms).await?;
        let mut entries = self.entries(&mut found);
        let _held = self.cut(&mut entries, &mut found.is_cut).await?;
        let after = self.go_on(&mut entries);
        let mut members: Vec<MemberChanges> = entries.iter().map(|entry| self.members(entry)).collect();
        let (state, bundles, unread) = self.ask(&entries, &members, after, &found).await?;
        // Of the first room whose state was read in part, that part is told, and of those after it nothing.
        let cut = entries.iter().enumerate().find_map(|(at, entry)| Some((at, entry.cut_in(&state)?.clone())));
        if let Some((at, _)) = &cut {
            entries.truncate(at + 1);
            members.truncate(at + 1);
            found.is_cut = true;
        }
        let last = entries.last().map(|entry| entry.room_id().clone());
        let people = self.ask_for_people(&entries, &state).await?;
        let changed_keys = std::mem::take(&mut found.changed_keys);
        let device_lists = DeviceLists::of(self.server, &self.session.user, changed_keys, &members, &state).await?;
        let read = Read { found: &found, state: &state, heroes: &people, bundles: &bundles, unread: &unread };
        let mut rooms = self.tell(entries, &read)?;
        self.tell_quiet(&mut rooms.join, &read).await?;
        let rest = last.filter(|_| found.is_cut).map(|last| Rest {
            since: self.since,
            after: last.to_string(),
            whole: self.full_state,
            cut: cut.map(|(_, cut)| cut),
        });
        Ok(raw_json_response(StatusCode::OK, self.body(rooms, rest, device_lists, found).to_text()))
    }

    /// What is told of each room that was found.
    fn entries(&self, found: &mut SyncFound) -> Vec<Entry> {
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
        entries
    }

    /// Reads what the rooms' states say, from `after` on, what relates to their events, and how much of them is not read.
    async fn ask(
        &self,
        entries: &[Entry],
        members: &[MemberChanges],
        after: Option<StateCut>,
        found: &SyncFound,
    ) -> Result<(StateFound, Bundles, Unread), MatrixError> {
        let mut reads = StateReads { most: Some(MAX_PARTS), after, ..StateReads::default() };
        for entry in entries {
            match entry {
                Entry::Room(plan) => plan.wants(&mut reads),
                Entry::Invite(room) | Entry::Knock(room) => shown_outside_wants(room, &self.session.user, &mut reads),
                Entry::Elsewhere(_) | Entry::None(_) => {}
            }
        }
        members.iter().for_each(|members| members.wants(&mut reads));
        // Of what relates to events that the client does not miss, it is told by those that do.
        let limited = entries.iter().filter_map(|entry| match entry {
            Entry::Room(plan) if plan.limited => Some((&plan.reader, plan.timeline.as_slice())),
            _ => None,
        });
        let limited: Vec<Shown<'_>> = limited.collect();
        let bundles = Bundles::read(self.server, self.session, &reads, &limited);
        let counted = self.counted(entries, found)?;
        let unread = Unread::count(self.server, &self.session.user, &counted, self.now.events.max(found.events));
        let ((state, bundles), unread) = try_join(bundles, unread).await?;
        Ok((state, bundles, unread))
    }

    /// The rooms of which the client is told how much is not read.
    fn counted(&self, entries: &[Entry], found: &SyncFound) -> Result<Vec<RoomId>, DatabaseError> {
        let told = entries.iter().filter_map(|entry| match entry {
            Entry::Room(plan) if plan.room.membership == Membership::Join => Some(&plan.room.room_id),
            _ => None,
        });
        let mut counted: BTreeSet<RoomId> =
            told.chain(self.fleeting.read_by(self.session.user.as_str())).cloned().collect();
        // Clients take a room, and all threads of it, for read that they are told of without a word on that.
        if self.since > TimelinePos::START {
            counted.extend(rooms_of_account_data(found)?);
            counted.extend(self.fleeting.rooms().cloned());
        }
        Ok(counted.into_iter().filter(|room_id| self.filter.room(room_id.as_str())).collect())
    }

    /// Reads what could not be asked for before the state was known: who a room is named after matters only where it has no name, and
    /// who invites is known by now.
    async fn ask_for_people(&self, entries: &[Entry], state: &StateFound) -> Result<StateFound, MatrixError> {
        let mut reads = StateReads { most: Some(MAX_PARTS), ..StateReads::default() };
        for plan in entries.iter().filter_map(|entry| entry.unnamed(state)) {
            if plan.lazy { &mut reads.member_events } else { &mut reads.members }.push(plan.state);
        }
        reads.at.extend(entries.iter().filter_map(|entry| match entry {
            Entry::Invite(room) => inviter_at(room, &self.session.user, state),
            _ => None,
        }));
        Ok(self.server.store.read_states(&reads).await?)
    }

    /// The rooms in which there is something new.
    fn tell(&self, entries: Vec<Entry>, read: &Read<'_>) -> Result<Rooms, MatrixError> {
        let user = &self.session.user;
        let mut rooms = Rooms::default();
        for entry in entries {
            match entry {
                Entry::Room(plan) => {
                    let room_id = plan.room.room_id.clone();
                    if plan.room.membership == Membership::Join {
                        rooms.join.insert(room_id.as_str(), self.joined(plan, read));
                    } else {
                        rooms.leave.insert(room_id.as_str(), self.left(plan, read));
                    }
                }
                Entry::Elsewhere(room) => {
                    rooms.leave.insert(room.room_id.as_str(), self.left_elsewhere(&room)?);
                }
                Entry::Invite(room) => {
                    if read.found.unwanted.hides_invite(inviter(&room, user, read.state).as_deref()) {
                        continue;
                    }
                    let inviter = inviter_at(&room, user, read.state).and_then(|(root, key)| read.heroes.at(root, key));
                    let events = shown_outside(&room, user, read.state, inviter)?;
                    rooms.invite.insert(room.room_id.as_str(), Object::from_iter([("invite_state", events)]));
                }
                Entry::Knock(room) => {
                    let events = shown_outside(&room, user, read.state, None)?;
                    rooms.knock.insert(room.room_id.as_str(), Object::from_iter([("knock_state", events)]));
                }
                Entry::None(_) => {}
            }
        }
        Ok(rooms)
    }

    /// Adds the rooms where nothing changed but account data, who is typing, or up to where users have read. Of a room that is still
    /// to come all is told then.
    async fn tell_quiet(&self, join: &mut Object, read: &Read<'_>) -> Result<(), MatrixError> {
        let mut quiet = rooms_of_account_data(read.found)?;
        let is_whole = self.since > TimelinePos::START && !read.found.is_cut;
        quiet.extend(self.fleeting.rooms().filter(|_| is_whole).cloned());
        quiet.retain(|room_id| !join.contains_key(room_id.as_str()) && self.filter.room(room_id.as_str()));
        for room_id in self.known_to_client(quiet).await? {
            join.insert(room_id.as_str(), self.quiet_room(&room_id, read.found, read.unread));
        }
        Ok(())
    }

    fn body(&self, rooms: Rooms, rest: Option<Rest>, device_lists: DeviceLists, found: SyncFound) -> Object {
        let Rooms { join, invite, leave, knock } = rooms;
        let rooms: Object =
            [("join", join), ("invite", invite), ("leave", leave), ("knock", knock)].into_iter().collect();
        let mut answer = Object::new();
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
        answer
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

    /// Leaves out the last rooms, where the state to send would be more than an answer holds, or than there is room for beside what
    /// else is in work; one room always stays. Gives the room of the whole states that are left.
    async fn cut(&self, entries: &mut Vec<Entry>, is_cut: &mut bool) -> Result<Option<Reservation>, MatrixError> {
        let whole = |entry: &Entry| match entry {
            Entry::Room(plan) if matches!(plan.source, StateSource::Whole) && !plan.lazy => Some(plan.state),
            _ => None,
        };
        let sizes = self.server.store.state_sizes(entries.iter().filter_map(whole)).await?;
        let mut sum = 0;
        let mut fitting = 0;
        // How much of whole states the first rooms have, for each number of them.
        let (mut whole, mut of_first) = (0, Vec::new());
        for entry in entries.iter_mut() {
            sum += match entry {
                Entry::Room(plan) => match sizes.get(&plan.state) {
                    Some(size) if !plan.lazy && *size <= MAX_STATE => {
                        whole += *size;
                        *size
                    }
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
            of_first.push(whole);
        }
        let held = loop {
            let whole = of_first.iter().take(fitting).next_back().copied().unwrap_or_default();
            match self.server.store.room_for_states(whole) {
                // The others are told next.
                Err(DatabaseError::NoRoom) if fitting > 1 => fitting /= 2,
                held => break held?,
            }
        };
        *is_cut |= fitting < entries.len();
        entries.truncate(fitting);
        Ok(held)
    }
}

/// The rooms that the client knows of which account data has changed.
fn rooms_of_account_data(found: &SyncFound) -> Result<Vec<RoomId>, DatabaseError> {
    let changed = found.changed_account_data.iter().filter(|changed| changed.is_known_room);
    let written = |_| DatabaseError::Shape("account data of what is no room ID".to_owned());
    let rooms = changed.filter(|changed| !changed.room_id.is_empty());
    rooms.map(|changed| RoomId::parse(&changed.room_id).map_err(written)).collect()
}
