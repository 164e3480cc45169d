//! The nodes of the trie, and their text.

use std::{borrow::Cow, fmt, rc::Rc};

use serde::de::{Deserializer as _, MapAccess, Visitor};

use super::{NodeId, StateKeyHash};
use crate::matrix::json::write_string;

/// How many entries a leaf may hold; more make it an inner node.
pub const LEAF_ENTRIES: usize = 64;

/// The slot of an inner node where there is no child.
pub const EMPTY_SLOT: &str = "......................";

pub(super) const FAN_OUT: usize = 16;

/// An entry of a snapshot: its key and the event id.
pub type Entry = (StateKeyHash, Rc<str>);

/// How long most event ids are.
const EVENT_ID: usize = 44;
/// How long the text of an entry with such an event id is.
const ENTRY: usize = "\"\":\"\",".len() + StateKeyHash::DIGITS + EVENT_ID;

/// The text is not that of a node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a node of a state snapshot is malformed")]
pub struct MalformedNode;

/// A child for each hex digit.
pub(super) type Children = [Option<NodeId>; FAN_OUT];

#[derive(Debug, PartialEq)]
pub(super) enum Node {
    Leaf(Leaf),
    /// More: the children, and how many entries there are below.
    Inner {
        children: Box<Children>,
        entries: usize,
    },
}

impl Node {
    pub(super) fn parse(text: &str) -> Result<Self, MalformedNode> {
        match text.strip_prefix('I') {
            Some(rest) => Self::parse_inner(rest),
            None => {
                let mut json = serde_json::Deserializer::from_str(text);
                let leaf = json.deserialize_map(LeafVisitor { length: text.len() }).map_err(|_| MalformedNode)?;
                json.end().map_err(|_| MalformedNode)?;
                Ok(Self::Leaf(leaf))
            }
        }
    }

    fn parse_inner(text: &str) -> Result<Self, MalformedNode> {
        let (slots, entries) = text.split_at_checked(FAN_OUT * EMPTY_SLOT.len()).ok_or(MalformedNode)?;
        let mut children = Box::new([None; FAN_OUT]);
        for (child, slot) in children.iter_mut().zip(slots.as_bytes().chunks_exact(EMPTY_SLOT.len())) {
            let slot = str::from_utf8(slot).map_err(|_| MalformedNode)?;
            if slot != EMPTY_SLOT {
                *child = Some(NodeId::parse(slot).ok_or(MalformedNode)?);
            }
        }
        Ok(Self::Inner { children, entries: entries.parse().map_err(|_| MalformedNode)? })
    }

    pub(super) fn to_text(&self) -> String {
        match self {
            Self::Leaf(leaf) => {
                let mut text = String::with_capacity(2 + leaf.len() * ENTRY);
                for (index, (key, event_id)) in leaf.entries().iter().enumerate() {
                    text.push(if index == 0 { '{' } else { ',' });
                    text.push('"');
                    key.write(&mut text);
                    text.push_str("\":");
                    // Event ids of room versions 1 and 2 are chosen by their server and may need escapes.
                    write_string(&mut text, event_id);
                }
                text.push_str(if leaf.len() == 0 { "{}" } else { "}" });
                text
            }
            Self::Inner { children, entries } => {
                let mut text = String::with_capacity(1 + FAN_OUT * EMPTY_SLOT.len() + 6);
                text.push('I');
                for child in children.iter() {
                    match child {
                        Some(id) => text.push_str(id.as_str()),
                        None => text.push_str(EMPTY_SLOT),
                    }
                }
                text.push_str(&entries.to_string());
                text
            }
        }
    }
}

/// Entries, sorted by key: a leaf holds up to [`LEAF_ENTRIES`], and more while one is made.
///
/// The event ids lie in one text. A leaf is read and compared as a whole, and of a large state few leaves are in the
/// processor's caches: with a place in memory for each event id, a comparison would mostly wait.
#[derive(Debug, PartialEq)]
pub(super) struct Leaf {
    /// The keys, and where in `event_ids` the event id of each ends.
    places: Vec<(StateKeyHash, usize)>,
    event_ids: String,
}

impl Leaf {
    pub(super) const EMPTY: Self = Self { places: Vec::new(), event_ids: String::new() };

    pub(super) fn with_capacity(entries: usize) -> Self {
        Self { places: Vec::with_capacity(entries), event_ids: String::with_capacity(entries * EVENT_ID) }
    }

    /// Adds an entry, whose key must be greater than those before.
    pub(super) fn push(&mut self, key: StateKeyHash, event_id: &str) {
        self.event_ids.push_str(event_id);
        self.places.push((key, self.event_ids.len()));
    }

    /// Adds entries, whose keys must be greater than those before.
    pub(super) fn extend(&mut self, entries: Entries<'_>) {
        let length = self.event_ids.len();
        let end = entries.places.last().map_or(entries.start, |(_, end)| *end);
        self.event_ids.push_str(entries.event_ids.get(entries.start..end).unwrap_or_default());
        self.places.extend(entries.places.iter().map(|(key, end)| (*key, end - entries.start + length)));
    }

    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    pub(super) fn entries(&self) -> Entries<'_> {
        Entries { start: 0, places: &self.places, event_ids: &self.event_ids }
    }

    pub(super) fn get(&self, key: &StateKeyHash) -> Option<&str> {
        let index = self.places.binary_search_by_key(key, |(key, _)| *key).ok()?;
        let start = index.checked_sub(1).and_then(|before| self.places.get(before)).map_or(0, |(_, end)| *end);
        self.event_ids.get(start..self.places.get(index)?.1)
    }
}

impl From<Entries<'_>> for Leaf {
    fn from(entries: Entries<'_>) -> Self {
        let mut leaf = Self::with_capacity(entries.len());
        leaf.extend(entries);
        leaf
    }
}

/// Some entries of a [`Leaf`] that stand beside each other.
#[derive(Clone, Copy, Default)]
pub(super) struct Entries<'a> {
    /// Where the first event id starts.
    start: usize,
    places: &'a [(StateKeyHash, usize)],
    event_ids: &'a str,
}

impl<'a> Entries<'a> {
    pub(super) fn iter(self) -> impl Iterator<Item = (StateKeyHash, &'a str)> {
        self.places.iter().scan(self.start, move |start, (key, end)| {
            let event_id = self.event_ids.get(*start..*end)?;
            *start = *end;
            Some((*key, event_id))
        })
    }

    pub(super) fn len(self) -> usize {
        self.places.len()
    }

    /// Those before the first one with this key or a greater one, and the others.
    pub(super) fn split_at(self, key: &StateKeyHash) -> (Self, Self) {
        let (before, mut others) = (self.places.partition_point(|(other, _)| other < key), self);
        others.skip(before);
        (Self { places: self.places.get(..before).unwrap_or_default(), ..self }, others)
    }

    pub(super) fn first_key(self) -> Option<StateKeyHash> {
        self.places.first().map(|(key, _)| *key)
    }

    /// Leaves out the first `count` entries.
    pub(super) fn skip(&mut self, count: usize) {
        let (skipped, rest) = self.places.split_at_checked(count).unwrap_or((self.places, &[]));
        self.start = skipped.last().map_or(self.start, |(_, end)| *end);
        self.places = rest;
    }

    /// How many entries at the start are the same in both, or a few fewer.
    pub(super) fn same_at_start(self, other: Self) -> usize {
        let chunks =
            |entries: Self| entries.event_ids.as_bytes().get(entries.start..).unwrap_or_default().as_chunks::<32>().0;
        let same_chunks = chunks(self).iter().zip(chunks(other)).take_while(|(a, b)| a == b).count();
        let pairs = self.places.iter().zip(other.places);
        let is_same = |((key, end), (other_key, other_end)): &(&(StateKeyHash, usize), &(StateKeyHash, usize))| {
            let length = end - self.start;
            key == other_key && length == other_end - other.start && length <= same_chunks * 32
        };
        pairs.take_while(is_same).count()
    }

    /// Those with a key that has this hex digit at `level`; all must be the same up to there.
    pub(super) fn with_digit(self, digit: usize, level: usize) -> Self {
        let (before, rest) = self.places.split_at(self.places.partition_point(|(key, _)| key.digit(level) < digit));
        let (places, _) = rest.split_at(rest.partition_point(|(key, _)| key.digit(level) <= digit));
        Self { start: before.last().map_or(self.start, |(_, end)| *end), places, ..self }
    }
}

/// Reads a leaf, and sees to it that its keys are sorted.
struct LeafVisitor {
    /// How long its text is.
    length: usize,
}

impl<'de> Visitor<'de> for LeafVisitor {
    type Value = Leaf;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a leaf of a state snapshot")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut leaf = Leaf::with_capacity((self.length / ENTRY).min(LEAF_ENTRIES));
        while let Some((Text(key), Text(event_id))) = map.next_entry()? {
            let key = StateKeyHash::parse(&key).ok_or_else(|| serde::de::Error::custom("a key is malformed"))?;
            if leaf.places.last().is_some_and(|(last, _)| *last >= key) {
                return Err(serde::de::Error::custom("the keys are not sorted"));
            }
            leaf.push(key, &event_id);
        }
        Ok(leaf)
    }
}

/// A JSON string, borrowed where nothing in it is escaped.
#[derive(serde::Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);
