//! Making a snapshot out of another one.

use std::rc::Rc;

use super::{
    Entry, LEAF_ENTRIES, MissingNodes, NodeId, Nodes, StateKeyHash,
    node::{Children, Entries, FAN_OUT, Leaf, Node},
    or_missing,
};

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

/// What a change makes of a subtree. Leaves stay in memory until it is certain that they merge no further.
enum Subtree {
    /// No entries.
    Empty,
    /// The node that was there already, unchanged. `entries` counts what is below it.
    Stored { id: NodeId, entries: usize },
    /// A new leaf.
    Leaf(Leaf),
    /// A new inner node, whose children are written.
    Inner { children: Box<Children>, entries: usize },
}

impl Subtree {
    fn entries(&self) -> usize {
        match self {
            Self::Empty => 0,
            Self::Leaf(leaf) => leaf.len(),
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
        let Some(id) = id else { return self.make(level, changed(Entries::default(), changes)) };
        match self.nodes.get(id) {
            None => {
                self.missing.push(id);
                Subtree::Empty
            }
            Some(Node::Leaf(leaf)) => {
                let changed = changed(leaf.entries(), changes);
                if changed == *leaf {
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

    /// A subtree of the entries of a leaf, which may be more than a leaf may hold.
    fn make(&mut self, level: usize, leaf: Leaf) -> Subtree {
        match leaf.len() {
            0 => Subtree::Empty,
            1..=LEAF_ENTRIES => Subtree::Leaf(leaf),
            _ => self.split(level, leaf.entries()),
        }
    }

    fn split(&mut self, level: usize, entries: Entries<'_>) -> Subtree {
        let mut children = Box::new([None; FAN_OUT]);
        for (digit, child) in children.iter_mut().enumerate() {
            let below = entries.with_digit(digit, level);
            let subtree = match below.len() {
                0 => continue,
                1..=LEAF_ENTRIES => Subtree::Leaf(Leaf::from(below)),
                _ => self.split(level + 1, below),
            };
            *child = self.write(subtree);
        }
        Subtree::Inner { children, entries: entries.len() }
    }

    /// All entries below an inner node that has become so small that it is a leaf now: so are all its children.
    fn merge(&mut self, children: &Children, changed: [Option<Subtree>; FAN_OUT]) -> Leaf {
        let mut merged = Leaf::with_capacity(LEAF_ENTRIES);
        for (child, changed) in children.iter().zip(changed) {
            match (changed, child) {
                (Some(Subtree::Leaf(leaf)), _) => merged.extend(leaf.entries()),
                (None, Some(id)) => match self.nodes.get(*id) {
                    Some(Node::Leaf(leaf)) => merged.extend(leaf.entries()),
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
            Some(Node::Leaf(leaf)) => leaf.len(),
            Some(Node::Inner { entries, .. }) => *entries,
            None => 0,
        }
    }

    fn write(&mut self, subtree: Subtree) -> Option<NodeId> {
        let node = match subtree {
            Subtree::Empty => return None,
            Subtree::Stored { id, .. } => return Some(id),
            Subtree::Leaf(leaf) => Node::Leaf(leaf),
            Subtree::Inner { children, entries } => Node::Inner { children, entries },
        };
        let text = node.to_text();
        let id = NodeId::of(&text);
        self.written.push((id, text));
        Some(id)
    }
}

/// `entries` with `changes`; both sorted, and the result too.
fn changed(mut entries: Entries<'_>, changes: &[&Change]) -> Leaf {
    let mut result = Leaf::with_capacity(entries.len() + changes.len());
    for (key, event_id) in changes {
        let (before, mut others) = entries.split_at(key);
        result.extend(before);
        others.skip(usize::from(others.first_key() == Some(*key)));
        if let Some(event_id) = event_id {
            result.push(*key, event_id);
        }
        entries = others;
    }
    result.extend(entries);
    result
}
