//! Rule 10: `m.room.power_levels`, and which changes its sender may make.

use std::cmp::Ordering;

use super::{AuthError, Room};
use crate::matrix::{
    event::Event,
    json::{Object, Value},
    power_levels::{self, Level, PowerLevel},
};

/// Judges a power levels event of a sender with this power.
pub(super) fn check(event: &Event, room: &Room<'_>, power: &PowerLevel) -> Result<(), AuthError> {
    let version = event.version();
    let new = event.content();
    let integers_only = version.integer_power_levels;
    if integers_only {
        for level in Level::ALL {
            parse(new.get(level.name()), integers_only)?;
        }
        for property in ["events", "notifications"] {
            for (_, level) in entries(new, property)? {
                PowerLevel::parse(level, integers_only)?;
            }
        }
    }
    for (user_id, level) in entries(new, "users")? {
        if !is_user_id(user_id) {
            return Err(AuthError::UsersNotUserIds);
        }
        PowerLevel::parse(level, integers_only)?;
    }
    if version.privileged_creators
        && let Some(users) = object(new, "users")?
        && power_levels::creators(room.create).any(|creator| users.contains_key(creator))
    {
        return Err(AuthError::CreatorInUsers);
    }
    let Some(old) = room.power_levels().map(Event::content) else { return Ok(()) };

    for level in Level::ALL {
        let change = (old.get(level.name()), new.get(level.name()));
        check_change(change, integers_only, |old| old <= power, power)?;
    }
    for property in ["events", "notifications"] {
        if property == "notifications" && !version.notifications_auth_rule {
            continue;
        }
        for (_, change) in changes(old, new, property)? {
            check_change(change, integers_only, |old| old <= power, power)?;
        }
    }
    for (user_id, change) in changes(old, new, "users")? {
        let own = user_id == event.sender().as_str();
        check_change(change, integers_only, |old| own || old < power, power)?;
    }
    Ok(())
}

/// Whether a key of `users` passes for a user ID. The domain may be anything, and the whole of any length: rooms hold such keys,
/// and Synapse, which reads the domain elsewhere, does not here.
fn is_user_id(key: &str) -> bool {
    key.starts_with('@') && key.contains(':')
}

/// What stands under a key before and after.
type Change<'a> = (Option<&'a Value>, Option<&'a Value>);

/// Allows to keep a value, to remove or change one that `may_change`, and to set one up to the sender's power.
fn check_change(
    (old, new): Change<'_>,
    integers_only: bool,
    may_change: impl Fn(&PowerLevel) -> bool,
    power: &PowerLevel,
) -> Result<(), AuthError> {
    if old == new && matches!(old, None | Some(Value::Integer(_))) {
        return Ok(());
    }
    let (old, new) = (parse(old, integers_only)?, parse(new, integers_only)?);
    if old == new || (old.is_none_or(|old| may_change(&old)) && new.is_none_or(|new| new <= *power)) {
        Ok(())
    } else {
        Err(AuthError::LevelTooHigh)
    }
}

fn parse(value: Option<&Value>, integers_only: bool) -> Result<Option<PowerLevel>, AuthError> {
    Ok(value.map(|value| PowerLevel::parse(value, integers_only)).transpose()?)
}

/// The keys of a property in either content, with what stands under them. Both are sorted, so one walk finds them.
fn changes<'a>(
    old: &'a Object,
    new: &'a Object,
    property: &str,
) -> Result<impl Iterator<Item = (&'a str, Change<'a>)>, AuthError> {
    let (mut old, mut new) = (entries(old, property)?.peekable(), entries(new, property)?.peekable());
    Ok(std::iter::from_fn(move || {
        let order = match (old.peek(), new.peek()) {
            (Some((old, _)), Some((new, _))) => old.cmp(new),
            (Some(_), None) => Ordering::Less,
            (None, _) => Ordering::Greater,
        };
        let old = if order.is_le() { old.next() } else { None };
        let new = if order.is_ge() { new.next() } else { None };
        let (key, _) = old.or(new)?;
        Some((key, (old.map(|(_, level)| level), new.map(|(_, level)| level))))
    }))
}

fn entries<'a>(content: &'a Object, property: &str) -> Result<impl Iterator<Item = (&'a str, &'a Value)>, AuthError> {
    Ok(object(content, property)?.into_iter().flat_map(Object::iter))
}

fn object<'a>(content: &'a Object, property: &str) -> Result<Option<&'a Object>, AuthError> {
    match content.get(property) {
        None => Ok(None),
        Some(Value::Object(object)) => Ok(Some(object)),
        Some(_) => Err(AuthError::MalformedPowerLevels),
    }
}
