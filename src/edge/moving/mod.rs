//! Moving the data from one engine's database to the other's (`npm run move`).
//!
//! A row in each database (`engine`) says which of the two is live and how far a move is. Only one of them takes writes at any time: when
//! a move begins, each table of the source gets triggers that refuse every change, so that not even an isolate which knows
//! nothing of the move can acknowledge what would be lost; and whoever answers requests looks at that row first.
//!
//! A move is a sequence of steps ([`steps`]), each of which reads both rows, does what comes next, and notes it in the same batch.
//! So it goes on where it was cut off, and can be given up at any time before its end. The tables ([`tables`]) are those that the database
//! has, a page of rows at a time in the order of their keys. When all are copied, all are read again on both sides and
//! compared row by row.

#[cfg(target_arch = "wasm32")]
pub(super) mod endpoint;
pub(super) mod marker;
pub(super) mod side;
mod steps;
mod tables;

/// The path of the endpoint that `npm run move` asks.
#[cfg(target_arch = "wasm32")]
pub(super) const PATH: &str = "/_verge/move";
