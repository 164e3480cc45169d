//! Taking an object apart while it arrives: some of its members item by item, so that none of it need be in memory whole.
//!
//! Only where values begin and end is looked at; each is given as the text that it is, to be parsed by whoever wants it. What
//! nobody wants is passed over without being kept, however long and deep it is.

use super::json::{self, Value};

/// The longest name of a member that is told from others.
const MAX_NAME: usize = 256;

/// What is wanted of an object.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// Members that are arrays, of which the items come one by one.
    pub items_of: &'static [&'static str],
    /// Members that come whole.
    pub whole: &'static [&'static str],
    /// The longest text that is kept. A longer value is left out.
    pub max_text: usize,
}

/// A value of the object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// The member that it is, or is an item of.
    pub member: &'static str,
    /// Its text.
    pub text: Vec<u8>,
}

/// The text is not an object, or ends too early, or has a wanted array twice or as something else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it is not a JSON object of the form that was asked for")]
pub struct Malformed;

/// Takes one object apart.
#[derive(Debug)]
pub struct ObjectReader {
    wanted: Wanted,
    place: Place,
    /// The member that is read, if it is wanted, and whether item by item.
    member: Option<(&'static str, bool)>,
    seen: Vec<&'static str>,
    /// The text of what is read: a name, or a value that is kept.
    text: Vec<u8>,
    keeps: bool,
    nesting: Nesting,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Start,
    /// Before a member; whether it may be the end instead.
    BeforeName(bool),
    Name {
        escaped: bool,
    },
    AfterName,
    BeforeValue,
    /// Before an item; whether it may be the end instead.
    BeforeItem(bool),
    Value,
    AfterItem,
    AfterMember,
    End,
}

/// Where in a value it is.
#[derive(Debug, Clone, Copy, Default)]
struct Nesting {
    depth: usize,
    in_string: bool,
    escaped: bool,
    /// A number or a word, which ends where something else begins.
    is_bare: bool,
}

impl ObjectReader {
    /// A reader at the beginning of an object.
    pub fn new(wanted: Wanted) -> Self {
        Self {
            wanted,
            place: Place::Start,
            member: None,
            seen: Vec::new(),
            text: Vec::new(),
            keeps: false,
            nesting: Nesting::default(),
        }
    }

    /// Reads on, and adds to `pieces` what is whole by now.
    ///
    /// # Errors
    /// [`Malformed`]; the reader is then of no more use.
    pub fn read(&mut self, bytes: &[u8], pieces: &mut Vec<Piece>) -> Result<(), Malformed> {
        for &byte in bytes {
            // A number or a word ends with what is no part of it, which is then read again.
            while !self.step(byte, pieces)? {}
        }
        Ok(())
    }

    /// The text has ended.
    ///
    /// # Errors
    /// [`Malformed`] where the object has not.
    pub fn end(&self) -> Result<(), Malformed> {
        if self.place == Place::End { Ok(()) } else { Err(Malformed) }
    }

    /// Whether it has come to this member, if it is wanted.
    pub fn has_read(&self, member: &str) -> bool {
        self.seen.contains(&member)
    }

    /// Takes one byte; `false` where it is still to be read, at the place where it is now.
    fn step(&mut self, byte: u8, pieces: &mut Vec<Piece>) -> Result<bool, Malformed> {
        if let Place::Value = self.place {
            return self.value(byte, pieces);
        }
        if let Place::Name { escaped } = self.place {
            self.name(byte, escaped)?;
            return Ok(true);
        }
        if byte.is_ascii_whitespace() {
            return Ok(true);
        }
        self.place = match (self.place, byte) {
            (Place::Start, b'{') => Place::BeforeName(true),
            (Place::BeforeName(_), b'"') => {
                self.text = vec![b'"'];
                Place::Name { escaped: false }
            }
            (Place::BeforeName(true) | Place::AfterMember, b'}') => Place::End,
            (Place::AfterName, b':') => Place::BeforeValue,
            (Place::BeforeValue, _) => {
                let by_items = self.member.is_some_and(|(_, by_items)| by_items);
                if by_items && byte == b'[' {
                    Place::BeforeItem(true)
                } else if by_items {
                    return Err(Malformed);
                } else {
                    return self.begin(byte, self.member.is_some());
                }
            }
            (Place::BeforeItem(true) | Place::AfterItem, b']') => Place::AfterMember,
            (Place::BeforeItem(_), _) => return self.begin(byte, true),
            (Place::AfterItem, b',') => Place::BeforeItem(false),
            (Place::AfterMember, b',') => Place::BeforeName(false),
            _ => return Err(Malformed),
        };
        Ok(true)
    }

    fn name(&mut self, byte: u8, escaped: bool) -> Result<(), Malformed> {
        if self.text.len() <= MAX_NAME {
            self.text.push(byte);
        }
        self.place = Place::Name { escaped: byte == b'\\' && !escaped };
        if byte != b'"' || escaped {
            return Ok(());
        }
        self.place = Place::AfterName;
        let name = json::parse(&self.text).ok();
        let name = name.as_ref().and_then(Value::as_str);
        let find = |names: &'static [&'static str]| names.iter().copied().find(|known| Some(*known) == name);
        self.member = find(self.wanted.items_of).map(|name| (name, true));
        self.member = self.member.or_else(|| find(self.wanted.whole).map(|name| (name, false)));
        if let Some((name, _)) = self.member {
            if self.seen.contains(&name) {
                return Err(Malformed);
            }
            self.seen.push(name);
        }
        Ok(())
    }

    /// Begins a value with this byte.
    fn begin(&mut self, byte: u8, keeps: bool) -> Result<bool, Malformed> {
        if matches!(byte, b'}' | b']' | b',' | b':') {
            return Err(Malformed);
        }
        self.text = Vec::new();
        self.keeps = keeps;
        self.nesting = Nesting { is_bare: !matches!(byte, b'{' | b'[' | b'"'), ..Nesting::default() };
        self.place = Place::Value;
        Ok(false)
    }

    fn value(&mut self, byte: u8, pieces: &mut Vec<Piece>) -> Result<bool, Malformed> {
        let nesting = &mut self.nesting;
        if nesting.is_bare && (matches!(byte, b',' | b'}' | b']') || byte.is_ascii_whitespace()) {
            self.finish(pieces);
            return Ok(false);
        }
        if self.keeps {
            self.keeps = self.text.len() < self.wanted.max_text;
            if self.keeps {
                self.text.push(byte);
            } else {
                self.text = Vec::new();
            }
        }
        if nesting.is_bare {
            return if matches!(byte, b'"' | b'{' | b'[' | b':') { Err(Malformed) } else { Ok(true) };
        }
        if nesting.in_string {
            let ends = byte == b'"' && !nesting.escaped;
            nesting.escaped = byte == b'\\' && !nesting.escaped;
            nesting.in_string = !ends;
        } else {
            match byte {
                b'"' => nesting.in_string = true,
                b'{' | b'[' => nesting.depth += 1,
                b'}' | b']' => nesting.depth = nesting.depth.checked_sub(1).ok_or(Malformed)?,
                _ => {}
            }
        }
        if nesting.depth == 0 && !nesting.in_string {
            self.finish(pieces);
        }
        Ok(true)
    }

    /// Ends the value that was read.
    fn finish(&mut self, pieces: &mut Vec<Piece>) {
        let by_items = self.member.is_some_and(|(_, by_items)| by_items);
        self.place = if by_items { Place::AfterItem } else { Place::AfterMember };
        if let Some((member, _)) = self.member.filter(|_| self.keeps) {
            pieces.push(Piece { member, text: std::mem::take(&mut self.text) });
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const WANTED: Wanted = Wanted { items_of: &["state", "auth_chain"], whole: &["event"], max_text: 40 };

    fn read(text: &str, step: usize) -> Result<Vec<(&'static str, String)>, Malformed> {
        let (mut reader, mut pieces) = (ObjectReader::new(WANTED), Vec::new());
        for bytes in text.as_bytes().chunks(step) {
            reader.read(bytes, &mut pieces)?;
        }
        reader.end()?;
        Ok(pieces.into_iter().map(|piece| (piece.member, String::from_utf8(piece.text).unwrap())).collect())
    }

    #[test]
    fn items_come_as_they_are_however_the_text_is_cut_and_whatever_stands_first() {
        let text = " {\"x\": [1, {\"state\":[7]}, \"]}\"], \"auth_chain\":[ { \"a\" : \"]\\\"}\" } ,[[]],1.50, \"s\\\\\"],\n\
                     \"event\": {\"e\":[{}]} , \"state\":[],\"y\":\"\\\"\",\"z\":null} \n";
        let expected = [
            ("auth_chain", "{ \"a\" : \"]\\\"}\" }"),
            ("auth_chain", "[[]]"),
            ("auth_chain", "1.50"),
            ("auth_chain", "\"s\\\\\""),
            ("event", "{\"e\":[{}]}"),
        ];
        let expected: Vec<_> = expected.into_iter().map(|(name, text)| (name, text.to_owned())).collect();
        for step in [1, 2, 3, 7, 1_000] {
            assert_eq!(read(text, step).unwrap(), expected);
        }
        assert_eq!(read("{}", 1).unwrap(), []);
        assert_eq!(read("{\"st\\u0061te\":[1]}", 1).unwrap(), [("state", "1".to_owned())], "names may be escaped");
    }

    #[test]
    fn what_is_too_long_is_left_out() {
        let long = "x".repeat(39);
        let text = format!("{{\"state\":[\"{long}\",1,\"{}\"],\"event\":\"{long}\",\"n{long}{long}\":2}}", &long[..38]);
        let expected = [("state", "1".to_owned()), ("state", format!("\"{}\"", &long[..38]))];
        assert_eq!(read(&text, 5).unwrap(), expected);
        let name = "n".repeat(100_000);
        assert_eq!(read(&format!("{{\"{name}\":[],\"event\":1}}"), 999).unwrap(), [("event", "1".to_owned())]);
        let deep = format!("{{\"x\":{}{},\"event\":1}}", "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(read(&deep, 999).unwrap(), [("event", "1".to_owned())]);
    }

    #[test]
    fn what_is_no_such_object_is_refused() {
        for text in [
            "",
            "[]",
            "1",
            "{",
            "{\"a\"}",
            "{\"a\":}",
            "{\"a\":1,}",
            "{,}",
            "{\"a\" 1}",
            "{\"a\":1}}",
            "{\"a\":1} 2",
            "{\"state\":{}}",
            "{\"state\":null}",
            "{\"state\":[1,]}",
            "{\"state\":[,1]}",
            "{\"state\":[1}",
            "{\"state\":[1",
            "{\"state\":[],\"state\":[]}",
            "{\"event\":1,\"event\":1}",
            "{\"state\":[1 2]}",
            "{\"state\":[]]}",
            "{\"a\":]}",
            "{\"a\":1\"b\":2}",
            "{\"a\":\"x}",
            "{\"state\":[\"x]}",
        ] {
            for step in [1, 100] {
                assert_eq!(read(text, step), Err(Malformed), "{text}");
            }
        }
    }
}
