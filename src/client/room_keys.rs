//! Backups of room keys (Client-Server API, "Server-side key backups").

use http::StatusCode;
use serde_json::json;

use super::{
    auth::{self, Session},
    body::{Body, lacks},
};
use crate::{
    error::MatrixError,
    matrix::{
        identifiers::{MAX_LENGTH, RoomId},
        json::{self, Object, Value},
    },
    router::{Call, Handled, ok, raw_json_response},
    server::Server,
    store::key_backups::{BackedUpSession, BackupCount, BackupVersion, NotRead, NotStored, Which},
};

/// The longest `session_data`, and the longest `auth_data`, in bytes.
const MAX_DATA_BYTES: usize = 65_536;

/// `POST /room_keys/version`
pub(super) async fn create(server: &Server, call: &Call) -> Handled {
    let session = auth::session(server, call).await?;
    let body = Body::of(server, call).await?;
    let (algorithm, auth_data) = (algorithm(&body)?, auth_data(&body)?);
    let version = server.store.new_backup(session.user.as_str(), algorithm, &auth_data).await?;
    let version = version
        .ok_or_else(|| MatrixError::too_large("You have the maximum number of backup versions; delete one first."))?;
    ok(&json!({ "version": version.to_string() }))
}

/// `GET /room_keys/version`: the newest.
pub(super) async fn newest(server: &Server, call: &Call) -> Handled {
    let session = auth::session(server, call).await?;
    told_version(server.store.backup(session.user.as_str(), None).await?)
}

/// `GET /room_keys/version/{version}`
pub(super) async fn version(server: &Server, call: &Call) -> Handled {
    let session = auth::session(server, call).await?;
    told_version(server.store.backup(session.user.as_str(), Some(number(call.parameter(0))?)).await?)
}

/// `PUT /room_keys/version/{version}`
pub(super) async fn update(server: &Server, call: &Call) -> Handled {
    let session = auth::session(server, call).await?;
    let body = Body::of(server, call).await?;
    let (algorithm, auth_data) = (algorithm(&body)?, auth_data(&body)?);
    let text = call.parameter(0);
    if body.text("version")?.is_some_and(|version| version != text) {
        return Err(MatrixError::invalid_param("The version in the body is not the one in the path."));
    }
    let number = number(text)?;
    let backup = server.store.backup(session.user.as_str(), Some(number)).await?.ok_or_else(no_such_version)?;
    if backup.algorithm != algorithm {
        return Err(MatrixError::invalid_param("The algorithm of a backup cannot be changed."));
    }
    server.store.put_backup(session.user.as_str(), number, &auth_data).await?;
    ok(&json!({}))
}

/// `DELETE /room_keys/version/{version}`
pub(super) async fn delete(server: &Server, call: &Call) -> Handled {
    let session = auth::session(server, call).await?;
    if !server.store.delete_backup(session.user.as_str(), number(call.parameter(0))?).await? {
        return Err(no_such_version());
    }
    ok(&json!({}))
}

/// `PUT /room_keys/keys?version=…`
pub(super) async fn put_all(server: &Server, call: &Call) -> Handled {
    let session = auth::session(server, call).await?;
    let mut sessions = Vec::new();
    let body = Body::of(server, call).await?;
    for (room_id, room) in required(&body, "rooms")?.iter() {
        let room = Body::part(room.as_object().ok_or_else(|| MatrixError::bad_json("A room must be an object."))?);
        read_room(room_id, &room, &mut sessions)?;
    }
    put(server, call, &session, &sessions).await
}

/// `PUT /room_keys/keys/{roomId}?version=…`
pub(super) async fn put_room(server: &Server, call: &Call) -> Handled {
    let session = auth::session(server, call).await?;
    let mut sessions = Vec::new();
    read_room(call.parameter(0), &Body::of(server, call).await?, &mut sessions)?;
    put(server, call, &session, &sessions).await
}

/// `PUT /room_keys/keys/{roomId}/{sessionId}?version=…`
pub(super) async fn put_session(server: &Server, call: &Call) -> Handled {
    let session = auth::session(server, call).await?;
    let body = Body::of(server, call).await?;
    let key = read_session(call.parameter(0), call.parameter(1), &body)?;
    put(server, call, &session, &[key]).await
}

/// `GET /room_keys/keys?version=…`
pub(super) async fn get_all(server: &Server, call: &Call) -> Handled {
    let mut text = String::from("{\"rooms\":{");
    let mut room: Option<String> = None;
    let mut write = |text: &mut String, session: &BackedUpSession| {
        if room.as_ref() == Some(&session.room_id) {
            text.push(',');
        } else {
            text.push_str(if room.is_some() { "}}," } else { "" });
            text.push_str(&Value::from(session.room_id.as_str()).to_text());
            text.push_str(":{\"sessions\":{");
            room = Some(session.room_id.clone());
        }
        write_session(text, session);
    };
    get(server, call, Which::All, &mut text, &mut write).await?;
    text.push_str(if room.is_some() { "}}}}" } else { "}}" });
    Ok(raw_json_response(StatusCode::OK, text))
}

/// `GET /room_keys/keys/{roomId}?version=…`
pub(super) async fn get_room(server: &Server, call: &Call) -> Handled {
    let mut text = String::from("{\"sessions\":{");
    let mut is_first = true;
    let mut write = |text: &mut String, session: &BackedUpSession| {
        text.push_str(if std::mem::take(&mut is_first) { "" } else { "," });
        write_session(text, session);
    };
    get(server, call, Which::Room(call.parameter(0)), &mut text, &mut write).await?;
    text.push_str("}}");
    Ok(raw_json_response(StatusCode::OK, text))
}

/// `GET /room_keys/keys/{roomId}/{sessionId}?version=…`
pub(super) async fn get_session(server: &Server, call: &Call) -> Handled {
    let mut text = String::new();
    let which = Which::Session(call.parameter(0), call.parameter(1));
    get(server, call, which, &mut text, &mut told_session).await?;
    if text.is_empty() {
        return Err(MatrixError::not_found("There is no such key in the backup."));
    }
    Ok(raw_json_response(StatusCode::OK, text))
}

/// `DELETE /room_keys/keys?version=…`
pub(super) async fn delete_all(server: &Server, call: &Call) -> Handled {
    delete_keys(server, call, Which::All).await
}

/// `DELETE /room_keys/keys/{roomId}?version=…`
pub(super) async fn delete_room(server: &Server, call: &Call) -> Handled {
    delete_keys(server, call, Which::Room(call.parameter(0))).await
}

/// `DELETE /room_keys/keys/{roomId}/{sessionId}?version=…`
pub(super) async fn delete_session(server: &Server, call: &Call) -> Handled {
    delete_keys(server, call, Which::Session(call.parameter(0), call.parameter(1))).await
}

/// Only the newest version takes keys: another device may have begun one that this one does not know of.
async fn put(server: &Server, call: &Call, session: &Session, sessions: &[BackedUpSession]) -> Handled {
    let version = asked_version(call)?;
    let user = session.user.as_str();
    let newest = server.store.backup(user, None).await?.ok_or_else(no_such_version)?;
    if newest.version != version {
        let message = "This is not the newest version of the backup.";
        return Err(MatrixError::new(StatusCode::FORBIDDEN, "M_WRONG_ROOM_KEYS_VERSION", message)
            .with("current_version", newest.version.to_string()));
    }
    match server.store.put_backup_sessions(user, version, sessions).await? {
        Ok(count) => told_count(count),
        Err(NotStored::NoVersion) => Err(no_such_version()),
        Err(NotStored::Full) => Err(MatrixError::too_large("The backup is full.")),
    }
}

/// Writes the keys as they are read: there may be megabytes.
async fn get(
    server: &Server,
    call: &Call,
    which: Which<'_>,
    text: &mut String,
    write: &mut dyn FnMut(&mut String, &BackedUpSession),
) -> Result<(), MatrixError> {
    let session = auth::session(server, call).await?;
    let version = asked_version(call)?;
    server.store.write_backup(session.user.as_str(), version, which, text, write).await?.map_err(|why| match why {
        NotRead::NoVersion => no_such_version(),
        NotRead::TooLarge => MatrixError::too_large("These keys are too large to be given at once."),
    })
}

async fn delete_keys(server: &Server, call: &Call, which: Which<'_>) -> Handled {
    let session = auth::session(server, call).await?;
    let count = server.store.delete_backup_sessions(session.user.as_str(), asked_version(call)?, which).await?;
    told_count(count.ok_or_else(no_such_version)?)
}

fn read_room(room_id: &str, room: &Body, sessions: &mut Vec<BackedUpSession>) -> Result<(), MatrixError> {
    for (session_id, session) in required(room, "sessions")?.iter() {
        let session = session.as_object().ok_or_else(|| MatrixError::bad_json("A session must be an object."))?;
        sessions.push(read_session(room_id, session_id, &Body::part(session))?);
    }
    Ok(())
}

fn read_session(room_id: &str, session_id: &str, body: &Body) -> Result<BackedUpSession, MatrixError> {
    RoomId::parse(room_id).map_err(|error| MatrixError::invalid_param(format!("{error}.")))?;
    if session_id.is_empty() || session_id.len() > MAX_LENGTH {
        return Err(MatrixError::invalid_param("The session ID must have between 1 and 255 bytes."));
    }
    let number = |name: &str| {
        let number = body.integer(name)?.ok_or_else(|| lacks(name))?;
        let in_range = (0..=json::MAX_INTEGER).contains(&number);
        if in_range { Ok(number) } else { Err(MatrixError::invalid_param(format!("{name:?} is out of range."))) }
    };
    let verified = body.maybe("is_verified")?;
    Ok(BackedUpSession {
        room_id: room_id.to_owned(),
        session_id: session_id.to_owned(),
        first_message_index: number("first_message_index")?,
        forwarded_count: number("forwarded_count")?,
        is_verified: verified.ok_or_else(|| lacks("is_verified"))?,
        session_data: data(required(body, "session_data")?)?,
    })
}

fn algorithm(body: &Body) -> Result<&str, MatrixError> {
    let algorithm = body.required_text("algorithm")?;
    if algorithm.len() > MAX_LENGTH {
        return Err(MatrixError::invalid_param("\"algorithm\" must have at most 255 bytes."));
    }
    Ok(algorithm)
}

fn auth_data(body: &Body) -> Result<String, MatrixError> {
    data(required(body, "auth_data")?)
}

fn data(object: &Object) -> Result<String, MatrixError> {
    let text = object.to_text();
    if text.len() > MAX_DATA_BYTES { Err(MatrixError::too_large("The data is too long.")) } else { Ok(text) }
}

fn required<'a>(body: &'a Body, name: &str) -> Result<&'a Object, MatrixError> {
    body.object(name)?.ok_or_else(|| lacks(name))
}

fn asked_version(call: &Call) -> Result<i64, MatrixError> {
    number(&call.query("version").ok_or_else(|| MatrixError::missing_param("The query lacks \"version\"."))?)
}

/// The number of a version. What is none is a version that is not there.
fn number(text: &str) -> Result<i64, MatrixError> {
    text.parse().ok().filter(|number| (1..=json::MAX_INTEGER).contains(number)).ok_or_else(no_such_version)
}

fn told_version(backup: Option<BackupVersion>) -> Handled {
    let BackupVersion { version, algorithm, auth_data, count } = backup.ok_or_else(no_such_version)?;
    let auth_data = json::parse(auth_data.as_bytes()).map_err(|_| MatrixError::internal())?;
    ok(&json!({
        "algorithm": algorithm,
        "auth_data": auth_data,
        "version": version.to_string(),
        "etag": count.etag.to_string(),
        "count": count.sessions,
    }))
}

fn told_count(count: BackupCount) -> Handled {
    ok(&json!({ "etag": count.etag.to_string(), "count": count.sessions }))
}

fn write_session(text: &mut String, session: &BackedUpSession) {
    text.push_str(&Value::from(session.session_id.as_str()).to_text());
    text.push(':');
    told_session(text, session);
}

fn told_session(text: &mut String, session: &BackedUpSession) {
    let BackedUpSession { first_message_index, forwarded_count, is_verified, session_data, .. } = session;
    text.push_str(&format!(
        "{{\"first_message_index\":{first_message_index},\"forwarded_count\":{forwarded_count},\
         \"is_verified\":{is_verified},\"session_data\":{session_data}}}"
    ));
}

fn no_such_version() -> MatrixError {
    MatrixError::not_found("There is no such version of the backup.")
}
