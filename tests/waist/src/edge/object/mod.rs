//! The database of an object.

#[path = "../../../../../src/edge/object/database.rs"]
mod database;
#[path = "../../../../../src/edge/object/reads.rs"]
mod reads;

use worker::wasm_bindgen::{JsCast, JsValue};

/// The database in this storage.
pub(crate) fn database(storage: JsValue) -> impl crate::platform::Database {
    database::ObjectDatabase::new(storage.unchecked_into(), None)
}
