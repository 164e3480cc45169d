//! Events of ours that are made of the templates which other servers give for them (`make_join` and the like).

use http::StatusCode;

use super::countersigning::bad_answer;
use crate::{
    error::MatrixError,
    federation::peers::membership::MembershipTemplate,
    matrix::{
        event::Event,
        identifiers::{RoomId, UserId},
        json::{Object, Value},
        room_version::RoomVersion,
        state_content::Membership,
    },
    server::Server,
};

/// Makes our own event of a template, of which only the place in the room is taken over, once it is shown to be about what was
/// asked.
pub(super) fn complete(
    server: &Server,
    template: MembershipTemplate,
    user: &UserId,
    room_id: &RoomId,
    membership: Membership,
    mut content: Object,
) -> Result<Event, MatrixError> {
    let MembershipTemplate { room_version, event: template } = template;
    let version = RoomVersion::get(&room_version).ok_or_else(|| {
        let message = format!("The room has version {room_version:?}, which this server does not know.");
        MatrixError::new(StatusCode::BAD_REQUEST, "M_INCOMPATIBLE_ROOM_VERSION", message)
            .with("room_version", room_version.as_str())
    })?;
    let text = |name: &str| template.get(name).and_then(Value::as_str);
    let stated = template.get("content").and_then(Value::as_object).and_then(Membership::of);
    let is_as_asked = text("type") == Some("m.room.member")
        && text("room_id") == Some(room_id.as_str())
        && text("sender") == Some(user.as_str())
        && text("state_key") == Some(user.as_str())
        && stated == Some(membership);
    if !is_as_asked {
        return Err(bad_answer("a template for something else than was asked"));
    }
    content.insert("membership", membership.as_str());
    let mut event = Object::from_iter([
        ("content", Value::Object(content)),
        // The schemas of `send_join` and the like want it, though no room version does.
        ("origin", Value::from(server.config.server_name.as_str())),
        ("origin_server_ts", Value::from(server.platform.clock.now_ms())),
        ("room_id", Value::from(room_id)),
        ("sender", Value::from(user)),
        ("state_key", Value::from(user)),
        ("type", Value::from("m.room.member")),
    ]);
    for name in ["auth_events", "depth", "prev_events"] {
        event.insert(name, template.get(name).cloned().unwrap_or(Value::Null));
    }
    server.rooms.give_id(&mut event, version);
    let own_name = server.config.server_name.as_str();
    Event::create(event, version, own_name, &server.config.signing_key)
        .map_err(|error| bad_answer("a template of which no event can be made").because(&error))
}
