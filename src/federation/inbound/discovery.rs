//! Where this server is reached and what it runs (Server-Server API, "Server discovery", "Server implementation").

use serde_json::json;

use crate::{
    router::{self, Call, Handled},
    server::Server,
};

/// `GET /.well-known/matrix/server`: where requests for our server name are to be sent.
pub(super) async fn well_known(server: &Server, _: &Call) -> Handled {
    router::ok(&json!({ "m.server": server.config.well_known_server }))
}

/// `GET /_matrix/federation/v1/version`
pub(super) async fn version(_: &Server, _: &Call) -> Handled {
    router::ok(&json!({ "server": { "name": "Verge", "version": env!("CARGO_PKG_VERSION") } }))
}
