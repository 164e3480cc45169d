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
    collections::{HashMap, hash_map},
    fmt,
    rc::Rc,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use sha2::{Digest, Sha256};

mod node;

use node::{Children, FAN_OUT, Node};
pub use node::{EMPTY_SLOT, Entry, LEAF_ENTRIES, MalformedNode};

/// The key of an entry: the first 16 bytes of the SHA-256 of event type and state key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StateKeyHash([u8; 16]);

impl StateKeyHash {
    /// How many hex digits a key has, which bounds the depth of the trie.
    const DIGITS: usize = 32;

    /// The key of `(event_type, state_key)`. Both may hold any character, so the type's length goes first.
    pub fn new(event_type: &str, state_key: &str) -> Self {
        let mut hasher = Sha256::new();
        hasher.update((event_type.len() as u64).to_be_bytes());
        hasher.update(event_type.as_bytes());
        hasher.update(state_key.as_bytes());
        Self(first_16(&hasher.finalize()))
    }

    /// Reads the 32 lower case hex digits that [`fmt::Display`] writes.
    pub fn parse(hex: &str) -> Option<Self> {
        let hex: &[u8; Self::DIGITS] = hex.as_bytes().try_into().ok()?;
        let mut bytes = [0; 16];
        for (byte, digits) in bytes.iter_mut().zip(hex.chunks_exact(2)) {
            for digit in digits {
                let value = match digit {
                    b'0'..=b'9' => digit - b'0',
                    b'a'..=b'f' => digit - b'a' + 10,
                    _ => return None,
                };
                *byte = *byte << 4 | value;
            }
        }
        Some(Self(bytes))
    }

    /// The 32 hex digits, in ASCII.
    fn hex(&self) -> [u8; Self::DIGITS] {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        std::array::from_fn(|level| DIGITS[self.digit(level)])
    }

    /// The hex digit by which the node at `level` picks a child.
    fn digit(&self, level: usize) -> usize {
        let byte = self.0.get(level / 2).copied().unwrap_or(0);
        usize::from(if level.is_multiple_of(2) { byte >> 4 } else { byte & 15 })
    }
}

impl fmt::Display for StateKeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(str::from_utf8(&self.hex()).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for StateKeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The name of a node: the first 16 bytes of the SHA-256 of its text; as text 22 characters of unpadded base64url.
/// The id of a root names a whole snapshot.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId([u8; 16]);

impl NodeId {
    /// The root of the state without entries, whose node is `{}`. It need not be stored.
    pub const EMPTY: Self = Self([68, 19, 111, 163, 85, 179, 103, 138, 17, 70, 173, 22, 247, 232, 100, 158]);

    /// Reads the 22 characters that [`fmt::Display`] writes.
    pub fn parse(text: &str) -> Option<Self> {
        URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok().map(Self)
    }

    /// The id of the node with this text.
    fn of(text: &str) -> Self {
        Self(first_16(&Sha256::digest(text.as_bytes())))
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&URL_SAFE_NO_PAD.encode(self.0))
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
        self.0.extend(other.0);
    }

    /// Adds some nodes of another set. Whether there were any of them.
    pub fn copy_from(&mut self, other: &Self, ids: &[NodeId]) -> bool {
        let found = self.0.len();
        self.0.extend(ids.iter().filter_map(|id| Some((*id, other.0.get(id)?.clone()))));
        self.0.len() > found
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
        const EMPTY: &Node = &Node::Leaf(Vec::new());
        self.0.get(&id).map(Rc::as_ref).or_else(|| (id == NodeId::EMPTY).then_some(EMPTY))
    }
}

/// These nodes are needed and were not given. There may be more below them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MissingNodes(pub Vec<NodeId>);

impl fmt::Display for MissingNodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} nodes of a state snapshot are missing", self.0.len())
    }
}

impl std::error::Error for MissingNodes {}

/// A change of one entry: set to an event id, or removed.
pub type Change = (StateKeyHash, Option<Rc<str>>);

/// A snapshot made from another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Updated {
    /// Its root.
    pub root: NodeId,
    /// The nodes to store: those of the new snapshot that the old one has not. Some may be stored already.
    pub nodes: Vec<(NodeId, String)>,
}

/// An entry in which two snapshots differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The entry's key.
    pub key: StateKeyHash,
    /// The event id in the first snapshot.
    pub before: Option<Rc<str>>,
    /// The event id in the second snapshot.
    pub after: Option<Rc<str>>,
}

/// The event ids at `keys` in the snapshot `root`, in the order of `keys`.
///
/// # Errors
/// The nodes that are missing, for all keys at once (of each path the first one).
pub fn lookup(root: NodeId, keys: &[StateKeyHash], nodes: &Nodes) -> Result<Vec<Option<Rc<str>>>, MissingNodes> {
    let mut missing = Vec::new();
    let mut found = Vec::with_capacity(keys.len());
    for key in keys {
        match lookup_one(root, key, nodes) {
            Ok(event_id) => found.push(event_id.cloned()),
            Err(id) => missing.push(id),
        }
    }
    or_missing(found, missing)
}

/// The snapshot `root` with `changes` applied. Of several changes to one key the last one counts.
///
/// # Errors
/// The nodes that are missing, for all changes at once (of each path the first one).
pub fn update(root: NodeId, changes: &[Change], nodes: &Nodes) -> Result<Updated, MissingNodes> {
    let mut sorted: Vec<&Change> = changes.iter().rev().collect();
    sorted.sort_by_key(|(key, _)| *key);
    sorted.dedup_by_key(|(key, _)| *key);
    let mut writer = Writer { nodes, written: Vec::new(), missing: Vec::new() };
    let subtree = writer.apply(Some(root), 0, &sorted);
    let root = writer.write(subtree).unwrap_or(NodeId::EMPTY);
    or_missing(Updated { root, nodes: writer.written }, writer.missing)
}

/// The snapshot that holds `entries`. Of several entries with one key the last one counts.
pub fn build(entries: impl IntoIterator<Item = Entry>) -> Updated {
    let changes: Vec<Change> = entries.into_iter().map(|(key, event_id)| (key, Some(event_id))).collect();
    // The empty snapshot's only node is always at hand.
    update(NodeId::EMPTY, &changes, &Nodes::default()).unwrap_or(Updated { root: NodeId::EMPTY, nodes: Vec::new() })
}

/// The entries in which the snapshot `after` differs from `before`, sorted by key.
///
/// # Errors
/// The nodes that are missing, level by level.
pub fn diff(before: NodeId, after: NodeId, nodes: &Nodes) -> Result<Vec<Difference>, MissingNodes> {
    let mut walk = DiffWalk { nodes, differences: Vec::new(), missing: Vec::new() };
    walk.compare(Side::Node(before), Side::Node(after), 0);
    or_missing(walk.differences, walk.missing)
}

/// All entries of the snapshot `root`, sorted by key.
///
/// # Errors
/// The nodes that are missing, level by level.
pub fn entries(root: NodeId, nodes: &Nodes) -> Result<Vec<Entry>, MissingNodes> {
    let all = diff(NodeId::EMPTY, root, nodes)?;
    Ok(all.into_iter().filter_map(|difference| Some((difference.key, difference.after?))).collect())
}

/// As [`lookup`], for one key, without copying the event id.
pub(super) fn lookup_one<'a>(
    root: NodeId,
    key: &StateKeyHash,
    nodes: &'a Nodes,
) -> Result<Option<&'a Rc<str>>, NodeId> {
    let mut id = root;
    for level in 0..StateKeyHash::DIGITS {
        match nodes.get(id).ok_or(id)? {
            Node::Leaf(entries) => {
                let index = entries.binary_search_by_key(key, |(key, _)| *key).ok();
                return Ok(index.and_then(|index| entries.get(index)).map(|(_, event_id)| event_id));
            }
            Node::Inner { children, .. } => match children[key.digit(level)] {
                Some(child) => id = child,
                None => break,
            },
        }
    }
    Ok(None)
}

fn or_missing<T>(value: T, mut missing: Vec<NodeId>) -> Result<T, MissingNodes> {
    if missing.is_empty() {
        return Ok(value);
    }
    missing.sort_unstable();
    missing.dedup();
    Err(MissingNodes(missing))
}

/// What a change makes of a subtree. Leaves stay in memory until it is certain that they merge no further.
enum Subtree {
    /// No entries.
    Empty,
    /// The node that was there already, unchanged. `entries` counts what is below it.
    Stored { id: NodeId, entries: usize },
    /// A new leaf.
    Leaf(Vec<Entry>),
    /// A new inner node, whose children are written.
    Inner { children: Box<Children>, entries: usize },
}

impl Subtree {
    fn entries(&self) -> usize {
        match self {
            Self::Empty => 0,
            Self::Leaf(entries) => entries.len(),
            Self::Stored { entries, .. } | Self::Inner { entries, .. } => *entries,
        }
    }
}

/// One update: what it reads, what it wrote so far and what it lacks.
struct Writer<'a> {
    nodes: &'a Nodes,
    written: Vec<(NodeId, String)>,
    missing: Vec<NodeId>,
}

impl Writer<'_> {
    /// The subtree `id` with `changes`, which are sorted and all lie in it. Recursion ends at the last digit of the keys.
    fn apply(&mut self, id: Option<NodeId>, level: usize, changes: &[&Change]) -> Subtree {
        let Some(id) = id else { return self.make(level, apply_to_entries(&[], changes)) };
        match self.nodes.get(id) {
            None => {
                self.missing.push(id);
                Subtree::Empty
            }
            Some(Node::Leaf(entries)) => {
                let changed = apply_to_entries(entries, changes);
                if changed == *entries {
                    return Subtree::Stored { id, entries: changed.len() };
                }
                self.make(level, changed)
            }
            Some(Node::Inner { children, entries }) => self.apply_to_inner(id, children, *entries, level, changes),
        }
    }

    fn apply_to_inner(
        &mut self,
        id: NodeId,
        children: &Children,
        entries: usize,
        level: usize,
        changes: &[&Change],
    ) -> Subtree {
        let mut new_children = Box::new(*children);
        let mut new_entries = entries;
        let mut changed: [Option<Subtree>; FAN_OUT] = Default::default();
        for group in changes.chunk_by(|a, b| a.0.digit(level) == b.0.digit(level)) {
            let Some(first) = group.first() else { continue };
            let digit = first.0.digit(level);
            let child = self.apply(children[digit], level + 1, group);
            if !matches!(child, Subtree::Stored { .. }) {
                new_entries = (new_entries + child.entries()).saturating_sub(self.count(children[digit]));
                changed[digit] = Some(child);
            }
        }
        if changed.iter().all(Option::is_none) {
            return Subtree::Stored { id, entries };
        }
        if new_entries <= LEAF_ENTRIES {
            return Subtree::Leaf(self.merge(children, changed));
        }
        for (slot, child) in new_children.iter_mut().zip(changed) {
            if let Some(child) = child {
                *slot = self.write(child);
            }
        }
        Subtree::Inner { children: new_children, entries: new_entries }
    }

    /// A subtree of these entries, which are sorted.
    fn make(&mut self, level: usize, entries: Vec<Entry>) -> Subtree {
        if entries.is_empty() {
            return Subtree::Empty;
        }
        if entries.len() <= LEAF_ENTRIES {
            return Subtree::Leaf(entries);
        }
        let mut children = Box::new([None; FAN_OUT]);
        for group in entries.chunk_by(|a, b| a.0.digit(level) == b.0.digit(level)) {
            let Some(first) = group.first() else { continue };
            let child = self.make(level + 1, group.to_vec());
            children[first.0.digit(level)] = self.write(child);
        }
        Subtree::Inner { children, entries: entries.len() }
    }

    /// All entries below an inner node that has become so small that it is a leaf now: so are all its children.
    fn merge(&mut self, children: &Children, changed: [Option<Subtree>; FAN_OUT]) -> Vec<Entry> {
        let mut merged = Vec::new();
        for (child, changed) in children.iter().zip(changed) {
            match (changed, child) {
                (Some(Subtree::Leaf(entries)), _) => merged.extend(entries),
                (None, Some(id)) => match self.nodes.get(*id) {
                    Some(Node::Leaf(entries)) => merged.extend(entries.iter().cloned()),
                    Some(Node::Inner { .. }) => {}
                    None => self.missing.push(*id),
                },
                _ => {}
            }
        }
        merged
    }

    fn count(&self, id: Option<NodeId>) -> usize {
        match id.and_then(|id| self.nodes.get(id)) {
            Some(Node::Leaf(entries)) => entries.len(),
            Some(Node::Inner { entries, .. }) => *entries,
            None => 0,
        }
    }

    fn write(&mut self, subtree: Subtree) -> Option<NodeId> {
        let node = match subtree {
            Subtree::Empty => return None,
            Subtree::Stored { id, .. } => return Some(id),
            Subtree::Leaf(entries) => Node::Leaf(entries),
            Subtree::Inner { children, entries } => Node::Inner { children, entries },
        };
        let text = node.to_text();
        let id = NodeId::of(&text);
        self.written.push((id, text));
        Some(id)
    }
}

/// `entries` with `changes`; both sorted, and the result too.
fn apply_to_entries(entries: &[Entry], changes: &[&Change]) -> Vec<Entry> {
    let mut result = Vec::with_capacity(entries.len() + changes.len());
    let mut entries = entries.iter().peekable();
    for (key, event_id) in changes {
        while let Some(entry) = entries.next_if(|(other, _)| other < key) {
            result.push(entry.clone());
        }
        entries.next_if(|(other, _)| other == key);
        if let Some(event_id) = event_id {
            result.push((*key, event_id.clone()));
        }
    }
    result.extend(entries.cloned());
    result
}

/// One side of a comparison: a node, or a part of a leaf which the other side has split further.
#[derive(Clone, Copy)]
enum Side<'a> {
    Node(NodeId),
    Entries(&'a [Entry]),
}

/// A side, one level down.
enum Opened<'a> {
    Entries(&'a [Entry]),
    Inner(&'a Children),
}

struct DiffWalk<'a> {
    nodes: &'a Nodes,
    differences: Vec<Difference>,
    missing: Vec<NodeId>,
}

impl<'a> DiffWalk<'a> {
    /// Recursion ends at the last digit of the keys.
    fn compare(&mut self, before: Side<'a>, after: Side<'a>, level: usize) {
        if matches!((before, after), (Side::Node(before), Side::Node(after)) if before == after) {
            return;
        }
        let (before, after) = (self.open(before), self.open(after));
        match (before, after) {
            (Some(Opened::Entries(before)), Some(Opened::Entries(after))) => self.compare_entries(before, after),
            (Some(before), Some(after)) if level < StateKeyHash::DIGITS => {
                for digit in 0..FAN_OUT {
                    self.compare(child(&before, digit, level), child(&after, digit, level), level + 1);
                }
            }
            _ => {}
        }
    }

    fn open(&mut self, side: Side<'a>) -> Option<Opened<'a>> {
        match side {
            Side::Entries(entries) => Some(Opened::Entries(entries)),
            Side::Node(id) => match self.nodes.get(id) {
                Some(Node::Leaf(entries)) => Some(Opened::Entries(entries)),
                Some(Node::Inner { children, .. }) => Some(Opened::Inner(children)),
                None => {
                    self.missing.push(id);
                    None
                }
            },
        }
    }

    fn compare_entries(&mut self, before: &[Entry], after: &[Entry]) {
        let (mut before, mut after) = (before.iter().peekable(), after.iter().peekable());
        loop {
            let key = match (before.peek(), after.peek()) {
                (Some((a, _)), Some((b, _))) => *a.min(b),
                (Some((key, _)), None) | (None, Some((key, _))) => *key,
                (None, None) => return,
            };
            let old = before.next_if(|(other, _)| *other == key).map(|(_, event_id)| event_id);
            let new = after.next_if(|(other, _)| *other == key).map(|(_, event_id)| event_id);
            if old != new {
                self.differences.push(Difference { key, before: old.cloned(), after: new.cloned() });
            }
        }
    }
}

fn child<'a>(opened: &Opened<'a>, digit: usize, level: usize) -> Side<'a> {
    match opened {
        Opened::Inner(children) => children[digit].map_or(Side::Entries(&[]), Side::Node),
        Opened::Entries(entries) => {
            let start = entries.partition_point(|(key, _)| key.digit(level) < digit);
            let end = entries.partition_point(|(key, _)| key.digit(level) <= digit);
            Side::Entries(entries.get(start..end).unwrap_or_default())
        }
    }
}

fn first_16(hash: &[u8]) -> [u8; 16] {
    let mut first = [0; 16];
    first.iter_mut().zip(hash).for_each(|(to, from)| *to = *from);
    first
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::BTreeMap;

    use super::*;

    fn key(n: u64) -> StateKeyHash {
        StateKeyHash::new("m.room.member", &format!("@user{n}:example.org"))
    }

    /// Reproducible numbers without a dependency (SplitMix64).
    struct Random(u64);

    impl Random {
        fn below(&mut self, limit: u64) -> u64 {
            self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut z = self.0;
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            (z ^ (z >> 31)) % limit
        }
    }

    fn add(nodes: &mut Nodes, updated: &Updated) {
        for (id, text) in &updated.nodes {
            assert_eq!(*id, NodeId::of(text));
            nodes.insert_text(*id, text).unwrap();
        }
    }

    #[test]
    fn the_empty_state_is_well_known() {
        assert_eq!(NodeId::EMPTY, NodeId::of("{}"));
        assert_eq!(build([]), Updated { root: NodeId::EMPTY, nodes: Vec::new() });
        assert_eq!(entries(NodeId::EMPTY, &Nodes::default()), Ok(Vec::new()));
        assert_eq!(NodeId::parse(&NodeId::EMPTY.to_string()), Some(NodeId::EMPTY));
        assert_eq!(NodeId::parse(EMPTY_SLOT), None);
    }

    #[test]
    fn keys_tell_type_and_state_key_apart() {
        assert_ne!(StateKeyHash::new("ab", "c"), StateKeyHash::new("a", "bc"));
        assert_ne!(StateKeyHash::new("a\0", "b"), StateKeyHash::new("a", "\0b"));
        let hash = key(1);
        assert_eq!(StateKeyHash::parse(&hash.to_string()), Some(hash));
        assert_eq!(StateKeyHash::parse(&hash.to_string().to_uppercase()), None);
    }

    /// The trie against a sorted map, through random updates of all sizes, with a canonical root at every step.
    #[test]
    fn any_history_of_changes_ends_in_the_canonical_form() {
        for seed in 0..12 {
            let mut random = Random(seed);
            let mut model: BTreeMap<StateKeyHash, Rc<str>> = BTreeMap::new();
            let (mut nodes, mut root) = (Nodes::default(), NodeId::EMPTY);
            for step in 0..60 {
                // Rooms that grow in the first half and shrink in the second.
                let shrink = step > 30;
                let changes: Vec<Change> = (0..random.below(120))
                    .map(|_| {
                        let key = key(random.below(400));
                        let removed = random.below(10) < if shrink { 8 } else { 2 };
                        (key, (!removed).then(|| format!("${}", random.below(5)).into()))
                    })
                    .collect();
                let before = model.clone();
                for (key, event_id) in &changes {
                    match event_id {
                        Some(event_id) => model.insert(*key, event_id.clone()),
                        None => model.remove(key),
                    };
                }
                let updated = update(root, &changes, &nodes).unwrap();
                add(&mut nodes, &updated);
                assert_eq!(updated.root, build(model.clone()).root, "seed {seed} step {step}");
                assert_eq!(entries(updated.root, &nodes).unwrap(), model.clone().into_iter().collect::<Vec<_>>());
                let mut expected: Vec<_> = before
                    .keys()
                    .chain(model.keys())
                    .filter(|key| before.get(key) != model.get(key))
                    .map(|key| Difference {
                        key: *key,
                        before: before.get(key).cloned(),
                        after: model.get(key).cloned(),
                    })
                    .collect();
                expected.sort_by_key(|difference| difference.key);
                expected.dedup();
                assert_eq!(diff(root, updated.root, &nodes).unwrap(), expected);
                let keys: Vec<_> = (0..400).map(key).collect();
                let found = lookup(updated.root, &keys, &nodes).unwrap();
                assert_eq!(found, keys.iter().map(|key| model.get(key).cloned()).collect::<Vec<_>>());
                root = updated.root;
            }
        }
    }

    #[test]
    fn one_change_writes_one_path() {
        let big = build((0..20_000).map(|n| (key(n), "$old".into())));
        let mut nodes = Nodes::default();
        add(&mut nodes, &big);
        let updated = update(big.root, &[(key(3), Some("$new".into()))], &nodes).unwrap();
        assert!(updated.nodes.len() <= 4, "{} nodes", updated.nodes.len());
        let unchanged = update(big.root, &[(key(3), Some("$old".into())), (key(99_999), None)], &nodes).unwrap();
        assert_eq!(unchanged, Updated { root: big.root, nodes: Vec::new() });
        let twice = [(key(3), None), (key(3), Some("$new".into()))];
        assert_eq!(update(big.root, &twice, &nodes).unwrap().root, updated.root, "the last change of a key counts");
    }

    #[test]
    fn missing_nodes_are_named_until_all_are_there() {
        let big = build((0..2000).map(|n| (key(n), "$old".into())));
        let texts: HashMap<_, _> = big.nodes.iter().cloned().collect();
        let mut nodes = Nodes::default();
        let keys: Vec<_> = (0..40).map(key).collect();
        let mut rounds = 0;
        while let Err(MissingNodes(missing)) = lookup(big.root, &keys, &nodes) {
            for id in missing {
                assert!(!nodes.contains(id));
                nodes.insert_text(id, &texts[&id]).unwrap();
            }
            rounds += 1;
        }
        assert!(rounds <= 4, "a round for each level, not for each key: {rounds}");
        assert!(nodes.len() < texts.len());
        assert!(update(big.root, &[(keys[0], Some("$new".into()))], &nodes).is_ok());
        assert!(entries(big.root, &nodes).is_err());
    }

    #[test]
    fn malformed_nodes_are_refused() {
        let key = key(1);
        let inner = format!("I{}65", EMPTY_SLOT.repeat(16));
        let mut nodes = Nodes::default();
        for text in [
            "",
            "I",
            "{",
            "[]",
            "{}x",
            r#"{"00":"$a"}"#,
            &format!(r#"{{"{key}":1}}"#),
            &format!(r#"{{"{key}":"$a","{key}":"$b"}}"#),
            inner.strip_suffix("65").unwrap(),
            &inner.replacen('.', "é", 1),
        ] {
            assert_eq!(nodes.insert_text(NodeId::of(text), text), Err(MalformedNode), "{text}");
        }
        nodes.insert_text(NodeId::of(&inner), &inner).unwrap();
    }
}
