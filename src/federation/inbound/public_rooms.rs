//! Our published room directory, for other servers (Server-Server API, "Published Room Directory").

use http::StatusCode;

use super::authentication::Signed;
use crate::{
    matrix::json::{Object, Value},
    room::{Asker, PublishedQuery},
    router::{Handled, raw_json_response},
    server::Server,
};

/// `GET /_matrix/federation/v1/publicRooms`
pub(super) async fn list(server: &Server, request: Signed) -> Handled {
    answer(server, &request.call.published_query()?).await
}

/// `POST /_matrix/federation/v1/publicRooms`
pub(super) async fn search(server: &Server, request: Signed) -> Handled {
    answer(server, request.object()?).await
}

async fn answer(server: &Server, query: &Object) -> Handled {
    let query = PublishedQuery::of_object(query)?;
    let page = server.rooms.published(&query, Asker::Server).await?;
    Ok(raw_json_response(StatusCode::OK, Value::Object(page).to_text()))
}
