//! What a room is, in a few words, for those who are not in it (Client-Server API, "Published room directory",
//! "Spaces", `room_summary`).

use super::{Room, RoomError, Rooms};
use crate::{
    matrix::{
        event::Event,
        identifiers::RoomId,
        json::{Object, Value},
        state_content::{HistoryVisibility, JoinRule},
        state_trie::StateKeyHash,
    },
    store::{snapshots::StateReads, summaries::CountedRoom},
};

/// The state events that a summary is made of.
const SUMMED_UP: [&str; 9] = [
    "m.room.create",
    "m.room.name",
    "m.room.topic",
    "m.room.canonical_alias",
    "m.room.avatar",
    "m.room.join_rules",
    "m.room.history_visibility",
    "m.room.guest_access",
    "m.room.encryption",
];

/// The most rooms of a join rule that a summary names.
const MAX_ALLOWED: usize = 50;

/// A room as its current state and its members' number describe it.
#[derive(Debug, Clone)]
pub struct Summary {
    /// The room.
    pub room: Room,
    joined: i64,
    state: Vec<Event>,
}

impl Rooms {
    /// The summaries of those rooms that we know and are in, in no order. Two round trips.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn summaries(&self, ids: &[RoomId]) -> Result<Vec<Summary>, RoomError> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let mut rooms = self.store.counted_rooms(self.server_name(), ids).await?;
        rooms.retain(|counted| counted.room.local_joined > 0);
        self.sum_up(rooms).await
    }

    /// The summaries of rooms, in their order. One round trip.
    pub(super) async fn sum_up(&self, rooms: Vec<CountedRoom>) -> Result<Vec<Summary>, RoomError> {
        let keys = SUMMED_UP.map(|event_type| StateKeyHash::new(event_type, ""));
        let at = rooms.iter().flat_map(|counted| keys.iter().map(|key| (counted.room.state, *key))).collect();
        let found = self.store.read_states(&StateReads { at, ..StateReads::default() }).await?;
        let summary = |CountedRoom { room, joined }: CountedRoom| {
            let state = keys.iter().filter_map(|key| found.at(room.state, *key)).map(|seen| seen.event.clone());
            Summary { state: state.collect(), room, joined }
        };
        Ok(rooms.into_iter().map(summary).collect())
    }
}

impl Summary {
    /// How many users of all servers are joined.
    pub(super) fn joined(&self) -> i64 {
        self.joined
    }

    /// The room's ID.
    pub fn room_id(&self) -> &RoomId {
        &self.room.room_id
    }

    /// Whether anybody may read the room.
    pub fn is_world_readable(&self) -> bool {
        HistoryVisibility::of(self.find("m.room.history_visibility").map(Event::content))
            == HistoryVisibility::WorldReadable
    }

    /// Who may join.
    pub fn join_rule(&self) -> JoinRule {
        JoinRule::of(self.find("m.room.join_rules").map(Event::content), self.room.room_version)
    }

    /// Whether anybody may join, ask to be let in, or read: whoever hears of it can do something with it.
    pub fn is_open(&self) -> bool {
        matches!(self.join_rule(), JoinRule::Public | JoinRule::Knock | JoinRule::KnockRestricted)
            || self.is_world_readable()
    }

    /// Whether users of other servers may join.
    pub fn is_federated(&self) -> bool {
        self.content("m.room.create", "m.federate").is_none_or(|federate| federate != &Value::Bool(false))
    }

    /// The rooms whose members may join, where the join rule names some.
    pub fn allowed_rooms(&self) -> Vec<RoomId> {
        if !matches!(self.join_rule(), JoinRule::Restricted | JoinRule::KnockRestricted) {
            return Vec::new();
        }
        let allow = self.content("m.room.join_rules", "allow").and_then(Value::as_array).unwrap_or_default();
        let of_rooms =
            allow.iter().filter(|rule| rule.get("type").and_then(Value::as_str) == Some("m.room_membership"));
        let rooms = of_rooms.filter_map(|rule| RoomId::parse(rule.get("room_id")?.as_str()?).ok());
        rooms.take(MAX_ALLOWED).collect()
    }

    /// The room's type, where it has one.
    pub fn room_type(&self) -> Option<&str> {
        self.text("m.room.create", "type")
    }

    /// The room's name, topic and main alias, as far as it has them.
    pub(super) fn words(&self) -> impl Iterator<Item = &str> {
        let words = [("m.room.name", "name"), ("m.room.topic", "topic"), ("m.room.canonical_alias", "alias")];
        words.into_iter().filter_map(|(event_type, name)| self.text(event_type, name))
    }

    /// The summary as an entry of the published room directory.
    pub fn published(&self) -> Object {
        let texts = [
            ("avatar_url", self.text("m.room.avatar", "url")),
            ("canonical_alias", self.text("m.room.canonical_alias", "alias")),
            ("name", self.text("m.room.name", "name")),
            ("room_type", self.room_type()),
            ("topic", self.text("m.room.topic", "topic")),
        ];
        let given = texts.into_iter().filter_map(|(name, text)| Some((name, Value::from(text?))));
        let mut object: Object = given.collect();
        let guests = self.text("m.room.guest_access", "guest_access") == Some("can_join");
        object.insert("guest_can_join", guests);
        object.insert("join_rule", self.join_rule().as_str());
        object.insert("num_joined_members", self.joined);
        object.insert("room_id", self.room_id().as_str());
        object.insert("world_readable", self.is_world_readable());
        object
    }

    /// The whole summary.
    pub fn object(&self) -> Object {
        let mut object = self.published();
        let allowed = self.allowed_rooms();
        if !allowed.is_empty() {
            object.insert("allowed_room_ids", Value::Array(allowed.iter().map(Value::from).collect()));
        }
        if let Some(algorithm) = self.text("m.room.encryption", "algorithm") {
            object.insert("encryption", algorithm);
        }
        object.insert("room_version", self.room.room_version.id);
        object
    }

    fn find(&self, event_type: &str) -> Option<&Event> {
        self.state.iter().find(|event| event.event_type() == event_type)
    }

    fn content(&self, event_type: &str, name: &str) -> Option<&Value> {
        self.find(event_type)?.content().get(name)
    }

    /// An empty text says as much as none.
    fn text(&self, event_type: &str, name: &str) -> Option<&str> {
        self.content(event_type, name).and_then(Value::as_str).filter(|text| !text.is_empty())
    }
}
