//! Telling other servers what is worth nothing when it is late: typing, receipts, presence (Server-Server API, "EDUs").
//!
//! Each transaction of these travels alone, beside what the transaction queue sends, and is not repeated; it costs no row.
//! Whom the database knows to be away is not among the destinations that callers name.

use futures_util::{StreamExt, stream};

use crate::{
    federation::peers::{endpoints::Transaction, fleeting::FleetingEdu},
    log::LogRecord,
    matrix::identifiers::ServerName,
    server::Server,
};

/// How many destinations are told at the same time: the platform keeps six connections open for an event.
const CONCURRENT: usize = 5;

/// For so long, in milliseconds, sending goes on; what is left then is stale.
const TURN_MS: i64 = 20_000;

impl Server {
    /// Tells these servers, beside the request that it comes from.
    pub fn tell(&self, destinations: &[ServerName], edus: &[FleetingEdu]) {
        let now = self.platform.clock.now_ms();
        let mut mine = destinations.to_vec();
        mine.retain(|destination| self.fleeting.leave(destination, edus, now));
        if mine.is_empty() {
            return;
        }
        let server = self.clone();
        self.platform.background.spawn(Box::pin(async move {
            let until = now + TURN_MS;
            let tell = |destination| server.tell_one(destination, until);
            stream::iter(mine).map(tell).buffer_unordered(CONCURRENT).collect::<()>().await;
        }));
    }

    /// Sends to one destination until nothing waits for it, or it fails, or the time is over.
    async fn tell_one(&self, destination: ServerName, until: i64) {
        let clock = &self.platform.clock;
        loop {
            let pause = self.fleeting.pause(&destination, clock.now_ms());
            if pause > 0 {
                clock.sleep(pause).await;
            }
            let now = clock.now_ms();
            let edus = self.fleeting.take(&destination, now);
            if edus.is_empty() {
                return;
            }
            if now >= until {
                return self.fleeting.failed(&destination, now);
            }
            let body = Transaction { origin_server_ts: now, pdus: &[], edus: &edus };
            if let Err(error) = self.federation.send_transaction(&destination, &self.random_id(), body).await {
                let record = LogRecord::warning("a server was not told who is typing, reading or there");
                self.platform.log.write(record.destination(&destination).because(&error));
                return self.fleeting.failed(&destination, clock.now_ms());
            }
        }
    }
}
