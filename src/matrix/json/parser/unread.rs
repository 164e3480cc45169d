//! What is nested too deep to become values: it is read to its end, whatever its depth, for the canonical text that it is.
//!
//! Nothing here calls itself, as the stack is small, and what is open at one time takes 13 bytes a level at most. The text is gone
//! through twice: to see that it is JSON, and which objects are not written canonically; and to write it.

use std::{borrow::Cow, slice::Iter};

use super::{super::writer::write_value, *};

/// What an [`Unsorted`], a [`Sorting`] and a key with its place take on wasm32.
const ENTRY_BYTES: usize = 16;
#[cfg(target_arch = "wasm32")]
const _: () = assert!(
    size_of::<Unsorted>() <= ENTRY_BYTES
        && size_of::<Sorting<'_>>() <= ENTRY_BYTES
        && size_of::<(Cow<'_, str>, usize)>() <= ENTRY_BYTES
);

/// What a place in the text takes there.
const PLACE_BYTES: usize = 4;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Array,
    Object,
}

/// An object whose members are not in canonical order, or of which there are some with one key.
struct Unsorted {
    start: usize,
    /// Where its last brace is.
    end: usize,
    /// Where the members begin that count, in their order.
    members: Box<[usize]>,
}

/// An [`Unsorted`] that is being written.
struct Sorting<'a> {
    /// How many arrays and objects are open in it, itself among them.
    depth: usize,
    end: usize,
    left: Iter<'a, usize>,
}

impl Parser<'_> {
    /// Reads the array or object that begins here.
    pub(super) fn unread(&mut self) -> Result<Value, Error> {
        let (start, memory) = (self.at, self.memory);
        let mut unsorted = self.survey()?;
        unsorted.sort_unstable_by_key(|object| object.start);
        let text = self.rewritten(start, &unsorted)?;
        self.memory = memory;
        self.spend(allocation(text.len()))?;
        Ok(Value::Unread(text.into()))
    }

    /// Goes to the end of the array or object that begins here. Returns the objects in it that are to be sorted.
    fn survey(&mut self) -> Result<Vec<Unsorted>, Error> {
        let mut unsorted = Vec::new();
        // What is open; of the objects among it where they begin, and how many keys there were before; and the places of their keys.
        let (mut open, mut objects, mut keys) = (Vec::new(), Vec::new(), Vec::new());
        loop {
            let start = self.at;
            if self.take(b'[') {
                self.make_room(&mut open, 1)?;
                open.push(Kind::Array);
                self.skip_whitespace();
                if self.peek() != Some(b']') {
                    continue;
                }
            } else if self.take(b'{') {
                self.make_room(&mut open, 1)?;
                open.push(Kind::Object);
                self.make_room(&mut objects, 2 * PLACE_BYTES)?;
                objects.push((start, keys.len()));
                self.skip_whitespace();
                if self.peek() != Some(b'}') {
                    self.pass_key(&mut keys)?;
                    continue;
                }
            } else {
                self.passing(Self::value)?;
            }
            // A value has ended, or is an empty one that is about to.
            loop {
                let Some(kind) = open.last().copied() else { return Ok(unsorted) };
                self.skip_whitespace();
                if self.take(b',') {
                    self.skip_whitespace();
                    if kind == Kind::Object {
                        self.pass_key(&mut keys)?;
                    }
                    break;
                }
                match kind {
                    Kind::Array if self.take(b']') => {}
                    Kind::Array => return Err(self.error(ARRAY_GOES_ON)),
                    Kind::Object if self.peek() == Some(b'}') => {
                        let (start, before) = objects.pop().unwrap_or_default();
                        let members = self.sorted(start, keys.get(before..).unwrap_or_default())?;
                        keys.truncate(before);
                        if let Some(members) = members {
                            self.make_room(&mut unsorted, ENTRY_BYTES)?;
                            unsorted.push(Unsorted { start, end: self.at, members });
                        }
                        self.at += 1;
                    }
                    Kind::Object => return Err(self.error(OBJECT_GOES_ON)),
                }
                open.pop();
            }
        }
    }

    fn pass_key(&mut self, keys: &mut Vec<usize>) -> Result<(), Error> {
        self.make_room(keys, PLACE_BYTES)?;
        keys.push(self.at);
        self.passing(Self::key).map(drop)
    }

    /// Reads what is not kept for long.
    fn passing<T>(&mut self, read: fn(&mut Self) -> Result<T, Error>) -> Result<T, Error> {
        let memory = self.memory;
        let value = read(self)?;
        self.memory = memory;
        Ok(value)
    }

    /// The keys of the object from `start` to here in canonical order, of equal ones the last; `None` where that is how they stand.
    fn sorted(&mut self, start: usize, keys: &[usize]) -> Result<Option<Box<[usize]>>, Error> {
        if keys.is_sorted_by(|one, next| self.key_at(*one) < self.key_at(*next)) {
            return Ok(None);
        }
        let memory = self.memory;
        // Keys with escapes in them are copied.
        self.spend(allocation(keys.len() * ENTRY_BYTES) + (self.at - start))?;
        let mut by_key: Vec<(Cow<'_, str>, usize)> = keys.iter().map(|at| (self.key_at(*at), *at)).collect();
        by_key.sort_unstable_by(|(key, at), (other, other_at)| key.cmp(other).then(other_at.cmp(at)));
        by_key.dedup_by(|(key, _), (earlier, _)| key == earlier);
        let members: Box<[usize]> = by_key.into_iter().map(|(_, at)| at).collect();
        self.memory = memory;
        self.spend(allocation(members.len() * PLACE_BYTES))?;
        Ok(Some(members))
    }

    /// The string that begins at `at`, which was read before.
    fn key_at(&self, at: usize) -> Cow<'_, str> {
        let start = at + 1;
        let rest = self.bytes.get(start..).unwrap_or_default();
        let end = start + plain_length(rest);
        if self.bytes.get(end) == Some(&b'"') {
            return Cow::Borrowed(self.text.get(start..end).unwrap_or_default());
        }
        let mut reader = Parser { at, memory: usize::MAX, ..*self };
        Cow::Owned(reader.string().unwrap_or_default().into())
    }

    /// The canonical text of what stands from `start` to here, which [`Parser::survey`] went through.
    fn rewritten(&mut self, start: usize, unsorted: &[Unsorted]) -> Result<String, Error> {
        let at = |start: usize| unsorted.binary_search_by_key(&start, |object| object.start).ok();
        let end = self.at;
        self.at = start;
        self.spend(allocation(end - start))?;
        let mut out = String::with_capacity(end - start);
        let (mut depth, mut sorting): (usize, Vec<Sorting<'_>>) = (0, Vec::new());
        while self.at < end {
            let held = out.capacity();
            let byte = self.peek().unwrap_or_default();
            match (byte, sorting.last_mut()) {
                // Between members, or after the last, of an object that is being sorted: there goes the next in order.
                (b',' | b'}', Some(object)) if object.depth == depth => match object.left.next() {
                    Some(member) => {
                        out.push(',');
                        self.at = *member;
                    }
                    None => {
                        out.push('}');
                        self.at = object.end + 1;
                        sorting.pop();
                        depth -= 1;
                    }
                },
                (b'{' | b'[', _) => {
                    out.push(char::from(byte));
                    self.at += 1;
                    depth += 1;
                    if let Some(object) = at(self.at - 1).and_then(|index| unsorted.get(index)) {
                        let mut left = object.members.iter();
                        self.at = left.next().copied().unwrap_or(object.end);
                        self.make_room(&mut sorting, ENTRY_BYTES)?;
                        sorting.push(Sorting { depth, end: object.end, left });
                    }
                }
                (b'}' | b']' | b',' | b':', _) => {
                    out.push(char::from(byte));
                    self.at += 1;
                    depth -= usize::from(matches!(byte, b'}' | b']'));
                }
                (b' ' | b'\t' | b'\n' | b'\r', _) => self.at += 1,
                _ => write_value(&mut out, &self.passing(Self::value)?),
            }
            if out.capacity() > held {
                // Numbers may be longer as canonical JSON has them.
                self.spend(allocation(out.capacity()))?;
                self.memory += allocation(held);
            }
        }
        Ok(out)
    }
}
