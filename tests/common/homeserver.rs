//! Rooms as tests make them.

use serde_json::{Value, json};
use verge::{
    matrix::{
        event::Event,
        identifiers::{EventId, RoomId, UserId},
        json::{Object, Value as Json},
        room_version::RoomVersion,
        state_content::Membership,
        state_trie::{self, NodeId, StateKeyHash},
    },
    platform::Statement,
    room::{Draft, NewRoom},
    server::Server,
    store::state_sql::{EVENT_IDS, INSERT},
};

use super::network::{Homeserver, World};

/// What is stored of the password of those users: it is no hash of any.
pub const PASSWORD_HASH: &str = "a hash";

impl Homeserver {
    /// The local user `localpart`, who exists from now on.
    pub fn user(&self, world: &World, localpart: &str) -> UserId {
        let user = UserId::parse(&format!("@{localpart}:{}", self.config.server_name)).unwrap();
        world.run(self.store.create_user(user.as_str(), PASSWORD_HASH, world.now_ms(), None)).unwrap();
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
                Draft::membership(creator.as_str(), Membership::Join, Object::new()),
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
        Some(state.first()?.membership()?.to_string())
    }

    /// Makes the state before `event` that of its room with so many events more, each of so many bytes: nobody joins a room so often in
    /// a test. Returns its root.
    pub fn give_state(&self, world: &World, event: &Event, count: usize, bytes: usize) -> NodeId {
        let id = |n: usize| format!("$large{n:037}");
        let held = self.state(world, event.room_id()).into_iter();
        let mut entries: Vec<_> = held.map(|(kind, key, id)| (StateKeyHash::new(&kind, &key), id.into())).collect();
        entries.extend((0..count).map(|n| (StateKeyHash::new("m.large", &n.to_string()), id(n).into())));
        let snapshot = state_trie::build(entries);
        let nodes: Vec<_> = snapshot.nodes.iter().map(|(id, text)| json!([id.to_string(), text])).collect();
        let text = format!("{{\"auth_events\":[],\"content\":{{\"body\":\"{}\"}}}}", "x".repeat(bytes));
        let insert = "INSERT INTO events (event_id, room_id, event_type, state_key, sender, depth, origin_server_ts, json, outlier) \
             SELECT value, ?2, 'm.large', value, '@large:a.example', 1, 1, ?3, 1 FROM json_each(?1)";
        let ids = json!((0..count).map(id).collect::<Vec<_>>()).to_string();
        let before = "UPDATE events SET state_before = ?2 WHERE event_id = ?1";
        let room_id = event.room_id().as_str();
        let statements = vec![
            Statement::new(INSERT, [json!(nodes).to_string().into()]),
            Statement::new(insert, [ids.into(), room_id.into(), text.into()]),
            Statement::new(before, [event.event_id().as_str().into(), snapshot.root.to_string().into()]),
        ];
        world.run(self.store.batch(statements)).unwrap();
        snapshot.root
    }

    /// Makes the current state of the room one of so many events more, each of so many bytes.
    pub fn enlarge(&self, world: &World, room: &RoomId, sender: &UserId, count: usize, bytes: usize) {
        let last = self.say(world, room, sender, "hello");
        let root = self.give_state(world, &last, count, bytes);
        let of = |id: &str| [root.to_string().into(), id.into()];
        let statements = vec![
            Statement::new("UPDATE rooms SET state = ?1 WHERE room_id = ?2", of(room.as_str())),
            Statement::new("UPDATE events SET state_after = ?1 WHERE event_id = ?2", of(last.event_id().as_str())),
        ];
        world.run(self.store.batch(statements)).unwrap();
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
    let rows = server.store.query(Statement::new(EVENT_IDS, [root.to_string().into()])).await.unwrap();
    let ids: Vec<EventId> = rows.iter().map(|row| EventId::parse(row.text(0).unwrap()).unwrap()).collect();
    server.rooms.events(&ids).await.unwrap().into_iter().map(|stored| stored.event).collect()
}

/// A JSON object as the library has it.
pub fn object(value: Value) -> Object {
    match Json::from(value) {
        Json::Object(object) => object,
        other => panic!("{other:?} is not an object"),
    }
}
