//! What this server can do (Client-Server API, "API Versions", "Capabilities negotiation"), and what clients ask for when they
//! start although there is nothing here: a TURN server.

use serde_json::json;

use super::auth;
use crate::{
    matrix::room_version::RoomVersion,
    router::{Call, Handled, ok},
    server::Server,
};

/// `GET /_matrix/client/versions`: the newest whose promises clients act upon and find kept.
pub(super) async fn versions(_: &Server, _: &Call) -> Handled {
    ok(&json!({
        "versions": ["r0.6.1", "v1.1", "v1.2", "v1.3", "v1.4", "v1.5", "v1.6", "v1.7", "v1.8", "v1.9", "v1.10", "v1.11"],
        "unstable_features": {},
    }))
}

/// `GET /.well-known/matrix/client` ("Server Discovery").
pub(super) async fn well_known(server: &Server, _: &Call) -> Handled {
    ok(&json!({ "m.homeserver": { "base_url": server.config.client_base_url } }))
}

/// `GET /capabilities`
pub(super) async fn capabilities(server: &Server, call: &Call) -> Handled {
    auth::session(server, call).await?;
    let available: serde_json::Map<String, serde_json::Value> =
        RoomVersion::all().iter().map(|version| (version.id.to_owned(), "stable".into())).collect();
    ok(&json!({
        "capabilities": {
            "m.room_versions": { "default": server.config.default_room_version.id, "available": available },
            "m.change_password": { "enabled": true },
            "m.set_displayname": { "enabled": true },
            "m.set_avatar_url": { "enabled": true },
            "m.3pid_changes": { "enabled": false },
            "m.get_login_token": { "enabled": false },
            "m.profile_fields": { "enabled": true },
        },
    }))
}

/// `GET /thirdparty/protocols`: no other network is reached from here.
pub(super) async fn third_party_protocols(server: &Server, call: &Call) -> Handled {
    auth::session(server, call).await?;
    ok(&json!({}))
}

/// `GET /voip/turnServer`: there is none.
pub(super) async fn turn_server(server: &Server, call: &Call) -> Handled {
    auth::session(server, call).await?;
    ok(&json!({}))
}
