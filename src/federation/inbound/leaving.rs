//! The resident server's side of leaving without being in the room's graph: rejecting an invite, retracting a knock
//! (Server-Server API, "Leaving Rooms (Rejecting Invites)").

use serde_json::json;

use super::{authentication::Signed, membership};
use crate::{
    matrix::{json::Object, state_content::Membership},
    router::{self, Handled},
    server::Server,
};

/// `GET /_matrix/federation/v1/make_leave/{roomId}/{userId}`
pub(super) async fn make_leave(server: &Server, request: Signed) -> Handled {
    let user = membership::user_of_origin(&request)?;
    let room = membership::resident_room(server, &request).await?;
    membership::template(server, &room, &user, Membership::Leave, Object::new()).await
}

/// `PUT /_matrix/federation/v2/send_leave/{roomId}/{eventId}`
pub(super) async fn send_leave(server: &Server, request: Signed) -> Handled {
    membership::admit(server, request, Membership::Leave).await?;
    router::ok(&json!({}))
}

/// `PUT /_matrix/federation/v1/send_leave/{roomId}/{eventId}`: the same, wrapped in a list.
pub(super) async fn send_leave_v1(server: &Server, request: Signed) -> Handled {
    membership::admit(server, request, Membership::Leave).await?;
    router::ok(&json!([200, {}]))
}
