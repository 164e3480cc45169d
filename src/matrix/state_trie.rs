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

use super::hash_map::HashMap;
pub use diff::{Difference, diff, entries};
use node::Node;
pub use node::{EMPTY_SLOT, Entry, LEAF_ENTRIES, MalformedNode};
pub use update::{Change, Updated, build, update};

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

    /// Appends the 32 hex digits.
    fn write(&self, text: &mut String) {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let hex: [u8; Self::DIGITS] = std::array::from_fn(|level| DIGITS[self.digit(level)]);
        // They are ASCII.
        text.push_str(str::from_utf8(&hex).unwrap_or_default());
    }

    /// The hex digit by which the node at `level` picks a child.
    fn digit(&self, level: usize) -> usize {
        let byte = self.0.get(level / 2).copied().unwrap_or(0);
        usize::from(if level.is_multiple_of(2) { byte >> 4 } else { byte & 15 })
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
    fn copied_nodes_are_those_that_a_walk_asks_for() {
        let mut random = Random(11);
        for size in [0, 5, 200, 5_000] {
            let (mut all, big) = (Nodes::default(), build((0..size).map(|n| (key(n), "$old".into()))));
            add(&mut all, &big);
            for changes in [1, 10, 300] {
                let change = |_| {
                    let event_id = (random.below(3) > 0).then(|| "$new".into());
                    (key(random.below(size + 100)), event_id)
                };
                let changes: Vec<Change> = (0..changes).map(change).collect();
                let other = update(big.root, &changes, &all).unwrap();
                add(&mut all, &other);
                let mut copied = Nodes::default();
                copied.copy_differing(&all, big.root, other.root);
                assert_eq!(diff(big.root, other.root, &copied), diff(big.root, other.root, &all));
                let needed = copied.0.keys().all(|id| {
                    let mut without = copied.clone();
                    without.0.remove(id);
                    *id == NodeId::EMPTY || diff(big.root, other.root, &without).is_err()
                });
                assert!(needed, "a node is copied for nothing");
                let (mut path, wanted) = (Nodes::default(), changes.first().unwrap().0);
                path.copy_path(&all, other.root, &wanted);
                assert_eq!(lookup(other.root, &[wanted], &path), lookup(other.root, &[wanted], &all));
            }
        }
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
