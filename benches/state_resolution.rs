//! State resolution beside ruma's, on the same rooms in the same run.
//!
//! The snapshots, ruma's state maps, and the index of citations are there before: servers store them. `ruma` is everything
//! that ruma's caller has to do, building auth chains and the conflicted state subgraph included; `ruma, chains given` is
//! its crate alone.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)]

#[path = "../tests/state_resolution/by_ruma.rs"]
mod by_ruma;
#[path = "../tests/common/mod.rs"]
mod common;
#[path = "inputs/forked_room.rs"]
mod forked_room;

use std::{cell::LazyCell, collections::BTreeMap, hint::black_box, time::Duration};

use by_ruma::{RumaRoom, to_ruma};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use forked_room::{ForkedRoom, PlainState, entries};
use verge::matrix::state_trie::build;

fn resolution(criterion: &mut Criterion) {
    for version in ["11", "12"] {
        for size in [1_000, 100_000] {
            for forks in [2, 8] {
                for conflicts in [10, 100, 1_000, 10_000] {
                    // As many as the room can hold.
                    if conflicts <= size * forks / 2 {
                        let name = format!("v{version}/{size} events/{forks} forks");
                        measure(criterion, &name, conflicts, || ForkedRoom::new(version, size, forks, conflicts));
                    }
                }
            }
        }
        let name = format!("v{version}/1000 events/one side a chain");
        measure(criterion, &name, CHAIN, || ForkedRoom::with_chain(version, 1_000, CHAIN));
    }
}

/// How long a chain any member can make in an afternoon.
const CHAIN: usize = 5_000;

/// Measures the resolution of one fork. What the command line's filter leaves out is not made either.
fn measure(criterion: &mut Criterion, name: &str, number: usize, make: impl FnOnce() -> ForkedRoom) {
    let forked = LazyCell::new(make);
    let maps = LazyCell::new(|| forked.forks.iter().map(to_ruma).collect::<Vec<_>>());
    let ruma = LazyCell::new(|| {
        let events = forked.events.iter().map(|event| (event, false));
        RumaRoom::new(forked.version, events).unwrap()
    });
    let chains = LazyCell::new(|| {
        let (chains, subgraph) = (ruma.chains(&maps), ruma.subgraph(&conflicted(&forked.forks)));
        let theirs = ruma.resolve_with(&maps, chains.clone(), |_| subgraph.clone()).unwrap();
        let theirs = theirs.into_iter().map(|((t, k), id)| ((t.to_string(), k), id.to_string())).collect();
        assert_eq!(forked.resolve().root, build(entries(&theirs)).root, "both resolve to the same");
        (chains, subgraph)
    });

    let mut group = criterion.benchmark_group(name);
    group.sample_size(10).warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_secs(1));
    group.bench_function(BenchmarkId::new("verge", number), |bencher| {
        let forked = &*forked;
        bencher.iter(|| black_box(forked.resolve()));
    });
    group.bench_function(BenchmarkId::new("ruma", number), |bencher| {
        let (ruma, maps) = (&*ruma, &*maps);
        bencher.iter(|| {
            let chains = ruma.chains(maps);
            black_box(ruma.resolve_with(maps, chains, |set| ruma.subgraph(set)).unwrap())
        });
    });
    group.bench_function(BenchmarkId::new("ruma, chains given", number), |bencher| {
        let (ruma, maps, (chains, subgraph)) = (&*ruma, &*maps, &*chains);
        bencher.iter_batched(
            || chains.clone(),
            |chains| black_box(ruma.resolve_with(maps, chains, |_| subgraph.clone()).unwrap()),
            criterion::BatchSize::PerIteration,
        );
    });
    group.finish();
}

/// The events of each key at which the forks differ, as ruma takes them.
fn conflicted(forks: &[PlainState]) -> ruma_state_res::StateMap<Vec<ruma_common::OwnedEventId>> {
    let mut values: BTreeMap<&(String, String), Vec<&String>> = BTreeMap::new();
    for (key, id) in forks.iter().flatten() {
        values.entry(key).or_default().push(id);
    }
    values.retain(|_, ids| ids.len() < forks.len() || ids.iter().any(|id| id != &ids[0]));
    let parse = |id: &String| id.as_str().try_into().unwrap();
    values
        .into_iter()
        .map(|((t, k), ids)| ((t.as_str().into(), k.clone()), ids.into_iter().map(parse).collect()))
        .collect()
}

criterion_group!(benches, resolution);
criterion_main!(benches);
