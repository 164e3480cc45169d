//! The published room directories of this and of other servers (Client-Server API, "Published room directory").

use http::StatusCode;

use super::{auth, body::Body, throttle};
use crate::{
    admission::Kind,
    error::MatrixError,
    federation::outbound::directory,
    matrix::{
        identifiers::ServerName,
        json::{Object, Value},
    },
    room::{Asker, PublishedQuery},
    router::{Call, Handled, raw_json_response},
    server::Server,
};

/// `GET /publicRooms`: for anybody, as far as it is about this server's rooms; without a token at a rate, for a page may take the
/// reading of hundreds of rooms.
pub(super) async fn list(server: &Server, call: &Call) -> Handled {
    let of = other_server(server, call)?;
    let session = auth::session(server, call).await;
    if of.is_some() {
        // Only our own users may make this server ask others.
        session?;
    } else if session.is_err() {
        throttle::by_address(server, call, Kind::Directory, server.config.rates.remote_profile)?;
    }
    answer(server, of, &call.published_query()?).await
}

/// `POST /publicRooms`
pub(super) async fn search(server: &Server, call: &Call) -> Handled {
    auth::session(server, call).await?;
    let of = other_server(server, call)?;
    answer(server, of, &Body::optional(server, call).await?.into_object()).await
}

/// The server whose directory is meant, unless it is this one.
fn other_server(server: &Server, call: &Call) -> Result<Option<ServerName>, MatrixError> {
    let Some(name) = call.query("server").filter(|name| !name.is_empty()) else { return Ok(None) };
    let name = ServerName::parse(&name).map_err(|error| MatrixError::invalid_param(format!("{error}.")))?;
    Ok(Some(name).filter(|name| *name != server.config.server_name))
}

async fn answer(server: &Server, of: Option<ServerName>, query: &Object) -> Handled {
    let page = match of {
        None => server.rooms.published(&PublishedQuery::of_object(query)?, Asker::Client).await?,
        Some(of) => {
            let names = ["limit", "since", "filter", "include_all_networks", "third_party_instance_id"];
            let mut query = query.clone();
            query.retain(|name, value| names.contains(&name) && *value != Value::Null);
            directory::public_rooms(server, &of, &query).await?
        }
    };
    Ok(raw_json_response(StatusCode::OK, page.to_text()))
}
