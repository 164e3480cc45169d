//! The resident server's side of the knock handshake (Server-Server API, "Knocking upon a room").

use super::{
    answer::{self, ObjectText},
    authentication::Signed,
    joining, membership,
};
use crate::{
    matrix::{
        json::Object,
        state_content::{Membership, STRIPPED_STATE},
    },
    router::Handled,
    server::Server,
    store::events::shown_list,
};

/// `GET /_matrix/federation/v1/make_knock/{roomId}/{userId}?ver=…`
pub(super) async fn make_knock(server: &Server, request: Signed) -> Handled {
    let user = membership::user_of_origin(&request)?;
    let room = membership::resident_room(server, &request).await?;
    if !request.call.queries("ver").iter().any(|version| version == room.room_version.id) {
        return Err(joining::incompatible(room.room_version.id));
    }
    membership::template(server, &room, &user, Membership::Knock, Object::new()).await
}

/// `PUT /_matrix/federation/v1/send_knock/{roomId}/{eventId}`
pub(super) async fn send_knock(server: &Server, request: Signed) -> Handled {
    let knock = membership::admit(server, request, Membership::Knock).await?;
    let keys = STRIPPED_STATE.map(|event_type| (event_type, ""));
    let current = server.rooms.current_stored(knock.room_id(), &keys).await?;
    let (_, state) = current.ok_or_else(answer::unknown_room)?;
    let mut answer = ObjectText::begin();
    answer.member("knock_room_state").push_str(&shown_list(&state));
    Ok(answer.response())
}
