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

/// The text is not that of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MalformedNode;

impl fmt::Display for MalformedNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a node of a state snapshot is malformed")
    }
}

impl std::error::Error for MalformedNode {}

/// A child for each hex digit.
pub(super) type Children = [Option<NodeId>; FAN_OUT];

#[derive(Debug, PartialEq)]
pub(super) enum Node {
    /// Up to [`LEAF_ENTRIES`] entries, sorted by key.
    Leaf(Vec<Entry>),
    /// More: the children, and how many entries there are below.
    Inner { children: Box<Children>, entries: usize },
}

impl Node {
    pub(super) fn parse(text: &str) -> Result<Self, MalformedNode> {
        match text.strip_prefix('I') {
            Some(rest) => Self::parse_inner(rest),
            None => {
                let mut json = serde_json::Deserializer::from_str(text);
                let entries = json.deserialize_map(LeafVisitor).map_err(|_| MalformedNode)?;
                json.end().map_err(|_| MalformedNode)?;
                Ok(Self::Leaf(entries))
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
            Self::Leaf(entries) => {
                let mut text = String::with_capacity(2 + entries.len() * 83);
                for (index, (key, event_id)) in entries.iter().enumerate() {
                    text.push(if index == 0 { '{' } else { ',' });
                    text.push('"');
                    key.write(&mut text);
                    text.push_str("\":");
                    // Event ids of room versions 1 and 2 are chosen by their server and may need escapes.
                    write_string(&mut text, event_id);
                }
                text.push_str(if entries.is_empty() { "{}" } else { "}" });
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

/// Reads a leaf, and sees to it that its keys are sorted.
struct LeafVisitor;

impl<'de> Visitor<'de> for LeafVisitor {
    type Value = Vec<Entry>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a leaf of a state snapshot")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut entries: Vec<Entry> = Vec::with_capacity(LEAF_ENTRIES);
        while let Some((Text(key), Text(event_id))) = map.next_entry()? {
            let key = StateKeyHash::parse(&key).ok_or_else(|| serde::de::Error::custom("a key is malformed"))?;
            if entries.last().is_some_and(|(last, _)| *last >= key) {
                return Err(serde::de::Error::custom("the keys are not sorted"));
            }
            entries.push((key, Rc::from(&*event_id)));
        }
        Ok(entries)
    }
}

/// A JSON string, borrowed where nothing in it is escaped.
#[derive(serde::Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);
