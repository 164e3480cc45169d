//! The transaction queue (Server-Server API, "Transactions"): at most one transaction in flight to each destination,
//! in the order of our commits, repeated until the destination has answered 200.
//!
//! Sending starts at once after a commit ([`Server::flush`]) and is swept up by the scheduled trigger
//! ([`Server::sweep_queue`]): retries, what a restart cut off, destinations that came back.

use futures_util::{StreamExt, stream};

use crate::{
    federation::peers::endpoints::Transaction,
    matrix::identifiers::{RoomId, ServerName},
    server::Server,
    store::queue::{Claim, OutgoingTransaction},
};

/// How many destinations are sent to at the same time: the platform keeps six connections open for an event, and the
/// database needs one.
const CONCURRENT: usize = 5;

/// The first pause after a failure, in milliseconds; it doubles with each further one.
const FIRST_PAUSE_MS: i64 = 10_000;

/// The longest pause between two attempts, in milliseconds.
const LONGEST_PAUSE_MS: i64 = 60 * 60 * 1_000;

impl Server {
    /// Starts sending what the servers in the room have not had. Called after a commit that appended to the outbox.
    pub fn flush(&self, room_id: &RoomId) {
        let (server, room_id) = (self.clone(), room_id.clone());
        self.platform.background.spawn(Box::pin(async move {
            server.send_due(Some(&[room_id])).await;
        }));
    }

    /// Starts sending to a server that was thought away and was heard from.
    pub fn flush_to(&self, destination: &ServerName) {
        let (server, destination) = (self.clone(), destination.clone());
        self.platform.background.spawn(Box::pin(async move {
            server.drive(&destination).await;
        }));
    }

    /// Sends whatever is due to anybody.
    pub async fn sweep_queue(&self) {
        self.send_due(None).await;
    }

    async fn send_due(&self, rooms: Option<&[RoomId]>) {
        let now = self.platform.clock.now_ms();
        match self.store.due(&self.config.server_name, now, rooms).await {
            Ok(due) => {
                stream::iter(due)
                    .for_each_concurrent(CONCURRENT, |destination| async move { self.drive(&destination).await })
                    .await;
            }
            Err(error) => self.platform.log.warn(&format!("The outbox cannot be read: {error}")),
        }
    }

    /// Sends to one destination until it has had everything, or fails, or somebody else is at it.
    async fn drive(&self, destination: &ServerName) {
        let owner = self.random_id();
        let mut completed: Option<String> = None;
        loop {
            let new_txn_id = self.random_id();
            let claim =
                Claim { destination, owner: &owner, new_txn_id: &new_txn_id, now: self.platform.clock.now_ms() };
            let transaction = match self.store.claim(claim, completed.as_deref()).await {
                Ok(Some(transaction)) => transaction,
                Ok(None) => return,
                Err(error) => {
                    // The lease runs out, and the scheduled trigger comes by.
                    self.platform.log.warn(&format!("The queue to {destination} cannot be read: {error}"));
                    return;
                }
            };
            if let Err(why) = self.deliver(destination, &transaction).await {
                let now = self.platform.clock.now_ms();
                let retry_at = now + pause(transaction.failures, self.random_part());
                self.platform.log.warn(&format!(
                    "Transaction {} to {destination} failed ({why}); next attempt in {} s or when it is heard from",
                    transaction.txn_id,
                    (retry_at - now) / 1_000
                ));
                if let Err(error) = self.store.fail(destination, &owner, retry_at).await {
                    self.platform.log.warn(&format!("The queue to {destination} cannot be written: {error}"));
                }
                return;
            }
            completed = Some(transaction.txn_id);
        }
    }

    /// Sends one transaction. Only a 200 counts; what it says about single PDUs is for the log.
    async fn deliver(&self, destination: &ServerName, transaction: &OutgoingTransaction) -> Result<(), String> {
        let pdus: Vec<&str> = transaction.pdus.iter().map(String::as_str).collect();
        let body = Transaction { origin_server_ts: transaction.origin_server_ts, pdus: &pdus, edus: &[] };
        match self.federation.send_transaction(destination, &transaction.txn_id, body).await {
            Ok(results) => {
                for (event_id, error) in results {
                    self.platform.log.warn(&format!("{destination} did not take {event_id}: {error}"));
                }
                Ok(())
            }
            Err(error) => Err(error.to_string()),
        }
    }

    /// 22 characters that nobody else has.
    pub(super) fn random_id(&self) -> String {
        let mut bytes = [0; 16];
        self.platform.random.fill(&mut bytes);
        crate::matrix::base64::encode_url_safe(&bytes)
    }

    /// A number from 0 to 255, to keep many senders from retrying in step.
    fn random_part(&self) -> u8 {
        let mut byte = [0];
        self.platform.random.fill(&mut byte);
        byte[0]
    }
}

/// The pause after `failures` earlier failures in a row: doubling, with up to a quarter more or less at random.
fn pause(failures: i64, random: u8) -> i64 {
    let doublings = u32::try_from(failures.clamp(0, 20)).unwrap_or(20);
    let pause = FIRST_PAUSE_MS.saturating_mul(1 << doublings).min(LONGEST_PAUSE_MS);
    pause - pause / 4 + pause * i64::from(random) / 512
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_doubles_up_to_an_hour() {
        assert_eq!(pause(0, 128), 10_000);
        assert_eq!(pause(1, 128), 20_000);
        assert_eq!(pause(5, 128), 320_000);
        assert_eq!(pause(8, 128), 2_560_000);
        assert_eq!(pause(9, 128), 3_600_000);
        assert_eq!(pause(i64::MAX, 128), 3_600_000);
        assert_eq!(pause(0, 0), 7_500);
        assert!(pause(0, 255) <= 12_500);
    }
}
