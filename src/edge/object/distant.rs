//! The object's database as the Worker in front of it uses it, for what the Worker does itself: bytes of media never reach the
//! object, and passwords are hashed outside it.
//!
//! A batch is one request to the object. It brings SQL, so it must not come from outside: the front forwards to the object what
//! is of a route, and this path is of none.

use worker::{
    js_sys,
    wasm_bindgen::{JsCast, JsValue},
    wasm_bindgen_futures::JsFuture,
    web_sys,
};

use super::{
    stub::Stub,
    wire::{self, Work, unavailable},
};
use crate::{
    edge::{costs::Costs, stream::describe},
    log::Cost,
    platform::{Database, DatabaseError, LocalBoxFuture, Rows, Statement},
};

/// The path by which batches reach the object.
pub(super) const BATCH: &str = "/batch";

/// How long a batch is in bytes, in a header of our own: the runtime need not say it of what stays within it.
const LENGTH: &str = "verge-length";

/// The database of the object behind a stub.
pub(super) struct DistantDatabase {
    object: Stub,
    costs: Costs,
}

impl Database for DistantDatabase {
    fn batch(&self, statements: Vec<Statement>) -> LocalBoxFuture<'_, Result<Vec<Rows>, DatabaseError>> {
        Box::pin(self.ask(Work::Batch(statements)))
    }

    fn batches(&self, batches: Vec<Vec<Statement>>) -> LocalBoxFuture<'_, Result<Vec<Rows>, DatabaseError>> {
        Box::pin(self.ask(Work::Batches(batches)))
    }

    fn cost(&self) -> Cost {
        self.costs.cost()
    }
}

impl DistantDatabase {
    pub(super) fn new(object: Stub) -> Self {
        Self { object, costs: Costs::default() }
    }

    async fn ask(&self, work: Work) -> Result<Vec<Rows>, DatabaseError> {
        let text = self.send(&work.to_text()).await.map_err(|error| unavailable(&describe(&error)))?;
        let (outcome, cost) = wire::read_outcome(&text);
        self.costs.add(cost);
        outcome
    }

    async fn send(&self, work: &str) -> Result<String, JsValue> {
        let init = web_sys::RequestInit::new();
        init.set_method("POST");
        init.set_body(&work.into());
        let request = web_sys::Request::new_with_str_and_init(&format!("https://object{BATCH}"), &init)?;
        request.headers().set(LENGTH, &work.len().to_string())?;
        let response: web_sys::Response = JsFuture::from(self.object.fetch(&request)?).await?.unchecked_into();
        let text = JsFuture::from(response.text()?).await?;
        text.as_string().ok_or_else(|| js_sys::Error::new("the object answers with no text").into())
    }
}

/// How long the batch of a request is in bytes. One that does not say so has room only where there is no other.
pub(super) fn length(request: &web_sys::Request) -> usize {
    let said = request.headers().get(LENGTH).ok().flatten();
    said.and_then(|length| length.parse().ok()).unwrap_or(usize::MAX)
}

/// The outcome of a batch for which there is no room now.
pub(super) fn too_busy() -> String {
    wire::outcome(Err(unavailable("the object works on as much as it can hold")), Cost::default())
}

/// Does the work that a request brings, and answers with its outcome as text, and with what all work of this database has cost.
pub(super) async fn run(database: &dyn Database, work: &str) -> String {
    let outcome = match Work::read(work) {
        Some(Work::Batch(statements)) => database.batch(statements).await,
        Some(Work::Batches(batches)) => database.batches(batches).await,
        None => Err(DatabaseError::Refused("the batch is malformed".to_owned())),
    };
    wire::outcome(outcome, database.cost())
}
