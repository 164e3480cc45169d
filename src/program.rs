//! The program on top: it routes requests to the two APIs, and does what is due by the clock. Nothing that it calls knows it.

use std::ops::Deref;

use futures_util::future;

use crate::{
    client,
    federation::inbound,
    router::{RequestBody, Response},
    server::Server,
};

/// How long the answer to a transaction is kept for its sender to ask again, in milliseconds: two weeks.
const KEEP_TRANSACTIONS_MS: i64 = 14 * 24 * 60 * 60 * 1_000;

/// A server that answers requests and does its clock's work.
#[derive(Clone)]
pub struct Program(Server);

impl From<Server> for Program {
    fn from(server: Server) -> Self {
        Self(server)
    }
}

impl Deref for Program {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.0
    }
}

impl Program {
    /// Answers one request.
    pub async fn handle(&self, request: http::Request<impl Into<RequestBody>>) -> Response {
        let request = request.map(Into::into);
        let path = request.uri().path();
        if path.starts_with("/_matrix/client/") || path.starts_with("/_matrix/media/") || path == client::WELL_KNOWN {
            return client::handle(&self.0, request).await;
        }
        inbound::handle(&self.0, request).await
    }

    /// Does what the scheduled trigger is for, once a minute: whatever a request began and could not finish.
    pub async fn scheduled(&self) {
        // Side by side: a server that answers slowly about missing events must not keep the queue from moving.
        future::join3(self.forget(), self.0.sweep_queue(), self.0.sweep_staged()).await;
    }

    /// Once an hour: forgets what nobody will ask for any more.
    async fn forget(&self) {
        let now = self.platform.clock.now_ms();
        if (now / 60_000) % 60 != 0 {
            return;
        }
        let transactions = self.store.forget_transactions(now - KEEP_TRANSACTIONS_MS).await;
        let outbox = self.store.forget_outbox(&self.config.server_name).await;
        let joins = self.store.forget_joins(now).await;
        let registrations = self.store.forget_registrations(now).await;
        for error in [transactions, outbox, joins, registrations].into_iter().filter_map(Result::err) {
            self.platform.log.warn(&format!("Old rows cannot be deleted: {error}"));
        }
    }
}
