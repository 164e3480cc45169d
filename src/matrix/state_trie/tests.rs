//! The trie against a sorted map, and what it reads and writes.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};

use super::*;

fn key(n: u64) -> StateKeyHash {
    StateKeyHash::member(&format!("@user{n}:example.org"))
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
        // The snapshots so far, the newest last.
        let mut snapshots = vec![(root, model.clone())];
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
            snapshots.push((updated.root, model.clone()));
            let compared: Vec<_> = snapshots.iter().rev().step_by(7).take(1 + step % 4).collect();
            let event_ids = |key| compared.iter().map(|(_, state)| state.get(key).map(|id| &**id)).collect::<Vec<_>>();
            let keys: BTreeSet<&StateKeyHash> = compared.iter().flat_map(|(_, state)| state.keys()).collect();
            let expected: Vec<_> = keys.into_iter().map(|key| (*key, event_ids(key))).collect();
            let expected =
                expected.into_iter().filter(|(_, ids)| ids.iter().any(|id| *id != ids[0])).collect::<Vec<_>>();
            let roots: Vec<NodeId> = compared.iter().map(|(root, _)| *root).collect();
            let found = diff(&roots, &nodes).unwrap();
            assert_eq!(found.iter().map(|(key, ids)| (key, ids.to_vec())).collect::<Vec<_>>(), expected);
            let keys: Vec<_> = (0..400).map(key).collect();
            let found = lookup(updated.root, &keys, &nodes).unwrap();
            assert_eq!(found, keys.iter().map(|key| model.get(key).map(|id| &**id)).collect::<Vec<_>>());
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
        let mut roots = vec![big.root];
        for changes in [1, 10, 300] {
            let change = |_| {
                let event_id = (random.below(3) > 0).then(|| "$new".into());
                (key(random.below(size + 100)), event_id)
            };
            let changes: Vec<Change> = (0..changes).map(change).collect();
            let other = update(big.root, &changes, &all).unwrap();
            add(&mut all, &other);
            roots.push(other.root);
            let mut copied = Nodes::default();
            copied.copy_differing(&all, &roots);
            assert_eq!(diff(&roots, &copied), diff(&roots, &all));
            let needed = copied.0.keys().all(|id| {
                let mut without = copied.clone();
                without.0.remove(id);
                *id == NodeId::EMPTY || diff(&roots, &without).is_err()
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
    // So does a comparison, whatever else is missing.
    let others = [update(big.root, &[(keys[0], None)], &nodes).unwrap(), build([(key(9999), "$new".into())])];
    let (mut some, mut rounds) = (Nodes::default(), 0);
    let roots = [big.root, others[0].root, others[1].root];
    add(&mut nodes, &big);
    others.iter().for_each(|other| add(&mut nodes, other));
    while let Err(MissingNodes(missing)) = diff(&roots, &some) {
        some.copy_from(&nodes, &missing);
        rounds += 1;
    }
    assert!(rounds <= 4, "a round for each level: {rounds}");
    assert_eq!(diff(&roots, &some), diff(&roots, &nodes));
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
