//! The rules that every user has (Client-Server API, "Predefined Rules"): those of today, and those that v1.17 has dropped, as the
//! versions before it are what clients are promised.

use super::{Kind, Rule};
use crate::matrix::{
    identifiers::localpart,
    json::{Object, Value},
};

/// The rule that is looked at before all others, those of the user included.
pub(super) const MASTER: &str = ".m.rule.master";

/// The rules that look for names in the text of an event, as was done before events could say whom they mention.
const CONTAINS_DISPLAY_NAME: &str = ".m.rule.contains_display_name";
const ROOM_NOTIF: &str = ".m.rule.roomnotif";
const CONTAINS_USER_NAME: &str = ".m.rule.contains_user_name";

/// Whether a rule is a predefined one that matches no event that says whom it mentions.
pub(super) fn yields_to_mentions(rule: &Rule) -> bool {
    rule.is_default && [CONTAINS_DISPLAY_NAME, ROOM_NOTIF, CONTAINS_USER_NAME].contains(&rule.rule_id.as_str())
}

/// The predefined rules of `user_id`, the most important first.
pub(super) fn all(user_id: &str) -> Vec<(Kind, Rule)> {
    let notify = || Value::from("notify");
    let sound = |name: &str| tweak("sound", Some(name));
    let highlight = || tweak("highlight", None);
    let of_type = |event_type: &str| event_match("type", event_type);
    let state = |event_type: &str| vec![of_type(event_type), event_match("state_key", "")];
    let two = || condition("room_member_count", [("is", Value::from("2"))]);
    let mentions = |name: &str| format!("content.m\\.mentions.{name}");
    let is = |kind, key: &str, value: Value| condition(kind, [("key", Value::from(key)), ("value", value)]);
    let invites_me =
        vec![of_type("m.room.member"), event_match("content.membership", "invite"), event_match("state_key", user_id)];
    let mentions_me = is("event_property_contains", &mentions("user_ids"), Value::from(user_id));
    let may_call_room = || condition("sender_notification_permission", [("key", Value::from("room"))]);
    let mentions_room = vec![is("event_property_is", &mentions("room"), Value::Bool(true)), may_call_room()];
    let names_me = vec![condition("contains_display_name", [])];
    let names_room = vec![event_match("content.body", "@room"), may_call_room()];
    let highlight_with_sound = || vec![notify(), sound("default"), highlight()];
    let replaces = is("event_property_is", "content.m\\.relates_to.rel_type", Value::from("m.replace"));
    let overrides = [
        (MASTER, vec![], vec![]),
        (".m.rule.suppress_notices", vec![event_match("content.msgtype", "m.notice")], vec![]),
        (".m.rule.invite_for_me", invites_me, vec![notify(), sound("default")]),
        (".m.rule.member_event", vec![of_type("m.room.member")], vec![]),
        (".m.rule.is_user_mention", vec![mentions_me], highlight_with_sound()),
        (CONTAINS_DISPLAY_NAME, names_me, highlight_with_sound()),
        (".m.rule.is_room_mention", mentions_room, vec![notify(), highlight()]),
        (ROOM_NOTIF, names_room, vec![notify(), highlight()]),
        (".m.rule.tombstone", state("m.room.tombstone"), vec![notify(), highlight()]),
        (".m.rule.reaction", vec![of_type("m.reaction")], vec![]),
        (".m.rule.room.server_acl", state("m.room.server_acl"), vec![]),
        (".m.rule.suppress_edits", vec![replaces], vec![]),
    ];
    let encrypted = || of_type("m.room.encrypted");
    let message = || of_type("m.room.message");
    let underrides = [
        (".m.rule.call", vec![of_type("m.call.invite")], vec![notify(), sound("ring")]),
        (".m.rule.encrypted_room_one_to_one", vec![two(), encrypted()], vec![notify(), sound("default")]),
        (".m.rule.room_one_to_one", vec![two(), message()], vec![notify(), sound("default")]),
        (".m.rule.message", vec![message()], vec![notify()]),
        (".m.rule.encrypted", vec![encrypted()], vec![notify()]),
    ];
    let overrides = overrides.into_iter().map(|rule| (Kind::Override, rule));
    let content = std::iter::once((Kind::Content, (CONTAINS_USER_NAME, vec![], highlight_with_sound())));
    let rules = overrides.chain(content).chain(underrides.into_iter().map(|rule| (Kind::Underride, rule)));
    let rule = |(kind, (rule_id, conditions, actions)): (Kind, (&str, Vec<Object>, Vec<Value>))| {
        let pattern = (kind == Kind::Content).then(|| localpart(user_id).to_owned());
        let (rule_id, enabled) = (rule_id.to_owned(), rule_id != MASTER);
        (kind, Rule { rule_id, is_default: true, enabled, actions, conditions, pattern })
    };
    rules.map(rule).collect()
}

fn event_match(key: &str, pattern: &str) -> Object {
    condition("event_match", [("key", Value::from(key)), ("pattern", Value::from(pattern))])
}

fn condition<const N: usize>(kind: &str, members: [(&str, Value); N]) -> Object {
    members.into_iter().chain([("kind", Value::from(kind))]).collect()
}

fn tweak(name: &str, value: Option<&str>) -> Value {
    let value = value.map(|value| ("value", Value::from(value)));
    Value::Object([("set_tweak", Value::from(name))].into_iter().chain(value).collect())
}
