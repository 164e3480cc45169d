//! Events of ours that another server signs too: invites of its users, and joins for which one of them vouches (Server-Server
//! API, "Inviting to a room", "Restricted rooms").

use super::directory::server_of;
use crate::{
    error::MatrixError,
    log::Why,
    matrix::{
        auth_events::AUTHORISED_VIA,
        event::Event,
        identifiers::{ServerName, UserId},
        json::{self, Value},
        signing,
    },
    server::Server,
};

/// Our `join` with the signature of the server whose user vouches for it, if somebody has to: without it no server accepts
/// the join. `answer` is the join as the resident server has it.
pub(super) async fn vouched_for(server: &Server, join: Event, answer: Option<Vec<u8>>) -> Result<Event, MatrixError> {
    let Some(voucher) = join.content().get(AUTHORISED_VIA) else { return Ok(join) };
    let voucher = voucher.as_str().and_then(|voucher| UserId::parse(voucher).ok());
    let voucher = voucher.ok_or_else(|| bad_answer("an authorising user for the join who is not a user"))?;
    let answer = answer.ok_or_else(|| bad_answer("no signature for the join"))?;
    countersigned(server, &join, &server_of(voucher.server_name())?, &answer).await
}

/// Our `event` with the signature that the server `signer` added to it, which others want to see; of the answer nothing else
/// is taken.
pub(super) async fn countersigned(
    server: &Server,
    event: &Event,
    signer: &ServerName,
    answer: &[u8],
) -> Result<Event, MatrixError> {
    let answer = json::parse(answer).ok().and_then(Value::into_object);
    let answer = answer.ok_or_else(|| bad_answer("an event that is not an object"))?;
    let signatures: Vec<(&str, &str)> = signing::signatures_of(&answer, signer.as_str()).collect();
    let key_ids: Vec<&str> = signatures.iter().map(|(key_id, _)| *key_id).collect();
    let keys = server.keys.for_answer(signer, &key_ids).await?;
    let now = server.platform.clock.now_ms();
    let countersigned = signatures.into_iter().find_map(|(key_id, signature)| {
        let known = keys.get(signer.as_str(), key_id).filter(|known| known.is_valid_now(now))?;
        Some((key_id, event.with_signature(signer.as_str(), key_id, signature, &known.key).ok()?))
    });
    let (key_id, countersigned) =
        countersigned.ok_or_else(|| bad_answer("an event without the signature that it needs"))?;
    server.keys.have_verified(&[(signer.as_str(), key_id)]).await?;
    Ok(countersigned)
}

/// 502: another server answered what nobody can use.
pub(super) fn bad_answer(what: &'static str) -> MatrixError {
    MatrixError::bad_gateway(format!("Another server answered with {what}.")).because(&Why::stated(what))
}
