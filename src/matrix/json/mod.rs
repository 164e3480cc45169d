//! JSON as events carry it: parsing without loss, and canonical JSON.
//!
//! Spec: appendices, "Signing JSON", "Canonical JSON"; rooms, "Canonical JSON" of versions 1 and 6.
//!
//! Everything that comes from outside is parsed here and not with `serde_json`, whose `Value` loses integers beyond 64
//! bits and the spelling of floats, both of which room versions 1-5 hash. Members of an [`Object`] are always sorted
//! by key, so that writing a value is writing its canonical form.
//!
//! Which numbers a room version allows is [`Value::check_strict`] and [`Value::check_loose`]; the caller
//! decides (see [`super::room_version::RoomVersion::strict_json`]).

mod float;
mod parser;
mod scan;
mod writer;

use serde::ser::{Error as _, Serialize, SerializeMap, SerializeSeq, Serializer};

pub use parser::{MAX_DEPTH, MAX_MEMORY, parse, parse_to_depth, parse_to_depth_within, parse_within};
pub(super) use writer::{write_member, write_members, write_string, write_value};

/// The largest integer of canonical JSON, 2^53 - 1; the smallest is its negative.
pub const MAX_INTEGER: i64 = (1 << 53) - 1;

/// In so few members the one that is looked for is found sooner by comparing its length with each than by order.
const FEW: usize = 16;

/// A JSON value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// `null`
    Null,
    /// `true` or `false`
    Bool(bool),
    /// An integer that fits, written in no other way than its canonical one.
    Integer(i64),
    /// Any other number (fraction, exponent, `-0`, beyond 64 bits), as it was written.
    Number(Box<str>),
    /// A string.
    String(String),
    /// An array.
    Array(Vec<Value>),
    /// An object.
    Object(Object),
    /// What stands deeper than was read, as its canonical text: with it a text of any depth can be written and compared, and
    /// nothing that walks a value has to walk that deep. It takes no more memory than the text. Only [`parse_to_depth`] makes it.
    Unread(Box<str>),
}

/// The members of a JSON object, sorted by key: by bytes, which for UTF-8 is by code point, as canonical JSON wants.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Object {
    members: Vec<(Box<str>, Value)>,
}

/// Why a text is not JSON, or not JSON that we read: a sentence with the place in bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} at byte {offset}")]
pub struct Error {
    what: &'static str,
    offset: usize,
}

/// Why a value has no canonical form in a room version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NumberError {
    /// An integer outside ±(2^53 - 1).
    #[error("an integer is outside the range of canonical JSON")]
    OutOfRange,
    /// A fraction, an exponent or a negative zero.
    #[error("a number is not an integer")]
    NotAnInteger,
    /// A float too large for a double, which no server can hash.
    #[error("a number is too large")]
    Infinite,
}

impl Value {
    /// The string, if it is one.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text),
            _ => None,
        }
    }

    /// The integer, if it is one that fits.
    pub fn as_i64(&self) -> Option<i64> {
        match self {
            Self::Integer(number) => Some(*number),
            _ => None,
        }
    }

    /// The boolean, if it is one.
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Self::Bool(value) => Some(*value),
            _ => None,
        }
    }

    /// The elements, if it is an array.
    pub fn as_array(&self) -> Option<&[Value]> {
        match self {
            Self::Array(items) => Some(items),
            _ => None,
        }
    }

    /// The members, if it is an object.
    pub fn as_object(&self) -> Option<&Object> {
        match self {
            Self::Object(object) => Some(object),
            _ => None,
        }
    }

    /// The members to change, if it is an object.
    pub fn as_object_mut(&mut self) -> Option<&mut Object> {
        match self {
            Self::Object(object) => Some(object),
            _ => None,
        }
    }

    /// The members, if it is an object, without a copy.
    pub fn into_object(self) -> Option<Object> {
        match self {
            Self::Object(object) => Some(object),
            _ => None,
        }
    }

    /// The elements, if it is an array, without a copy.
    pub fn into_array(self) -> Option<Vec<Value>> {
        match self {
            Self::Array(items) => Some(items),
            _ => None,
        }
    }

    /// The member `key`, if it is an object that has one.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.as_object()?.get(key)
    }

    /// The canonical text. Floats are written as Python's `repr` does, which is what room versions 1-5 hash.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        write_value(&mut text, self);
        text
    }

    /// Whether all of it was read, and no more than so many arrays and objects stand inside each other.
    pub fn is_within_depth(&self, depth: usize) -> bool {
        match self {
            Self::Array(items) => {
                depth.checked_sub(1).is_some_and(|left| items.iter().all(|item| item.is_within_depth(left)))
            }
            Self::Object(object) => object.is_within_depth(depth),
            Self::Unread(_) => false,
            _ => true,
        }
    }

    /// Checks that this is canonical JSON as room versions 6 and later enforce it. What is unread is not looked at.
    ///
    /// # Errors
    /// Where a number is not an integer within ±(2^53 - 1).
    pub fn check_strict(&self) -> Result<(), NumberError> {
        match self {
            Self::Integer(number) if !(-MAX_INTEGER..=MAX_INTEGER).contains(number) => Err(NumberError::OutOfRange),
            Self::Number(text) if float::is_integer(text) && &**text != "-0" => Err(NumberError::OutOfRange),
            Self::Number(_) => Err(NumberError::NotAnInteger),
            Self::Array(items) => items.iter().try_for_each(Self::check_strict),
            Self::Object(object) => object.check_strict(),
            _ => Ok(()),
        }
    }

    /// Checks that this can be hashed at all, which is what room versions 1 to 5 ask. What is unread is not looked at.
    ///
    /// # Errors
    /// Where a float is too large for a double.
    pub fn check_loose(&self) -> Result<(), NumberError> {
        match self {
            Self::Number(text) if float::is_infinite(text) => Err(NumberError::Infinite),
            Self::Array(items) => items.iter().try_for_each(Self::check_loose),
            Self::Object(object) => object.check_loose(),
            _ => Ok(()),
        }
    }
}

impl Object {
    /// An object without members.
    pub const fn new() -> Self {
        Self { members: Vec::new() }
    }

    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.members.get(self.position(key)?).map(|(_, value)| value)
    }

    /// The value of `key`, to change.
    pub fn get_mut(&mut self, key: &str) -> Option<&mut Value> {
        let at = self.position(key)?;
        self.members.get_mut(at).map(|(_, value)| value)
    }

    /// Sets `key`, and returns the value that it had.
    pub fn insert(&mut self, key: impl Into<Box<str>>, value: impl Into<Value>) -> Option<Value> {
        let (key, value) = (key.into(), value.into());
        match self.find(&key) {
            Ok(at) => self.members.get_mut(at).map(|member| std::mem::replace(&mut member.1, value)),
            Err(at) => {
                self.members.insert(at, (key, value));
                None
            }
        }
    }

    /// The object at `key`, to change; one is put in the place of anything else.
    pub fn object_at(&mut self, key: &str) -> &mut Object {
        let at = match self.find(key) {
            Ok(at) => at,
            Err(at) => {
                self.members.insert(at, (key.into(), Value::Null));
                at
            }
        };
        let value = &mut self.members[at].1;
        if !matches!(value, Value::Object(_)) {
            *value = Value::Object(Object::new());
        }
        match value {
            Value::Object(object) => object,
            _ => unreachable!("it was made an object"),
        }
    }

    /// Removes `key`, and returns the value that it had.
    pub fn remove(&mut self, key: &str) -> Option<Value> {
        let at = self.position(key)?;
        Some(self.members.remove(at).1)
    }

    /// Keeps the members for which `keep` says so.
    pub fn retain(&mut self, mut keep: impl FnMut(&str, &mut Value) -> bool) {
        self.members.retain_mut(|(key, value)| keep(key, value));
    }

    /// Whether there is a member `key`.
    pub fn contains_key(&self, key: &str) -> bool {
        self.position(key).is_some()
    }

    /// How many members there are.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether there are no members.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// The members, sorted by key.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&str, &Value)> + ExactSizeIterator {
        self.members.iter().map(|(key, value)| (&**key, value))
    }

    /// The keys, sorted.
    pub fn keys(&self) -> impl DoubleEndedIterator<Item = &str> + ExactSizeIterator {
        self.members.iter().map(|(key, _)| &**key)
    }

    /// The values, sorted by their keys.
    pub fn values(&self) -> impl DoubleEndedIterator<Item = &Value> + ExactSizeIterator {
        self.members.iter().map(|(_, value)| value)
    }

    /// The canonical text; see [`Value::to_text`].
    pub fn to_text(&self) -> String {
        let mut text = String::with_capacity(1024);
        writer::write_object(&mut text, self);
        text
    }

    /// See [`Value::is_within_depth`].
    pub fn is_within_depth(&self, depth: usize) -> bool {
        depth.checked_sub(1).is_some_and(|left| self.values().all(|value| value.is_within_depth(left)))
    }

    /// See [`Value::check_strict`].
    ///
    /// # Errors
    /// Where a number is not an integer within ±(2^53 - 1).
    pub fn check_strict(&self) -> Result<(), NumberError> {
        self.values().try_for_each(Value::check_strict)
    }

    /// See [`Value::check_loose`].
    ///
    /// # Errors
    /// Where a float is too large for a double.
    pub fn check_loose(&self) -> Result<(), NumberError> {
        self.values().try_for_each(Value::check_loose)
    }

    fn position(&self, key: &str) -> Option<usize> {
        if self.members.len() <= FEW {
            return self.members.iter().position(|(member, _)| **member == *key);
        }
        self.find(key).ok()
    }

    /// Where `key` is, or else belongs.
    fn find(&self, key: &str) -> Result<usize, usize> {
        self.members.binary_search_by(|(member, _)| (**member).cmp(key))
    }

    /// Takes members in any order; of several with one key the last stands, as in Python's parser and most others.
    fn from_members(mut members: Vec<(Box<str>, Value)>) -> Self {
        if !members.is_sorted_by(|a, b| a.0 < b.0) {
            members.sort_by(|a, b| a.0.cmp(&b.0));
            // The sort is stable: of equal keys the last read comes last; it takes the place of the first.
            members.dedup_by(|later, earlier| {
                let same = later.0 == earlier.0;
                if same {
                    std::mem::swap(&mut later.1, &mut earlier.1);
                }
                same
            });
        }
        Self { members }
    }
}

impl<K: Into<Box<str>>, V: Into<Value>> FromIterator<(K, V)> for Object {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(members: I) -> Self {
        Self::from_members(members.into_iter().map(|(key, value)| (key.into(), value.into())).collect())
    }
}

impl IntoIterator for Object {
    type Item = (Box<str>, Value);
    type IntoIter = std::vec::IntoIter<(Box<str>, Value)>;

    fn into_iter(self) -> Self::IntoIter {
        self.members.into_iter()
    }
}

impl Error {
    const TOO_LARGE: &str = "more values than there is memory for";

    /// That values take more memory than they may.
    pub fn too_large() -> Self {
        Self::at(Self::TOO_LARGE, 0)
    }

    /// Whether it is that values take more memory than they may; the text may well be JSON.
    pub fn is_too_large(&self) -> bool {
        self.what == Self::TOO_LARGE
    }

    fn at(what: &'static str, offset: usize) -> Self {
        Self { what, offset }
    }
}

impl From<serde_json::Value> for Value {
    fn from(value: serde_json::Value) -> Self {
        match value {
            serde_json::Value::Null => Self::Null,
            serde_json::Value::Bool(value) => Self::Bool(value),
            serde_json::Value::Number(number) => match number.as_i64() {
                Some(number) => Self::Integer(number),
                None => Self::Number(number.to_string().into()),
            },
            serde_json::Value::String(text) => Self::String(text),
            serde_json::Value::Array(items) => Self::Array(items.into_iter().map(Self::from).collect()),
            serde_json::Value::Object(members) => Self::Object(members.into_iter().collect()),
        }
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Integer(number)
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::String(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::String(text)
    }
}

impl From<Object> for Value {
    fn from(object: Object) -> Self {
        Self::Object(object)
    }
}

impl From<Vec<Value>> for Value {
    fn from(items: Vec<Value>) -> Self {
        Self::Array(items)
    }
}

/// For answers that are built with `serde_json`. Numbers beyond 64 bits become floats there: events
/// are sent as [`Value::to_text`] writes them, never through this.
impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null => serializer.serialize_unit(),
            Self::Bool(value) => serializer.serialize_bool(*value),
            Self::Integer(number) => serializer.serialize_i64(*number),
            Self::Number(text) => match (text.parse::<u64>(), text.parse::<f64>()) {
                (Ok(number), _) => serializer.serialize_u64(number),
                (_, Ok(number)) if number.is_finite() => serializer.serialize_f64(number),
                _ => serializer.serialize_unit(),
            },
            Self::String(text) => serializer.serialize_str(text),
            Self::Array(items) => {
                let mut sequence = serializer.serialize_seq(Some(items.len()))?;
                for item in items {
                    sequence.serialize_element(item)?;
                }
                sequence.end()
            }
            Self::Object(object) => object.serialize(serializer),
            Self::Unread(_) => Err(S::Error::custom("a part of it was not read")),
        }
    }
}

impl Serialize for Object {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.len()))?;
        for (key, value) in self.iter() {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests;
