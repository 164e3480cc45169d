//! The transaction queue: who has something to hear, and what.
//!
//! The outbox is one log; a destination is a cursor into it. A destination's row also holds the transaction in flight,
//! by the positions that it covers, so that a retry is the same transaction; how large the next one may be; and a lease, by
//! the database's clock, so that one isolate at a time sends to it.
//!
//! A transaction carries events, or the EDUs that wait for the destination ([`super::edu_outbox`]), which come first: messages to
//! devices hold the keys to the events that follow them. But where the last of them were refused for good, the events do not wait for all
//! the others to be refused too: all of them come before the next EDU. Whoever was away then gets the newest events ([`super::catching_up`]).

use std::borrow::Cow;

use super::{
    Answers, Store,
    events::{shown_columns, shown_text},
    lacking,
    new_shares::{self, NewShare},
};
use crate::{
    matrix::identifiers::{RoomId, ServerName},
    platform::{DatabaseError, Row, Rows, SqlValue, Statement},
};

/// How long a destination stays leased to the isolate that sends to it, in milliseconds: longer than a request may take.
const LEASE_MS: i64 = 90_000;

/// How long the EDUs of a transaction may be together, in characters; one may be longer.
const MAX_EDUS_LENGTH: i64 = 2_000_000;

/// A transaction to send (again).
#[derive(Debug, Clone)]
pub struct OutgoingTransaction {
    /// Its id.
    pub txn_id: String,
    /// Its `origin_server_ts`.
    pub origin_server_ts: i64,
    /// Its PDUs, in the order in which they were committed; at most 50.
    pub pdus: Vec<OutgoingPdu>,
    /// Its EDUs, in order; at most 100. Where there are any, there are no PDUs.
    pub edus: Vec<OutgoingEdu>,
    /// How many attempts to reach the destination have failed in a row.
    pub failures: i64,
    /// How often the destination has refused it, and when it did so first.
    pub refused: Option<Refused>,
    /// Whether it holds only, or begins with, what a larger transaction held that was refused for good.
    pub is_suspect: bool,
    /// Whether its PDUs are the newest of their rooms, out of turn ([`super::catching_up`]).
    pub is_newest: bool,
}

/// With what a destination refuses a transaction that it may never take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// With 400.
    Malformed,
    /// With 500 at least once, though it may take others: it fails over one of the EDUs.
    Failing,
}

/// How a destination has refused a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    /// With what.
    pub with: Refusal,
    /// How often.
    pub times: i64,
    /// Since when.
    pub since: i64,
}

impl Refused {
    /// `refusals` of a row counts below zero once there was a 500.
    fn read(refusals: i64, since: Option<i64>) -> Option<Self> {
        let with = if refusals < 0 { Refusal::Failing } else { Refusal::Malformed };
        Some(Self { with, times: refusals.abs(), since: since.filter(|_| refusals != 0)? })
    }
}

/// One PDU of a transaction to send.
#[derive(Debug, Clone)]
pub struct OutgoingPdu {
    /// Its event id.
    pub event_id: String,
    /// Its text.
    pub json: String,
}

/// One EDU of a transaction to send.
#[derive(Debug, Clone)]
pub struct OutgoingEdu {
    /// Its type.
    pub edu_type: String,
    /// The text of its content.
    pub content: String,
}

/// What became of the transaction that was sent before the one that is asked for now.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// There was none.
    None,
    /// The destination has taken it.
    Taken {
        /// Its id.
        txn_id: String,
        /// Whether the destination was away before: if it lacks much, it gets the newest of that first.
        was_away: bool,
    },
    /// The destination will never take it: the next one covers less.
    Halved {
        /// Its id.
        txn_id: String,
        /// How many PDUs the next one may hold, or EDUs if it held those.
        at_most: i64,
        /// Whether the events that it covered are halved again without asking for long, if they are refused again.
        is_suspect: bool,
        /// Of what kind it was.
        carried: Carried,
    },
    /// The destination will never take it, and it was of newest events: what it lacks follows in order.
    NewestRefused {
        /// Its id.
        txn_id: String,
    },
    /// The destination will never take its only event or EDU, which is left out.
    LeftOut {
        /// Its id.
        txn_id: String,
        /// Of what kind it was.
        carried: Carried,
    },
}

impl Outcome {
    /// Whether the destination will never take the events that it carried: EDUs are tried then, whatever became of those before.
    fn is_of_events_refused(&self) -> bool {
        match self {
            Self::Halved { carried, .. } | Self::LeftOut { carried, .. } => *carried == Carried::Events,
            Self::NewestRefused { .. } => true,
            Self::None | Self::Taken { .. } => false,
        }
    }
}

/// What a transaction carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carried {
    /// PDUs.
    Events,
    /// EDUs.
    Edus,
}

/// A transaction that could not be delivered, and is to be sent again as it is.
#[derive(Debug, Clone, Copy)]
pub struct Failure {
    /// Now, in milliseconds since the epoch.
    pub now: i64,
    /// When it is tried again.
    pub retry_at: i64,
    /// Not before this time, even where the destination is heard from.
    pub not_before: i64,
    /// With what the destination refused it, if it did.
    pub refusal: Option<Refusal>,
}

/// The servers that have something to hear of a room.
#[derive(Debug, Clone, Default)]
pub struct Due {
    /// Those that had heard everything until now.
    pub fresh: Vec<ServerName>,
    /// Those that failed, or were left with a rest.
    pub behind: Vec<ServerName>,
    /// Who has come into the room whose devices are still to be told.
    pub share: Option<NewShare>,
}

/// Who asks for work, and when.
#[derive(Debug, Clone, Copy)]
pub struct Claim<'a> {
    /// The destination.
    pub destination: &'a ServerName,
    /// A name of this sender that nobody else has.
    pub owner: &'a str,
    /// The id for a transaction that begins now.
    pub new_txn_id: &'a str,
    /// Milliseconds since the epoch.
    pub now: i64,
}

/// Whether the destination `d` may be tried now, ?2.
macro_rules! is_free {
    () => {
        "COALESCE(d.retry_at, 0) <= ?2 AND COALESCE(d.lease_until, 0) <= unixepoch() * 1000"
    };
}
pub(super) use is_free;

/// ?1: this server's name, ?2: now, ?3: the room.
const DUE: &str = concat!(
    "SELECT DISTINCT s.server, COALESCE(d.behind, 0) FROM rooms AS r CROSS JOIN room_servers AS s ON s.room_id = r.room_id \
       LEFT JOIN destinations AS d ON d.destination = s.server \
     WHERE r.room_id = ?3 AND s.server <> ?1 \
       AND MIN(r.outbox_pos, COALESCE(s.to_pos, r.outbox_pos)) > MAX(s.from_pos, COALESCE(d.cursor, 0)) AND ",
    is_free!()
);

const KNOW: &str = "INSERT INTO destinations (destination) VALUES (?1) ON CONFLICT (destination) DO NOTHING";

/// Before the destination's row says that the transaction has ended: the EDUs that it carried, if any.
const EDUS_DONE: &str = "\
    DELETE FROM edu_outbox WHERE destination = ?1 AND pos <= \
      (SELECT txn_edus FROM destinations WHERE destination = ?1 AND lease_owner = ?2 AND txn_id = ?3)";

const TAKEN: &str = "\
    UPDATE destinations SET cursor = COALESCE(txn_to, cursor), txn_id = NULL, txn_to = NULL, txn_edus = NULL, txn_ts = NULL, \
      caught_up = COALESCE(txn_newest, caught_up), txn_newest = NULL, \
      failures = 0, retry_at = 0, not_before = 0, refusals = 0, refused_since = NULL, \
      max_pdus = CASE WHEN txn_edus IS NULL THEN MIN(max_pdus + 1, 50) ELSE max_pdus END, \
      max_edus = CASE WHEN txn_edus IS NULL THEN max_edus ELSE MIN(max_edus * 2, 100) END, \
      refused_to = CASE WHEN txn_to IS NULL OR refused_to > txn_to THEN refused_to END \
    WHERE destination = ?1 AND lease_owner = ?2 AND txn_id = ?3";

/// ?4: the most PDUs or EDUs from now on, ?5: whether the events that the transaction covered are suspect.
const HALVED: &str = "\
    UPDATE destinations SET txn_id = NULL, txn_to = NULL, txn_edus = NULL, txn_ts = NULL, refusals = 0, refused_since = NULL, \
      max_pdus = CASE WHEN txn_edus IS NULL THEN ?4 ELSE max_pdus END, \
      max_edus = CASE WHEN txn_edus IS NULL THEN max_edus ELSE ?4 END, \
      refused_to = CASE WHEN ?5 AND txn_to IS NOT NULL THEN MAX(COALESCE(refused_to, 0), txn_to) ELSE refused_to END \
    WHERE destination = ?1 AND lease_owner = ?2 AND txn_id = ?3";

/// With the event that was refused the suspicion goes too: what follows it is judged by itself. After an EDU the next one travels alone.
const LEFT_OUT: &str = "\
    UPDATE destinations SET cursor = COALESCE(txn_to, cursor), txn_id = NULL, txn_to = NULL, txn_edus = NULL, txn_ts = NULL, \
      refusals = 0, refused_since = NULL, refused_to = CASE WHEN txn_to IS NULL THEN refused_to END, \
      max_edus = CASE WHEN txn_edus IS NULL THEN max_edus ELSE 1 END, failures = 0, retry_at = 0, not_before = 0 \
    WHERE destination = ?1 AND lease_owner = ?2 AND txn_id = ?3";

const LEASE: &str = "\
    UPDATE destinations SET lease_until = unixepoch() * 1000 + ?3, lease_owner = ?2 \
    WHERE destination = ?1 AND retry_at <= ?4 AND (lease_until <= unixepoch() * 1000 OR lease_owner = ?2)";

/// The outbox positions that the destination `d` has not had. They are found in the outbox, of which little is new, and not
/// through the rooms that the destination is in, which may be thousands.
macro_rules! pending {
    () => {
        "FROM outbox AS o CROSS JOIN room_servers AS s ON s.room_id = o.room_id AND s.server = d.destination \
           AND s.from_pos < o.pos AND o.pos <= COALESCE(s.to_pos, o.pos) \
         WHERE o.pos > d.cursor AND (o.exclude IS NULL OR o.exclude <> d.destination)"
    };
}
pub(super) use pending;

/// Begins a transaction of the first EDUs that wait, where none is in flight: of so many characters, ?5, and always of one. ?6: not where
/// only one may travel, as the last ones were refused for good and none has been taken since.
const BEGIN_EDUS: &str = "\
    UPDATE destinations SET txn_id = ?3, txn_ts = ?4, txn_edus = (SELECT MAX(pos) FROM ( \
      SELECT pos, SUM(length) OVER (ORDER BY pos) AS sum, row_number() OVER (ORDER BY pos) AS nth FROM ( \
        SELECT pos, length(content) AS length FROM edu_outbox WHERE destination = ?1 \
        ORDER BY pos LIMIT (SELECT max_edus FROM destinations WHERE destination = ?1))) WHERE nth = 1 OR sum <= ?5) \
    WHERE destination = ?1 AND lease_owner = ?2 AND txn_id IS NULL AND NOT (?6 AND max_edus = 1) \
      AND EXISTS (SELECT 1 FROM edu_outbox WHERE destination = ?1)";

/// Begins a transaction of events where none is in flight; whoever was catching up has done so. Where there is nothing to send the
/// cursor moves to the end.
const BEGIN: &str = concat!(
    "UPDATE destinations AS d SET txn_id = ?3, txn_ts = ?4, catch_up_to = NULL, caught_up = NULL, \
       txn_to = (SELECT MAX(pos) FROM (SELECT o.pos AS pos ",
    pending!(),
    " ORDER BY o.pos LIMIT (SELECT max_pdus FROM destinations WHERE destination = ?1))) \
     WHERE d.destination = ?1 AND d.lease_owner = ?2 AND d.txn_id IS NULL AND EXISTS (SELECT 1 ",
    pending!(),
    ")"
);

/// Nothing is left: the lease ends in the same batch that saw so, and whoever commits more after it can take the lease.
const RELEASE: &str = "\
    UPDATE destinations SET lease_until = 0, lease_owner = NULL, behind = 0, catch_up_to = NULL, caught_up = NULL, \
      cursor = (SELECT position FROM streams WHERE name = 'outbox') \
    WHERE destination = ?1 AND lease_owner = ?2 AND txn_id IS NULL";

const IN_FLIGHT: &str = "\
    SELECT txn_id, txn_ts, failures, refusals, refused_since, \
      txn_edus IS NULL AND txn_newest IS NULL AND COALESCE(refused_to, 0) > cursor AS suspect, txn_newest IS NOT NULL \
    FROM destinations \
    WHERE destination = ?1 AND lease_owner = ?2 AND retry_at <= ?3 AND txn_id IS NOT NULL";

const PDUS: &str = concat!(
    "SELECT ",
    shown_columns!(),
    " FROM destinations AS d CROSS JOIN outbox AS o ON o.pos > d.cursor AND o.pos <= d.txn_to \
      CROSS JOIN room_servers AS s ON s.room_id = o.room_id AND s.server = d.destination \
        AND s.from_pos < o.pos AND o.pos <= COALESCE(s.to_pos, o.pos) \
      CROSS JOIN events AS e ON e.event_nid = o.event_nid CROSS JOIN rooms AS r ON r.room_id = e.room_id \
    WHERE d.destination = ?1 AND d.lease_owner = ?2 AND (o.exclude IS NULL OR o.exclude <> d.destination) \
    ORDER BY o.pos"
);

const EDUS: &str = "\
    SELECT o.edu_type, o.content FROM destinations AS d \
      CROSS JOIN edu_outbox AS o ON o.destination = d.destination AND o.pos <= d.txn_edus \
    WHERE d.destination = ?1 AND d.lease_owner = ?2 ORDER BY o.pos";

/// ?5: 1 where it was refused with 400, -1 where with 500, else 0; ?6: now.
const FAIL: &str = "\
    UPDATE destinations SET failures = failures + 1, retry_at = ?3, not_before = ?4, \
      refusals = CASE WHEN ?5 > 0 AND refusals < 0 THEN refusals - 1 WHEN ?5 < 0 THEN -abs(refusals) - 1 \
        ELSE refusals + ?5 END, \
      refused_since = CASE WHEN ?5 <> 0 THEN COALESCE(refused_since, ?6) ELSE refused_since END, \
      behind = 1, lease_until = 0, lease_owner = NULL \
    WHERE destination = ?1 AND lease_owner = ?2";

/// The destination goes to the end of those that wait.
const PAUSE: &str = "\
    UPDATE destinations SET behind = 1, retry_at = ?3, lease_until = 0, lease_owner = NULL \
    WHERE destination = ?1 AND lease_owner = ?2";

/// How often it has failed is not forgotten: a server that fails while it sends to us is still failing.
const HEARD_FROM: &str = "\
    UPDATE destinations SET retry_at = not_before WHERE destination = ?1 AND retry_at > not_before \
    RETURNING not_before";

impl Store {
    /// The servers that have something to hear of this room and may be tried at `now`; and who has come into it whose devices
    /// are still to be told.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn due(&self, own: &ServerName, now: i64, room_id: &RoomId) -> Result<Due, DatabaseError> {
        let lacking = Statement::new(DUE, [own.as_str().into(), now.into(), room_id.as_str().into()]);
        let mut answers = Answers::new(self.batch(vec![lacking, new_shares::first(Some(room_id))]).await?);
        let mut due = Due::default();
        for row in &answers.rows()? {
            let of_its_kind = if row.integer(1)? == 0 { &mut due.fresh } else { &mut due.behind };
            of_its_kind.extend(ServerName::parse(row.text(0)?).ok());
        }
        due.share = new_shares::read(&answers.rows()?)?;
        Ok(due)
    }

    /// Takes the lease of a destination and the transaction to send to it: the one in flight, else the next. `None` where
    /// somebody else has the lease, or nothing is to be sent. `outcome` is what became of the transaction that this lease
    /// gave before. One round trip.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn claim(
        &self,
        claim: Claim<'_>,
        outcome: &Outcome,
    ) -> Result<Option<OutgoingTransaction>, DatabaseError> {
        let mut statements = claim.statements(outcome);
        statements.push(Statement::new(IN_FLIGHT, claim.parameters([claim.now.into()])));
        statements.push(Statement::new(PDUS, claim.parameters([])));
        statements.push(Statement::new(EDUS, claim.parameters([])));
        let answers = self.batch(statements).await?;
        let [.., in_flight, pdus, edus] = &answers[..] else { return Err(lacking()) };
        let Some(row) = in_flight.first() else { return Ok(None) };
        let is_newest = row.integer(6)? != 0;
        let pdus = match is_newest {
            true => self.newest_pdus(claim).await?,
            false => pdus.iter().map(outgoing_pdu).collect::<Result<_, DatabaseError>>()?,
        };
        let edu = |row: &Row| Ok(OutgoingEdu { edu_type: row.text(0)?.to_owned(), content: row.text(1)?.to_owned() });
        Ok(Some(OutgoingTransaction {
            txn_id: row.text(0)?.to_owned(),
            origin_server_ts: row.integer(1)?,
            failures: row.integer(2)?,
            refused: Refused::read(row.integer(3)?, row.optional_integer(4)?),
            is_suspect: row.integer(5)? != 0,
            is_newest,
            pdus,
            edus: edus.iter().map(edu).collect::<Result<_, DatabaseError>>()?,
        }))
    }

    /// Notes that a transaction could not be delivered, and ends the lease.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn fail(&self, destination: &ServerName, owner: &str, failure: Failure) -> Result<(), DatabaseError> {
        let parameters = [
            destination.as_str().into(),
            owner.into(),
            failure.retry_at.into(),
            failure.not_before.into(),
            match failure.refusal {
                Some(Refusal::Malformed) => 1,
                Some(Refusal::Failing) => -1,
                None => 0,
            }
            .into(),
            failure.now.into(),
        ];
        self.query(Statement::new(FAIL, parameters)).await.map(drop)
    }

    /// Ends the lease where more may be left to be sent, which somebody else goes on with. `outcome` is as for
    /// [`Store::claim`].
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn hand_over(&self, claim: Claim<'_>, outcome: &Outcome) -> Result<(), DatabaseError> {
        let mut statements = claim.statements(outcome);
        statements.push(Statement::new(PAUSE, claim.parameters([claim.now.into()])));
        self.batch(statements).await.map(drop)
    }

    /// Notes that a server is there, so that what it has not had may be sent at once. Whether there is something, and
    /// the server has not asked to be left alone.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn heard_from(&self, server: &ServerName, now: i64) -> Result<bool, DatabaseError> {
        is_back(&self.query(heard_from(server)).await?, now)
    }
}

impl Claim<'_> {
    pub(super) fn parameters<const N: usize>(&self, more: [SqlValue; N]) -> Vec<SqlValue> {
        [self.destination.as_str().into(), self.owner.into()].into_iter().chain(more).collect()
    }

    /// Writes down the outcome, takes the lease, begins the next transaction, and ends the lease where there is none.
    fn statements(&self, outcome: &Outcome) -> Vec<Statement> {
        let mut statements = match outcome {
            Outcome::None => vec![Statement::new(KNOW, [self.destination.as_str().into()])],
            Outcome::Taken { txn_id, was_away } => {
                let mut statements = self.done(TAKEN, txn_id);
                statements.extend(was_away.then(|| self.start_catching_up()));
                statements
            }
            Outcome::Halved { txn_id, at_most, is_suspect, .. } => {
                let parameters = [txn_id.as_str().into(), (*at_most).into(), (*is_suspect).into()];
                vec![Statement::new(HALVED, self.parameters(parameters))]
            }
            Outcome::NewestRefused { txn_id } => vec![self.give_up_catching_up(txn_id)],
            Outcome::LeftOut { txn_id, .. } => self.done(LEFT_OUT, txn_id),
        };
        statements.extend([
            Statement::new(LEASE, self.parameters([LEASE_MS.into(), self.now.into()])),
            self.begin_edus(outcome.is_of_events_refused()),
            self.begin_newest(),
            Statement::new(BEGIN, self.parameters([self.new_txn_id.into(), self.now.into()])),
            self.begin_edus(true),
            Statement::new(RELEASE, self.parameters([])),
        ]);
        statements
    }

    /// Begins the next transaction of EDUs, though the last ones were refused, or not then.
    fn begin_edus(&self, though_refused: bool) -> Statement {
        let parameters = [self.new_txn_id.into(), self.now.into(), MAX_EDUS_LENGTH.into(), (!though_refused).into()];
        Statement::new(BEGIN_EDUS, self.parameters(parameters))
    }

    /// What the transaction carried is behind the destination.
    fn done(&self, outcome: &'static str, txn_id: &str) -> Vec<Statement> {
        [EDUS_DONE, outcome].map(|sql| Statement::new(sql, self.parameters([txn_id.into()]))).into()
    }
}

/// A PDU of a row of [`shown_columns`].
pub(super) fn outgoing_pdu(row: &Row) -> Result<OutgoingPdu, DatabaseError> {
    Ok(OutgoingPdu { event_id: row.text(1)?.to_owned(), json: shown_text(row).map(Cow::into_owned)? })
}

/// Names of servers, in the first column.
pub(super) fn names(rows: &Rows) -> Result<Vec<ServerName>, DatabaseError> {
    let mut servers = Vec::with_capacity(rows.len());
    for row in rows {
        servers.extend(ServerName::parse(row.text(0)?).ok());
    }
    Ok(servers)
}

/// Lets what a server has not had be sent as soon as it may; [`is_back`] reads the answer.
pub(super) fn heard_from(server: &ServerName) -> Statement {
    Statement::new(HEARD_FROM, [server.as_str().into()])
}

/// Whether a server that was heard from lacks something that may be sent to it at `now`.
pub(super) fn is_back(rows: &Rows, now: i64) -> Result<bool, DatabaseError> {
    rows.first().map_or(Ok(false), |row| Ok(row.integer(0)? <= now))
}
