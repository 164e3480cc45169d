//! Rooms by what they are, and the rooms that spaces lead to (Client-Server API, "Spaces", `room_summary`).

use std::collections::{BTreeSet, HashMap};

use http::StatusCode;

use super::{auth, membership};
use crate::{
    error::MatrixError,
    federation::outbound::{membership as remote, spaces},
    matrix::{
        identifiers::{RoomId, ServerName, UserId},
        json::{Object, Value},
        state_content::{JoinRule, Membership},
    },
    room::{SpaceChild, SpaceRoom},
    router::{Call, Handled, raw_json_response},
    server::Server,
};

/// How many rooms a page has at most, and how deep it goes: where the client does not say, and at most.
const MAX_LIMIT: usize = 50;
const DEPTH: (usize, usize) = (5, 10);
/// How many rooms are looked at for one page, how many of them other servers are asked about, and for how long, in
/// milliseconds. What is left is the next page's.
const MAX_LOOKED_AT: usize = 400;
const MAX_ASKED: usize = 20;
const MAX_MS: i64 = 20_000;
/// A page ends where it is longer than this, in bytes.
const MAX_BYTES: usize = 1024 * 1024;
/// How many rooms are read at once.
const READ_AT_ONCE: usize = 25;

/// `GET /_matrix/client/v1/rooms/{roomId}/hierarchy`
pub(super) async fn hierarchy(server: &Server, call: &Call) -> Handled {
    let session = auth::session(server, call).await?;
    let room_id = membership::room_id(call.parameter(0))?;
    let number = |name: &str, least: usize| match call.query(name) {
        None => Ok(None),
        Some(text) => match text.parse::<usize>() {
            Ok(number) if number >= least => Ok(Some(number)),
            _ => Err(MatrixError::invalid_param(format!("{name:?} must be an integer of at least {least}."))),
        },
    };
    let limit = number("limit", 1)?.unwrap_or(MAX_LIMIT).min(MAX_LIMIT);
    let max_depth = number("max_depth", 0)?.unwrap_or(DEPTH.0).min(DEPTH.1);
    let suggested_only = match call.query("suggested_only").as_deref() {
        None | Some("false") => false,
        Some("true") => true,
        Some(_) => return Err(MatrixError::invalid_param("\"suggested_only\" must be true or false.")),
    };
    let from = call.query("from").map(|from| Place::parse(&from, suggested_only, max_depth)).transpose()?;
    let mut walk = Walk::begin(server, &session.user, suggested_only, max_depth).await?;
    let via = remote::residents(server, &session.user, &room_id, membership::named_servers(call)).await?;
    let root = walk.look(&room_id, &via).await?;
    let root = root.ok_or_else(|| MatrixError::forbidden("You are not allowed to view this room."))?;
    let mut rooms = Vec::new();
    match from {
        None => {
            rooms.push(walk.enter(root));
        }
        Some(from) => {
            drop(walk.enter(root));
            walk.go_to(&from).await?;
        }
    }
    while rooms.len() < limit && !walk.is_tired() {
        let Some(room) = walk.next().await? else { break };
        rooms.extend(room);
    }
    let mut answer = Object::new();
    if let Some(next) = walk.place() {
        answer.insert("next_batch", next.to_text(suggested_only, max_depth));
    }
    answer.insert("rooms", Value::Array(rooms.into_iter().map(Value::Object).collect()));
    Ok(raw_json_response(StatusCode::OK, answer.to_text()))
}

/// `GET /_matrix/client/v1/room_summary/{roomIdOrAlias}`
pub(super) async fn summary(server: &Server, call: &Call) -> Handled {
    let session = auth::session(server, call).await?;
    let (room_id, via) = membership::room_by_id_or_alias(server, call).await?;
    let via = remote::residents(server, &session.user, &room_id, via).await?;
    let mut walk = Walk::begin(server, &session.user, false, 0).await?;
    let room = walk.look(&room_id, &via).await?;
    let mut summary = room.ok_or_else(|| MatrixError::not_found("Room not found."))?.summary;
    let membership = server.store.membership(&room_id, &session.user).await?;
    summary.insert("membership", membership.unwrap_or(Membership::Leave).as_str());
    Ok(raw_json_response(StatusCode::OK, Value::Object(summary).to_text()))
}

/// Where a page ends: the rooms from the one below the first to the last that was looked at.
struct Place(Vec<RoomId>);

impl Place {
    /// # Errors
    /// 400 `M_INVALID_PARAM` for what is no token of ours, or of another question.
    fn parse(text: &str, suggested_only: bool, max_depth: usize) -> Result<Self, MatrixError> {
        let mut parts = text.split('~');
        if parts.next() != Some(&Self::question(suggested_only, max_depth)) {
            let message = "\"from\" is no token of this request; suggested_only and max_depth cannot change.";
            return Err(MatrixError::invalid_param(message));
        }
        let rooms = parts.map(|id| RoomId::parse(id).ok()).take(DEPTH.1 + 1).collect::<Option<_>>();
        rooms.map(Self).ok_or_else(|| MatrixError::invalid_param("\"from\" is no token."))
    }

    fn to_text(&self, suggested_only: bool, max_depth: usize) -> String {
        let rooms = self.0.iter().map(RoomId::as_str);
        let question = Self::question(suggested_only, max_depth);
        std::iter::once(question.as_str()).chain(rooms).collect::<Vec<_>>().join("~")
    }

    fn question(suggested_only: bool, max_depth: usize) -> String {
        format!("{}{max_depth}", if suggested_only { 's' } else { 'a' })
    }
}

/// A walk through a tree of spaces, the deepest first. Where it stands is said by the rooms that led there, so that it can
/// go on in another request without anything being kept; a room that stands in the tree twice may then be told twice.
struct Walk<'a> {
    server: &'a Server,
    suggested_only: bool,
    max_depth: usize,
    joined: BTreeSet<RoomId>,
    invited: BTreeSet<RoomId>,
    /// From the first room down to where the walk stands.
    frames: Vec<Frame>,
    seen: BTreeSet<RoomId>,
    /// Rooms that this server is in, read ahead.
    here: HashMap<RoomId, SpaceRoom>,
    /// What other servers have told of rooms below those that they were asked for.
    told: HashMap<RoomId, SpaceRoom>,
    asked: usize,
    looked_at: usize,
    bytes: usize,
    deadline: i64,
}

/// The children of one space.
struct Frame {
    children: Vec<SpaceChild>,
    /// How many of them were looked at.
    done: usize,
    /// How many of them were read ahead.
    read: usize,
}

impl<'a> Walk<'a> {
    async fn begin(
        server: &'a Server,
        user: &UserId,
        suggested_only: bool,
        max_depth: usize,
    ) -> Result<Self, MatrixError> {
        Ok(Self {
            server,
            suggested_only,
            max_depth,
            joined: server.store.rooms_of(user, Membership::Join).await?.into_iter().collect(),
            invited: server.store.rooms_of(user, Membership::Invite).await?.into_iter().collect(),
            frames: Vec::new(),
            seen: BTreeSet::new(),
            here: HashMap::new(),
            told: HashMap::new(),
            asked: 0,
            looked_at: 0,
            bytes: 0,
            deadline: server.platform.clock.now_ms() + MAX_MS,
        })
    }

    /// Whether the user is in a room of this summary, or may join it, ask to, or read it.
    fn may_see(&self, room: &SpaceRoom) -> bool {
        let rule = room.summary.get("join_rule").and_then(Value::as_str).map(JoinRule::named);
        let is_in = |id: &str| self.joined.contains(id);
        let allowed = room.summary.get("allowed_room_ids").and_then(Value::as_array).unwrap_or_default();
        // Where the rule is not told, anybody may join.
        matches!(rule, None | Some(JoinRule::Public | JoinRule::Knock | JoinRule::KnockRestricted))
            || room.summary.get("world_readable").and_then(Value::as_bool) == Some(true)
            || is_in(room.room_id.as_str())
            || self.invited.contains(&room.room_id)
            || allowed.iter().filter_map(Value::as_str).any(is_in)
    }

    /// The room, as this server knows it or another one tells of it, if the user may see it.
    async fn look(&mut self, room_id: &RoomId, via: &[ServerName]) -> Result<Option<SpaceRoom>, MatrixError> {
        let room = match self.server.rooms.space_rooms(std::slice::from_ref(room_id)).await?.pop() {
            Some(here) => Some(here),
            None => self.ask(room_id, via).await,
        };
        Ok(room.filter(|room| self.may_see(room)))
    }

    /// The room as another server tells of it.
    async fn ask(&mut self, room_id: &RoomId, via: &[ServerName]) -> Option<SpaceRoom> {
        let told = match spaces::recall(self.server, room_id, via) {
            Some(told) => told,
            None => {
                self.asked += 1;
                spaces::ask(self.server, room_id, via).await?
            }
        };
        for child in told.children {
            self.told.entry(child.room_id.clone()).or_insert(child);
        }
        Some(told.room)
    }

    /// Whether what one page may cost is used up.
    fn is_tired(&self) -> bool {
        self.looked_at >= MAX_LOOKED_AT
            || self.asked >= MAX_ASKED
            || self.bytes >= MAX_BYTES
            || self.server.platform.clock.now_ms() >= self.deadline
    }

    /// Goes down into a room, whose children come next. Returns it as it is told.
    fn enter(&mut self, room: SpaceRoom) -> Object {
        let object = room.object(self.suggested_only);
        let is_deep_enough = self.frames.len() >= self.max_depth;
        let mut children = if is_deep_enough { Vec::new() } else { room.children };
        children.retain(|child| {
            (child.is_suggested || !self.suggested_only) && !room.inaccessible.contains(&child.room_id)
        });
        self.seen.insert(room.room_id);
        self.bytes += object.to_text().len();
        self.frames.push(Frame { children, done: 0, read: 0 });
        object
    }

    /// Stands where a room is that is not told.
    fn pass(&mut self) {
        self.frames.push(Frame { children: Vec::new(), done: 0, read: 0 });
    }

    /// Goes to where another page has ended.
    async fn go_to(&mut self, place: &Place) -> Result<(), MatrixError> {
        let gone = || MatrixError::invalid_param("The space has changed: \"from\" leads nowhere.");
        for room_id in &place.0 {
            let frame = self.frames.last_mut().ok_or_else(gone)?;
            let at = frame.children.iter().position(|child| child.room_id == *room_id).ok_or_else(gone)?;
            (frame.done, frame.read) = (at + 1, at + 1);
            let via = frame.children.get(at).map(|child| child.via.clone()).unwrap_or_default();
            match self.look(room_id, &via).await? {
                Some(room) => drop(self.enter(room)),
                None => self.pass(),
            }
        }
        self.bytes = 0;
        Ok(())
    }

    /// Where the walk stands, if there is more to look at.
    fn place(&self) -> Option<Place> {
        let is_more = self.frames.iter().any(|frame| frame.done < frame.children.len());
        let above = self.frames.split_last().map_or(&[][..], |(_, above)| above);
        let rooms =
            above.iter().filter_map(|frame| Some(frame.children.get(frame.done.checked_sub(1)?)?.room_id.clone()));
        is_more.then(|| Place(rooms.collect()))
    }

    /// Looks at the next room. `None`: there is none; `Some(None)`: it is not to be told.
    async fn next(&mut self) -> Result<Option<Option<Object>>, MatrixError> {
        while self.frames.last().is_some_and(|frame| frame.done >= frame.children.len()) {
            self.frames.pop();
        }
        let Some(frame) = self.frames.last_mut() else { return Ok(None) };
        if frame.read <= frame.done {
            let unread = frame.children.iter().skip(frame.done).take(READ_AT_ONCE);
            let ids: Vec<RoomId> = unread.map(|child| child.room_id.clone()).collect();
            frame.read = frame.done + ids.len();
            let rooms = self.server.rooms.space_rooms(&ids).await?;
            self.here.extend(rooms.into_iter().map(|room| (room.room_id.clone(), room)));
        }
        let Some(frame) = self.frames.last_mut() else { return Ok(None) };
        let Some(child) = frame.children.get(frame.done).cloned() else { return Ok(None) };
        frame.done += 1;
        self.looked_at += 1;
        let room = self.room_of(&child).await.filter(|room| self.may_see(room));
        Ok(Some(match room {
            Some(room) => Some(self.enter(room)),
            None => {
                self.pass();
                None
            }
        }))
    }

    /// The room that a space leads to, unless it was told before.
    async fn room_of(&mut self, child: &SpaceChild) -> Option<SpaceRoom> {
        let here = self.here.remove(&child.room_id);
        if self.seen.contains(&child.room_id) {
            return None;
        }
        if here.is_some() {
            return here;
        }
        // Of a space, the server that told of it has not told where it leads.
        let told = self.told.get(&child.room_id).cloned();
        let leads_on = |room: &SpaceRoom| {
            self.frames.len() < self.max_depth
                && room.summary.get("room_type").and_then(Value::as_str) == Some("m.space")
        };
        if told.as_ref().is_some_and(|room| !leads_on(room)) {
            return told;
        }
        self.ask(&child.room_id, &child.via).await.or(told)
    }
}
