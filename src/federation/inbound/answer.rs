//! What several endpoints answer with, and the questions they ask first.

use http::StatusCode;

use super::authentication::Signed;
use crate::{
    error::MatrixError,
    matrix::identifiers::{EventId, RoomId},
    room::{ReadRefusal, RemoteReader, RoomError},
    router::{self, Response},
    server::Server,
};

/// The room that the path's first parameter names, as the origin may read it.
///
/// # Errors
/// 403 for an origin without joined members in it, or that its server ACL keeps out: also where we do not know the room, for
/// that is nobody else's business.
pub(super) async fn reader<'s>(server: &'s Server, request: &Signed) -> Result<RemoteReader<'s>, MatrixError> {
    Ok(server.rooms.remote_reader(request.origin.name(), &room_id(request.parameter(0))?).await?)
}

impl From<ReadRefusal> for MatrixError {
    fn from(refusal: ReadRefusal) -> Self {
        match refusal {
            ReadRefusal::NotInRoom => Self::forbidden("Your server is not in this room."),
            ReadRefusal::Denied => RoomError::Denied.into(),
            ReadRefusal::UnknownEvent => Self::not_found("This server does not know the event."),
            ReadRefusal::UnknownState => Self::not_found("The state at this event is not known to this server."),
            ReadRefusal::TooLarge => RoomError::TooLarge.into(),
            ReadRefusal::Failed(error) => error.into(),
        }
    }
}

/// The room ID `text`.
///
/// # Errors
/// 400 `M_INVALID_PARAM` for what is no room ID.
pub(super) fn room_id(text: &str) -> Result<RoomId, MatrixError> {
    RoomId::parse(text).map_err(|error| MatrixError::invalid_param(format!("{error}.")))
}

/// 404: a room that we do not know, or are no longer in.
pub(super) fn unknown_room() -> MatrixError {
    MatrixError::not_found("This server is not in that room.")
}

/// The event ID `text`.
///
/// # Errors
/// 400 `M_INVALID_PARAM` for what is no event ID.
pub(super) fn event_id(text: &str) -> Result<EventId, MatrixError> {
    EventId::parse(text).map_err(|error| MatrixError::invalid_param(format!("{error}.")))
}

/// The `Transaction` shape in which `event` and `backfill` answer.
pub(super) fn transaction<'t>(server: &Server, pdus: impl IntoIterator<Item = &'t str>) -> Response {
    let mut answer = ObjectText::begin();
    answer.member("origin").push_str(&json_text(&server.config.server_name));
    answer.member("origin_server_ts").push_str(&server.platform.clock.now_ms().to_string());
    answer.list("pdus", pdus);
    answer.response()
}

/// An object that is written member by member, of values that are JSON text already: PDUs are stored as text and leave as
/// text. There is one copy of it, which becomes the response.
pub(super) struct ObjectText {
    text: String,
    is_empty: bool,
    end: &'static str,
}

impl ObjectText {
    /// An object without members yet.
    pub(super) fn begin() -> Self {
        Self { text: "{".to_owned(), is_empty: true, end: "}" }
    }

    /// The same, as version 1 of some endpoints has it: in a list behind the status.
    pub(super) fn begin_v1() -> Self {
        Self { text: "[200,{".to_owned(), is_empty: true, end: "}]" }
    }

    /// Begins the member `name`; the caller appends its value.
    pub(super) fn member(&mut self, name: &str) -> &mut String {
        let comma = if std::mem::take(&mut self.is_empty) { "" } else { "," };
        self.text.extend([comma, "\"", name, "\":"]);
        &mut self.text
    }

    /// Writes the member `name`, a list of values that are JSON text already.
    pub(super) fn list<'t>(&mut self, name: &str, values: impl IntoIterator<Item = &'t str>) {
        let text = self.member(name);
        text.push('[');
        for (index, value) in values.into_iter().enumerate() {
            text.extend([if index == 0 { "" } else { "," }, value]);
        }
        text.push(']');
    }

    /// A 200 response with the object.
    pub(super) fn response(mut self) -> Response {
        self.text.push_str(self.end);
        router::raw_json_response(StatusCode::OK, self.text)
    }
}

/// The JSON text of a value that always has one: a string or a list of strings.
pub(super) fn json_text(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}
