//! Room state snapshots as a persistent hash trie.
//!
//! A snapshot maps (event type, state key) to an event id. It is named by the hash of its root node, and nodes never
//! change, so two snapshots share all that they have in common: a state event writes a few small nodes, and two
//! snapshots are compared by skipping equal hashes. The form is canonical: the same entries always give the same root,
//! whatever the order in which they came, so equal roots mean equal states and the other way round.
//!
//! The trie is keyed by [`StateKeyHash`], one hex digit a level. A subtree of up to [`LEAF_ENTRIES`] entries is one leaf;
//! a larger one is an inner node of 16 children. Nodes are text, shaped so that SQL can walk them (`store::state_sql`):
//!
//! - a leaf is a JSON object, `{"<32 hex digits>":"<event id>",…}` sorted by key, for `json_each`;
//! - an inner node is `I`, then 16 slots of 22 characters (a [`NodeId`], or [`EMPTY_SLOT`]) of which `substr` picks one,
//!   then the number of entries below it in decimal, by which a deletion knows when to merge without reading siblings.
//!
//! Everything here is pure: nodes come from [`Nodes`], and what is missing there is the error, so that the caller can
//! read it from the database and call again.

use std::{
    collections::hash_map,
    fmt,
    hash::{Hash, Hasher},
    rc::Rc,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use sha2::{Digest, Sha256};

mod diff;
mod node;
mod update;

use super::{event::Event, hash_map::HashMap};
pub use diff::{Differences, diff, entries};
pub use node::{EMPTY_SLOT, Entry, LEAF_ENTRIES, MalformedNode};
use node::{Leaf, Node};
pub use update::{Change, Updated, build, update};

/// The key of an entry: the first 16 bytes of the SHA-256 of event type and state key, as two big-endian words, which
/// compare as the bytes do, and faster.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StateKeyHash([u64; 2]);

impl StateKeyHash {
    /// How many hex digits a key has, which bounds the depth of the trie.
    const DIGITS: usize = 32;

    /// The key of `(event_type, state_key)`. Both may hold any character, so the type's length goes first.
    pub fn new(event_type: &str, state_key: &str) -> Self {
        let mut hasher = Sha256::new();
        hasher.update((event_type.len() as u64).to_be_bytes());
        hasher.update(event_type.as_bytes());
        hasher.update(state_key.as_bytes());
        let mut words = [0; 2];
        words.iter_mut().zip(hasher.finalize().chunks_exact(8)).for_each(|(word, bytes)| {
            *word = bytes.iter().fold(0, |word, byte| word << 8 | u64::from(*byte));
        });
        Self(words)
    }

    /// Where a state event stands.
    pub fn of(event: &Event) -> Option<Self> {
        Some(Self::new(event.event_type(), event.state_key()?))
    }

    /// Where the membership of `user` stands.
    pub fn member(user: &str) -> Self {
        Self::new("m.room.member", user)
    }

    /// Reads the 32 lower case hex digits that [`fmt::Display`] writes.
    pub fn parse(hex: &str) -> Option<Self> {
        let hex: &[u8; Self::DIGITS] = hex.as_bytes().try_into().ok()?;
        let mut words = [0; 2];
        for (word, digits) in words.iter_mut().zip(hex.chunks_exact(16)) {
            for digit in digits {
                let value = match digit {
                    b'0'..=b'9' => digit - b'0',
                    b'a'..=b'f' => digit - b'a' + 10,
                    _ => return None,
                };
                *word = *word << 4 | u64::from(value);
            }
        }
        Some(Self(words))
    }

    /// Appends the 32 hex digits.
    fn write(&self, text: &mut String) {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let hex: [u8; Self::DIGITS] = std::array::from_fn(|level| DIGITS[self.digit(level)]);
        // They are ASCII.
        text.push_str(str::from_utf8(&hex).unwrap_or_default());
    }

    /// The hex digit by which the node at `level` picks a child.
    fn digit(&self, level: usize) -> usize {
        let word = self.0.get(level / 16).copied().unwrap_or(0);
        (word >> (60 - 4 * (level % 16))) as usize & 15
    }
}

impl fmt::Display for StateKeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::with_capacity(Self::DIGITS);
        self.write(&mut text);
        f.write_str(&text)
    }
}

impl fmt::Debug for StateKeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The name of a node: the first 16 bytes of the SHA-256 of its text, as 22 characters of unpadded base64url, which is
/// how nodes name each other. The id of a root names a whole snapshot.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeId([u8; NodeId::LENGTH]);

impl NodeId {
    /// How many characters an id has.
    const LENGTH: usize = 22;

    /// The root of the state without entries, whose node is `{}`. It need not be stored.
    pub const EMPTY: Self = Self(*b"RBNvo1WzZ4oRRq0W9-hkng");

    /// Reads the 22 characters that [`fmt::Display`] writes.
    pub fn parse(text: &str) -> Option<Self> {
        let is_base64url = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        text.as_bytes().try_into().ok().filter(|id: &[u8; Self::LENGTH]| id.iter().all(is_base64url)).map(Self)
    }

    /// The 22 characters.
    fn as_str(&self) -> &str {
        // They are ASCII.
        str::from_utf8(&self.0).unwrap_or_default()
    }

    /// The id of the node with this text.
    fn of(text: &str) -> Self {
        let mut id = [0; Self::LENGTH];
        // 16 bytes always fill 22 characters.
        let _ = URL_SAFE_NO_PAD.encode_slice(first_16(&Sha256::digest(text.as_bytes())), &mut id);
        Self(id)
    }
}

impl Hash for NodeId {
    /// A part of a hash is as good as the whole.
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.0.first_chunk().map_or(0, |first| u64::from_ne_bytes(*first)));
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The nodes at hand. Cloning shares them. Nodes never change, so a set of them may be kept for as long as one likes.
#[derive(Debug, Clone, Default)]
pub struct Nodes(HashMap<NodeId, Rc<Node>>);

impl Nodes {
    /// Adds a node as the database holds it. The store is trusted: the text is not hashed again.
    ///
    /// # Errors
    /// Where the text has not the form of a node.
    pub fn insert_text(&mut self, id: NodeId, text: &str) -> Result<(), MalformedNode> {
        if let hash_map::Entry::Vacant(place) = self.0.entry(id) {
            place.insert(Rc::new(Node::parse(text)?));
        }
        Ok(())
    }

    /// Adds all nodes of another set.
    pub fn extend(&mut self, other: Self) {
        if self.is_empty() {
            self.0 = other.0;
        } else {
            self.0.extend(other.0);
        }
    }

    /// Adds some nodes of another set.
    pub fn copy_from(&mut self, other: &Self, ids: &[NodeId]) {
        for id in ids {
            self.copy(other, *id);
        }
    }

    /// Adds those nodes of another set that [`lookup`] will ask for.
    pub fn copy_path(&mut self, other: &Self, root: NodeId, key: &StateKeyHash) {
        let mut next = Some(root);
        for level in 0..StateKeyHash::DIGITS {
            next = match next.and_then(|id| self.copy(other, id)) {
                Some(Node::Inner { children, .. }) => children[key.digit(level)],
                _ => return,
            };
        }
    }

    fn copy<'a>(&mut self, other: &'a Self, id: NodeId) -> Option<&'a Node> {
        let node = other.0.get(&id)?;
        self.0.entry(id).or_insert_with(|| node.clone());
        Some(node)
    }

    /// Whether the node is at hand.
    pub fn contains(&self, id: NodeId) -> bool {
        self.0.contains_key(&id)
    }

    /// How many nodes are at hand.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn get(&self, id: NodeId) -> Option<&Node> {
        const EMPTY: &Node = &Node::Leaf(Leaf::EMPTY);
        self.0.get(&id).map(Rc::as_ref).or_else(|| (id == NodeId::EMPTY).then_some(EMPTY))
    }
}

/// These nodes are needed and were not given. There may be more below them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} nodes of a state snapshot are missing", .0.len())]
pub struct MissingNodes(pub Vec<NodeId>);

/// The event ids at `keys` in the snapshot `root`, in the order of `keys`.
///
/// # Errors
/// The nodes that are missing, for all keys at once (of each path the first one).
pub fn lookup<'a>(root: NodeId, keys: &[StateKeyHash], nodes: &'a Nodes) -> Result<Vec<Option<&'a str>>, MissingNodes> {
    let mut missing = Vec::new();
    let mut found = Vec::with_capacity(keys.len());
    for key in keys {
        match lookup_one(root, key, nodes) {
            Ok(event_id) => found.push(event_id),
            Err(id) => missing.push(id),
        }
    }
    or_missing(found, missing)
}

/// As [`lookup`], for one key.
pub(super) fn lookup_one<'a>(root: NodeId, key: &StateKeyHash, nodes: &'a Nodes) -> Result<Option<&'a str>, NodeId> {
    let mut id = root;
    for level in 0..StateKeyHash::DIGITS {
        match nodes.get(id).ok_or(id)? {
            Node::Leaf(leaf) => return Ok(leaf.get(key)),
            Node::Inner { children, .. } => match children[key.digit(level)] {
                Some(child) => id = child,
                None => break,
            },
        }
    }
    Ok(None)
}

/// The first node on the way to `key` that is missing, and its level; none where [`lookup`] finds all it needs.
pub fn first_missing(root: NodeId, key: &StateKeyHash, nodes: &Nodes) -> Option<(NodeId, usize)> {
    let mut id = root;
    for level in 0..StateKeyHash::DIGITS {
        match nodes.get(id) {
            None => return Some((id, level)),
            Some(Node::Leaf(_)) => return None,
            Some(Node::Inner { children, .. }) => id = children[key.digit(level)]?,
        }
    }
    None
}

fn or_missing<T>(value: T, mut missing: Vec<NodeId>) -> Result<T, MissingNodes> {
    if missing.is_empty() {
        return Ok(value);
    }
    missing.sort_unstable();
    missing.dedup();
    Err(MissingNodes(missing))
}

fn first_16(hash: &[u8]) -> [u8; 16] {
    let mut first = [0; 16];
    first.iter_mut().zip(hash).for_each(|(to, from)| *to = *from);
    first
}

#[cfg(test)]
mod tests;
