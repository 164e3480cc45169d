//! Rooms as tests make them.

use serde_json::{Value, json};
use verge::{
    matrix::{
        event::Event,
        identifiers::{RoomId, UserId},
        json::{Object, Value as Json},
        room_version::RoomVersion,
        state_trie::NodeId,
    },
    room::{Draft, NewRoom},
    server::Server,
};

use super::network::{Homeserver, World};

impl Homeserver {
    /// The local user `localpart`, who exists from now on.
    pub fn user(&self, world: &World, localpart: &str) -> UserId {
        let user = UserId::parse(&format!("@{localpart}:{}", self.config.server_name)).unwrap();
        world.run(self.store.create_user(user.as_str(), "", world.now_ms(), None)).unwrap();
        user
    }

    /// A new room of `creator`, which anybody may join.
    pub fn public_room(&self, world: &World, creator: &UserId, version: &str) -> RoomId {
        self.room(world, creator, version, json!({ "join_rule": "public" }))
    }

    /// A new room of `creator` with these join rules, in which everybody may invite.
    pub fn room(&self, world: &World, creator: &UserId, version: &str, join_rules: Value) -> RoomId {
        let version = RoomVersion::get(version).unwrap();
        let users = if version.privileged_creators { json!({}) } else { json!({ creator.as_str(): 100 }) };
        let new = NewRoom {
            version,
            create_content: Object::new(),
            drafts: vec![
                Draft::membership(creator.as_str(), "join", Object::new()),
                Draft::state("m.room.power_levels", "", object(json!({ "users": users, "invite": 0 }))),
                Draft::state("m.room.join_rules", "", object(join_rules)),
                Draft::state("m.room.history_visibility", "", object(json!({ "history_visibility": "shared" }))),
            ],
        };
        // Two create events of one millisecond that say the same are the same event.
        world.advance(1);
        let (room_id, _) = world.run(self.rooms.create(creator, &new)).unwrap();
        room_id
    }

    /// Sends what `draft` says, and tells the room's other servers.
    pub fn send(&self, world: &World, room: &RoomId, sender: &UserId, draft: Draft) -> Event {
        let event = world.run(self.rooms.send(room, sender, draft)).unwrap();
        self.flush(room);
        event
    }

    /// Sends a message.
    pub fn say(&self, world: &World, room: &RoomId, sender: &UserId, body: &str) -> Event {
        let content = object(json!({ "msgtype": "m.text", "body": body }));
        self.send(world, room, sender, Draft::message("m.room.message", content))
    }

    /// The current state of the room: the event IDs by type and state key.
    pub fn state(&self, world: &World, room: &RoomId) -> Vec<(String, String, String)> {
        let Some(found) = world.run(self.rooms.room(room)).unwrap() else { return Vec::new() };
        let events = world.run(state_events(&self.server, found.state));
        let mut state: Vec<_> = events
            .iter()
            .map(|event| {
                let state_key = event.state_key().unwrap_or_default().to_owned();
                (event.event_type().to_owned(), state_key, event.event_id().to_string())
            })
            .collect();
        state.sort();
        state
    }

    /// What the room's current state says of the user; `None` for nothing.
    pub fn membership(&self, world: &World, room: &RoomId, user: &str) -> Option<String> {
        let (_, state) = world.run(self.rooms.current(room, &[("m.room.member", user)])).unwrap()?;
        Some(state.first()?.membership()?.to_owned())
    }

    /// Whether the event is in the timeline that local users see.
    pub fn shows(&self, event_id: &str) -> bool {
        let sql = format!(
            "SELECT 1 FROM timeline AS t JOIN events AS e ON e.event_nid = t.event_nid WHERE e.event_id = '{event_id}'"
        );
        assert!(self.database.rows(&sql).len() <= 1);
        !self.database.rows(&sql).is_empty()
    }
}

/// Every event of the state `root`.
pub async fn state_events(server: &Server, root: NodeId) -> Vec<Event> {
    let ids = server.store.state_ids(root, &[]).await.unwrap();
    server.rooms.events(&ids.state).await.unwrap().into_iter().map(|stored| stored.event).collect()
}

/// A JSON object as the library has it.
pub fn object(value: Value) -> Object {
    match Json::from(value) {
        Json::Object(object) => object,
        other => panic!("{other:?} is not an object"),
    }
}
