//! Spaces: rooms that lead to other rooms (Client-Server API, "Spaces"; Server-Server API, "Spaces").

use std::collections::{BTreeMap, BTreeSet};

use super::{RoomError, Rooms, summary::Summary};
use crate::matrix::{
    identifiers::{RoomId, ServerName},
    json::{Object, Value},
    state_content::JoinRule,
    state_trie::NodeId,
};

/// The most children of a space that are told of, and the most servers that a child names.
const MAX_CHILDREN: usize = 200;
const MAX_VIA: usize = 10;
/// The most children whose summaries another server is given with the space's.
const MAX_SUMMARIES: usize = 50;
/// The most bytes of them: a topic may be as long as an event.
const MAX_BYTES: usize = 512 * 1024;
/// The longest `order` that counts.
const MAX_ORDER: usize = 50;

/// A room as a space's hierarchy has it.
#[derive(Debug, Clone)]
pub struct SpaceRoom {
    /// Its ID.
    pub room_id: RoomId,
    /// Its summary, without its children.
    pub summary: Object,
    /// Its children, where it is a space, in their order.
    pub children: Vec<SpaceChild>,
    /// Those of them that none of our users could join or read, as the server says that told of the room.
    pub inaccessible: Vec<RoomId>,
}

/// A room that a space leads to.
#[derive(Debug, Clone)]
pub struct SpaceChild {
    /// The room.
    pub room_id: RoomId,
    /// The servers through which it may be reached.
    pub via: Vec<ServerName>,
    /// Whether the space recommends it.
    pub is_suggested: bool,
    /// The `m.space.child` event, stripped.
    pub event: Object,
}

impl SpaceChild {
    /// The child that an `m.space.child` event, or the stripped form of one, names; `None` where it names none.
    pub fn of_event(event: &Object) -> Option<Self> {
        let text = |name: &str| event.get(name).and_then(Value::as_str);
        let content = event.get("content")?.as_object()?;
        if text("type") != Some("m.space.child") {
            return None;
        }
        let via = content.get("via")?.as_array()?.iter().take(MAX_VIA);
        let via: Vec<ServerName> = via.filter_map(|name| ServerName::parse(name.as_str()?).ok()).collect();
        if via.is_empty() {
            return None;
        }
        let room_id = RoomId::parse(text("state_key")?).ok()?;
        let stripped = [
            ("content", Value::Object(content.clone())),
            ("origin_server_ts", Value::from(event.get("origin_server_ts")?.as_i64()?)),
            ("sender", Value::from(text("sender")?)),
            ("state_key", Value::from(room_id.as_str())),
            ("type", Value::from("m.space.child")),
        ];
        Some(Self {
            room_id,
            via,
            is_suggested: content.get("suggested").and_then(Value::as_bool).unwrap_or(false),
            event: Object::from_iter(stripped),
        })
    }

    /// In the order in which clients are to show them: by `order`, those without one last, then by age, then by room ID.
    pub fn sort(children: &mut Vec<Self>) {
        children.sort_by(|one, other| one.place().cmp(&other.place()));
        children.truncate(MAX_CHILDREN);
    }

    fn place(&self) -> (bool, &str, i64, &str) {
        let order = self.event.get("content").and_then(|content| content.get("order")).and_then(Value::as_str);
        let order = order.filter(|order| order.len() <= MAX_ORDER && order.bytes().all(|b| (0x20..=0x7e).contains(&b)));
        let age = self.event.get("origin_server_ts").and_then(Value::as_i64).unwrap_or(i64::MAX);
        (order.is_none(), order.unwrap_or_default(), age, self.room_id.as_str())
    }
}

impl SpaceRoom {
    /// With its children, those that are not suggested left out where that is asked for.
    pub fn object(&self, suggested_only: bool) -> Object {
        let children = self.children.iter().filter(|child| child.is_suggested || !suggested_only);
        let mut object = self.summary.clone();
        object.insert("children_state", Value::Array(children.map(|child| child.event.clone().into()).collect()));
        object
    }
}

impl Rooms {
    /// Those of the rooms that we are in, with their children, in no order. Three round trips.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn space_rooms(&self, ids: &[RoomId]) -> Result<Vec<SpaceRoom>, RoomError> {
        self.with_children(self.summaries(ids).await?).await
    }

    async fn with_children(&self, summaries: Vec<Summary>) -> Result<Vec<SpaceRoom>, RoomError> {
        let spaces = summaries.iter().filter(|summary| summary.room_type() == Some("m.space"));
        let roots: Vec<NodeId> = spaces.map(|summary| summary.room.state).collect();
        let mut children: BTreeMap<NodeId, Vec<SpaceChild>> = BTreeMap::new();
        if !roots.is_empty() {
            for (root, seen) in self.store.space_children(&roots).await? {
                children.entry(root).or_default().extend(SpaceChild::of_event(seen.event.object()));
            }
        }
        children.values_mut().for_each(SpaceChild::sort);
        let room = |summary: Summary| SpaceRoom {
            room_id: summary.room_id().clone(),
            summary: summary.object(),
            children: children.remove(&summary.room.state).unwrap_or_default(),
            inaccessible: Vec::new(),
        };
        Ok(summaries.into_iter().map(room).collect())
    }

    /// What another server is told of a space: the space, those of its children that we are in and that users of that server
    /// could join or read, and which of them they could not. `None` where that holds for the space itself.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn hierarchy_for(
        &self,
        server: &ServerName,
        room_id: &RoomId,
        suggested_only: bool,
    ) -> Result<Option<Object>, RoomError> {
        let own = self.summaries(std::slice::from_ref(room_id)).await?;
        if self.closed_to(server, &own).await?.contains(room_id) {
            return Ok(None);
        }
        let Some(space) = self.with_children(own).await?.pop() else { return Ok(None) };
        let listed = space.children.iter().filter(|child| child.is_suggested || !suggested_only);
        let ids: Vec<RoomId> = listed.take(MAX_SUMMARIES).map(|child| child.room_id.clone()).collect();
        let summaries = self.summaries(&ids).await?;
        let closed = self.closed_to(server, &summaries).await?;
        let find = |id: &RoomId| summaries.iter().find(|summary| summary.room_id() == id);
        let mut bytes = 0;
        let open = ids.iter().filter(|id| !closed.contains(*id)).filter_map(find).map(Summary::object);
        let open = open.take_while(|summary| {
            bytes += summary.to_text().len();
            bytes <= MAX_BYTES
        });
        Ok(Some(Object::from_iter([
            ("children", Value::Array(open.map(Value::Object).collect())),
            ("inaccessible_children", Value::Array(closed.iter().map(Value::from).collect())),
            ("room", space.object(suggested_only).into()),
        ])))
    }

    /// Those of the rooms of which users of `server` can neither join nor read any.
    async fn closed_to(&self, server: &ServerName, rooms: &[Summary]) -> Result<BTreeSet<RoomId>, RoomError> {
        let mut closed: Vec<&Summary> = rooms.iter().filter(|room| !room.is_federated() || !room.is_open()).collect();
        if closed.is_empty() {
            return Ok(BTreeSet::new());
        }
        // Who is in the room, or in one whose members may join it.
        let allowed = |room: &Summary| match room.join_rule() {
            JoinRule::Restricted | JoinRule::KnockRestricted => room.allowed_rooms(),
            _ => Vec::new(),
        };
        let asked: Vec<RoomId> =
            closed.iter().flat_map(|room| allowed(room).into_iter().chain([room.room_id().clone()])).collect();
        let joined = self.store.joined_of_server(self.server_name(), server, &asked).await?;
        closed.retain(|room| {
            let is_in = joined.contains(room.room_id());
            !is_in && (!room.is_federated() || !allowed(room).iter().any(|id| joined.contains(id)))
        });
        // And who is invited to it.
        let roots: Vec<NodeId> = closed.iter().map(|room| room.room.state).collect();
        let invited = if roots.is_empty() { Vec::new() } else { self.store.inviting(server, &roots).await? };
        closed.retain(|room| !invited.contains(&room.room.state));
        Ok(closed.into_iter().map(|room| room.room_id().clone()).collect())
    }
}
