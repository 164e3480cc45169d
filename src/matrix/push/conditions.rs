//! When a push rule matches an event (Client-Server API, "Conditions").

use super::{Kind, MAX_TEXT, Rule, Ruleset, defaults, pattern::Pattern};
use crate::matrix::json::{MAX_INTEGER, Object, Value};

/// The property that is searched for words.
const BODY: &str = "content.body";

/// What an event is judged by besides itself. What is asked for is only asked where a rule depends on it.
pub struct Surroundings<'a> {
    /// The user whose rules these are.
    pub user_id: &'a str,
    /// How many are joined.
    pub member_count: u64,
    /// The user's display name in the room.
    pub display_name: &'a dyn Fn() -> Option<String>,
    /// Whether this user may notify the room with notifications of this kind (`notifications` in the power levels).
    pub may_notify: &'a dyn Fn(&str, &str) -> bool,
}

/// The rules that are enabled, in the order in which they are looked at.
#[derive(Debug)]
pub struct Rules<'r>(Vec<(Vec<Condition>, &'r [Value])>);

/// A condition, ready to be compared with events.
#[derive(Debug)]
enum Condition {
    EventMatch {
        path: Vec<String>,
        pattern: Pattern,
        is_of_words: bool,
    },
    EventPropertyIs {
        path: Vec<String>,
        value: Value,
    },
    EventPropertyContains {
        path: Vec<String>,
        value: Value,
    },
    ContainsDisplayName,
    RoomMemberCount(Comparison, u64),
    SenderNotificationPermission(String),
    Room(String),
    Sender(String),
    /// The event does not say whom it mentions.
    SaysNoMentions,
    /// One that nobody knows, or that is malformed.
    Never,
}

#[derive(Debug, Clone, Copy)]
enum Comparison {
    Equal,
    Less,
    Greater,
    LessOrEqual,
    GreaterOrEqual,
}

impl Ruleset {
    /// The rules as events are judged by them.
    pub fn prepared(&self) -> Rules<'_> {
        let enabled = self.iter().filter(|(_, rule)| rule.enabled);
        Rules(enabled.map(|(kind, rule)| (conditions(kind, rule), rule.actions.as_slice())).collect())
    }
}

impl<'r> Rules<'r> {
    /// The actions of the first rule that matches `event`; none where no rule does, and for the user's own events.
    pub fn actions(&self, event: &Object, around: &Surroundings<'_>) -> &'r [Value] {
        if event.get("sender").and_then(Value::as_str) == Some(around.user_id) {
            return &[];
        }
        let matching = self.0.iter().find(|(conditions, _)| conditions.iter().all(|one| one.holds(event, around)));
        matching.map_or(&[], |(_, actions)| actions)
    }
}

/// Whether these actions notify.
pub fn notifies(actions: &[Value]) -> bool {
    actions.iter().any(|action| action.as_str() == Some("notify"))
}

/// Whether these actions notify, and highlight the event.
pub fn highlights(actions: &[Value]) -> bool {
    let is_highlight = |tweak: &Object| {
        tweak.get("set_tweak").and_then(Value::as_str) == Some("highlight")
            && tweak.get("value").is_none_or(|value| *value == Value::Bool(true))
    };
    notifies(actions) && actions.iter().filter_map(Value::as_object).any(is_highlight)
}

/// Checks what a client wants as a condition. One that nobody knows is allowed; it never holds.
///
/// # Errors
/// A sentence, for one that lacks what its kind needs.
pub(super) fn check(condition: &Object) -> Result<(), &'static str> {
    let kind = condition.get("kind").and_then(Value::as_str).ok_or("A condition lacks its \"kind\".")?;
    let is_known = ["event_match", "event_property_is", "event_property_contains", "room_member_count"].contains(&kind)
        || kind == "sender_notification_permission";
    match Condition::of(condition) {
        Condition::Never if is_known => Err("A condition lacks a required field, or the field has the wrong type."),
        _ => Ok(()),
    }
}

/// What comparing a condition costs for each character of an event: only properties of the content may be long.
pub(super) fn cost(condition: &Object) -> usize {
    match text(condition, "key") {
        Some(key) if key.starts_with("content") => text(condition, "pattern").map_or(0, Pattern::cost),
        _ => 0,
    }
}

fn conditions(kind: Kind, rule: &Rule) -> Vec<Condition> {
    // First, as nothing has to be read for it.
    let mut conditions = Vec::from_iter(defaults::yields_to_mentions(rule).then_some(Condition::SaysNoMentions));
    match kind {
        Kind::Override | Kind::Underride => conditions.extend(rule.conditions.iter().map(Condition::of)),
        Kind::Content => {
            let pattern = Pattern::glob(rule.pattern.as_deref().unwrap_or_default());
            conditions.push(Condition::EventMatch { path: path(BODY), pattern, is_of_words: true });
        }
        Kind::Room => conditions.push(Condition::Room(rule.rule_id.clone())),
        Kind::Sender => conditions.push(Condition::Sender(rule.rule_id.clone())),
    }
    conditions
}

impl Condition {
    fn of(condition: &Object) -> Self {
        Self::read(condition).unwrap_or(Self::Never)
    }

    fn read(condition: &Object) -> Option<Self> {
        let key = || text(condition, "key");
        let scalar = || condition.get("value").filter(|value| is_scalar(value)).cloned();
        Some(match text(condition, "kind")? {
            "event_match" => {
                let pattern = Pattern::glob(text(condition, "pattern")?);
                Self::EventMatch { path: path(key()?), pattern, is_of_words: key()? == BODY }
            }
            "event_property_is" => Self::EventPropertyIs { path: path(key()?), value: scalar()? },
            "event_property_contains" => Self::EventPropertyContains { path: path(key()?), value: scalar()? },
            "contains_display_name" => Self::ContainsDisplayName,
            "room_member_count" => {
                let (comparison, count) = member_count(text(condition, "is")?)?;
                Self::RoomMemberCount(comparison, count)
            }
            "sender_notification_permission" => Self::SenderNotificationPermission(key()?.to_owned()),
            _ => Self::Never,
        })
    }

    fn holds(&self, event: &Object, around: &Surroundings<'_>) -> bool {
        match self {
            Self::EventMatch { path, pattern, is_of_words } => match property(event, path).and_then(Value::as_str) {
                Some(text) if *is_of_words => pattern.matches_words(text),
                Some(text) => pattern.matches(text),
                None => false,
            },
            Self::EventPropertyIs { path, value } => property(event, path) == Some(value),
            Self::EventPropertyContains { path, value } => {
                property(event, path).and_then(Value::as_array).is_some_and(|items| items.contains(value))
            }
            Self::ContainsDisplayName => {
                let content = event.get("content").and_then(Value::as_object);
                let body = content.and_then(|content| content.get("body")).and_then(Value::as_str);
                body.is_some_and(|body| {
                    let name = (around.display_name)().filter(|name| name.len() <= MAX_TEXT);
                    name.is_some_and(|name| Pattern::literal(&name).matches_words(body))
                })
            }
            Self::RoomMemberCount(comparison, count) => comparison.holds(around.member_count, *count),
            Self::SenderNotificationPermission(kind) => {
                let sender = event.get("sender").and_then(Value::as_str);
                sender.is_some_and(|sender| (around.may_notify)(sender, kind))
            }
            Self::Room(room_id) => event.get("room_id").and_then(Value::as_str) == Some(room_id),
            Self::Sender(user_id) => event.get("sender").and_then(Value::as_str) == Some(user_id),
            Self::SaysNoMentions => {
                let content = event.get("content").and_then(Value::as_object);
                content.is_none_or(|content| !content.contains_key("m.mentions"))
            }
            Self::Never => false,
        }
    }
}

impl Comparison {
    fn holds(self, has: u64, wanted: u64) -> bool {
        match self {
            Self::Equal => has == wanted,
            Self::Less => has < wanted,
            Self::Greater => has > wanted,
            Self::LessOrEqual => has <= wanted,
            Self::GreaterOrEqual => has >= wanted,
        }
    }
}

fn text<'a>(object: &'a Object, key: &str) -> Option<&'a str> {
    object.get(key)?.as_str()
}

/// A string, an integer that canonical JSON has, a boolean or `null`.
fn is_scalar(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(_) | Value::String(_) => true,
        Value::Integer(number) => (-MAX_INTEGER..=MAX_INTEGER).contains(number),
        Value::Number(_) | Value::Array(_) | Value::Object(_) | Value::Unread(_) => false,
    }
}

fn member_count(text: &str) -> Option<(Comparison, u64)> {
    let prefixes = [
        ("==", Comparison::Equal),
        ("<=", Comparison::LessOrEqual),
        (">=", Comparison::GreaterOrEqual),
        ("<", Comparison::Less),
        (">", Comparison::Greater),
    ];
    let prefixed = prefixes.into_iter().find_map(|(prefix, comparison)| Some((comparison, text.strip_prefix(prefix)?)));
    let (comparison, digits) = prefixed.unwrap_or((Comparison::Equal, text));
    let is_number = !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit());
    is_number.then(|| digits.parse().ok()).flatten().map(|count| (comparison, count))
}

/// The names in a dot-separated path of a property, in which `\.` and `\\` stand for a dot and a backslash of a name.
fn path(key: &str) -> Vec<String> {
    let mut names = vec![String::new()];
    let mut characters = key.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '.' => names.push(String::new()),
            '\\' if characters.peek().is_some_and(|next| ['.', '\\'].contains(next)) => {
                names.last_mut().into_iter().for_each(|name| name.extend(characters.next()));
            }
            _ => names.last_mut().into_iter().for_each(|name| name.push(character)),
        }
    }
    names
}

fn property<'e>(event: &'e Object, path: &[String]) -> Option<&'e Value> {
    let (last, outer) = path.split_last()?;
    let mut object = event;
    for name in outer {
        object = object.get(name)?.as_object()?;
    }
    object.get(last)
}
