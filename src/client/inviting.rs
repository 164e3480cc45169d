//! Inviting a user, or whoever an address belongs to that is not Matrix's (Client-Server API, "Joining rooms", "Third-party
//! invites").

use http::StatusCode;
use serde_json::json;

use super::{
    auth,
    body::Body,
    membership::{invite_user, not_in_room, room_id, send, user_id, with_reason},
};
use crate::{
    error::MatrixError,
    federation::peers::identity::{IdentityError, IdentityServer, IdentityServers},
    matrix::{
        identifiers::{RoomId, UserId},
        json::{Object, Value},
    },
    room::{Draft, RoomError},
    router::{Call, Handled, ok},
    server::Server,
};

/// The longest address, in bytes.
const MAX_ADDRESS: usize = 500;

/// The error codes of identity servers that a client can make sense of.
const PASSED_ON: [&str; 4] = ["M_TERMS_NOT_SIGNED", "M_THREEPID_IN_USE", "M_UNRECOGNIZED", "M_LIMIT_EXCEEDED"];

/// `POST /rooms/{roomId}/invite`
pub(super) async fn invite(server: &Server, call: &Call) -> Handled {
    let session = auth::session(server, call).await?;
    let room_id = room_id(call.parameter(0))?;
    let body = Body::of(server, call).await?;
    let content = with_reason(Object::new(), &body)?;
    if let Some(invitee) = Invitee::read(&body)? {
        by_address(server, &session.user, &room_id, &invitee, content).await?;
    } else {
        invite_user(server, &session.user, &user_id(&body)?, &room_id, content).await?;
    }
    ok(&json!({}))
}

/// Whom a client wants to invite, and which identity server is to be asked who that is.
pub(super) struct Invitee {
    server: IdentityServer,
    medium: String,
    address: String,
}

impl Invitee {
    /// The invitee that `body` names, if it names one by an address.
    ///
    /// # Errors
    /// 400 where it lacks some of what that takes.
    pub(super) fn read(body: &Body) -> Result<Option<Self>, MatrixError> {
        let names = ["id_server", "id_access_token", "medium", "address"];
        let mut given = false;
        for name in names {
            given |= body.text(name)?.is_some();
        }
        if !given {
            return Ok(None);
        }
        let [server, access_token, medium, address] = names.map(|name| body.required_text(name));
        let (medium, address) = (medium?.to_owned(), address?.to_owned());
        if address.is_empty() || address.len() > MAX_ADDRESS {
            return Err(MatrixError::invalid_param("\"address\" is empty or too long."));
        }
        // Appendices, "3PID Types": the case of an e-mail address is folded.
        let address = if medium == "email" { address.to_lowercase() } else { address };
        let server = IdentityServer::new(server?, access_token?)
            .map_err(|_| MatrixError::invalid_param("\"id_server\" must be a host name."))?;
        Ok(Some(Self { server, medium, address }))
    }
}

/// Invites the user whom the address belongs to, or else, as soon as it belongs to one. `content` is what the membership says
/// besides.
///
/// # Errors
/// 403 where the room does not allow it; what the identity server says; 502 where it cannot be asked.
pub(super) async fn by_address(
    server: &Server,
    sender: &UserId,
    room_id: &RoomId,
    invitee: &Invitee,
    content: Object,
) -> Result<(), MatrixError> {
    // Nobody is written to in the name of who may not invite them.
    let offer = |token: &str, content| Draft::state("m.room.third_party_invite", token, content);
    server.rooms.template(room_id, sender, &offer("", Object::new())).await.map_err(not_in_room)?;
    let servers = IdentityServers::new(&server.platform, &server.config);
    let Invitee { server: asked, medium, address } = invitee;
    if let Some(user) = servers.lookup(asked, medium, address).await.map_err(refusal)? {
        return invite_user(server, sender, &user, room_id, content).await.map(|_| ());
    }
    let wish = what_the_invitee_is_told(server, sender, room_id, medium, address).await?;
    let stored = servers.store_invite(asked, &wish).await.map_err(refusal)?;
    send(server, sender, room_id, offer(&stored.token, stored.content)).await.map(|_| ())
}

/// The body of `store-invite`.
async fn what_the_invitee_is_told(
    server: &Server,
    sender: &UserId,
    room_id: &RoomId,
    medium: &str,
    address: &str,
) -> Result<Object, MatrixError> {
    let told = [
        ("room_alias", "m.room.canonical_alias", "alias"),
        ("room_avatar_url", "m.room.avatar", "url"),
        ("room_join_rules", "m.room.join_rules", "join_rule"),
        ("room_name", "m.room.name", "name"),
        ("room_type", "m.room.create", "type"),
    ];
    let keys = told.map(|(_, event_type, _)| (event_type, ""));
    let state = server.rooms.current(room_id, &keys).await?.ok_or(RoomError::UnknownRoom)?.1;
    let profile = server.store.own_profile(sender.as_str()).await?;
    let mut wish = Object::from_iter([
        ("address", Value::from(address)),
        ("medium", Value::from(medium)),
        ("room_id", Value::from(room_id)),
        ("sender", Value::from(sender)),
    ]);
    for (name, event_type, member) in told {
        let event = state.iter().find(|event| event.is_state(event_type, ""));
        if let Some(text) = event.and_then(|event| event.content().get(member)).and_then(Value::as_str) {
            wish.insert(name, text);
        }
    }
    for (name, text) in [("sender_avatar_url", profile.avatar_url), ("sender_display_name", profile.displayname)] {
        if let Some(text) = text {
            wish.insert(name, text);
        }
    }
    Ok(wish)
}

/// What the client is told. That the identity server does not take its token must not look as if we did not take ours.
fn refusal(error: IdentityError) -> MatrixError {
    match &error {
        IdentityError::Status { status, errcode, error: said } if status.is_client_error() => {
            let passed_on = PASSED_ON.into_iter().find(|known| known == errcode);
            match passed_on.filter(|_| *status != StatusCode::UNAUTHORIZED) {
                Some(errcode) => MatrixError::new(*status, errcode, said.clone()).because(&error),
                None => MatrixError::forbidden("The identity server refuses the invite.").because(&error),
            }
        }
        IdentityError::Name(_) => {
            MatrixError::invalid_param("\"id_server\" leads to no server that this one connects to.").because(&error)
        }
        _ => MatrixError::bad_gateway("The identity server could not be reached, or gave no usable answer.")
            .because(&error),
    }
}
