//! Backups of room keys, which clients encrypt: versions, and the keys in them.

use serde_json::json;

use super::{
    Store,
    answer_texts::{BYTES_AT_ONCE, MAX_ANSWER},
    json_lists,
};
use crate::platform::{DatabaseError, Row, SqlValue, Statement};

/// A version of a user's backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupVersion {
    /// Its number.
    pub version: i64,
    /// How it is encrypted.
    pub algorithm: String,
    /// With what, as JSON.
    pub auth_data: String,
    /// What it holds.
    pub count: BackupCount,
}

/// What a backup holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackupCount {
    /// A number that moves with each change of the keys.
    pub etag: i64,
    /// How many keys there are.
    pub sessions: i64,
}

/// A key in a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackedUpSession {
    /// The room,
    pub room_id: String,
    /// and session.
    pub session_id: String,
    /// `first_message_index`
    pub first_message_index: i64,
    /// `forwarded_count`
    pub forwarded_count: i64,
    /// `is_verified`
    pub is_verified: bool,
    /// `session_data`, as JSON.
    pub session_data: String,
}

/// Which keys of a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which<'a> {
    /// All of them.
    All,
    /// Those of a room.
    Room(&'a str),
    /// The one of a session in a room.
    Session(&'a str, &'a str),
}

/// Why keys were not stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotStored {
    /// The backup would hold more than one may.
    Full,
    /// There is no such version.
    NoVersion,
}

/// Why keys were not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotRead {
    /// They are more than an answer holds.
    TooLarge,
    /// There is no such version.
    NoVersion,
}

/// How long the keys of a version may be together, in bytes, each with [`OVERHEAD`] for its names: what can be answered with at once.
const MAX_LENGTH: i64 = 24_000_000;
const OVERHEAD: i64 = 250;
/// How many keys are read at a time.
const PAGE: i64 = 2_000;
/// What a key has beside its data and names, and an answer beside its keys.
const BESIDE_NAMES: usize = 130;
const BESIDE_KEYS: usize = 64;

/// How many versions a user may have. Clients use the newest, and delete the one before.
const MAX_VERSIONS: i64 = 10;

/// ?4: how many versions there may be.
const CREATE: [&str; 2] = [
    "INSERT INTO key_backup_versions (user_id, newest) VALUES (?1, 1) \
     ON CONFLICT (user_id) DO UPDATE SET newest = newest + 1",
    "INSERT INTO key_backups (user_id, version, algorithm, auth_data, etag, sessions, length) \
     SELECT ?1, newest, ?2, ?3, 0, 0, 0 FROM key_backup_versions \
     WHERE user_id = ?1 AND (SELECT count(*) FROM key_backups WHERE user_id = ?1) < ?4 RETURNING version",
];

const NEWEST: &str = "\
    SELECT version, algorithm, auth_data, etag, sessions FROM key_backups \
    WHERE user_id = ?1 AND (?2 IS NULL OR version = ?2) ORDER BY version DESC LIMIT 1";

/// The keys in ?3, a list of [room, session, first index, forwarded, verified, data], that are not there, or are better than those
/// that are: verified ones, then those that decrypt more, then those that fewer have handed on.
macro_rules! better {
    () => {
        "FROM json_each(?3) AS k LEFT JOIN key_backup_sessions AS s ON s.user_id = ?1 AND s.version = ?2 \
           AND s.room_id = k.value ->> 0 AND s.session_id = k.value ->> 1 \
         WHERE (s.session_id IS NULL OR (k.value ->> 4, - (k.value ->> 2), - (k.value ->> 3)) \
           > (s.is_verified, - s.first_message_index, - s.forwarded_count))"
    };
}

/// ?4: the most, ?5: what a key counts for besides its length. Breaks the constraint where it would be too much.
const COUNT_IN: &str = concat!(
    "UPDATE key_backups AS b SET etag = etag + 1, sessions = sessions + n.new, \
       length = CASE WHEN length + n.longer <= ?4 THEN length + n.longer END \
     FROM (SELECT count(*) AS changed, SUM(s.session_id IS NULL) AS new, \
       SUM(octet_length(k.value ->> 5) - COALESCE(octet_length(s.session_data), - ?5)) AS longer ",
    better!(),
    ") AS n WHERE b.user_id = ?1 AND b.version = ?2 AND n.changed > 0"
);

const PUT: &str = concat!(
    "INSERT INTO key_backup_sessions (user_id, version, room_id, session_id, first_message_index, forwarded_count, \
       is_verified, session_data) \
     SELECT b.user_id, b.version, n.room_id, n.session_id, n.first_index, n.forwarded, n.verified, n.data \
     FROM (SELECT k.value ->> 0 AS room_id, k.value ->> 1 AS session_id, k.value ->> 2 AS first_index, \
       k.value ->> 3 AS forwarded, k.value ->> 4 AS verified, k.value ->> 5 AS data ",
    better!(),
    ") AS n CROSS JOIN key_backups AS b ON b.user_id = ?1 AND b.version = ?2 WHERE true \
     ON CONFLICT (user_id, version, room_id, session_id) DO UPDATE SET first_message_index = excluded.first_message_index, \
       forwarded_count = excluded.forwarded_count, is_verified = excluded.is_verified, session_data = excluded.session_data"
);

/// The sentence of the constraint that [`COUNT_IN`] breaks.
const FULL: &str = "NOT NULL constraint failed: key_backups.length";

const COUNT: &str = "SELECT etag, sessions FROM key_backups WHERE user_id = ?1 AND version = ?2";

/// How long all keys of a version are together.
const LENGTH: &str = "SELECT length FROM key_backups WHERE user_id = ?1 AND version = ?2";

/// The same for those of which this holds. ?3: the room, ?4: the session, where there is one; ?5: what a key counts for besides its length.
macro_rules! length {
    ($where:literal) => {
        concat!(
            "SELECT (SELECT COALESCE(SUM(octet_length(session_data) + ?5), 0) FROM key_backup_sessions \
               WHERE user_id = ?1 AND version = ?2 AND ",
            $where,
            ") FROM key_backups WHERE user_id = ?1 AND version = ?2"
        )
    };
}

const LENGTH_OF_ROOM: &str = length!("room_id = ?3");
const LENGTH_OF_SESSION: &str = length!("room_id = ?3 AND session_id = ?4");

/// The keys of which this holds. ?3: the room, ?4: the session, where there is one; ?5, ?6: after which room and session; ?7: how
/// many, and ?8: how many bytes of them, of which one key never has more. No data is read to measure it.
macro_rules! sessions {
    ($where:literal) => {
        concat!(
            "WITH measured(room_id, session_id, upto) AS ( \
               SELECT room_id, session_id, SUM(bytes) OVER (ORDER BY room_id, session_id) FROM ( \
                 SELECT room_id, session_id, octet_length(session_data) AS bytes FROM key_backup_sessions \
                 WHERE user_id = ?1 AND version = ?2 AND ",
            $where,
            " ORDER BY room_id, session_id LIMIT ?7)) \
             SELECT s.room_id, s.session_id, s.first_message_index, s.forwarded_count, s.is_verified, s.session_data, \
               (SELECT MAX(upto) > ?8 OR count(*) = ?7 FROM measured) AS is_cut \
             FROM measured AS m CROSS JOIN key_backup_sessions AS s \
               ON s.user_id = ?1 AND s.version = ?2 AND s.room_id = m.room_id AND s.session_id = m.session_id \
             WHERE m.upto <= ?8 ORDER BY m.room_id, m.session_id"
        )
    };
}

const SESSIONS: &str = sessions!("(room_id, session_id) > (?5, ?6)");
const SESSIONS_OF_ROOM: &str = sessions!("room_id = ?3 AND session_id > ?6");
const SESSION: &str = sessions!("room_id = ?3 AND session_id = ?4 AND session_id > ?6");

/// Before they are deleted. Parameters as for [`length`].
macro_rules! count_out {
    ($where:literal) => {
        concat!(
            "UPDATE key_backups AS b SET etag = etag + 1, sessions = sessions - n.gone, length = length - n.shorter \
             FROM (SELECT count(*) AS gone, SUM(octet_length(session_data) + ?5) AS shorter FROM key_backup_sessions \
               WHERE user_id = ?1 AND version = ?2",
            $where,
            ") AS n WHERE b.user_id = ?1 AND b.version = ?2 AND n.gone > 0"
        )
    };
}

const COUNT_OUT: &str = count_out!("");
const COUNT_OUT_ROOM: &str = count_out!(" AND room_id = ?3");
const COUNT_OUT_SESSION: &str = count_out!(" AND room_id = ?3 AND session_id = ?4");

const DELETE: &str = "DELETE FROM key_backup_sessions WHERE user_id = ?1 AND version = ?2";
const DELETE_ROOM: &str = "DELETE FROM key_backup_sessions WHERE user_id = ?1 AND version = ?2 AND room_id = ?3";
const DELETE_SESSION: &str = "\
    DELETE FROM key_backup_sessions WHERE user_id = ?1 AND version = ?2 AND room_id = ?3 AND session_id = ?4";

impl Store {
    /// Begins a new version, and returns its number; `None` where the user has as many as one may have.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn new_backup(&self, user: &str, algorithm: &str, auth_data: &str) -> Result<Option<i64>, DatabaseError> {
        let [next, insert] = CREATE;
        let parameters = [user.into(), algorithm.into(), auth_data.into(), MAX_VERSIONS.into()];
        let answers = self.batch(vec![Statement::new(next, [user.into()]), Statement::new(insert, parameters)]).await?;
        answers.last().and_then(|rows| rows.first()).map(|row| row.integer(0)).transpose()
    }

    /// A version, or the newest.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn backup(&self, user: &str, version: Option<i64>) -> Result<Option<BackupVersion>, DatabaseError> {
        let rows = self.query(Statement::new(NEWEST, [user.into(), version.into()])).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        Ok(Some(BackupVersion {
            version: row.integer(0)?,
            algorithm: row.text(1)?.to_owned(),
            auth_data: row.text(2)?.to_owned(),
            count: BackupCount { etag: row.integer(3)?, sessions: row.integer(4)? },
        }))
    }

    /// Replaces what a version is encrypted with.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn put_backup(&self, user: &str, version: i64, auth_data: &str) -> Result<(), DatabaseError> {
        const UPDATE: &str = "UPDATE key_backups SET auth_data = ?3 WHERE user_id = ?1 AND version = ?2";
        self.query(Statement::new(UPDATE, [user.into(), version.into(), auth_data.into()])).await.map(drop)
    }

    /// Deletes a version with its keys. `false` where there is none.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn delete_backup(&self, user: &str, version: i64) -> Result<bool, DatabaseError> {
        const DROP: &str = "DELETE FROM key_backups WHERE user_id = ?1 AND version = ?2 RETURNING version";
        let of = || -> [SqlValue; 2] { [user.into(), version.into()] };
        let answers = self.batch(vec![Statement::new(DELETE, of()), Statement::new(DROP, of())]).await?;
        Ok(answers.last().is_some_and(|rows| !rows.is_empty()))
    }

    /// Stores keys in a version, unless better ones are there.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn put_backup_sessions(
        &self,
        user: &str,
        version: i64,
        sessions: &[BackedUpSession],
    ) -> Result<Result<BackupCount, NotStored>, DatabaseError> {
        let item = |of: &BackedUpSession| {
            let BackedUpSession { room_id, session_id, first_message_index, forwarded_count, .. } = of;
            let (verified, data) = (i64::from(of.is_verified), &of.session_data);
            json!([room_id, session_id, first_message_index, forwarded_count, verified, data]).to_string()
        };
        let mut statements = Vec::new();
        for list in json_lists(sessions.iter().map(item)) {
            let mut parameters: Vec<SqlValue> = vec![user.into(), version.into(), list.into()];
            statements.push(Statement::new(PUT, parameters.clone()));
            parameters.extend([MAX_LENGTH.into(), OVERHEAD.into()]);
            // What is new is counted before it is there.
            statements.insert(statements.len() - 1, Statement::new(COUNT_IN, parameters));
        }
        statements.push(Statement::new(COUNT, [user.into(), version.into()]));
        match self.batch(statements).await {
            Ok(answers) => match answers.last().and_then(|rows| rows.first()) {
                Some(row) => Ok(Ok(count(row)?)),
                None => Ok(Err(NotStored::NoVersion)),
            },
            Err(DatabaseError::Constraint(why)) if why.contains(FULL) => Ok(Err(NotStored::Full)),
            Err(error) => Err(error),
        }
    }

    /// Writes keys of a version to `text`, by room and session; several calls where there are many. Each is let go of once it is
    /// written.
    ///
    /// # Errors
    /// Where the database fails; [`DatabaseError::NoRoom`].
    pub async fn write_backup(
        &self,
        user: &str,
        version: i64,
        which: Which<'_>,
        text: &mut String,
        write: &mut dyn FnMut(&mut String, &BackedUpSession),
    ) -> Result<Result<(), NotRead>, DatabaseError> {
        let mut parameters = which.parameters(user, version);
        parameters.push(OVERHEAD.into());
        let (length, sql) = match which {
            Which::All => (Statement::new(LENGTH, [user.into(), version.into()]), SESSIONS),
            Which::Room(_) => (Statement::new(LENGTH_OF_ROOM, parameters), SESSIONS_OF_ROOM),
            Which::Session(..) => (Statement::new(LENGTH_OF_SESSION, parameters), SESSION),
        };
        let rows = self.query(length).await?;
        let Some(row) = rows.first() else { return Ok(Err(NotRead::NoVersion)) };
        let bytes = usize::try_from(row.integer(0)?).unwrap_or_default();
        if bytes > MAX_ANSWER {
            return Ok(Err(NotRead::TooLarge));
        }
        let held = self.room_for_users_answer(bytes)?;
        // No more than is needed: a text that grows by itself takes twice its length.
        text.reserve_exact(bytes + BESIDE_KEYS);
        let mut last = (String::new(), String::new());
        loop {
            let mut parameters = which.parameters(user, version);
            parameters.extend([last.0.into(), last.1.into(), PAGE.into(), BYTES_AT_ONCE.into()]);
            let rows = self.query(Statement::new(sql, parameters)).await?;
            let is_cut = rows.last().map(|row| row.integer(6)).transpose()?.is_some_and(|is_cut| is_cut != 0);
            // Names may be longer than they were counted for, and keys may have come.
            let bytes = rows.iter().map(written_bytes).sum::<Result<usize, _>>()?;
            if text.len() + bytes > MAX_ANSWER {
                return Ok(Err(NotRead::TooLarge));
            }
            self.hold_for_answer(held.as_ref(), text.len() + bytes)?;
            text.reserve_exact(bytes + BESIDE_KEYS);
            last = Default::default();
            for row in rows {
                let session = BackedUpSession {
                    room_id: row.text(0)?.to_owned(),
                    session_id: row.text(1)?.to_owned(),
                    first_message_index: row.integer(2)?,
                    forwarded_count: row.integer(3)?,
                    is_verified: row.integer(4)? != 0,
                    session_data: row.text(5)?.to_owned(),
                };
                write(text, &session);
                last = (session.room_id, session.session_id);
            }
            if !is_cut {
                return Ok(Ok(()));
            }
        }
    }

    /// Deletes keys of a version. `None` where there is no such version.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn delete_backup_sessions(
        &self,
        user: &str,
        version: i64,
        which: Which<'_>,
    ) -> Result<Option<BackupCount>, DatabaseError> {
        let mut counted = which.parameters(user, version);
        counted.push(OVERHEAD.into());
        let (count_out, delete) = match which {
            Which::All => (COUNT_OUT, Statement::new(DELETE, [user.into(), version.into()])),
            Which::Room(room) => {
                (COUNT_OUT_ROOM, Statement::new(DELETE_ROOM, [user.into(), version.into(), room.into()]))
            }
            Which::Session(..) => (COUNT_OUT_SESSION, Statement::new(DELETE_SESSION, which.parameters(user, version))),
        };
        let statements =
            vec![Statement::new(count_out, counted), delete, Statement::new(COUNT, [user.into(), version.into()])];
        let answers = self.batch(statements).await?;
        answers.last().and_then(|rows| rows.first()).map(count).transpose()
    }
}

impl Which<'_> {
    /// The parameters ?1 to ?4 of statements about them.
    fn parameters(self, user: &str, version: i64) -> Vec<SqlValue> {
        let (room, session) = match self {
            Self::All => (None, None),
            Self::Room(room) => (Some(room), None),
            Self::Session(room, session) => (Some(room), Some(session)),
        };
        vec![user.into(), version.into(), room.into(), session.into()]
    }
}

fn count(row: &Row) -> Result<BackupCount, DatabaseError> {
    Ok(BackupCount { etag: row.integer(0)?, sessions: row.integer(1)? })
}

/// How long the key of this row is at most, once it is written.
fn written_bytes(row: &Row) -> Result<usize, DatabaseError> {
    let name = |column| {
        let name = row.text(column)?;
        let is_plain = name.bytes().all(|byte| byte >= b' ' && byte != b'"' && byte != b'\\');
        // The longest escape of a byte is `\u0000`.
        Ok::<_, DatabaseError>(if is_plain { name.len() } else { 6 * name.len() })
    };
    Ok(name(0)? + name(1)? + row.text(5)?.len() + BESIDE_NAMES)
}
