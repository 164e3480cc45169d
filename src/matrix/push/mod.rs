//! Push rules: which events a user is notified of (Client-Server API, "Push Rules").
//!
//! A [`Ruleset`] is what a user has: the predefined rules, as far as the user has changed them, and the user's own. It is stored
//! in the form that clients see, and read together with the predefined rules of today.

mod conditions;
mod defaults;
mod pattern;

pub use conditions::{Rules, Surroundings, highlights, notifies};

use super::{
    identifiers::{RoomId, UserId},
    json::{Object, Value},
};

/// How many rules a user may make.
pub const MAX_RULES: usize = 1_000;
/// How long all of them may be together, in bytes of JSON.
pub const MAX_BYTES: usize = 131_072;
/// The longest ID of a rule, the longest pattern and the longest display name that is looked for, in bytes.
const MAX_TEXT: usize = 512;
/// What the patterns that are compared with the content of events may cost for each character of it; a pattern of up to 63
/// characters costs 1.
const MAX_COST: usize = 256;

/// The kinds of rules, in the order in which they are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `override`
    Override,
    /// `content`
    Content,
    /// `room`
    Room,
    /// `sender`
    Sender,
    /// `underride`
    Underride,
}

/// A push rule.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    rule_id: String,
    is_default: bool,
    enabled: bool,
    actions: Vec<Value>,
    /// Of `override` and `underride` alone.
    conditions: Vec<Object>,
    /// Of `content` alone.
    pattern: Option<String>,
}

/// All rules of a user.
#[derive(Debug, Clone, PartialEq)]
pub struct Ruleset([Vec<Rule>; 5]);

/// Where a rule is put among those of its kind.
#[derive(Debug, Clone, Default)]
pub struct Place {
    /// Just before this rule, as the more important one.
    pub before: Option<String>,
    /// Just behind this rule.
    pub after: Option<String>,
}

/// Why rules are not changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PushRuleError {
    /// There is no such rule.
    #[error("There is no such push rule.")]
    NotFound,
    /// The rule that another is to be put beside is not there, or predefined.
    #[error("\"before\" and \"after\" must name a rule of the user's own.")]
    UnknownNeighbour,
    /// It is to be put before one rule and behind a less important one.
    #[error("The rule named by \"before\" has a higher priority than the one named by \"after\".")]
    NoPlace,
    /// A rule lacks something.
    #[error("{0}")]
    Missing(&'static str),
    /// A rule is not as it must be.
    #[error("{0}")]
    Malformed(&'static str),
    /// There would be too many rules, or too large ones.
    #[error("{0}")]
    TooMuch(&'static str),
}

impl Kind {
    /// All kinds, in the order in which they are looked at.
    pub const ALL: [Self; 5] = [Self::Override, Self::Content, Self::Room, Self::Sender, Self::Underride];

    /// The kind of this name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Override => "override",
            Self::Content => "content",
            Self::Room => "room",
            Self::Sender => "sender",
            Self::Underride => "underride",
        }
    }

    fn has_conditions(self) -> bool {
        matches!(self, Self::Override | Self::Underride)
    }
}

impl Rule {
    /// A rule that a client wants: `body` is what it sent.
    ///
    /// # Errors
    /// Where it is not as its kind must be.
    pub fn new(kind: Kind, rule_id: &str, body: &Object) -> Result<Self, PushRuleError> {
        let malformed = |sentence| Err(PushRuleError::Malformed(sentence));
        if rule_id.is_empty() || rule_id.len() > MAX_TEXT || rule_id.contains(['/', '\\']) || rule_id.starts_with('.') {
            return malformed("The ID of a rule has 1 to 512 bytes, no slashes, and does not begin with a dot.");
        }
        if kind == Kind::Room && RoomId::parse(rule_id).is_err() {
            return malformed("The ID of a rule for a room is the room's ID.");
        }
        if kind == Kind::Sender && UserId::parse(rule_id).is_err() {
            return malformed("The ID of a rule for a sender is the user's ID.");
        }
        let mut rule = Self {
            rule_id: rule_id.to_owned(),
            is_default: false,
            enabled: true,
            actions: actions(body)?,
            conditions: Vec::new(),
            pattern: None,
        };
        if kind.has_conditions() {
            let items = match body.get("conditions") {
                None | Some(Value::Null) => &[],
                Some(Value::Array(items)) => items.as_slice(),
                Some(_) => return malformed("\"conditions\" must be an array."),
            };
            for item in items {
                let Some(condition) = item.as_object() else { return malformed("A condition must be an object.") };
                conditions::check(condition).map_err(PushRuleError::Malformed)?;
                rule.conditions.push(condition.clone());
            }
        }
        if kind == Kind::Content {
            let pattern =
                body.get("pattern").ok_or(PushRuleError::Missing("A rule for content needs a \"pattern\"."))?;
            let Some(pattern) = pattern.as_str() else { return malformed("\"pattern\" must be a string.") };
            rule.pattern = Some(pattern.to_owned());
        }
        let patterns = rule.conditions.iter().filter_map(|condition| condition.get("pattern")?.as_str());
        if patterns.chain(rule.pattern.as_deref()).any(|pattern| pattern.len() > MAX_TEXT) {
            return malformed("A pattern has at most 512 bytes.");
        }
        Ok(rule)
    }

    /// Whether it is enabled.
    pub fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// What is done with an event that it matches.
    pub fn actions(&self) -> &[Value] {
        &self.actions
    }

    /// The rule as clients see it.
    pub fn to_object(&self, kind: Kind) -> Object {
        let mut object = Object::new();
        object.insert("rule_id", self.rule_id.as_str());
        object.insert("default", self.is_default);
        object.insert("enabled", self.enabled);
        object.insert("actions", self.actions.clone());
        if kind.has_conditions() {
            object.insert("conditions", self.conditions.iter().cloned().map(Value::Object).collect::<Vec<_>>());
        }
        if let Some(pattern) = &self.pattern {
            object.insert("pattern", pattern.as_str());
        }
        object
    }

    fn of_stored(stored: &Object) -> Option<Self> {
        let text = |key: &str| Some(stored.get(key)?.as_str()?.to_owned());
        let list = |key: &str| stored.get(key).and_then(Value::as_array).unwrap_or_default();
        Some(Self {
            rule_id: text("rule_id")?,
            is_default: stored.get("default")?.as_bool()?,
            enabled: stored.get("enabled")?.as_bool()?,
            actions: list("actions").to_vec(),
            conditions: list("conditions").iter().filter_map(|item| item.as_object().cloned()).collect(),
            pattern: text("pattern"),
        })
    }

    fn cost(&self) -> usize {
        let conditions = self.conditions.iter().map(conditions::cost).sum::<usize>();
        conditions + self.pattern.as_deref().map_or(0, pattern::Pattern::cost)
    }
}

impl Ruleset {
    /// The rules of `user_id`, of whom `stored` is kept.
    pub fn of(user_id: &str, stored: Option<&Object>) -> Self {
        let mut set = Self(Default::default());
        let mut changed: [Vec<Rule>; 5] = Default::default();
        if let Some(global) = stored.and_then(|stored| stored.get("global")?.as_object()) {
            for ((kind, own), changed) in Kind::ALL.into_iter().zip(&mut set.0).zip(&mut changed) {
                let rules = global.get(kind.name()).and_then(Value::as_array).unwrap_or_default();
                let rules = rules.iter().filter_map(|rule| Rule::of_stored(rule.as_object()?));
                (*changed, *own) = rules.partition(|rule| rule.is_default);
            }
        }
        for (kind, mut rule) in defaults::all(user_id) {
            let changed = changed.get(kind as usize).into_iter().flatten().find(|old| old.rule_id == rule.rule_id);
            if let Some(changed) = changed {
                rule.enabled = changed.enabled;
                rule.actions.clone_from(&changed.actions);
            }
            let at = if rule.rule_id == defaults::MASTER { 0 } else { set.of_kind(kind).len() };
            set.of_kind_mut(kind).insert(at, rule);
        }
        set
    }

    /// All rules as clients see them, `global` within.
    pub fn to_object(&self) -> Object {
        Object::from_iter([("global", self.global())])
    }

    /// All rules as clients see them.
    pub fn global(&self) -> Object {
        let list =
            |kind: Kind| self.of_kind(kind).iter().map(|rule| Value::Object(rule.to_object(kind))).collect::<Vec<_>>();
        Kind::ALL.into_iter().map(|kind| (kind.name(), list(kind))).collect()
    }

    /// The rule of this kind and ID.
    ///
    /// # Errors
    /// [`PushRuleError::NotFound`] where the user has no such rule.
    pub fn rule(&self, kind: Kind, rule_id: &str) -> Result<&Rule, PushRuleError> {
        self.of_kind(kind).iter().find(|rule| rule.rule_id == rule_id).ok_or(PushRuleError::NotFound)
    }

    /// Adds a rule, or has it take the place of the one with its ID.
    ///
    /// # Errors
    /// Where it cannot be put there, or there would be too much.
    pub fn put(&mut self, kind: Kind, mut rule: Rule, place: &Place) -> Result<(), PushRuleError> {
        let rules = self.of_kind_mut(kind);
        let old = rules.iter().position(|old| old.rule_id == rule.rule_id);
        if let Some(replaced) = old.and_then(|at| rules.get(at)) {
            rule.enabled = replaced.enabled;
        }
        let neighbours = [&place.after, &place.before].map(Option::as_deref);
        for neighbour in neighbours.into_iter().flatten() {
            let is_own = rules.iter().any(|old| old.rule_id == neighbour && !old.is_default);
            if !is_own {
                return Err(PushRuleError::UnknownNeighbour);
            }
        }
        match (old, neighbours) {
            (Some(at), [None, None]) => rules.splice(at..=at, [rule]).for_each(drop),
            (_, neighbours) => {
                let rule_id = rule.rule_id.clone();
                let mut others = rules.clone();
                others.retain(|other| other.rule_id != rule_id);
                let at = |id: &str| {
                    others.iter().position(|other| other.rule_id == id).ok_or(PushRuleError::UnknownNeighbour)
                };
                let first = others.iter().take_while(|other| other.rule_id == defaults::MASTER).count();
                let [after, before] = neighbours.map(|id| id.map(&at).transpose());
                let (after, before) = (after?, before?);
                if matches!((after, before), (Some(after), Some(before)) if before <= after) {
                    return Err(PushRuleError::NoPlace);
                }
                let to = before.or(after.map(|after| after + 1)).unwrap_or(first);
                others.insert(to, rule);
                *rules = others;
            }
        }
        self.check_size()
    }

    /// Has what is set for the room `old` hold for `new` too, which goes on with it: the rule of the room, and the override of its ID by
    /// which clients mute one. Where something is set for `new`, that stays. Whether anything changes.
    ///
    /// # Errors
    /// Where there would be too much.
    pub fn follow(&mut self, old: &str, new: &str) -> Result<bool, PushRuleError> {
        let mut changes = false;
        for kind in [Kind::Override, Kind::Room] {
            let Ok(rule) = self.rule(kind, old) else { continue };
            if rule.is_default || self.rule(kind, new).is_ok() {
                continue;
            }
            let mut rule = Rule { rule_id: new.to_owned(), ..rule.clone() };
            for condition in &mut rule.conditions {
                if condition.get("key").and_then(Value::as_str) == Some("room_id")
                    && condition.get("pattern").and_then(Value::as_str) == Some(old)
                {
                    condition.insert("pattern", new);
                }
            }
            self.put(kind, rule, &Place::default())?;
            changes = true;
        }
        Ok(changes)
    }

    /// Removes one of the user's own rules.
    ///
    /// # Errors
    /// Where there is none of this ID.
    pub fn remove(&mut self, kind: Kind, rule_id: &str) -> Result<(), PushRuleError> {
        let rules = self.of_kind_mut(kind);
        let at = rules.iter().position(|rule| rule.rule_id == rule_id && !rule.is_default);
        at.map(|at| rules.remove(at)).map(drop).ok_or(PushRuleError::NotFound)
    }

    /// Enables or disables a rule.
    ///
    /// # Errors
    /// Where there is none of this ID.
    pub fn enable(&mut self, kind: Kind, rule_id: &str, enabled: bool) -> Result<(), PushRuleError> {
        self.rule_mut(kind, rule_id)?.enabled = enabled;
        Ok(())
    }

    /// Has a rule act as `body` says in its `actions`.
    ///
    /// # Errors
    /// Where there is none of this ID, the actions are malformed, or there would be too much.
    pub fn act(&mut self, kind: Kind, rule_id: &str, body: &Object) -> Result<(), PushRuleError> {
        let actions = actions(body)?;
        self.rule_mut(kind, rule_id)?.actions = actions;
        self.check_size()
    }

    /// The rules with their kinds, in the order in which they are looked at.
    fn iter(&self) -> impl Iterator<Item = (Kind, &Rule)> {
        let kinds = Kind::ALL.into_iter().zip(&self.0);
        kinds.flat_map(|(kind, rules)| rules.iter().map(move |rule| (kind, rule)))
    }

    fn of_kind(&self, kind: Kind) -> &[Rule] {
        self.0.get(kind as usize).map_or(&[], Vec::as_slice)
    }

    fn of_kind_mut(&mut self, kind: Kind) -> &mut Vec<Rule> {
        let [overrides, content, room, sender, underrides] = &mut self.0;
        match kind {
            Kind::Override => overrides,
            Kind::Content => content,
            Kind::Room => room,
            Kind::Sender => sender,
            Kind::Underride => underrides,
        }
    }

    fn rule_mut(&mut self, kind: Kind, rule_id: &str) -> Result<&mut Rule, PushRuleError> {
        self.of_kind_mut(kind).iter_mut().find(|rule| rule.rule_id == rule_id).ok_or(PushRuleError::NotFound)
    }

    fn check_size(&self) -> Result<(), PushRuleError> {
        let own = || self.iter().filter(|(_, rule)| !rule.is_default);
        if own().count() > MAX_RULES || self.to_object().to_text().len() > MAX_BYTES {
            return Err(PushRuleError::TooMuch("There are too many push rules, or too large ones."));
        }
        if own().map(|(_, rule)| rule.cost()).sum::<usize>() > MAX_COST {
            return Err(PushRuleError::TooMuch("The patterns of the push rules are too many, or too long."));
        }
        Ok(())
    }
}

/// The actions that a client wants, without those that are of no effect any more.
fn actions(body: &Object) -> Result<Vec<Value>, PushRuleError> {
    let malformed =
        PushRuleError::Malformed("\"actions\" must be an array of strings, and objects with \"set_tweak\".");
    let items = body.get("actions").ok_or(PushRuleError::Missing("A rule needs \"actions\"."))?;
    let items = items.as_array().ok_or(malformed)?;
    let is_action = |item: &Value| match item {
        Value::String(_) => true,
        Value::Object(tweak) => tweak.get("set_tweak").is_some_and(|name| name.as_str().is_some()),
        _ => false,
    };
    if !items.iter().all(is_action) {
        return Err(malformed);
    }
    let is_historical = |item: &&Value| matches!(item.as_str(), Some("dont_notify" | "coalesce"));
    Ok(items.iter().filter(|item| !is_historical(item)).cloned().collect())
}
