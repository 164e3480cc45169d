//! The files of the server's own `edge` that make its databases, in the places where they look for each other.

#[path = "../../../../src/edge/costs.rs"]
mod costs;
#[path = "../../../../src/edge/d1.rs"]
mod d1;
mod moving;
pub(crate) mod object;
#[path = "../../../../src/edge/runtime.rs"]
mod runtime;
#[path = "../../../../src/edge/sql_error.rs"]
mod sql_error;
#[path = "../../../../src/edge/sql_values.rs"]
mod sql_values;
#[path = "../../../../src/edge/stream.rs"]
mod stream;

/// What a database says where it is not bound.
mod events {
    pub(super) type Unusable = Box<crate::log::LogRecord>;
}

/// The database over D1.
pub(crate) fn d1(env: &worker::Env) -> Result<impl crate::platform::Database, String> {
    d1::D1::binding(env, None).map_err(|record| record.to_string())
}
