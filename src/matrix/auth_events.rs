//! Auth events selection: which events of the room's state stand in an event's `auth_events`.
//!
//! Server-Server API, "Auth events selection". What the selected events then have to say is for
//! [`auth_rules`](super::auth_rules).

use super::{
    json::{Object, Value},
    room_version::RoomVersion,
};

/// The member of a join's content that names who vouches for it in a restricted room.
pub const AUTHORISED_VIA: &str = "join_authorised_via_users_server";

/// The `(type, state_key)` pairs whose events, where the room has them, belong into the `auth_events` of an event of this
/// type, without duplicates. They are also all that the authorisation rules ever look up for it, but for
/// `m.room.create`, which from room version 12 on is implied by the room ID and not selected.
///
/// Content that is malformed selects less; the authorisation rules refuse such an event.
pub fn selection<'a>(
    version: &RoomVersion,
    event_type: &str,
    sender: &'a str,
    state_key: Option<&'a str>,
    content: &'a Object,
) -> Vec<(&'static str, &'a str)> {
    let mut keys = Vec::with_capacity(6);
    if event_type == "m.room.create" {
        return keys;
    }
    if !version.room_id_is_create_hash {
        keys.push(("m.room.create", ""));
    }
    keys.push(("m.room.power_levels", ""));
    keys.push(("m.room.member", sender));
    if event_type == "m.room.member"
        && let Some(target) = state_key
    {
        let membership = content.get("membership").and_then(Value::as_str);
        if target != sender {
            keys.push(("m.room.member", target));
        }
        if let Some("join" | "invite" | "knock") = membership {
            keys.push(("m.room.join_rules", ""));
        }
        if membership == Some("invite")
            && let Some(token) = third_party_invite_token(content)
        {
            keys.push(("m.room.third_party_invite", token));
        }
        if membership == Some("join")
            && version.restricted
            && let Some(user_id) = content.get(AUTHORISED_VIA).and_then(Value::as_str)
            && !keys.contains(&("m.room.member", user_id))
        {
            keys.push(("m.room.member", user_id));
        }
    }
    keys
}

fn third_party_invite_token(content: &Object) -> Option<&str> {
    content.get("third_party_invite")?.get("signed")?.get("token")?.as_str()
}
