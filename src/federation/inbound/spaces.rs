//! Spaces and the rooms in them (Server-Server API, "Spaces").

use http::StatusCode;

use super::{answer, authentication::Signed};
use crate::{
    error::MatrixError,
    matrix::json::Value,
    router::{Handled, raw_json_response},
    server::Server,
};

/// `GET /_matrix/federation/v1/hierarchy/{roomId}?suggested_only=…`
pub(super) async fn hierarchy(server: &Server, request: Signed) -> Handled {
    let room_id = answer::room_id(request.parameter(0))?;
    let suggested_only = match request.call.query("suggested_only").as_deref() {
        None | Some("false") => false,
        Some("true") => true,
        Some(_) => return Err(MatrixError::invalid_param("`suggested_only` must be true or false.")),
    };
    let hierarchy = server.rooms.hierarchy_for(request.origin.name(), &room_id, suggested_only).await?;
    let hierarchy = hierarchy.ok_or_else(|| MatrixError::not_found("Room does not exist."))?;
    Ok(raw_json_response(StatusCode::OK, Value::Object(hierarchy).to_text()))
}
