//! Hash maps for state snapshots and their resolution, which look up tens of thousands of event and node ids.
//!
//! The standard library's hash costs a third of a state resolution. On wasm32 its keys are the same for everybody, so it is
//! no better a guard against ids that were chosen to collide; what bounds that harm is the bound on how many there may be.

use foldhash::fast::RandomState;

pub(super) type HashMap<K, V> = std::collections::HashMap<K, V, RandomState>;
pub(super) type HashSet<T> = std::collections::HashSet<T, RandomState>;
