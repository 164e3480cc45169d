//! The files of the server's own `edge/moving` that its databases need.

#[path = "../../../../../src/edge/moving/marker.rs"]
pub(super) mod marker;
#[path = "../../../../../src/edge/moving/side.rs"]
pub(super) mod side;
