//! Asking other servers what a room is that we are not in, and what rooms it leads to (Server-Server API, "Spaces").

use crate::{
    log::LogRecord,
    matrix::{
        identifiers::{RoomId, ServerName},
        json::{self, Object, Value},
    },
    room::{SpaceChild, SpaceRoom},
    server::Server,
};

/// How many servers are asked about one room.
const MAX_SERVERS: usize = 3;

/// A room that another server has told of, with what it said of the rooms that it leads to.
#[derive(Debug, Clone)]
pub struct ToldSpace {
    /// The room.
    pub room: SpaceRoom,
    /// The rooms that it leads to, as far as that server knows them, without where those lead.
    pub children: Vec<SpaceRoom>,
}

/// What those of `via` said of the room lately who would be asked about it, without asking anybody. What others said does not count:
/// whoever asked them may believe them, and nobody else has to.
pub fn recall(server: &Server, room_id: &RoomId, via: &[ServerName]) -> Option<ToldSpace> {
    let now = server.platform.clock.now_ms();
    asked(server, via).find_map(|name| read(room_id, &server.spaces.recall(room_id, name, now)?))
}

/// Asks those of `via` in turn about the room, and remembers the answer. That none of them knows it, or lets this server know, is not
/// remembered: others may be asked next, and users may have come into a room by then that opens this one.
pub async fn ask(server: &Server, room_id: &RoomId, via: &[ServerName]) -> Option<ToldSpace> {
    for name in asked(server, via) {
        match server.federation.hierarchy(name, room_id).await {
            Ok(text) => {
                if let Some(told) = read(room_id, &text) {
                    server.spaces.remember(room_id, name, text, server.platform.clock.now_ms());
                    return Some(told);
                }
            }
            Err(error) => {
                let record = LogRecord::warning("no hierarchy from a server").room(room_id).destination(name);
                server.platform.log.write(record.because(&error));
            }
        }
    }
    None
}

/// Those of `via` who are asked.
fn asked<'a>(server: &'a Server, via: &'a [ServerName]) -> impl Iterator<Item = &'a ServerName> {
    via.iter().filter(|name| **name != server.config.server_name).take(MAX_SERVERS)
}

/// The answer about the room, if it is one.
fn read(room_id: &RoomId, text: &[u8]) -> Option<ToldSpace> {
    let hierarchy = json::parse(text).ok()?.into_object()?;
    let mut room = space_room(hierarchy.get("room")?.as_object()?).filter(|room| room.room_id == *room_id)?;
    let list = |name: &str| hierarchy.get(name).and_then(Value::as_array).unwrap_or_default();
    let children = list("children").iter().filter_map(|child| space_room(child.as_object()?));
    let inaccessible = list("inaccessible_children").iter().filter_map(|id| RoomId::parse(id.as_str()?).ok());
    // Nothing is said of rooms that it does not lead to.
    let is_child = |id: &RoomId| room.children.iter().any(|child| child.room_id == *id);
    let children = children.filter(|child| is_child(&child.room_id)).collect();
    room.inaccessible = inaccessible.collect();
    Some(ToldSpace { room, children })
}

/// A room as another server describes it, of which only what has the form that it must have is taken.
fn space_room(object: &Object) -> Option<SpaceRoom> {
    let text = |name: &str| object.get(name).and_then(Value::as_str);
    let room_id = RoomId::parse(text("room_id")?).ok()?;
    let mut summary = Object::new();
    for name in
        ["avatar_url", "canonical_alias", "encryption", "join_rule", "name", "room_type", "room_version", "topic"]
    {
        if let Some(text) = text(name) {
            summary.insert(name, text);
        }
    }
    for name in ["guest_can_join", "world_readable"] {
        summary.insert(name, object.get(name).and_then(Value::as_bool)?);
    }
    summary.insert("num_joined_members", object.get("num_joined_members").and_then(Value::as_i64)?);
    summary.insert("room_id", room_id.as_str());
    let allowed = object.get("allowed_room_ids").and_then(Value::as_array).unwrap_or_default();
    let allowed: Vec<Value> = allowed.iter().filter(|id| id.as_str().is_some()).cloned().collect();
    if !allowed.is_empty() {
        summary.insert("allowed_room_ids", Value::Array(allowed));
    }
    let children = object.get("children_state").and_then(Value::as_array).unwrap_or_default();
    let mut children: Vec<SpaceChild> =
        children.iter().filter_map(|event| SpaceChild::of_event(event.as_object()?)).collect();
    SpaceChild::sort(&mut children);
    Some(SpaceRoom { room_id, summary, children, inaccessible: Vec::new() })
}
