//! Comparing snapshots.

use super::{
    Entry, MissingNodes, NodeId, Nodes, StateKeyHash,
    node::{Children, Entries, FAN_OUT, Node},
    or_missing,
};

/// The keys at which snapshots differ, sorted, and what each snapshot has there.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Differences<'a> {
    keys: Vec<StateKeyHash>,
    /// For each key as many as there are snapshots.
    event_ids: Vec<Option<&'a str>>,
    snapshots: usize,
}

impl<'a> Differences<'a> {
    /// Each key, with the event ids in the order of the snapshots.
    pub fn iter(&self) -> impl Iterator<Item = (StateKeyHash, &[Option<&'a str>])> {
        self.keys.iter().copied().zip(self.event_ids.chunks_exact(self.snapshots.max(1)))
    }
}

/// Where the snapshots `roots` differ. What they share is not looked at.
///
/// # Errors
/// The nodes that are missing, level by level.
pub fn diff<'a>(roots: &[NodeId], nodes: &'a Nodes) -> Result<Differences<'a>, MissingNodes> {
    let differences = Differences { snapshots: roots.len(), ..Differences::default() };
    let mut walk = DiffWalk { nodes, differences, missing: Vec::new() };
    let sides: Vec<Side<'_>> = roots.iter().copied().map(Side::Node).collect();
    walk.compare(&sides, 0);
    or_missing(walk.differences, walk.missing)
}

/// All entries of the snapshot `root`, sorted by key.
///
/// # Errors
/// The nodes that are missing, level by level.
pub fn entries(root: NodeId, nodes: &Nodes) -> Result<Vec<Entry>, MissingNodes> {
    let all = diff(&[NodeId::EMPTY, root], nodes)?;
    Ok(all.iter().filter_map(|(key, event_ids)| Some((key, (*event_ids.last()?)?.into()))).collect())
}

impl Nodes {
    /// Adds those nodes of another set that [`diff`] will ask for.
    pub fn copy_differing(&mut self, other: &Self, roots: &[NodeId]) {
        if all_the_same(roots) {
            return;
        }
        let inner = |id: &NodeId| match self.copy(other, *id) {
            Some(Node::Inner { children, .. }) => Some(children.as_ref()),
            _ => None,
        };
        let all: Vec<Option<&Children>> = roots.iter().map(inner).collect();
        if all.iter().all(Option::is_none) {
            return;
        }
        let mut below = Vec::with_capacity(roots.len());
        for digit in 0..FAN_OUT {
            // Where one has a leaf, or nothing, all that the others have is looked at.
            let child = |children: &Option<&Children>| children.and_then(|children| children[digit]);
            below.clear();
            below.extend(all.iter().map(|children| child(children).unwrap_or(NodeId::EMPTY)));
            self.copy_differing(other, &below);
        }
    }
}

fn all_the_same<T: PartialEq>(items: &[T]) -> bool {
    items.windows(2).all(|pair| matches!(pair, [a, b] if a == b))
}

/// One side of a comparison: a node, or a part of a leaf which another side has split further.
#[derive(Clone, Copy)]
enum Side<'a> {
    Node(NodeId),
    Entries(Entries<'a>),
}

/// A side, one level down.
#[derive(Clone, Copy)]
enum Opened<'a> {
    Entries(Entries<'a>),
    Inner(&'a Children),
}

impl<'a> Opened<'a> {
    fn child(self, digit: usize, level: usize) -> Side<'a> {
        match self {
            Self::Inner(children) => children[digit].map_or(Side::Entries(Entries::default()), Side::Node),
            Self::Entries(entries) => Side::Entries(entries.with_digit(digit, level)),
        }
    }
}

/// Whether all are inner nodes and have the same child.
fn are_alike(opened: &[Opened<'_>], digit: usize) -> bool {
    let Some(Opened::Inner(first)) = opened.first() else { return false };
    opened.iter().all(|side| matches!(side, Opened::Inner(children) if children[digit] == first[digit]))
}

struct DiffWalk<'a> {
    nodes: &'a Nodes,
    differences: Differences<'a>,
    missing: Vec<NodeId>,
}

impl<'a> DiffWalk<'a> {
    /// Compares what all snapshots have at one place. Recursion ends at the last digit of the keys.
    fn compare(&mut self, sides: &[Side<'a>], level: usize) {
        let is_first =
            |side: &Side<'_>| matches!((side, sides.first()), (Side::Node(a), Some(Side::Node(b))) if a == b);
        if sides.iter().all(is_first) {
            return;
        }
        // Where a side is missing, the others still tell what is missing below them.
        let opened: Vec<Opened<'a>> = sides.iter().filter_map(|side| self.open(*side)).collect();
        let leaf = |side: &Opened<'a>| if let Opened::Entries(entries) = side { Some(*entries) } else { None };
        if let Some(leaves) = opened.iter().map(leaf).collect::<Option<Vec<Entries<'a>>>>() {
            if self.missing.is_empty() {
                self.compare_entries(&leaves);
            }
        } else if level < StateKeyHash::DIGITS {
            let mut below = Vec::with_capacity(opened.len());
            for digit in 0..FAN_OUT {
                if are_alike(&opened, digit) {
                    continue;
                }
                below.clear();
                below.extend(opened.iter().map(|side| side.child(digit, level)));
                self.compare(&below, level + 1);
            }
        }
    }

    fn open(&mut self, side: Side<'a>) -> Option<Opened<'a>> {
        match side {
            Side::Entries(entries) => Some(Opened::Entries(entries)),
            Side::Node(id) => match self.nodes.get(id) {
                Some(Node::Leaf(leaf)) => Some(Opened::Entries(leaf.entries())),
                Some(Node::Inner { children, .. }) => Some(Opened::Inner(children)),
                None => {
                    self.missing.push(id);
                    None
                }
            },
        }
    }

    fn compare_entries(&mut self, leaves: &[Entries<'a>]) {
        let mut leaves = leaves.to_vec();
        let event_ids = &mut self.differences.event_ids;
        loop {
            // Leaves that differ do so in few of their entries.
            if let Some((first, others)) = leaves.split_first() {
                let same = others.iter().map(|other| first.same_at_start(*other)).min().unwrap_or(0);
                leaves.iter_mut().for_each(|leaf| leaf.skip(same));
            }
            let Some(key) = leaves.iter().filter_map(|leaf| leaf.first_key()).min() else { return };
            let start = event_ids.len();
            for leaf in &mut leaves {
                let event_id = leaf.iter().next().filter(|(other, _)| *other == key).map(|(_, event_id)| event_id);
                leaf.skip(usize::from(event_id.is_some()));
                event_ids.push(event_id);
            }
            if all_the_same(event_ids.get(start..).unwrap_or_default()) {
                event_ids.truncate(start);
            } else {
                self.differences.keys.push(key);
            }
        }
    }
}
