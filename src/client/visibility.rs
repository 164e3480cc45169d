//! Which events of a room a local user may see (Client-Server API, "Room History Visibility").

use std::ops::Deref;

use http::StatusCode;

use super::{auth::Session, events::Telling};
use crate::{
    error::MatrixError,
    matrix::{
        history_visibility::around,
        identifiers::{RoomId, UserId},
        state_content::{HistoryVisibility, Membership},
        state_trie::{NodeId, StateKeyHash},
    },
    room::Extent,
    server::Server,
    store::{
        positions::TimelinePos,
        snapshots::{StateFound, StateReads},
        timeline::{RoomView, SeenEvent, TimelineEvent},
    },
};

/// A local user in a room whose history they may read, or some of it.
#[derive(Debug)]
pub(super) struct Reader {
    /// The user.
    user: UserId,
    /// The room.
    pub(super) room_id: RoomId,
    /// The state that they may see: the current one, or that in which they left.
    pub(super) state: NodeId,
    /// The last position that they may see.
    pub(super) last: TimelinePos,
    /// Whether they are joined now.
    pub(super) joined: bool,
    /// The last position at which they may see what is shared with members: where they left, if they did.
    member_until: TimelinePos,
}

/// A reader of a room of which the state is known as far as they may see it: only they are told who is in it.
#[derive(Debug)]
pub(super) struct WholeReader(Reader);

impl WholeReader {
    /// As [`Reader::enter`]; waits where the room was joined by an answer without its members, until those are there.
    ///
    /// # Errors
    /// As [`Reader::enter`]; 504 where that takes too long.
    pub(super) async fn enter(server: &Server, session: &Session, room_id: &str) -> Result<Self, MatrixError> {
        match Reader::look(server, session, room_id).await? {
            (reader, Extent::Whole | Extent::Settling) => Ok(Self(reader)),
            (reader, Extent::Partial) => {
                server.until_whole(&reader.room_id).await?;
                Ok(Self(Reader::enter(server, session, room_id).await?))
            }
        }
    }

    /// As [`WholeReader::enter`], for one event of the room.
    ///
    /// # Errors
    /// As [`Reader::enter_for_event`]; 504 as [`WholeReader::enter`].
    pub(super) async fn enter_for_event(
        server: &Server,
        session: &Session,
        room_id: &str,
    ) -> Result<Self, MatrixError> {
        Self::enter(server, session, room_id).await.map_err(hidden)
    }

    /// The reader, who may do what every reader may.
    pub(super) fn into_reader(self) -> Reader {
        self.0
    }
}

impl Deref for WholeReader {
    type Target = Reader;

    fn deref(&self) -> &Reader {
        &self.0
    }
}

/// Whoever may not read a room is not told whether it has an event.
fn hidden(error: MatrixError) -> MatrixError {
    match error.status {
        StatusCode::FORBIDDEN => no_such_event(),
        _ => error,
    }
}

impl Reader {
    /// The user of `session` as a reader of the room.
    ///
    /// # Errors
    /// 403 `M_FORBIDDEN` where they are not, and were never, in the room, and not everybody may read it.
    pub(super) async fn enter(server: &Server, session: &Session, room_id: &str) -> Result<Self, MatrixError> {
        Ok(Self::look(server, session, room_id).await?.0)
    }

    /// The reader, and how much is known of the room's state.
    async fn look(server: &Server, session: &Session, room_id: &str) -> Result<(Self, Extent), MatrixError> {
        let stranger = || MatrixError::forbidden("You are not in this room.");
        let room_id = RoomId::parse(room_id).map_err(|error| MatrixError::invalid_param(format!("{error}.")))?;
        let view = server.store.room_view(&room_id, &session.user).await?.ok_or_else(stranger)?;
        if let Some(reader) = Self::joined(&session.user, &room_id, &view) {
            return Ok((reader, view.extent));
        }
        let RoomView { state, membership, extent, .. } = view;
        let left = membership.filter(|now| matches!(now.membership, Membership::Leave | Membership::Ban));
        let until = left.as_ref().and_then(|now| now.joined_until);
        let visibility = StateKeyHash::new("m.room.history_visibility", "");
        let reads = StateReads { at: vec![(state, visibility)], ..StateReads::default() };
        let found = server.store.read_states(&reads).await?;
        if HistoryVisibility::of(found.at(state, visibility).map(|seen| seen.event.content()))
            == HistoryVisibility::WorldReadable
        {
            let user = session.user.clone();
            let member_until = until.unwrap_or(TimelinePos::NOWHERE);
            return Ok((Self { user, room_id, state, last: TimelinePos::END, joined: false, member_until }, extent));
        }
        let when_left = left.and_then(|now| now.state).unwrap_or(state);
        let reader = until.map(|_| Self::known(&session.user, &room_id, when_left, false, until));
        // What they could know when they left is not going to be more.
        reader.map(|reader| (reader, Extent::Whole)).ok_or_else(stranger)
    }

    /// As [`Reader::enter`], for one event of the room.
    ///
    /// # Errors
    /// [`no_such_event`] where they may not read the room.
    pub(super) async fn enter_for_event(
        server: &Server,
        session: &Session,
        room_id: &str,
    ) -> Result<Self, MatrixError> {
        Self::enter(server, session, room_id).await.map_err(hidden)
    }

    /// As [`Reader::enter`], for those who are joined now.
    ///
    /// # Errors
    /// 403 `M_FORBIDDEN` for all others.
    pub(super) async fn enter_joined(server: &Server, session: &Session, room_id: &str) -> Result<Self, MatrixError> {
        let stranger = || MatrixError::forbidden("You are not in this room.");
        let room_id = RoomId::parse(room_id).map_err(|error| MatrixError::invalid_param(format!("{error}.")))?;
        let view = server.store.room_view(&room_id, &session.user).await?.ok_or_else(stranger)?;
        Self::joined(&session.user, &room_id, &view).ok_or_else(stranger)
    }

    /// Somebody whose membership the caller knows: joined, or joined until some position, or never.
    pub(super) fn known(
        user: &UserId,
        room_id: &RoomId,
        state: NodeId,
        joined: bool,
        until: Option<TimelinePos>,
    ) -> Self {
        let last = if joined { TimelinePos::END } else { until.unwrap_or(TimelinePos::NOWHERE) };
        Self { user: user.clone(), room_id: room_id.clone(), state, last, joined, member_until: last }
    }

    fn joined(user: &UserId, room_id: &RoomId, view: &RoomView) -> Option<Self> {
        let joined = view.membership.as_ref().is_some_and(|now| now.membership == Membership::Join);
        joined.then(|| Self::known(user, room_id, view.state, true, None))
    }

    /// Who reads.
    pub(super) fn user(&self) -> &str {
        self.user.as_str()
    }

    /// Adds to `reads` what [`Reader::sees`] must know to judge `events`.
    pub(super) fn wants(&self, events: &[TimelineEvent], reads: &mut StateReads) {
        self.wants_states(events.iter().map(|event| event.seen.state_before), reads);
    }

    /// As [`Reader::wants`], of events with these states before them.
    pub(super) fn wants_states(&self, states: impl Iterator<Item = Option<NodeId>>, reads: &mut StateReads) {
        let mut roots: Vec<NodeId> = states.map(|state| state.unwrap_or(self.state)).collect();
        roots.sort_unstable();
        roots.dedup();
        let [visibility, member] = self.keys();
        reads.at.extend(roots.into_iter().flat_map(|root| [(root, visibility), (root, member)]));
    }

    /// Whether the reader may see `event`, by the state before it. Where that is not known (history from another server)
    /// the room's state now decides, and only what it shares is seen. A redaction without effect nobody sees (rooms v3,
    /// "Handling redactions").
    pub(super) fn sees(&self, event: &TimelineEvent, found: &StateFound) -> bool {
        if event.seen.is_powerless {
            return false;
        }
        let own = event.seen.event.is_state("m.room.member", self.user.as_str());
        if own {
            return true;
        }
        let [visibility, _] = self.keys();
        let before = found.at(event.seen.state_before.unwrap_or(self.state), visibility).map(|seen| &seen.event);
        let levels = around(&event.seen.event, Some(before));
        let then = self.membership_at(event, found).unwrap_or(Membership::Leave);
        levels.into_iter().any(|level| level.shows(then, event.pos <= self.member_until))
    }

    /// Whether the reader, who may see `event`, may see its content, too: what an erased user has sent only those may who were in
    /// the room then.
    pub(super) fn reads(&self, event: &TimelineEvent, found: &StateFound) -> bool {
        !event.seen.is_erased || self.membership_at(event, found) == Some(Membership::Join)
    }

    /// Whether the reader may see messages at or before the position `pos` that have this state before them.
    pub(super) fn sees_at(&self, state_before: Option<NodeId>, pos: TimelinePos, found: &StateFound) -> bool {
        let [visibility, member] = self.keys();
        let before = found.at(state_before.unwrap_or(self.state), visibility).map(|seen| seen.event.content());
        let stood = state_before.and_then(|state| found.at(state, member)).and_then(|seen| seen.event.membership());
        HistoryVisibility::of(before).shows(stood.unwrap_or(Membership::Leave), pos <= self.member_until)
    }

    /// Refuses a reader who may not see the state that the room had at the position `pos`.
    ///
    /// # Errors
    /// 403 where they were not in the room then, and its history is not shared.
    pub(super) async fn check_sees(&self, server: &Server, state: NodeId, pos: TimelinePos) -> Result<(), MatrixError> {
        if state == self.state {
            return Ok(());
        }
        let reads = StateReads { at: self.keys().map(|key| (state, key)).into(), ..StateReads::default() };
        let found = server.store.read_states(&reads).await?;
        match self.sees_at(Some(state), pos, &found) {
            true => Ok(()),
            false => Err(MatrixError::forbidden("You may not see who was in the room at that time.")),
        }
    }

    /// Whether the reader may see all that is shared with members, up to `last`.
    pub(super) fn shares_all(&self) -> bool {
        self.last <= self.member_until
    }

    /// What the reader is told of `event` beyond the event itself, where the answer does not say in which room it is. What
    /// [`Reader::wants`] and [`wants_replaced`] ask for must have been read.
    pub(super) fn telling<'f>(&self, event: &TimelineEvent, found: &'f StateFound, now_ms: i64) -> Telling<'f> {
        let membership = self.membership_at(event, found);
        let erased = self.reads(event, found);
        Telling { now_ms, room_id: true, replaces: replaced(event, found), membership, erased, relations: None }
    }

    /// What the reader was in the room with `event`, by what [`Reader::wants`] has had read; `None` where that is not known.
    pub(super) fn membership_at(&self, event: &TimelineEvent, found: &StateFound) -> Option<Membership> {
        if event.seen.event.is_state("m.room.member", self.user.as_str()) {
            return event.seen.event.membership();
        }
        let [_, member] = self.keys();
        let stood = found.at(event.seen.state_before?, member).and_then(|seen| seen.event.membership());
        Some(stood.unwrap_or(Membership::Leave))
    }

    fn keys(&self) -> [StateKeyHash; 2] {
        [StateKeyHash::new("m.room.history_visibility", ""), StateKeyHash::member(self.user.as_str())]
    }
}

/// The events before which a state event stood at the same key, for `unsigned.prev_content`.
pub(super) fn wants_replaced(events: &[TimelineEvent], reads: &mut StateReads) {
    reads.at.extend(events.iter().filter_map(replaced_at));
}

/// The state event that `event` replaced.
pub(super) fn replaced<'f>(event: &TimelineEvent, found: &'f StateFound) -> Option<&'f SeenEvent> {
    let (root, key) = replaced_at(event)?;
    found.at(root, key)
}

/// 404 for an event that the user may not see, or that is not there: nobody is told which.
pub(super) fn no_such_event() -> MatrixError {
    MatrixError::not_found("There is no such event, or you may not see it.")
}

fn replaced_at(event: &TimelineEvent) -> Option<(NodeId, StateKeyHash)> {
    Some((event.seen.state_before?, StateKeyHash::of(&event.seen.event)?))
}
