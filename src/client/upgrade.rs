//! Going on with a room in another one of a newer version (Client-Server API, "Room Upgrades").

use http::StatusCode;
use serde_json::json;

use super::{
    auth,
    body::{Body, member_content},
    membership,
    room_creation::create_room,
    sending::check_creators_unnamed,
    settings::{bring_settings, log_unsettled},
    visibility::Reader,
};
use crate::{
    error::MatrixError,
    log::LogRecord,
    matrix::{
        event::Event,
        identifiers::{RoomId, UserId},
        json::{Object, Value},
        power_levels::{PowerLevel, PowerLevels},
        room_version::RoomVersion,
        state_content::Membership,
        state_trie::StateKeyHash,
    },
    room::{Draft, Extent, NewRoom, Room},
    router::{Call, Handled, ok},
    server::Server,
    store::{aliases::move_to_successor, snapshots::StateReads, summaries::Ban},
};

/// The state that goes along, as the spec recommends. Power levels come last: under those of a new room its creator may do
/// everything, under the old ones perhaps not.
const MOVED: [&str; 9] = [
    "m.room.server_acl",
    "m.room.encryption",
    "m.room.name",
    "m.room.avatar",
    "m.room.topic",
    "m.room.guest_access",
    "m.room.history_visibility",
    "m.room.join_rules",
    "m.room.canonical_alias",
];
const POWER_LEVELS: &str = "m.room.power_levels";
const TOMBSTONE: &str = "m.room.tombstone";

/// How many bans, and how many rooms of a space, go along: each is an event.
const MAX_BANS: usize = 500;
const MAX_CHILDREN: usize = 200;
/// How much is said of a room of a space, and of all of them, in bytes: other servers let it be as long as an event, and the rest of the
/// event may be longer in the new room.
const MAX_CHILD_BYTES: usize = 60_000;
const MAX_CHILDREN_BYTES: usize = 1_000_000;
/// The level that a tombstone takes where creators stand above all others, as for new rooms.
const TOMBSTONE_LEVEL: i64 = 150;

/// `POST /rooms/{roomId}/upgrade`
pub(super) async fn upgrade(server: &Server, call: &Call) -> Handled {
    let session = auth::session(server, call).await?;
    let body = Body::of(server, call).await?;
    let id = body.required_text("new_version")?;
    let version = RoomVersion::get(id).ok_or_else(|| {
        let message = format!("This server does not support room version {id:?}.");
        MatrixError::new(StatusCode::BAD_REQUEST, "M_UNSUPPORTED_ROOM_VERSION", message)
    })?;
    let more_creators = body.texts("additional_creators")?.unwrap_or_default();
    if more_creators.iter().any(|user| UserId::parse(user).is_err()) {
        return Err(MatrixError::invalid_param("\"additional_creators\" must hold user IDs."));
    }
    let reader =
        Reader::enter_joined(server, &session, call.parameter(0)).await.map_err(|error| match error.status {
            // As for a room that there is not: nobody outside is told whether there is this one.
            StatusCode::FORBIDDEN => MatrixError::not_found("You are in no such room."),
            _ => error,
        })?;
    let mut old = OldRoom::read(server, &reader.room_id).await?;
    if !old.lets(&session.user, TOMBSTONE) {
        return Err(MatrixError::forbidden("You cannot upgrade this room."));
    }
    if old.room.extent == Extent::Partial {
        // Whoever is banned from it is banned from the new one.
        server.until_whole(&reader.room_id).await?;
        old = OldRoom::read(server, &reader.room_id).await?;
    }
    let profile = server.store.own_profile(session.user.as_str()).await?;
    let new = old.successor(version, &session.user, more_creators, member_content(&profile))?;
    let (upgrading, user) = (server.clone(), session.user);
    // A client that hangs up makes another successor when it comes again, unless this one is named.
    let work = async move { move_on(&upgrading, &user, old, &new).await };
    let replacement = server.platform.to_the_end(work).await?;
    ok(&json!({ "replacement_room": replacement }))
}

/// Makes the successor of a room, and has the room and what belongs to it say so.
async fn move_on(server: &Server, user: &UserId, old: OldRoom, new: &NewRoom) -> Result<RoomId, MatrixError> {
    let replacement = create_room(server, user, new).await?;
    old.name_successor(server, user, &replacement).await?;
    old.fall_silent(server, user).await;
    let settings = bring_settings(server, user, &old.room.room_id, &replacement).await;
    log_unsettled(server, user, &replacement, settings);
    Ok(replacement)
}

fn is_space(event: &Event) -> bool {
    event.is_state("m.room.create", "") && event.content().get("type").and_then(Value::as_str) == Some("m.space")
}

/// A room that is to be replaced.
struct OldRoom {
    room: Room,
    /// What the successor may be made of, whatever else there is: members choose how much that is.
    state: Vec<Event>,
    /// The state keys and contents of `m.space.child`.
    children: Vec<(String, Object)>,
    bans: Vec<Ban>,
}

impl OldRoom {
    async fn read(server: &Server, room_id: &RoomId) -> Result<Self, MatrixError> {
        let room = server.rooms.room(room_id).await?;
        let room = room.ok_or_else(|| MatrixError::forbidden("You are not in this room."))?;
        let types = ["m.room.create", POWER_LEVELS].into_iter().chain(MOVED);
        let at: Vec<_> = types.map(|event_type| (room.state, StateKeyHash::new(event_type, ""))).collect();
        let found = server.store.read_states(&StateReads { at: at.clone(), ..StateReads::default() }).await?;
        let held = at.into_iter().filter_map(|(root, key)| found.at(root, key));
        let state: Vec<Event> = held.map(|seen| seen.event.clone()).collect();
        let mut children = Vec::new();
        if state.iter().any(is_space) {
            let read = server.store.contents_of_children(room.state, MAX_CHILDREN, MAX_CHILD_BYTES, MAX_CHILDREN_BYTES);
            children = read.await?;
        }
        let bans = server.store.bans(room.state, MAX_BANS, membership::MAX_REASON_BYTES).await?;
        Ok(Self { room, state, children, bans })
    }

    fn find(&self, event_type: &str) -> Option<&Event> {
        self.state.iter().find(|event| event.is_state(event_type, ""))
    }

    /// Whether the power levels let `user` send this state event.
    fn lets(&self, user: &UserId, event_type: &str) -> bool {
        self.find("m.room.create").is_some_and(|create| {
            let levels = PowerLevels::from_state(create, self.find(POWER_LEVELS));
            matches!((levels.user(user.as_str()), levels.event(event_type, true)), (Ok(has), Ok(needs)) if has >= needs)
        })
    }

    /// The room that goes on with this one.
    fn successor(
        &self,
        version: &'static RoomVersion,
        creator: &UserId,
        more_creators: Vec<String>,
        profile: Object,
    ) -> Result<NewRoom, MatrixError> {
        let old = self.find("m.room.create").map(Event::content);
        let mut create = Object::new();
        for name in ["type", "m.federate"] {
            if let Some(value) = old.and_then(|old| old.get(name)) {
                create.insert(name, value.clone());
            }
        }
        let mut predecessor = Object::from_iter([("room_id", self.room.room_id.as_str())]);
        if let Some(last) = self.room.extremities.first() {
            predecessor.insert("event_id", last.event_id.as_str());
        }
        create.insert("predecessor", predecessor);
        if version.privileged_creators && !more_creators.is_empty() {
            create.insert(
                "additional_creators",
                more_creators.iter().map(|user| user.as_str().into()).collect::<Vec<Value>>(),
            );
        }
        let mut drafts = vec![Draft::membership(creator.as_str(), Membership::Join, profile)];
        for event in MOVED.iter().filter_map(|event_type| self.find(event_type)) {
            drafts.push(Draft::state(event.event_type(), "", event.content().clone()));
        }
        // Older rooms let numbers be fractions; no event of a newer one may have any.
        let can_be_held = |content: &Object| !version.strict_json || content.check_strict().is_ok();
        for (room_id, content) in self.children.iter().filter(|(_, content)| can_be_held(content)) {
            drafts.push(Draft::state("m.space.child", room_id, content.clone()));
        }
        for Ban { user_id, reason } in self.bans.iter().filter(|ban| ban.user_id != creator.as_str()) {
            let content: Object = reason.iter().map(|reason| ("reason", reason.as_str())).collect();
            drafts.push(Draft::membership(user_id, Membership::Ban, content));
        }
        let creators: Vec<&str> =
            std::iter::once(creator.as_str()).chain(more_creators.iter().map(String::as_str)).collect();
        drafts.push(Draft::state(POWER_LEVELS, "", self.power_levels(version, &creators)?));
        Ok(NewRoom { version, create_content: create, drafts })
    }

    /// The power levels of the successor: the same ones, as its version has them.
    fn power_levels(&self, version: &RoomVersion, creators: &[&str]) -> Result<Object, MatrixError> {
        let old = self.find(POWER_LEVELS).map(|event| event.content().clone());
        let has_none = old.is_none();
        let mut levels = old.unwrap_or_default();
        if version.integer_power_levels {
            self.make_integers(&mut levels);
        }
        if version.privileged_creators {
            levels.object_at("users").retain(|user, _| !creators.contains(&user));
            let events = levels.object_at("events");
            let tombstone =
                events.get(TOMBSTONE).and_then(Value::as_i64).unwrap_or(TOMBSTONE_LEVEL).max(TOMBSTONE_LEVEL);
            events.insert(TOMBSTONE, tombstone);
            check_creators_unnamed(&levels, creators.iter().copied())?;
        } else if has_none {
            // Who made a room has a level by that alone only while there is no such event.
            let first = creators.first().map(|creator| (*creator, Value::from(100)));
            levels.insert("users", first.into_iter().collect::<Object>());
        } else if self.room.room_version.privileged_creators {
            // Creators stood above all levels there, and need one here that is above none.
            let highest = highest_level(&levels).max(100);
            let old = self.find("m.room.create");
            let more = old.and_then(|create| create.content().get("additional_creators")).and_then(Value::as_array);
            let first = old.map(|create| create.sender().as_str());
            let of_old = first.into_iter().chain(more.into_iter().flatten().filter_map(Value::as_str));
            let of_old: Vec<&str> = of_old.chain(creators.first().copied()).collect();
            let users = levels.object_at("users");
            for user in of_old {
                users.insert(user, highest);
            }
        }
        Ok(levels)
    }

    /// Levels that older versions let be texts or fractions, as integers.
    fn make_integers(&self, levels: &mut Object) {
        let integer = |value: &mut Value| {
            let level = PowerLevel::parse(value, self.room.room_version.integer_power_levels);
            if let (true, Ok(level)) = (value.as_i64().is_none(), level) {
                *value = Value::from(level.saturating());
            }
        };
        levels.retain(|_, value| {
            match value {
                Value::Object(inner) => inner.retain(|_, value| {
                    integer(value);
                    true
                }),
                value => integer(value),
            }
            true
        });
    }

    /// Says in the room that `successor` goes on with it, which takes over its aliases by the same commit.
    async fn name_successor(&self, server: &Server, user: &UserId, successor: &RoomId) -> Result<(), MatrixError> {
        let room_id = &self.room.room_id;
        let content: Object =
            [("body", "This room has been replaced"), ("replacement_room", successor.as_str())].into_iter().collect();
        let tombstone = Draft::state(TOMBSTONE, "", content);
        membership::send_with(server, user, room_id, tombstone, |_| move_to_successor(room_id, successor)).await?;
        Ok(())
    }

    /// Keeps new messages and invites out of the old room, as far as the user may.
    async fn fall_silent(&self, server: &Server, user: &UserId) {
        if !self.lets(user, POWER_LEVELS) {
            return;
        }
        let mut levels = self.find(POWER_LEVELS).map(|event| event.content().clone()).unwrap_or_default();
        self.make_integers(&mut levels);
        let level = |levels: &Object, name: &str| levels.get(name).and_then(Value::as_i64).unwrap_or(0);
        let least = level(&levels, "users_default").saturating_add(1).max(50);
        for name in ["events_default", "invite"] {
            let now = level(&levels, name);
            levels.insert(name, now.max(least));
        }
        let draft = Draft::state(POWER_LEVELS, "", levels);
        if let Err(error) = membership::send(server, user, &self.room.room_id, draft).await {
            let record = LogRecord::warning("a replaced room still takes messages").room(&self.room.room_id);
            server.platform.log.write(record.because(&error));
        }
    }
}

/// The highest level that power levels hold, for a user or for anything that one may do.
fn highest_level(levels: &Object) -> i64 {
    let of = |value: &Value| match value {
        Value::Object(inner) => inner.values().filter_map(Value::as_i64).max(),
        value => value.as_i64(),
    };
    levels.values().filter_map(of).max().unwrap_or(0)
}
