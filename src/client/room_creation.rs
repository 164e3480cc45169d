//! Creating rooms (Client-Server API, "Creation").

use futures_util::stream::{self, StreamExt};
use http::StatusCode;
use serde_json::json;

use super::{
    auth,
    body::{Body, member_content, merged},
    inviting::{self, Invitee},
    membership::invite_user,
    sending::{check_creators_unnamed, check_levels},
    settings,
};
use crate::{
    error::MatrixError,
    log::LogRecord,
    matrix::{
        identifiers::{RoomAlias, RoomId, UserId},
        json::{Object, Value},
        room_version::RoomVersion,
        state_content::Membership,
    },
    room::{Draft, NewRoom, RoomError},
    router::{Call, Handled, ok},
    server::Server,
};

/// How many users may be invited, and how many state events given, at the creation of a room.
const MAX_LIST: usize = 100;
/// How many of those may be invited by their addresses: for each an identity server is asked.
const MAX_ADDRESSES: usize = 20;
/// How many users of other servers are invited at the same time.
const INVITES_AT_ONCE: usize = 4;

/// What rooms are created like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Preset {
    Private,
    TrustedPrivate,
    Public,
}

/// A room as a client asks for it.
struct Wish {
    version: &'static RoomVersion,
    preset: Preset,
    published: bool,
    alias: Option<RoomAlias>,
    invite: Vec<UserId>,
    invite_by_address: Vec<Invitee>,
    is_direct: bool,
    create_content: Object,
    power_levels: Object,
    initial_state: Vec<Draft>,
    name: Option<String>,
    topic: Option<String>,
}

/// `POST /createRoom`
pub(super) async fn create(server: &Server, call: &Call) -> Handled {
    let session = auth::session(server, call).await?;
    let wish = Wish::read(server, &session.user, &Body::of(server, call).await?)?;
    if let Some(alias) = &wish.alias
        && server.store.alias(alias.as_str()).await?.is_some()
    {
        return Err(in_use());
    }
    let profile = server.store.own_profile(session.user.as_str()).await?;
    let (creating, creator) = (server.clone(), session.user);
    // A client that hangs up makes another room when it comes again: this one must not lack what was asked for.
    let work = async move { create_all_of_it(&creating, &creator, wish, member_content(&profile)).await };
    let room_id = server.platform.to_the_end(work).await?;
    ok(&json!({ "room_id": room_id }))
}

async fn create_all_of_it(
    server: &Server,
    creator: &UserId,
    wish: Wish,
    profile: Object,
) -> Result<RoomId, MatrixError> {
    let new = wish.to_room(creator, profile);
    let room_id = create_room(server, creator, &new).await?;
    if new.create_content.contains_key("predecessor") {
        let entrance = server.rooms.entrance(&room_id, creator).await;
        settings::has_entered(server, creator, &room_id, entrance).await;
    }
    if let Some(alias) = &wish.alias {
        let now_ms = server.platform.clock.now_ms();
        if !server.store.put_alias(alias.as_str(), room_id.as_str(), creator.as_str(), now_ms).await? {
            return Err(in_use());
        }
    }
    if wish.published {
        server.store.publish_room(room_id.as_str(), true).await?;
    }
    let mut content = Object::new();
    if wish.is_direct {
        content.insert("is_direct", true);
    }
    let invite = async |target: &UserId| {
        // The room is there: that one user cannot be invited must not make the client create another.
        if let Err(error) = invite_user(server, creator, target, &room_id, content.clone()).await {
            let record = LogRecord::warning("a user cannot be invited to a new room").room(&room_id).user(target);
            server.platform.log.write(record.because(&error));
        }
    };
    let is_here = |target: &&UserId| target.server_name() == server.config.server_name.as_str();
    let (here, elsewhere): (Vec<&UserId>, Vec<&UserId>) = wish.invite.iter().partition(is_here);
    for target in here {
        invite(target).await;
    }
    // A server that never answers keeps no other invite waiting.
    stream::iter(elsewhere).map(invite).buffer_unordered(INVITES_AT_ONCE).collect::<()>().await;
    for invitee in &wish.invite_by_address {
        let invited = inviting::by_address(server, creator, &room_id, invitee, content.clone());
        if let Err(error) = invited.await {
            let record = LogRecord::warning("nobody can be invited to a new room by their address").room(&room_id);
            server.platform.log.write(record.because(&error));
        }
    }
    Ok(room_id)
}

pub(super) async fn create_room(server: &Server, creator: &UserId, new: &NewRoom) -> Result<RoomId, MatrixError> {
    match server.rooms.create(creator, new).await {
        Ok((room_id, _)) => Ok(room_id),
        Err(error @ RoomError::NotAllowed(_)) => {
            Err(MatrixError::new(StatusCode::BAD_REQUEST, "M_INVALID_ROOM_STATE", error.to_string()))
        }
        Err(error) => Err(error.into()),
    }
}

impl Wish {
    fn read(server: &Server, creator: &UserId, body: &Body) -> Result<Self, MatrixError> {
        let version = match body.text("room_version")? {
            None => server.config.default_room_version,
            Some(id) => RoomVersion::get(id).ok_or_else(|| {
                let message = format!("This server does not support room version {id:?}.");
                MatrixError::new(StatusCode::BAD_REQUEST, "M_UNSUPPORTED_ROOM_VERSION", message)
            })?,
        };
        let published = match body.text("visibility")? {
            None | Some("private") => false,
            Some("public") => true,
            Some(_) => return Err(MatrixError::invalid_param("\"visibility\" must be public or private.")),
        };
        let preset = match body.text("preset")? {
            Some("private_chat") => Preset::Private,
            Some("trusted_private_chat") => Preset::TrustedPrivate,
            Some("public_chat") => Preset::Public,
            Some(_) => return Err(MatrixError::invalid_param("There is no such preset.")),
            None if published => Preset::Public,
            None => Preset::Private,
        };
        let alias = match body.text("room_alias_name")? {
            Some(name) => Some(new_alias(server, name)?),
            None => None,
        };
        let addresses = body.list("invite_3pid")?;
        if addresses.len() > MAX_ADDRESSES {
            return Err(MatrixError::invalid_param("Too many invites for one request."));
        }
        let invitee = |invite: &Value| -> Result<Invitee, MatrixError> {
            let invite =
                invite.as_object().ok_or_else(|| MatrixError::bad_json("\"invite_3pid\" must hold objects."))?;
            let invitee = Invitee::read(&Body::part(invite))?;
            invitee.ok_or_else(|| MatrixError::missing_param("An invite of \"invite_3pid\" names nobody."))
        };
        let invite_by_address = addresses.iter().map(invitee).collect::<Result<_, _>>()?;
        let mut invite = Vec::new();
        for user in body.texts("invite")?.unwrap_or_default() {
            let user = UserId::parse(&user).map_err(|error| MatrixError::invalid_param(format!("{error}.")))?;
            if user != *creator && !invite.contains(&user) {
                invite.push(user);
            }
        }
        let initial_state = body.list("initial_state")?;
        if invite.len() > MAX_LIST || initial_state.len() > MAX_LIST {
            return Err(MatrixError::invalid_param("Too many invites or state events for one request."));
        }
        let wish = Self {
            version,
            preset,
            published,
            alias,
            invite,
            invite_by_address,
            is_direct: body.flag("is_direct")?,
            create_content: body.object("creation_content")?.cloned().unwrap_or_default(),
            power_levels: body.object("power_level_content_override")?.cloned().unwrap_or_default(),
            initial_state: initial_state.iter().map(state_draft).collect::<Result<_, _>>()?,
            name: body.text("name")?.map(str::to_owned),
            topic: body.text("topic")?.map(str::to_owned),
        };
        wish.check_power_levels(creator)?;
        Ok(wish)
    }

    /// Refuses power levels that no client may ask for.
    fn check_power_levels(&self, creator: &UserId) -> Result<(), MatrixError> {
        let levels = self.power_levels(creator);
        check_levels(&levels)?;
        if self.version.privileged_creators {
            let content = self.create_content(creator);
            let more = content.get("additional_creators").and_then(Value::as_array).into_iter().flatten();
            check_creators_unnamed(&levels, [creator.as_str()].into_iter().chain(more.filter_map(Value::as_str)))?;
        }
        Ok(())
    }

    /// The power levels that `initial_state` gives.
    fn given_power_levels(&self) -> Option<&Object> {
        let is_given =
            |draft: &&Draft| draft.event_type == "m.room.power_levels" && draft.state_key.as_deref() == Some("");
        self.initial_state.iter().rev().find(is_given).map(|draft| &draft.content)
    }

    /// The room's events, in the spec's order. Power levels in `initial_state` are the room's first: after others the creator
    /// could not raise their own.
    fn to_room(&self, creator: &UserId, profile: Object) -> NewRoom {
        let mut drafts = vec![
            Draft::membership(creator.as_str(), Membership::Join, profile),
            Draft::state("m.room.power_levels", "", self.power_levels(creator)),
        ];
        if let Some(alias) = &self.alias {
            drafts.push(Draft::state("m.room.canonical_alias", "", one("alias", alias.as_str())));
        }
        let (join_rule, guest_access) = match self.preset {
            Preset::Private | Preset::TrustedPrivate => ("invite", "can_join"),
            Preset::Public => ("public", "forbidden"),
        };
        let preset = [
            Draft::state("m.room.join_rules", "", one("join_rule", join_rule)),
            Draft::state("m.room.history_visibility", "", one("history_visibility", "shared")),
            Draft::state("m.room.guest_access", "", one("guest_access", guest_access)),
        ];
        let given = |draft: &Draft| self.initial_state.iter().any(|other| same_key(other, draft));
        drafts.extend(preset.into_iter().filter(|draft| !given(draft)));
        let name = self.name.as_deref().map(|name| Draft::state("m.room.name", "", one("name", name)));
        let topic = self.topic.as_deref().map(|topic| Draft::state("m.room.topic", "", topic_content(topic)));
        let last: Vec<Draft> = name.into_iter().chain(topic).collect();
        let power_levels = Draft::state("m.room.power_levels", "", Object::new());
        let initial = self
            .initial_state
            .iter()
            .filter(|draft| !same_key(draft, &power_levels) && !last.iter().any(|other| same_key(other, draft)));
        drafts.extend(initial.cloned());
        drafts.extend(last);
        NewRoom { version: self.version, create_content: self.create_content(creator), drafts }
    }

    fn create_content(&self, creator: &UserId) -> Object {
        let mut content = self.create_content.clone();
        content.remove("creator");
        content.remove("room_version");
        if self.version.privileged_creators && self.preset == Preset::TrustedPrivate && !self.invite.is_empty() {
            let given = content.get("additional_creators").and_then(Value::as_array).unwrap_or_default();
            let mut creators = given.to_vec();
            for user in self.invite.iter().map(Value::from) {
                if !creators.contains(&user) {
                    creators.push(user);
                }
            }
            creators.retain(|other| other.as_str() != Some(creator.as_str()));
            content.insert("additional_creators", Value::Array(creators));
        }
        content
    }

    fn power_levels(&self, creator: &UserId) -> Object {
        if let Some(given) = self.given_power_levels() {
            return given.clone();
        }
        let mut users = Object::new();
        // Where creators have infinite power, the event must not name them.
        if !self.version.privileged_creators {
            users.insert(creator.as_str(), 100);
            if self.preset == Preset::TrustedPrivate {
                for user in &self.invite {
                    users.insert(user.as_str(), 100);
                }
            }
        }
        let events: Object = [
            ("m.room.avatar", 50),
            ("m.room.canonical_alias", 50),
            ("m.room.encryption", 100),
            ("m.room.history_visibility", 100),
            ("m.room.name", 50),
            ("m.room.power_levels", 100),
            ("m.room.server_acl", 100),
            ("m.room.tombstone", if self.version.privileged_creators { 150 } else { 100 }),
        ]
        .into_iter()
        .collect();
        let mut content = Object::new();
        for (name, level) in [("ban", 50), ("events_default", 0), ("kick", 50), ("redact", 50), ("state_default", 50)] {
            content.insert(name, level);
        }
        content.insert("invite", if self.preset == Preset::Public { 50 } else { 0 });
        content.insert("users_default", 0);
        content.insert("users", users);
        content.insert("events", events);
        merged(content, self.power_levels.clone())
    }
}

fn state_draft(event: &Value) -> Result<Draft, MatrixError> {
    let event = event.as_object().ok_or_else(|| MatrixError::bad_json("\"initial_state\" must hold objects."))?;
    let event = Body::part(event);
    let content = event.object("content")?.cloned();
    let content = content.ok_or_else(|| MatrixError::bad_json("A state event lacks its content."))?;
    let event_type = event.required_text("type")?;
    if event_type == "m.room.create" {
        return Err(MatrixError::invalid_param("The create event is asked for by \"creation_content\"."));
    }
    // A user who comes into the room is invited, of which their server must hear first.
    if event_type == "m.room.member" && Membership::of(&content) != Some(Membership::Ban) {
        return Err(MatrixError::invalid_param("Of members, \"initial_state\" may hold bans only; see \"invite\"."));
    }
    Ok(Draft::state(event_type, event.text("state_key")?.unwrap_or_default(), content))
}

fn same_key(one: &Draft, other: &Draft) -> bool {
    one.event_type == other.event_type && one.state_key == other.state_key
}

fn one(name: &str, value: &str) -> Object {
    [(name, value)].into_iter().collect()
}

/// The topic as text, and in the form that can have several representations (`m.topic`).
fn topic_content(topic: &str) -> Object {
    let text: Object = [("body", topic), ("mimetype", "text/plain")].into_iter().collect();
    let texts: Object = [("m.text", Value::Array(vec![Value::Object(text)]))].into_iter().collect();
    [("topic", Value::from(topic)), ("m.topic", Value::Object(texts))].into_iter().collect()
}

fn new_alias(server: &Server, name: &str) -> Result<RoomAlias, MatrixError> {
    let alias = RoomAlias::parse(&format!("#{name}:{}", server.config.server_name));
    let alias = alias.map_err(|error| MatrixError::invalid_param(format!("{error}.")))?;
    // A name with a colon would be another local part, on another server.
    if name.is_empty() || alias.localpart() != name || name.contains(char::is_whitespace) {
        return Err(MatrixError::invalid_param("\"room_alias_name\" must be the local part of an alias."));
    }
    Ok(alias)
}

fn in_use() -> MatrixError {
    MatrixError::new(StatusCode::BAD_REQUEST, "M_ROOM_IN_USE", "The alias is taken.")
}
