//! The parser: RFC 8259, with a limit on nesting so that no input exhausts the stack, and one on memory: values take up to
//! twelve times as much of it as their text, and the platform gives 128 MB for all that goes on at one time.

mod unread;

use super::{Error, Object, Value, scan::plain_length};

/// How many arrays and objects may stand inside each other. Other servers read events a few hundred levels deep; the
/// limit must hold for our stack, also where a value is written or dropped.
pub const MAX_DEPTH: usize = 500;

/// What becomes of what is nested too deep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TooDeep {
    /// The text is refused.
    Refused,
    /// It is a [`Value::Unread`].
    Unread,
}

/// How much memory the values of one text may take, in bytes. Fifty PDUs of 65,536 bytes fit, whatever they consist of.
pub const MAX_MEMORY: usize = 48 * 1024 * 1024;

/// What a [`Value`] and a member of an [`Object`] take on wasm32, by which memory is counted wherever this runs.
const VALUE_BYTES: usize = 16;
const MEMBER_BYTES: usize = 24;
#[cfg(target_arch = "wasm32")]
const _: () = assert!(size_of::<Value>() == VALUE_BYTES && size_of::<(Box<str>, Value)>() == MEMBER_BYTES);

/// How many items a list has room for at first.
const MIN_CAPACITY: usize = 4;

/// Python refuses to read integers of more digits, and so do all Synapses: such an event exists nowhere.
const MAX_DIGITS: usize = 4300;

const ARRAY_GOES_ON: &str = "expected a comma or the end of the array";
const OBJECT_GOES_ON: &str = "expected a comma or the end of the object";

/// Parses a whole text as one JSON value. Of equal keys in an object the last one stands.
///
/// # Errors
/// Where it is not JSON (RFC 8259), not UTF-8, nested deeper than [`MAX_DEPTH`], holds half a surrogate pair, or takes more
/// than [`MAX_MEMORY`].
pub fn parse(text: &[u8]) -> Result<Value, Error> {
    parse_within(text, &mut { MAX_MEMORY })
}

/// As [`parse`], for texts whose values are held at the same time: takes what the value needs out of `memory`.
///
/// # Errors
/// As [`parse`]; [`Error::is_too_large`] where that is more than there is left.
pub fn parse_within(text: &[u8], memory: &mut usize) -> Result<Value, Error> {
    read(text, memory, MAX_DEPTH, TooDeep::Refused)
}

/// As [`parse`], for texts that must be read whatever a part of them is: what is nested deeper than `depth`, which is little more than
/// [`MAX_DEPTH`] at most, is not refused, but becomes a [`Value::Unread`].
///
/// # Errors
/// As [`parse`], but for the depth.
pub fn parse_to_depth(text: &[u8], depth: usize) -> Result<Value, Error> {
    parse_to_depth_within(text, depth, &mut { MAX_MEMORY })
}

/// As [`parse_to_depth`], out of `memory` as [`parse_within`].
///
/// # Errors
/// As [`parse_within`], but for the depth.
pub fn parse_to_depth_within(text: &[u8], depth: usize, memory: &mut usize) -> Result<Value, Error> {
    read(text, memory, depth, TooDeep::Unread)
}

fn read(text: &[u8], memory: &mut usize, max_depth: usize, too_deep: TooDeep) -> Result<Value, Error> {
    let text = std::str::from_utf8(text).map_err(|error| Error::at("not UTF-8", error.valid_up_to()))?;
    let mut parser = Parser { text, bytes: text.as_bytes(), at: 0, depth: 0, max_depth, too_deep, memory: *memory };
    parser.skip_whitespace();
    let value = parser.value()?;
    parser.skip_whitespace();
    if parser.at != parser.bytes.len() {
        return Err(parser.error("text after the end of the value"));
    }
    *memory = parser.memory;
    Ok(value)
}

/// What the allocator of wasm32 takes for `bytes`.
const fn allocation(bytes: usize) -> usize {
    match bytes {
        0 => 0,
        1..=12 => 16,
        _ => (bytes + 11) & !7,
    }
}

struct Parser<'a> {
    text: &'a str,
    bytes: &'a [u8],
    at: usize,
    depth: usize,
    max_depth: usize,
    too_deep: TooDeep,
    /// What is left of it.
    memory: usize,
}

impl Parser<'_> {
    fn value(&mut self) -> Result<Value, Error> {
        match self.peek() {
            Some(b'"') => Ok(Value::String(self.string()?.into())),
            Some(b'{') => self.nested(Self::object),
            Some(b'[') => self.nested(Self::array),
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(b't') => self.word("true", Value::Bool(true)),
            Some(b'f') => self.word("false", Value::Bool(false)),
            Some(b'n') => self.word("null", Value::Null),
            _ => Err(self.error("expected a value")),
        }
    }

    fn nested(&mut self, read: fn(&mut Self) -> Result<Value, Error>) -> Result<Value, Error> {
        if self.depth == self.max_depth {
            return match self.too_deep {
                TooDeep::Refused => Err(self.error("nested too deep")),
                TooDeep::Unread => self.unread(),
            };
        }
        self.depth += 1;
        self.at += 1;
        self.skip_whitespace();
        let value = read(self)?;
        self.depth -= 1;
        Ok(value)
    }

    fn object(&mut self) -> Result<Value, Error> {
        let mut members = Vec::new();
        if self.take(b'}') {
            return Ok(Value::Object(Object::new()));
        }
        loop {
            let key = self.key()?;
            let value = self.value()?;
            self.make_room(&mut members, MEMBER_BYTES)?;
            members.push((key, value));
            self.skip_whitespace();
            if self.take(b'}') {
                self.give_back(&mut members, MEMBER_BYTES);
                return Ok(Value::Object(Object::from_members(members)));
            }
            if !self.take(b',') {
                return Err(self.error(OBJECT_GOES_ON));
            }
            self.skip_whitespace();
        }
    }

    /// Reads the name of a member and the colon.
    fn key(&mut self) -> Result<Box<str>, Error> {
        if self.peek() != Some(b'"') {
            return Err(self.error("expected a key"));
        }
        let key = self.string()?;
        self.skip_whitespace();
        if !self.take(b':') {
            return Err(self.error("expected a colon"));
        }
        self.skip_whitespace();
        Ok(key)
    }

    fn array(&mut self) -> Result<Value, Error> {
        let mut items = Vec::new();
        if self.take(b']') {
            return Ok(Value::Array(items));
        }
        loop {
            let value = self.value()?;
            self.make_room(&mut items, VALUE_BYTES)?;
            items.push(value);
            self.skip_whitespace();
            if self.take(b']') {
                self.give_back(&mut items, VALUE_BYTES);
                return Ok(Value::Array(items));
            }
            if !self.take(b',') {
                return Err(self.error(ARRAY_GOES_ON));
            }
            self.skip_whitespace();
        }
    }

    fn word(&mut self, word: &str, value: Value) -> Result<Value, Error> {
        if !self.rest().starts_with(word.as_bytes()) {
            return Err(self.error("expected a value"));
        }
        self.at += word.len();
        Ok(value)
    }

    fn number(&mut self) -> Result<Value, Error> {
        let start = self.at;
        self.take(b'-');
        let digits = self.digits();
        let leading_zero = digits > 1 && self.bytes.get(self.at - digits) == Some(&b'0');
        if digits == 0 || leading_zero {
            return Err(self.error("malformed number"));
        }
        let mut integer = true;
        if self.take(b'.') {
            integer = false;
            if self.digits() == 0 {
                return Err(self.error("malformed number"));
            }
        }
        if self.take(b'e') || self.take(b'E') {
            integer = false;
            let _ = self.take(b'+') || self.take(b'-');
            if self.digits() == 0 {
                return Err(self.error("malformed number"));
            }
        }
        if integer && digits > MAX_DIGITS {
            return Err(self.error("a number of too many digits"));
        }
        let text = self.slice(start);
        match text.parse() {
            Ok(number) if integer && text != "-0" => Ok(Value::Integer(number)),
            _ => self.keep(start).map(Value::Number),
        }
    }

    fn digits(&mut self) -> usize {
        let count = self.rest().iter().take_while(|byte| byte.is_ascii_digit()).count();
        self.at += count;
        count
    }

    /// Reads a string; the opening quote is the next byte.
    fn string(&mut self) -> Result<Box<str>, Error> {
        self.at += 1;
        let start = self.at;
        self.skip_plain();
        if self.peek() == Some(b'"') {
            let plain = self.keep(start)?;
            self.at += 1;
            return Ok(plain);
        }
        let mut string = self.slice(start).to_owned();
        loop {
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    self.spend(allocation(string.len()))?;
                    return Ok(string.into());
                }
                Some(b'\\') => string.push(self.escape()?),
                Some(_) => return Err(self.error("a control character in a string")),
                None => return Err(self.error("an unfinished string")),
            }
            let start = self.at;
            self.skip_plain();
            string.push_str(self.slice(start));
        }
    }

    /// Goes to the next quote, backslash or control character.
    fn skip_plain(&mut self) {
        self.at += plain_length(self.rest());
    }

    fn escape(&mut self) -> Result<char, Error> {
        let letter = self.bytes.get(self.at + 1).copied();
        self.at += 2;
        Ok(match letter {
            Some(letter @ (b'"' | b'\\' | b'/')) => char::from(letter),
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => {
                let first = self.code_unit()?;
                let code = if (0xd800..0xdc00).contains(&first) && self.rest().starts_with(b"\\u") {
                    self.at += 2;
                    let second = self.code_unit()?;
                    match second.checked_sub(0xdc00) {
                        Some(low) if low < 0x400 => 0x1_0000 + ((first - 0xd800) << 10) + low,
                        _ => first,
                    }
                } else {
                    first
                };
                char::from_u32(code).ok_or_else(|| self.error("half a surrogate pair"))?
            }
            _ => return Err(self.error("an unknown escape in a string")),
        })
    }

    fn code_unit(&mut self) -> Result<u32, Error> {
        let mut code = 0;
        for _ in 0..4 {
            let digit = self.peek().and_then(|byte| char::from(byte).to_digit(16));
            code = code * 16 + digit.ok_or_else(|| self.error("expected four hexadecimal digits"))?;
            self.at += 1;
        }
        Ok(code)
    }

    /// From `start` to here, as text of its own.
    fn keep(&mut self, start: usize) -> Result<Box<str>, Error> {
        self.spend(allocation(self.at - start))?;
        Ok(self.slice(start).into())
    }

    /// Makes room for one more item. A list that grows is for a moment in two places.
    fn make_room<T>(&mut self, items: &mut Vec<T>, item_bytes: usize) -> Result<(), Error> {
        let held = items.capacity();
        if items.len() == held {
            self.spend(allocation((2 * held).max(MIN_CAPACITY) * item_bytes))?;
            items.reserve_exact((2 * held).max(MIN_CAPACITY) - held);
            self.memory += allocation(held * item_bytes);
        }
        Ok(())
    }

    /// Gives back the room that a complete list does not need.
    fn give_back<T>(&mut self, items: &mut Vec<T>, item_bytes: usize) {
        self.memory += allocation(items.capacity() * item_bytes) - allocation(items.len() * item_bytes);
        items.shrink_to_fit();
    }

    fn spend(&mut self, bytes: usize) -> Result<(), Error> {
        self.memory = self.memory.checked_sub(bytes).ok_or_else(|| self.error(Error::TOO_LARGE))?;
        Ok(())
    }

    fn skip_whitespace(&mut self) {
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.peek() {
            self.at += 1;
        }
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn take(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    fn rest(&self) -> &[u8] {
        self.bytes.get(self.at..).unwrap_or_default()
    }

    /// From `start` to here; both stand beside ASCII bytes, so on character boundaries.
    fn slice(&self, start: usize) -> &str {
        self.text.get(start..self.at).unwrap_or_default()
    }

    fn error(&self, what: &'static str) -> Error {
        Error::at(what, self.at)
    }
}
