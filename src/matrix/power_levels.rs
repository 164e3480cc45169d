//! Power levels: who may do what in a room.
//!
//! Server-Server API, "Definitions" (required power level, invite level, and so on); Client-Server API,
//! `m.room.power_levels`; the room versions' "Deprecated event content schemas" (levels as strings before version 10, as
//! floats before version 6) and, in version 12, the creators' infinite power.
//!
//! [`PowerLevels`] is a view of the two events that say it. It parses a level when it is asked for and nothing else, so
//! that one question in a room of ten thousand users costs one look-up. Which changes of power levels are allowed is for
//! [`auth_rules`](super::auth_rules).

use std::cmp::Reverse;

use super::{
    event::Event,
    json::{Object, Value},
};

/// The power levels in force at a point in a room.
#[derive(Clone, Copy)]
pub struct PowerLevels<'a> {
    create: &'a Event,
    content: Option<&'a Object>,
}

impl<'a> PowerLevels<'a> {
    /// The view of a room's `m.room.create` event and its `m.room.power_levels` event, if it has one.
    pub fn from_state(create: &'a Event, power_levels: Option<&'a Event>) -> Self {
        Self { create, content: power_levels.map(Event::content) }
    }

    /// The level of a user.
    ///
    /// # Errors
    /// Where the event holds something that is not a level.
    pub fn user(&self, user_id: &str) -> Result<PowerLevel, MalformedPowerLevel> {
        if self.create.version().privileged_creators && is_creator(self.create, user_id) {
            return Ok(PowerLevel::INFINITE);
        }
        let Some(content) = self.content else {
            return Ok(PowerLevel::from(if is_creator(self.create, user_id) { 100 } else { 0 }));
        };
        match entry(content, "users", user_id)? {
            Some(level) => self.parse(level),
            None => self.level(Level::UsersDefault),
        }
    }

    /// The level required to send an event of a type: the spec's "required power level".
    ///
    /// # Errors
    /// Where the event holds something that is not a level.
    pub fn event(&self, event_type: &str, is_state: bool) -> Result<PowerLevel, MalformedPowerLevel> {
        let default = if is_state { Level::StateDefault } else { Level::EventsDefault };
        let Some(content) = self.content else { return Ok(default.default_value()) };
        match (entry(content, "events", event_type)?, content.get(default.name())) {
            (Some(level), _) | (None, Some(level)) => self.parse(level),
            (None, None) => Ok(default.default_value()),
        }
    }

    /// One of the levels that have a property of their own.
    ///
    /// # Errors
    /// Where the event holds something that is not a level.
    pub fn level(&self, level: Level) -> Result<PowerLevel, MalformedPowerLevel> {
        match self.content.and_then(|content| content.get(level.name())) {
            // A null counts as absent, as it does for Synapse; such an event can only be a room's first, before version 10.
            None | Some(Value::Null) => Ok(level.default_value()),
            Some(value) => self.parse(value),
        }
    }

    /// Whether a user has one of these levels at least; not where the event holds something that is no level.
    pub fn allow(&self, user_id: &str, needed: Level) -> bool {
        matches!((self.user(user_id), self.level(needed)), (Ok(has), Ok(needed)) if has >= needed)
    }

    /// The level required for a kind of notification (`notifications`), such as `room`; 50 unless the event says otherwise.
    ///
    /// # Errors
    /// Where the event holds something that is not a level.
    pub fn notification(&self, kind: &str) -> Result<PowerLevel, MalformedPowerLevel> {
        let Some(content) = self.content else { return Ok(PowerLevel::from(50)) };
        entry(content, "notifications", kind)?.map_or(Ok(PowerLevel::from(50)), |level| self.parse(level))
    }

    fn parse(&self, value: &Value) -> Result<PowerLevel, MalformedPowerLevel> {
        PowerLevel::parse(value, self.create.version().integer_power_levels)
    }
}

/// The user IDs that count as a room's creators: one, or from version 12 on the sender of `m.room.create` and its
/// `additional_creators`.
pub fn creators(create: &Event) -> impl Iterator<Item = &str> {
    let version = create.version();
    let first = if version.creator_is_sender {
        Some(create.sender().as_str())
    } else {
        create.content().get("creator").and_then(Value::as_str)
    };
    let additional = if version.privileged_creators {
        create.content().get("additional_creators").and_then(Value::as_array)
    } else {
        None
    };
    first.into_iter().chain(additional.into_iter().flatten().filter_map(Value::as_str))
}

/// Whether a user is one of a room's [`creators`].
pub fn is_creator(create: &Event, user_id: &str) -> bool {
    creators(create).any(|creator| creator == user_id)
}

/// The properties of `m.room.power_levels` that are one level each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// `users_default`: of users who are not listed.
    UsersDefault,
    /// `events_default`: to send a message event of a type that is not listed.
    EventsDefault,
    /// `state_default`: to send a state event of a type that is not listed.
    StateDefault,
    /// `ban`: to ban, and to lift a ban.
    Ban,
    /// `redact`: to redact the event of another user.
    Redact,
    /// `kick`: to remove a user.
    Kick,
    /// `invite`: to invite a user.
    Invite,
}

impl Level {
    /// All of them, in the spec's order.
    pub const ALL: [Self; 7] = [
        Self::UsersDefault,
        Self::EventsDefault,
        Self::StateDefault,
        Self::Ban,
        Self::Redact,
        Self::Kick,
        Self::Invite,
    ];

    /// The name of the property.
    pub fn name(self) -> &'static str {
        match self {
            Self::UsersDefault => "users_default",
            Self::EventsDefault => "events_default",
            Self::StateDefault => "state_default",
            Self::Ban => "ban",
            Self::Redact => "redact",
            Self::Kick => "kick",
            Self::Invite => "invite",
        }
    }

    /// What counts where the property is absent.
    pub fn default_value(self) -> PowerLevel {
        PowerLevel::from(match self {
            Self::UsersDefault | Self::EventsDefault | Self::Invite => 0,
            Self::StateDefault | Self::Ban | Self::Redact | Self::Kick => 50,
        })
    }
}

/// A power level: an integer of any size, or the infinite power of a creator. Ordered by power.
///
/// Room versions before 6 put no bound on numbers, and those before 10 none on strings, so a level may not fit 64 bits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PowerLevel(Repr);

/// The order of the variants is the order of power.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Repr {
    Below(Reverse<Magnitude>),
    Integer(i64),
    Above(Magnitude),
    Infinite,
}

/// A positive integer beyond 64 bits. Without leading zeros the longer is the greater.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Magnitude {
    length: usize,
    digits: Box<str>,
}

impl PowerLevel {
    /// Above every integer: a creator's level from room version 12 on.
    pub const INFINITE: Self = Self(Repr::Infinite);

    /// Reads a level. With `integers_only` (from room version 10 on) nothing but an integer is one; without it strings that
    /// hold an integer are, and floats, which are truncated.
    ///
    /// # Errors
    /// Where the value is not a level in that version.
    pub fn parse(value: &Value, integers_only: bool) -> Result<Self, MalformedPowerLevel> {
        match value {
            Value::Integer(level) => Ok(Self::from(*level)),
            Value::Number(text) if !integers_only => Self::parse_number(text),
            Value::String(text) if !integers_only => Self::parse_integer(text.trim_matches(is_whitespace)),
            _ => Err(MalformedPowerLevel),
        }
    }

    /// The level as a number for APIs that know no other; what does not fit becomes the nearest that does.
    pub fn saturating(&self) -> i64 {
        match self.0 {
            Repr::Below(_) => i64::MIN,
            Repr::Integer(level) => level,
            Repr::Above(_) | Repr::Infinite => i64::MAX,
        }
    }

    /// A JSON number that is no 64-bit integer: one with a fraction or an exponent, or a larger integer.
    fn parse_number(text: &str) -> Result<Self, MalformedPowerLevel> {
        if !text.contains(['.', 'e', 'E']) {
            return Self::parse_integer(text);
        }
        let number: f64 = text.parse().map_err(|_| MalformedPowerLevel)?;
        if !number.is_finite() {
            return Err(MalformedPowerLevel);
        }
        Self::parse_integer(&format!("{:.0}", number.trunc()))
    }

    /// An optional sign and any number of decimal digits, leading zeros included.
    fn parse_integer(text: &str) -> Result<Self, MalformedPowerLevel> {
        let (negative, digits) = match text.strip_prefix('-') {
            Some(digits) => (true, digits),
            None => (false, text.strip_prefix('+').unwrap_or(text)),
        };
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(MalformedPowerLevel);
        }
        if let Ok(level) = text.parse::<i64>() {
            return Ok(Self::from(level));
        }
        let digits: Box<str> = digits.trim_start_matches('0').into();
        let magnitude = Magnitude { length: digits.len(), digits };
        Ok(Self(if negative { Repr::Below(Reverse(magnitude)) } else { Repr::Above(magnitude) }))
    }
}

impl std::fmt::Display for PowerLevel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.0 {
            Repr::Below(Reverse(magnitude)) => write!(f, "-{}", magnitude.digits),
            Repr::Integer(level) => write!(f, "{level}"),
            Repr::Above(magnitude) => f.write_str(&magnitude.digits),
            Repr::Infinite => f.write_str("that of a creator"),
        }
    }
}

impl From<i64> for PowerLevel {
    fn from(level: i64) -> Self {
        Self(Repr::Integer(level))
    }
}

/// What stands where a power level should is not one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MalformedPowerLevel;

/// The value under `key` of the object that is the property `property`. Absent, and null, is `None`.
fn entry<'a>(content: &'a Object, property: &str, key: &str) -> Result<Option<&'a Value>, MalformedPowerLevel> {
    match content.get(property) {
        None => Ok(None),
        Some(Value::Object(levels)) => Ok(levels.get(key).filter(|level| **level != Value::Null)),
        Some(_) => Err(MalformedPowerLevel),
    }
}

/// Whitespace around a level that is written as a string: Unicode's, and the four separators that Python counts too.
fn is_whitespace(character: char) -> bool {
    character.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&character)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::matrix::json;

    fn level(text: &str) -> Result<PowerLevel, MalformedPowerLevel> {
        PowerLevel::parse(&json::parse(text.as_bytes()).unwrap(), false)
    }

    /// The examples of the spec's "Deprecated event content schemas".
    #[test]
    fn strings_and_floats_of_the_spec() {
        for text in ["\"100\"", "\"000100\"", "\"+100\"", "\" 100 \"", "\" 00100 \"", "\" +100 \"", "100.99"] {
            assert_eq!(level(text), Ok(PowerLevel::from(100)), "{text}");
        }
        assert_eq!(level("\" -100 \""), Ok(PowerLevel::from(-100)));
        assert_eq!(level("5.114698E4"), Ok(PowerLevel::from(51146)));
        assert_eq!(level("50.57"), Ok(PowerLevel::from(50)));
        assert_eq!(level("1e400"), Err(MalformedPowerLevel), "beyond a double");
    }

    #[test]
    fn order_beyond_64_bits() {
        let ascending = [
            "-1e300",
            "\"-18446744073709551617\"",
            "\"-18446744073709551616\"",
            "-9223372036854775808",
            "-1",
            "0",
            "9223372036854775807",
            "\"0009223372036854775808\"",
            "9223372036854775809",
            "1e30",
        ];
        let levels: Vec<PowerLevel> = ascending.iter().map(|text| level(text).unwrap()).collect();
        assert!(levels.is_sorted_by(|a, b| a < b), "{levels:?}");
        assert!(levels.iter().all(|level| *level < PowerLevel::INFINITE));
        assert_eq!(level("\"000000000000000000000000000000000000000007\""), Ok(PowerLevel::from(7)));
        assert_eq!(level("1e30"), level("\"1000000000000000019884624838656\""), "as the double is");
        assert_eq!(levels.first().unwrap().saturating(), i64::MIN);
        assert_eq!(PowerLevel::INFINITE.saturating(), i64::MAX);
    }
}
