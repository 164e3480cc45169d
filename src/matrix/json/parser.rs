//! The parser: RFC 8259, with a limit on nesting so that no input exhausts the stack.

use super::{Error, Object, Value, scan::plain_length};

/// How many arrays and objects may stand inside each other. Other servers read events a few hundred levels deep; the
/// limit must hold for our stack, also where a value is written or dropped.
pub const MAX_DEPTH: usize = 500;

/// Python refuses to read integers of more digits, and so do all Synapses: such an event exists nowhere.
const MAX_DIGITS: usize = 4300;

/// Parses a whole text as one JSON value. Of equal keys in an object the last one stands.
///
/// # Errors
/// Where it is not JSON (RFC 8259), not UTF-8, nested deeper than [`MAX_DEPTH`], or holds half a surrogate pair.
pub fn parse(text: &[u8]) -> Result<Value, Error> {
    let text = std::str::from_utf8(text).map_err(|error| Error::at("not UTF-8", error.valid_up_to()))?;
    let mut parser = Parser { text, bytes: text.as_bytes(), at: 0, depth: 0 };
    parser.skip_whitespace();
    let value = parser.value()?;
    parser.skip_whitespace();
    if parser.at != parser.bytes.len() {
        return Err(parser.error("text after the end of the value"));
    }
    Ok(value)
}

struct Parser<'a> {
    text: &'a str,
    bytes: &'a [u8],
    at: usize,
    depth: usize,
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
        if self.depth == MAX_DEPTH {
            return Err(self.error("nested too deep"));
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
            if self.peek() != Some(b'"') {
                return Err(self.error("expected a key"));
            }
            let key = self.string()?;
            self.skip_whitespace();
            if !self.take(b':') {
                return Err(self.error("expected a colon"));
            }
            self.skip_whitespace();
            members.push((key, self.value()?));
            self.skip_whitespace();
            if self.take(b'}') {
                return Ok(Value::Object(Object::from_members(members)));
            }
            if !self.take(b',') {
                return Err(self.error("expected a comma or the end of the object"));
            }
            self.skip_whitespace();
        }
    }

    fn array(&mut self) -> Result<Value, Error> {
        let mut items = Vec::new();
        if self.take(b']') {
            return Ok(Value::Array(items));
        }
        loop {
            items.push(self.value()?);
            self.skip_whitespace();
            if self.take(b']') {
                return Ok(Value::Array(items));
            }
            if !self.take(b',') {
                return Err(self.error("expected a comma or the end of the array"));
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
            _ => Ok(Value::Number(text.into())),
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
            let plain = self.slice(start).into();
            self.at += 1;
            return Ok(plain);
        }
        let mut string = self.slice(start).to_owned();
        loop {
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
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
