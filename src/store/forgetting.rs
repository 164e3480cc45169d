//! Forgetting what nobody will ask for any more, a slice at a time.
//!
//! A table is walked through by its primary key, and of each slice what is old goes. That takes no index on the age of rows,
//! which would be a further row written for each, while reading costs a thousandth; and no statement runs for long, however
//! much there is.

use std::collections::HashMap;

use super::{Store, positions::OutboxPos};
use crate::platform::{DAY_MS, DatabaseError, Statement};

/// A walk through one table.
#[derive(Debug)]
pub struct Walk {
    /// The table.
    pub table: &'static str,
    /// How long after the time in its rows they are kept, in milliseconds.
    pub keep_ms: i64,
    advance: &'static str,
    forget: &'static str,
}

/// Where every walk begins, and where it is when it has come to the end: before all keys.
const START: &str = r#"["","","",""]"#;

/// Notes how far a walk through `$table` by `$key` comes by its next 1,000 rows, ?1 being `$after`, the last key before them: to
/// its start, ?2, where they are the last ones.
macro_rules! advance {
    ($table:literal, $key:literal, $after:literal) => {
        concat!(
            "INSERT INTO walks (name, after) VALUES ('",
            $table,
            "', COALESCE((SELECT json_array(",
            $key,
            ") FROM ",
            $table,
            " WHERE (",
            $key,
            ") > (",
            $after,
            ") ORDER BY ",
            $key,
            " LIMIT 1 OFFSET 999), ?2)) ON CONFLICT (name) DO UPDATE SET after = excluded.after RETURNING after"
        )
    };
}

/// Deletes those of the same rows that are old: `$old`, with ?2.
macro_rules! forget {
    ($table:literal, $key:literal, $after:literal, $old:literal) => {
        concat!(
            "DELETE FROM ",
            $table,
            " WHERE ",
            $old,
            " AND (",
            $key,
            ") IN (SELECT ",
            $key,
            " FROM ",
            $table,
            " WHERE (",
            $key,
            ") > (",
            $after,
            ") ORDER BY ",
            $key,
            " LIMIT 1000)"
        )
    };
}

const ADVANCE_CLIENT_TRANSACTIONS: &str =
    advance!("client_transactions", "user_id, device_id, endpoint, txn_id", "?1 ->> 0, ?1 ->> 1, ?1 ->> 2, ?1 ->> 3");
const FORGET_CLIENT_TRANSACTIONS: &str = forget!(
    "client_transactions",
    "user_id, device_id, endpoint, txn_id",
    "?1 ->> 0, ?1 ->> 1, ?1 ->> 2, ?1 ->> 3",
    "created_ts < ?2"
);
const ADVANCE_PENDING_JOINS: &str = advance!("pending_joins", "room_id, join_id", "?1 ->> 0, ?1 ->> 1");
const FORGET_PENDING_JOINS: &str = forget!("pending_joins", "room_id, join_id", "?1 ->> 0, ?1 ->> 1", "until_ts <= ?2");
const ADVANCE_PENDING_KNOCKS: &str =
    advance!("pending_knocks", "user_id, room_id, knock", "?1 ->> 0, ?1 ->> 1, ?1 ->> 2");
const FORGET_PENDING_KNOCKS: &str =
    forget!("pending_knocks", "user_id, room_id, knock", "?1 ->> 0, ?1 ->> 1, ?1 ->> 2", "until_ts <= ?2");
const ADVANCE_REGISTRATIONS: &str = advance!("registrations", "session", "?1 ->> 0");
const FORGET_REGISTRATIONS: &str = forget!("registrations", "session", "?1 ->> 0", "until_ts <= ?2");

const ADVANCE_TYPING: &str = advance!("typing", "room_id, user_id", "?1 ->> 0, ?1 ->> 1");
const FORGET_TYPING: &str = forget!("typing", "room_id, user_id", "?1 ->> 0, ?1 ->> 1", "until_ts < ?2");
const ADVANCE_PRESENCE: &str = advance!("presence", "user_id", "?1 ->> 0");
const FORGET_PRESENCE: &str = forget!("presence", "user_id", "?1 ->> 0", "last_active_ts < ?2");
const ADVANCE_SENT_TO_DEVICE: &str =
    advance!("sent_to_device", "user_id, device_id, event_type, txn_id", "?1 ->> 0, ?1 ->> 1, ?1 ->> 2, ?1 ->> 3");
const FORGET_SENT_TO_DEVICE: &str = forget!(
    "sent_to_device",
    "user_id, device_id, event_type, txn_id",
    "?1 ->> 0, ?1 ->> 1, ?1 ->> 2, ?1 ->> 3",
    "created_ts < ?2"
);
const ADVANCE_RECEIVED_TO_DEVICE: &str = advance!("received_to_device", "origin, message_id", "?1 ->> 0, ?1 ->> 1");
const FORGET_RECEIVED_TO_DEVICE: &str =
    forget!("received_to_device", "origin, message_id", "?1 ->> 0, ?1 ->> 1", "received_ts < ?2");

const ADVANCE_EDU_OUTBOX: &str = advance!("edu_outbox", "destination, pos", "?1 ->> 0, ?1 ->> 1");
/// What waits for a server that has taken nothing since `?2`, as the age of the transaction in flight says, but for what is in
/// flight: a transaction has one content. What tells of the keys of a user who shares a room with it stays: there is one of each type
/// for each user, and a server that comes back asks for none of what it has missed, but takes what it holds for current.
const FORGET_EDU_OUTBOX: &str = forget!(
    "edu_outbox",
    "destination, pos",
    "?1 ->> 0, ?1 ->> 1",
    "EXISTS (SELECT 1 FROM destinations AS d WHERE d.destination = edu_outbox.destination AND d.txn_ts < ?2 \
       AND edu_outbox.pos > COALESCE(d.txn_edus, 0)) \
     AND (edu_outbox.about IS NULL OR NOT EXISTS ( \
       SELECT 1 FROM local_memberships AS m CROSS JOIN room_servers AS s \
         ON s.room_id = m.room_id AND s.server = edu_outbox.destination AND s.to_pos IS NULL \
       WHERE m.user_id = edu_outbox.about AND m.membership = 'join'))"
);

const ADVANCE_LOCAL_MEMBERSHIPS: &str = advance!("local_memberships", "user_id, room_id", "?1 ->> 0, ?1 ->> 1");
const FORGET_LOCAL_MEMBERSHIPS: &str =
    forget!("local_memberships", "user_id, room_id", "?1 ->> 0, ?1 ->> 1", "forgotten_ts < ?2");

/// The walks there are.
pub const WALKS: [Walk; 10] = [
    // Far longer than a client repeats a request.
    Walk {
        table: "client_transactions",
        keep_ms: 7 * DAY_MS,
        advance: ADVANCE_CLIENT_TRANSACTIONS,
        forget: FORGET_CLIENT_TRANSACTIONS,
    },
    Walk {
        table: "sent_to_device",
        keep_ms: 7 * DAY_MS,
        advance: ADVANCE_SENT_TO_DEVICE,
        forget: FORGET_SENT_TO_DEVICE,
    },
    // As long as a server that was away may repeat what it has not heard to be taken.
    Walk {
        table: "received_to_device",
        keep_ms: 30 * DAY_MS,
        advance: ADVANCE_RECEIVED_TO_DEVICE,
        forget: FORGET_RECEIVED_TO_DEVICE,
    },
    // A server that has taken nothing for so long is taken for dead.
    Walk { table: "edu_outbox", keep_ms: 30 * DAY_MS, advance: ADVANCE_EDU_OUTBOX, forget: FORGET_EDU_OUTBOX },
    Walk { table: "pending_joins", keep_ms: 0, advance: ADVANCE_PENDING_JOINS, forget: FORGET_PENDING_JOINS },
    Walk { table: "pending_knocks", keep_ms: 0, advance: ADVANCE_PENDING_KNOCKS, forget: FORGET_PENDING_KNOCKS },
    Walk { table: "registrations", keep_ms: 0, advance: ADVANCE_REGISTRATIONS, forget: FORGET_REGISTRATIONS },
    // Longer than most clients stay away, which are told that somebody has ceased by the row.
    Walk { table: "typing", keep_ms: 7 * DAY_MS, advance: ADVANCE_TYPING, forget: FORGET_TYPING },
    Walk { table: "presence", keep_ms: 30 * DAY_MS, advance: ADVANCE_PRESENCE, forget: FORGET_PRESENCE },
    // As long as a device may be offline that is to hear that its user left the room.
    Walk {
        table: "local_memberships",
        keep_ms: 30 * DAY_MS,
        advance: ADVANCE_LOCAL_MEMBERSHIPS,
        forget: FORGET_LOCAL_MEMBERSHIPS,
    },
];

/// How far the walks have come.
#[derive(Debug, Default)]
pub struct Walked(HashMap<String, String>);

impl Walked {
    /// Whether this walk is somewhere on its way.
    pub fn is_under_way(&self, walk: &Walk) -> bool {
        self.after(walk) != START
    }

    /// Up to where the outbox was looked through by the walk of this name.
    pub fn of_outbox(&self, name: &str) -> OutboxPos {
        let position = self.0.get(name).and_then(|after| after.parse().ok());
        position.map_or(OutboxPos::START, OutboxPos::new)
    }

    /// Whether it was noted that something of this name is left ([`Store::note_left`]).
    pub fn is_left(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    fn after(&self, walk: &Walk) -> &str {
        self.0.get(walk.table).map_or(START, String::as_str)
    }
}

impl Store {
    /// How far the walks have come.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn walked(&self) -> Result<Walked, DatabaseError> {
        let rows = self.query(Statement::new("SELECT name, after FROM walks", [])).await?;
        let walked = rows.iter().map(|row| Ok((row.text(0)?.to_owned(), row.text(1)?.to_owned())));
        Ok(Walked(walked.collect::<Result<_, DatabaseError>>()?))
    }

    /// Notes up to where the outbox was looked through.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn note_of_outbox(&self, name: &str, position: OutboxPos) -> Result<(), DatabaseError> {
        const NOTE: &str = "INSERT INTO walks (name, after) VALUES (?1, ?2) \
             ON CONFLICT (name) DO UPDATE SET after = excluded.after WHERE after <> excluded.after";
        self.query(Statement::new(NOTE, [name.into(), position.get().to_string().into()])).await.map(drop)
    }

    /// Notes whether something of this name is left, which is no walk's; costs nothing where that is known.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn note_left(&self, name: &str, walked: &Walked, is_left: bool) -> Result<(), DatabaseError> {
        const LEFT: &str = "INSERT INTO walks (name, after) VALUES (?1, '') ON CONFLICT (name) DO NOTHING";
        const DONE: &str = "DELETE FROM walks WHERE name = ?1";
        if is_left == walked.is_left(name) {
            return Ok(());
        }
        self.query(Statement::new(if is_left { LEFT } else { DONE }, [name.into()])).await.map(drop)
    }

    /// Forgets what is old at `now` of the next 1,000 rows of a walk, and notes how far it has come.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn walk_on(&self, walk: &Walk, walked: &mut Walked, now: i64) -> Result<(), DatabaseError> {
        let after = walked.after(walk).to_owned();
        let statements = vec![
            Statement::new(walk.advance, [after.as_str().into(), START.into()]),
            Statement::new(walk.forget, [after.into(), now.saturating_sub(walk.keep_ms).into()]),
        ];
        let answers = self.batch(statements).await?;
        let row = answers.first().and_then(|rows| rows.first());
        let after = row.ok_or_else(|| DatabaseError::Shape("a walk that leads nowhere".to_owned()))?.text(0)?;
        walked.0.insert(walk.table.to_owned(), after.to_owned());
        Ok(())
    }
}
