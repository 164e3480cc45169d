//! Redaction: what is left of an event when its content is taken away, which is also what is signed and what event
//! ids are hashes of.
//!
//! Spec: rooms, "Redactions" of each version. Which redactions apply to which events is for `room`.

use std::borrow::Cow;

use super::{
    json::{Object, Value, write_member, write_members, write_string},
    room_version::{Redaction, RoomVersion},
};

/// The redacted copy of an event. Without `unsigned`, which no version keeps.
pub fn redact(event: &Object, version: &RoomVersion) -> Object {
    let rules = ContentRules::of(event, version.redaction);
    event
        .iter()
        .filter(|(key, _)| keeps(version.redaction, key))
        .map(|(key, value)| match value {
            Value::Object(content) if key == "content" => (key, Value::Object(rules.apply(content))),
            _ => (key, value.clone()),
        })
        .collect()
}

/// The canonical text of the redacted event without `signatures`: the bytes that are signed, and whose
/// SHA-256 is the reference hash. As [`redact`], without the copy.
pub(super) fn signed_text(event: &Object, version: &RoomVersion) -> String {
    let rules = ContentRules::of(event, version.redaction);
    let mut out = String::with_capacity(1024);
    write_members(&mut out, event, |out, key, value| match value {
        _ if key == "signatures" || !keeps(version.redaction, key) => false,
        Value::Object(content) if key == "content" => {
            write_string(out, key);
            out.push(':');
            rules.write(out, content);
            true
        }
        _ => {
            write_member(out, key, value);
            true
        }
    });
    out
}

/// Whether redaction keeps this member of the event.
fn keeps(rules: Redaction, key: &str) -> bool {
    match key {
        "auth_events" | "content" | "depth" | "event_id" | "hashes" | "origin_server_ts" | "prev_events"
        | "room_id" | "sender" | "signatures" | "state_key" | "type" => true,
        "membership" | "origin" | "prev_state" => rules < Redaction::V11,
        _ => false,
    }
}

/// What redaction keeps of `content`, for one type of event.
enum ContentRules {
    Everything,
    Keys(&'static [&'static str]),
    /// These keys, and of `third_party_invite` its `signed`.
    KeysAndSignedInvite(&'static [&'static str]),
}

impl ContentRules {
    fn of(event: &Object, rules: Redaction) -> Self {
        let keys: &[&str] = match event.get("type").and_then(Value::as_str).unwrap_or_default() {
            "m.room.create" if rules >= Redaction::V11 => return Self::Everything,
            "m.room.create" => &["creator"],
            "m.room.member" if rules >= Redaction::V11 => {
                return Self::KeysAndSignedInvite(&["join_authorised_via_users_server", "membership"]);
            }
            "m.room.member" if rules >= Redaction::V9 => &["join_authorised_via_users_server", "membership"],
            "m.room.member" => &["membership"],
            "m.room.join_rules" if rules >= Redaction::V8 => &["allow", "join_rule"],
            "m.room.join_rules" => &["join_rule"],
            "m.room.power_levels" if rules >= Redaction::V11 => &[
                "ban",
                "events",
                "events_default",
                "invite",
                "kick",
                "redact",
                "state_default",
                "users",
                "users_default",
            ],
            "m.room.power_levels" => {
                &["ban", "events", "events_default", "kick", "redact", "state_default", "users", "users_default"]
            }
            "m.room.history_visibility" => &["history_visibility"],
            "m.room.aliases" if rules < Redaction::V6 => &["aliases"],
            "m.room.redaction" if rules >= Redaction::V11 => &["redacts"],
            _ => &[],
        };
        Self::Keys(keys)
    }

    fn apply(&self, content: &Object) -> Object {
        content.iter().filter_map(|(key, value)| Some((key, self.keep(key, value)?.into_owned()))).collect()
    }

    /// Appends the canonical text of what is kept.
    fn write(&self, out: &mut String, content: &Object) {
        write_members(out, content, |out, key, value| {
            let kept = self.keep(key, value);
            if let Some(value) = &kept {
                write_member(out, key, value);
            }
            kept.is_some()
        });
    }

    /// What is kept of one member.
    fn keep<'a>(&self, key: &str, value: &'a Value) -> Option<Cow<'a, Value>> {
        match (self, value) {
            (Self::KeysAndSignedInvite(_), Value::Object(invite)) if key == "third_party_invite" => {
                let signed = invite.get("signed").map(|signed| ("signed", signed.clone()));
                Some(Cow::Owned(Value::Object(signed.into_iter().collect())))
            }
            (Self::Keys(keys) | Self::KeysAndSignedInvite(keys), _) if !keys.contains(&key) => None,
            _ => Some(Cow::Borrowed(value)),
        }
    }
}
