//! Comparing two snapshots.

use std::rc::Rc;

use super::{
    Entry, MissingNodes, NodeId, Nodes, StateKeyHash,
    node::{Children, FAN_OUT, Node},
    or_missing,
};

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

impl Nodes {
    /// Adds those nodes of another set that [`diff`] will ask for.
    pub fn copy_differing(&mut self, other: &Self, before: NodeId, after: NodeId) {
        if before == after {
            return;
        }
        match (self.copy(other, before), self.copy(other, after)) {
            (Some(Node::Inner { children: before, .. }), Some(Node::Inner { children: after, .. })) => {
                for (before, after) in before.iter().zip(after.iter()) {
                    // Where one side has nothing, all that the other has is a difference.
                    let (before, after) = (before.unwrap_or(NodeId::EMPTY), after.unwrap_or(NodeId::EMPTY));
                    self.copy_differing(other, before, after);
                }
            }
            (before, after) => {
                for node in [before, after].into_iter().flatten() {
                    if let Node::Inner { children, .. } = node {
                        children.iter().flatten().for_each(|child| self.copy_differing(other, NodeId::EMPTY, *child));
                    }
                }
            }
        }
    }
}

/// One side of a comparison: a node, or a part of a leaf which the other side has split further.
#[derive(Clone, Copy)]
enum Side<'a> {
    Node(NodeId),
    Entries(&'a [Entry]),
}

impl Side<'_> {
    fn child(id: &Option<NodeId>) -> Self {
        id.map_or(Side::Entries(&[]), Side::Node)
    }
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
            (Some(Opened::Inner(before)), Some(Opened::Inner(after))) => {
                for (before, after) in before.iter().zip(after).filter(|(before, after)| before != after) {
                    self.compare(Side::child(before), Side::child(after), level + 1);
                }
            }
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
        Opened::Inner(children) => Side::child(&children[digit]),
        Opened::Entries(entries) => {
            let start = entries.partition_point(|(key, _)| key.digit(level) < digit);
            let end = entries.partition_point(|(key, _)| key.digit(level) <= digit);
            Side::Entries(entries.get(start..end).unwrap_or_default())
        }
    }
}
