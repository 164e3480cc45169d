//! What clients keep on the server: filters, account data, and the transaction IDs of their requests.

use super::{
    Store,
    accounts::{of_token, token_row},
    positions::advance_for,
};
use crate::platform::{DatabaseError, SqlValue, Statement, news::Subject};

/// A request that a device named with a transaction ID.
#[derive(Debug, Clone)]
pub struct ClientTransaction {
    /// The full user ID.
    pub user_id: String,
    /// The device.
    pub device_id: String,
    /// What the ID is unique for, besides the device: the request's path before the ID.
    pub endpoint: String,
    /// The ID.
    pub txn_id: String,
}

impl ClientTransaction {
    /// Remembers that this request made `event_id`; for the batch that commits the event.
    pub fn remember(&self, event_id: &str, now_ms: i64) -> Statement {
        const INSERT: &str = "INSERT INTO client_transactions (user_id, device_id, endpoint, txn_id, event_id, created_ts) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
        Statement::new(
            INSERT,
            [
                self.user_id.as_str().into(),
                self.device_id.as_str().into(),
                self.endpoint.as_str().into(),
                self.txn_id.as_str().into(),
                event_id.into(),
                now_ms.into(),
            ],
        )
    }
}

/// How many characters the account data of a user in a room may have.
const MAX_OF_ROOM: i64 = 1_000_000;

/// Returns a row where it is put: where all of the room's is short enough, or no longer than before.
const PUT_IN_ROOM: &str = "\
    INSERT INTO account_data (user_id, room_id, event_type, content, pos) \
    SELECT ?1, ?2, ?3, ?4, position FROM streams WHERE name = 'account_data' AND (length(?4) <= ?5 - COALESCE( \
      (SELECT SUM(length(content)) FROM account_data WHERE user_id = ?1 AND room_id = ?2 AND event_type <> ?3), 0) \
      OR length(?4) <= (SELECT length(a.content) FROM account_data AS a \
        WHERE a.user_id = ?1 AND a.room_id = ?2 AND a.event_type = ?3)) \
    ON CONFLICT (user_id, room_id, event_type) DO UPDATE SET content = excluded.content, pos = excluded.pos \
    RETURNING pos";

/// Statements that set one type of account data; `room_id` is empty for none.
pub fn put(user_id: &str, room_id: &str, event_type: &str, content: &str) -> Vec<Statement> {
    const UPSERT: &str = "INSERT INTO account_data (user_id, room_id, event_type, content, pos) \
         SELECT ?1, ?2, ?3, ?4, position FROM streams WHERE name = 'account_data' \
         ON CONFLICT (user_id, room_id, event_type) DO UPDATE SET content = excluded.content, pos = excluded.pos";
    let parameters = [user_id.into(), room_id.into(), event_type.into(), content.into()];
    let advance = advance_for("account_data", 1, [Subject::User(user_id.to_owned())]);
    vec![advance, Statement::new(UPSERT, parameters)]
}

/// As [`put`], but only where the content is still `old`, `None` where there was none; the second statement then returns a row.
fn replace(user_id: &str, room_id: &str, event_type: &str, old: Option<&str>, new: &str) -> Vec<Statement> {
    const UPSERT: &str = "INSERT INTO account_data (user_id, room_id, event_type, content, pos) \
         SELECT ?1, ?2, ?3, ?4, position FROM streams WHERE name = 'account_data' AND ?5 IS \
           (SELECT a.content FROM account_data AS a WHERE a.user_id = ?1 AND a.room_id = ?2 AND a.event_type = ?3) \
         ON CONFLICT (user_id, room_id, event_type) DO UPDATE SET content = excluded.content, pos = excluded.pos \
         RETURNING pos";
    let parameters = [user_id.into(), room_id.into(), event_type.into(), new.into(), old.into()];
    let advance = advance_for("account_data", 1, [Subject::User(user_id.to_owned())]);
    vec![advance, Statement::new(UPSERT, parameters)]
}

impl Store {
    /// Who the token speaks for, as [`Store::token`], and the event that they made with this transaction ID before.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn token_and_transaction(
        &self,
        token_hash: &str,
        endpoint: &str,
        txn_id: &str,
    ) -> Result<Option<(super::accounts::TokenRow, Option<String>)>, DatabaseError> {
        const SELECT: &str = concat!(
            "SELECT d.user_id, d.device_id, d.expires_ts, d.is_next, t.event_id FROM ",
            of_token!(),
            " AS d LEFT JOIN client_transactions AS t ON t.user_id = d.user_id AND t.device_id = d.device_id \
               AND t.endpoint = ?2 AND t.txn_id = ?3"
        );
        let rows = self.query(Statement::new(SELECT, [token_hash.into(), endpoint.into(), txn_id.into()])).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        Ok(Some((token_row(row)?, row.optional_text(4)?.map(str::to_owned))))
    }

    /// The event that this request made before.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn client_transaction(&self, transaction: &ClientTransaction) -> Result<Option<String>, DatabaseError> {
        const SELECT: &str = "SELECT event_id FROM client_transactions \
             WHERE user_id = ?1 AND device_id = ?2 AND endpoint = ?3 AND txn_id = ?4";
        let parameters = [
            transaction.user_id.as_str().into(),
            transaction.device_id.as_str().into(),
            transaction.endpoint.as_str().into(),
            transaction.txn_id.as_str().into(),
        ];
        let rows = self.query(Statement::new(SELECT, parameters)).await?;
        rows.first().map(|row| row.text(0).map(str::to_owned)).transpose()
    }

    /// Keeps a filter, whose text is canonical JSON.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn put_filter(&self, user_id: &str, filter_id: &str, filter: &str) -> Result<(), DatabaseError> {
        const INSERT: &str =
            "INSERT INTO filters (user_id, filter_id, filter) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING";
        self.query(Statement::new(INSERT, [user_id.into(), filter_id.into(), filter.into()])).await.map(drop)
    }

    /// The text of a stored filter.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn filter(&self, user_id: &str, filter_id: &str) -> Result<Option<String>, DatabaseError> {
        const SELECT: &str = "SELECT filter FROM filters WHERE user_id = ?1 AND filter_id = ?2";
        let rows = self.query(Statement::new(SELECT, [user_id.into(), filter_id.into()])).await?;
        rows.first().map(|row| row.text(0).map(str::to_owned)).transpose()
    }

    /// Sets one type of account data; `room_id` is empty for what belongs to no room. `false` where the account data of a room would
    /// be too long: all that there is of it goes to a client that is new in the room.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn put_account_data(
        &self,
        user_id: &str,
        room_id: &str,
        event_type: &str,
        content: &str,
    ) -> Result<bool, DatabaseError> {
        if room_id.is_empty() {
            return self.batch(put(user_id, room_id, event_type, content)).await.map(|_| true);
        }
        let parameters =
            [user_id.into(), room_id.into(), event_type.into(), content.into(), SqlValue::from(MAX_OF_ROOM)];
        let statements = vec![
            advance_for("account_data", 1, [Subject::User(user_id.to_owned())]),
            Statement::new(PUT_IN_ROOM, parameters),
        ];
        Ok(self.batch(statements).await?.last().is_some_and(|rows| !rows.is_empty()))
    }

    /// As [`Store::put_account_data`], where the content is still `old`; `false` where somebody else has changed it.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn replace_account_data(
        &self,
        (user_id, room_id, event_type): (&str, &str, &str),
        old: Option<&str>,
        new: &str,
    ) -> Result<bool, DatabaseError> {
        let answers = self.batch(replace(user_id, room_id, event_type, old, new)).await?;
        Ok(answers.last().is_some_and(|rows| !rows.is_empty()))
    }

    /// The content of one type of account data.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn account_data(
        &self,
        user_id: &str,
        room_id: &str,
        event_type: &str,
    ) -> Result<Option<String>, DatabaseError> {
        const SELECT: &str = "SELECT content FROM account_data WHERE user_id = ?1 AND room_id = ?2 AND event_type = ?3";
        let rows = self.query(Statement::new(SELECT, [user_id.into(), room_id.into(), event_type.into()])).await?;
        rows.first().map(|row| row.text(0).map(str::to_owned)).transpose()
    }
}
