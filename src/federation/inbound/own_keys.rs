//! Our own signing keys (Server-Server API, "Publishing Keys").

use crate::{
    matrix::{json::Object, server_keys::own_server_keys},
    router::{self, Call, Handled},
    server::Server,
};

/// How long other servers may take our keys as current: half of the week that they would cut it to anyway, so that
/// a key that leaked is soon of no use, and long enough for everybody while we are away for a day or two.
const VALIDITY_MS: i64 = 84 * 60 * 60 * 1000;

/// `GET /_matrix/key/v2/server`. Made anew for each request, so the validity always lies ahead.
pub(super) async fn server_keys(server: &Server, _: &Call) -> Handled {
    router::ok(&object(server))
}

/// Our keys, signed.
pub(super) fn object(server: &Server) -> Object {
    let config = &server.config;
    let valid_until_ts = server.platform.clock.now_ms().saturating_add(VALIDITY_MS);
    own_server_keys(config.server_name.as_str(), &config.signing_key, &config.old_signing_keys, valid_until_ts)
}
