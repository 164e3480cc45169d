//! Auth events selection: which events of the room's state stand in an event's `auth_events`.
//!
//! Server-Server API, "Auth events selection". What the selected events then have to say is for
//! [`auth_rules`](super::auth_rules).

use super::{
    json::{Object, Value},
    room_version::RoomVersion,
    state_content::Membership,
};

/// The member of a join's content that names who vouches for it in a restricted room.
pub const AUTHORISED_VIA: &str = "join_authorised_via_users_server";

/// The most pairs that are selected.
pub(super) const MAX_SELECTED: usize = 6;

/// Up to six `(type, state_key)` pairs, without duplicates.
#[derive(Debug, Clone, Copy)]
pub struct Selection<'a> {
    keys: [(&'static str, &'a str); MAX_SELECTED],
    length: usize,
}

/// The `(type, state_key)` pairs whose events, where the room has them, belong into the `auth_events` of an event of this
/// type. They are also all that the authorisation rules ever look up for it, but for
/// `m.room.create`, which from room version 12 on is implied by the room ID and not selected.
///
/// Content that is malformed selects less; the authorisation rules refuse such an event.
pub fn selection<'a>(
    version: &RoomVersion,
    event_type: &str,
    sender: &'a str,
    state_key: Option<&'a str>,
    content: &'a Object,
) -> Selection<'a> {
    let mut keys = Selection { keys: [("", ""); MAX_SELECTED], length: 0 };
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
        let membership = Membership::of(content);
        if target != sender {
            keys.push(("m.room.member", target));
        }
        if let Some(Membership::Join | Membership::Invite | Membership::Knock) = membership {
            keys.push(("m.room.join_rules", ""));
        }
        if membership == Some(Membership::Invite)
            && let Some(token) = third_party_invite_token(content)
        {
            keys.push(("m.room.third_party_invite", token));
        }
        if membership == Some(Membership::Join)
            && version.restricted
            && let Some(user_id) = content.get(AUTHORISED_VIA).and_then(Value::as_str)
            && !keys.contains(&("m.room.member", user_id))
        {
            keys.push(("m.room.member", user_id));
        }
    }
    keys
}

impl<'a> Selection<'a> {
    fn push(&mut self, key: (&'static str, &'a str)) {
        if let Some(place) = self.keys.get_mut(self.length) {
            *place = key;
            self.length += 1;
        }
    }
}

impl<'a> std::ops::Deref for Selection<'a> {
    type Target = [(&'static str, &'a str)];

    fn deref(&self) -> &Self::Target {
        self.keys.get(..self.length).unwrap_or_default()
    }
}

impl<'a> IntoIterator for Selection<'a> {
    type Item = (&'static str, &'a str);
    type IntoIter = std::iter::Take<std::array::IntoIter<Self::Item, MAX_SELECTED>>;

    fn into_iter(self) -> Self::IntoIter {
        self.keys.into_iter().take(self.length)
    }
}

fn third_party_invite_token(content: &Object) -> Option<&str> {
    content.get("third_party_invite")?.get("signed")?.get("token")?.as_str()
}
