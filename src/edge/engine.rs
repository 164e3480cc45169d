//! The two engines.

use serde::{Deserialize, Serialize};

/// Where the server runs, and over which database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Engine {
    /// In any isolate of the Worker, over D1.
    D1,
    /// In one Durable Object, over the SQLite database beside it.
    Object,
}

impl Engine {
    /// As operators write it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::D1 => "d1",
            Self::Object => "object",
        }
    }

    /// The one that is not this one.
    pub(super) fn other(self) -> Self {
        match self {
            Self::D1 => Self::Object,
            Self::Object => Self::D1,
        }
    }
}
