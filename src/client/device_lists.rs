//! Whose keys a client must ask for again, and whose it may forget: `device_lists` of `/sync`, and `/keys/changes`
//! (Client-Server API, "Tracking the device list for a user").
//!
//! Changes are told of everybody with whom a room is shared, whether it is encrypted or not. So only those have left with whom no
//! room is shared any more, and whoever shares one again is new: what changed meanwhile was not told.

use std::collections::{BTreeMap, BTreeSet};

use super::{auth::Session, tokens::Token};
use crate::{
    error::MatrixError,
    matrix::{
        event::Event,
        identifiers::UserId,
        state_content::Membership,
        state_trie::{NodeId, StateKeyHash},
    },
    server::Server,
    store::{
        device_lists::KeyChanges,
        positions::TimelinePos,
        snapshots::{MemberChange, StateFound, StateReads},
        sync::{MembersKnown, RestRead, SyncRead, SyncRoom},
        timeline::{PageFilter, TimelineEvent},
    },
};

/// What changed.
#[derive(Debug, Default)]
pub(super) struct DeviceLists {
    /// The users whose keys have changed, or who are new in a shared room, or in one that is encrypted now.
    pub(super) changed: BTreeSet<String>,
    /// The users who no longer share any.
    pub(super) left: BTreeSet<String>,
}

/// What became of the members of a room that has news.
pub(super) enum MemberChanges {
    /// Nothing, as far as device lists are concerned.
    Same,
    /// The events between two snapshots say it.
    Between(NodeId, NodeId),
    /// These membership events do; with each stands where the one is that it replaces.
    Told(Vec<(Event, Option<(NodeId, StateKeyHash)>)>),
    /// All are new to the user.
    New(NodeId),
    /// The user has left them.
    Gone(NodeId),
}

impl MemberChanges {
    /// What became of them for one who knows the room as it was at `since`. `state` is the room's state now, or when the user left;
    /// `timeline` the new events, where they alone have made it from what it was. A client that `loads_all` members is told of a
    /// room only once they are known: then all of them are new to it.
    pub(super) fn of(
        room: &SyncRoom,
        state: NodeId,
        since: TimelinePos,
        loads_all: bool,
        timeline: Option<&[TimelineEvent]>,
    ) -> Self {
        let joined = room.membership == Membership::Join;
        match room.state_since {
            _ if since == TimelinePos::START => Self::Same,
            // Those whom they met and left since then they have never heard of.
            Some(_) if !joined && room.joined_until.is_some_and(|until| until > since) => Self::Gone(state),
            _ if !joined => Self::Same,
            _ if loads_all && room.members.since(since) => Self::New(state),
            Some(known) if room.pos <= since => match timeline {
                Some(timeline) => Self::told(state, timeline),
                None if known == state => Self::Same,
                None => Self::Between(known, state),
            },
            _ => Self::New(state),
        }
    }

    fn told(state: NodeId, timeline: &[TimelineEvent]) -> Self {
        let replaced = |event: &TimelineEvent| {
            Some((event.seen.state_before?, StateKeyHash::member(event.seen.event.state_key()?)))
        };
        let is_member = |event: &&TimelineEvent| {
            event.seen.event.event_type() == "m.room.member" && event.seen.event.state_key().is_some()
        };
        // Who encrypts a room concerns all of its members.
        if timeline.iter().any(|event| event.seen.event.event_type() == ENCRYPTION) {
            return Self::New(state);
        }
        let events: Vec<_> =
            timeline.iter().filter(is_member).map(|event| (event.seen.event.clone(), replaced(event))).collect();
        if events.is_empty() { Self::Same } else { Self::Told(events) }
    }

    /// What must be read for it.
    pub(super) fn wants(&self, reads: &mut StateReads) {
        match self {
            Self::Same | Self::New(_) | Self::Gone(_) => {}
            Self::Between(known, state) => reads.member_changes.extend([(*known, *state), (*state, *known)]),
            Self::Told(events) => reads.at.extend(events.iter().filter_map(|(_, replaced)| *replaced)),
        }
    }
}

const ENCRYPTION: &str = "m.room.encryption";

impl DeviceLists {
    /// Of the users in `changed`, those who share a room with `user`; and what became of the members of rooms.
    pub(super) async fn of(
        server: &Server,
        user: &UserId,
        changed: KeyChanges,
        rooms: &[MemberChanges],
        found: &StateFound,
    ) -> Result<Self, MatrixError> {
        let (mut lists, mut new, mut gone) = (Self::default(), Vec::new(), Vec::new());
        for room in rooms {
            match room {
                MemberChanges::Same => {}
                MemberChanges::Between(known, state) => {
                    let changes = found.member_changes(*known, *state);
                    if changes.iter().any(|change| change.event_type == ENCRYPTION) {
                        new.push(*state);
                    }
                    let (now, before) = (memberships(changes), memberships(found.member_changes(*state, *known)));
                    for member in now.keys().chain(before.keys()) {
                        let now = now.get(member).copied().flatten();
                        // Whose join is another event than the one before may have been out of the room in between.
                        let before = before.get(member).copied().flatten().filter(|_| now != Some(Membership::Join));
                        lists.note(member, now, before);
                    }
                }
                MemberChanges::Told(events) => {
                    for (event, replaced) in events {
                        let before = replaced.and_then(|(root, key)| found.at(root, key)).map(|seen| &seen.event);
                        let Some(member) = event.state_key() else { continue };
                        lists.note(member, event.membership(), before.and_then(Event::membership));
                    }
                }
                MemberChanges::New(state) => new.push(*state),
                MemberChanges::Gone(state) => gone.push(*state),
            }
        }
        if !new.is_empty() {
            lists.changed.extend(server.store.joined_by(&new).await?);
        }
        if !gone.is_empty() {
            // No client has to forget users whose keys nobody here can have asked for: a large room has thousands of them.
            lists.left.extend(server.store.followed_by(&gone, server.config.server_name.as_str()).await?);
        }
        let me = user.as_str();
        let ask = changed.others.union(&lists.left).filter(|other| *other != me).cloned().collect();
        let sharing = server.store.sharing(server.config.server_name.as_str(), me, ask).await?;
        lists.left.retain(|other| !sharing.contains(other) && other != me);
        // Who has come and gone is gone.
        lists.changed.retain(|other| !lists.left.contains(other));
        lists.changed.extend(changed.others.into_iter().filter(|other| sharing.contains(other)));
        lists.changed.extend(changed.own);
        Ok(lists)
    }

    fn note(&mut self, member: &str, now: Option<Membership>, before: Option<Membership>) {
        match (now, before) {
            // Moderators ban whom no server could have: to clients that is no user ID.
            _ if !UserId::is_valid(member) => {}
            (Some(Membership::Join), Some(Membership::Join)) => {}
            (Some(Membership::Join), _) => {
                self.changed.insert(member.to_owned());
            }
            // Who was in and now has an invite has left before it; who has nothing, their join counts no more.
            (Some(Membership::Leave | Membership::Ban), _) | (_, Some(Membership::Join)) => {
                self.left.insert(member.to_owned());
            }
            _ => {}
        }
    }
}

/// Of the changes those of members, by their user IDs.
fn memberships(changes: &[MemberChange]) -> BTreeMap<&str, Option<Membership>> {
    let members = changes.iter().filter(|change| change.event_type != ENCRYPTION);
    members.map(|change| (change.state_key.as_str(), change.membership)).collect()
}

/// Of the rooms that were left, those that the user was not in at `since` are taken for rooms of which the client knows no state. So
/// are those whose members were never known, where the client `loads_all` of them: it was told nothing of these.
pub(super) async fn withhold_unseen(
    server: &Server,
    user: &UserId,
    since: TimelinePos,
    loads_all: bool,
    rooms: &mut [SyncRoom],
) -> Result<(), MatrixError> {
    let member = StateKeyHash::member(user.as_str());
    let is_left =
        |room: &SyncRoom| room.membership != Membership::Join && room.joined_until.is_some_and(|until| until > since);
    let known = |room: &SyncRoom| room.state_since.filter(|_| since > TimelinePos::START && is_left(room));
    let at: Vec<_> = rooms.iter().filter_map(known).map(|root| (root, member)).collect();
    if at.is_empty() {
        return Ok(());
    }
    let found = server.store.read_states(&StateReads { at, ..StateReads::default() }).await?;
    for room in rooms {
        let was_in = |root| found.at(root, member).and_then(|seen| seen.event.membership()) == Some(Membership::Join);
        let was_withheld = loads_all && room.members == MembersKnown::NotYet;
        if known(room).is_some_and(|root| was_withheld || !was_in(root)) {
            room.state_since = None;
        }
    }
    Ok(())
}

/// What changed since `from`.
pub(super) async fn since(server: &Server, session: &Session, from: Token) -> Result<DeviceLists, MatrixError> {
    let changed = server.store.device_list_changes(session.user.as_str(), from.device_lists).await?;
    let since = from.events.max(TimelinePos::START);
    let (mut members, mut reads) = (Vec::new(), StateReads::default());
    let (mut after, mut to) = (String::new(), None);
    let mut goes_on = since > TimelinePos::START;
    let filter = PageFilter::default();
    while goes_on {
        let read = SyncRead {
            user_id: session.user.as_str(),
            device_id: &session.device_id,
            since,
            account_data_since: from.account_data,
            device_lists_since: None,
            fleeting: None,
            to_device_since: None,
            key_counts: false,
            all_joined: false,
            include_leave: false,
            limit: 0,
            filter: &filter,
            rest: to.map(|to| RestRead { after: &after, again: false, to }),
        };
        let mut found = server.store.sync(&read).await?;
        // Whether the client loads all members is not said here; those of whom it was not told it does not follow.
        withhold_unseen(server, &session.user, since, false, &mut found.rooms).await?;
        for room in &found.rooms {
            let state = match room.membership {
                Membership::Join => room.room.map(|(_, state)| state),
                _ => room.state_when_left,
            };
            let Some(state) = state else { continue };
            members.push(MemberChanges::of(room, state, since, false, None));
            // Where they became known since then, it is told what either kind of client needs.
            if room.members.since(since) {
                members.push(MemberChanges::of(room, state, since, true, None));
            }
        }
        let last = found.rooms.last().filter(|_| found.is_cut);
        goes_on = last.is_some();
        after = last.map_or(after, |last| last.room_id.to_string());
        to = to.or(Some(found.events));
    }
    members.iter().for_each(|room| room.wants(&mut reads));
    let state = server.store.read_states(&reads).await?;
    DeviceLists::of(server, &session.user, changed, &members, &state).await
}
