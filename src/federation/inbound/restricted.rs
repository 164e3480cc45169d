//! Joins to restricted rooms (Server-Server API, "Restricted rooms"): the resident server checks the conditions of the
//! join rules, names one of its users who could have invited, and countersigns.

use http::StatusCode;

use crate::{
    error::MatrixError,
    matrix::{
        auth_events::AUTHORISED_VIA,
        event::Event,
        identifiers::{RoomId, UserId},
        json::{Object, Value},
        power_levels::{Level, PowerLevels},
    },
    room::Room,
    server::Server,
};

/// The most conditions that are looked at: each may be a room to read.
const MAX_CONDITIONS: usize = 50;

/// What the content of `user`'s join must hold besides the membership.
///
/// # Errors
/// Where the room is restricted and we cannot vouch for the user; see [`voucher`].
pub(crate) async fn content_of_join(server: &Server, room: &Room, user: &UserId) -> Result<Object, MatrixError> {
    let voucher = voucher(server, room, user).await?;
    Ok(voucher.map(|voucher| (AUTHORISED_VIA, Value::from(&voucher))).into_iter().collect())
}

/// Whether we have to sign a membership event of `sender`, because it says that one of our users vouches for it; that is
/// checked again.
///
/// # Errors
/// 400 where another server would have to vouch; else see [`voucher`].
pub(super) async fn must_countersign(
    server: &Server,
    room: &Room,
    sender: &UserId,
    content: &Object,
) -> Result<bool, MatrixError> {
    let Some(named) = content.get(AUTHORISED_VIA) else { return Ok(false) };
    let is_join = content.get("membership").and_then(Value::as_str) == Some("join");
    if !is_join || !room.room_version.restricted {
        return Ok(false);
    }
    let named = named.as_str().and_then(|named| UserId::parse(named).ok());
    if named.is_none_or(|named| named.server_name() != server.config.server_name.as_str()) {
        return Err(MatrixError::invalid_param(format!("`{AUTHORISED_VIA}` names no user of this server.")));
    }
    voucher(server, room, sender).await?;
    Ok(true)
}

/// The local user who vouches for `user`'s join; `None` where nobody has to.
///
/// # Errors
/// 403 `M_FORBIDDEN` where the user meets no condition, 400 `M_UNABLE_TO_AUTHORISE_JOIN` where we cannot tell, 400
/// `M_UNABLE_TO_GRANT_JOIN` where nobody here may invite.
async fn voucher(server: &Server, room: &Room, user: &UserId) -> Result<Option<UserId>, MatrixError> {
    if !room.room_version.restricted {
        return Ok(None);
    }
    let keys = [
        ("m.room.create", ""),
        ("m.room.join_rules", ""),
        ("m.room.power_levels", ""),
        ("m.room.member", user.as_str()),
    ];
    let Some((_, state)) = server.rooms.current(&room.room_id, &keys).await? else { return Ok(None) };
    let find = |event_type| state.iter().find(|event| event.event_type() == event_type);
    let Some(rules) = find("m.room.join_rules") else { return Ok(None) };
    let is_restricted = match rules.content().get("join_rule").and_then(Value::as_str) {
        Some("restricted") => true,
        Some("knock_restricted") => room.room_version.knock_restricted,
        _ => false,
    };
    let membership = find("m.room.member").and_then(Event::membership);
    // Who is invited or in the room needs nobody; who is banned is told by the auth rules.
    if !is_restricted || matches!(membership, Some("join" | "invite" | "ban")) {
        return Ok(None);
    }
    check_conditions(server, rules, user).await?;
    let create = find("m.room.create").ok_or_else(MatrixError::internal)?;
    let levels = PowerLevels::from_state(create, find("m.room.power_levels"));
    for local in server.store.local_members(&room.room_id).await? {
        if let (Ok(has), Ok(needs)) = (levels.user(local.as_str()), levels.level(Level::Invite))
            && has >= needs
        {
            return Ok(Some(local));
        }
    }
    Err(MatrixError::new(
        StatusCode::BAD_REQUEST,
        "M_UNABLE_TO_GRANT_JOIN",
        "Nobody on this server may invite to the room; try another server.",
    ))
}

/// Whether `user` meets one of the conditions of `rules`.
async fn check_conditions(server: &Server, rules: &Event, user: &UserId) -> Result<(), MatrixError> {
    let conditions = rules.content().get("allow").and_then(Value::as_array).unwrap_or_default();
    let rooms = conditions
        .iter()
        .filter(|condition| condition.get("type").and_then(Value::as_str) == Some("m.room_membership"));
    let rooms = rooms.filter_map(|condition| RoomId::parse(condition.get("room_id")?.as_str()?).ok());
    let mut all_known = true;
    for room_id in rooms.take(MAX_CONDITIONS) {
        match server.rooms.current(&room_id, &[("m.room.member", user.as_str())]).await? {
            Some((room, state)) if room.local_joined > 0 => {
                if state.iter().any(|event| event.membership() == Some("join")) {
                    return Ok(());
                }
            }
            _ => all_known = false,
        }
    }
    if all_known {
        return Err(MatrixError::forbidden("You are in none of the rooms whose members may join this one."));
    }
    Err(MatrixError::new(
        StatusCode::BAD_REQUEST,
        "M_UNABLE_TO_AUTHORISE_JOIN",
        "This server cannot tell whether you may join; try another server.",
    ))
}
