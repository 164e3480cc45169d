//! Check 7 on receipt of a PDU, and its counterpart for events of local users: a room's policy server must have signed them.
//!
//! Server-Server API, "Policy Servers". Whom to ask is decided here; the asking is done by whoever implements [`PolicyServers`](super::PolicyServers).

use super::{
    RoomError, Rooms, Unsigned,
    judge::{Judgement, Source, Verdict},
    view::{TypeAndKey, View, type_and_key},
};
use crate::matrix::{
    event::Event,
    policy_server::{self, POLICY, PolicyServer},
    state_content::Membership,
};

/// For how long policy servers are asked about events that came together, in milliseconds; what is left is asked about later.
pub(super) const ASKING_MS: i64 = 15_000;

/// Where a room names its policy server, as a key.
pub(super) fn policy_key() -> TypeAndKey {
    type_and_key(POLICY, "")
}

impl Judgement {
    /// The policy server that must have signed `event`, and has not. The room uses the one that its current state names, while that
    /// server has joined members in it.
    pub(super) async fn unsigned_by(
        &self,
        view: &mut View<'_>,
        event: &Event,
    ) -> Result<Option<PolicyServer>, RoomError> {
        if policy_server::is_exempt(event) {
            return Ok(None);
        }
        let named = view.stored_state(self.state, &[policy_key()]).await?.into_iter().next();
        // Redacted, it names nobody.
        let named = named.filter(|stored| stored.redacted_by.is_none());
        let Some(policy) = named.and_then(|stored| PolicyServer::of(&stored.event)) else { return Ok(None) };
        if policy.lets_in(event) || !view.has_members(&self.room.room_id, &policy.via).await? {
            return Ok(None);
        }
        Ok(Some(policy))
    }
}

impl Rooms {
    /// Judges `event`, and until the time `ask_until` asks the room's policy server for its signature where that is all that is
    /// lacking. The event comes back as it was taken; where the signature could not be obtained, with the reason.
    pub(super) async fn judge_signed(
        &self,
        judgement: &mut Judgement,
        view: &mut View<'_>,
        event: &Event,
        source: &Source,
        ask_until: i64,
    ) -> Result<(Event, Verdict, Option<Unsigned>), RoomError> {
        let policy = match judgement.judge(view, event, source).await? {
            Verdict::Unsigned(policy) if self.clock.now_ms() < ask_until => policy,
            verdict => return Ok((event.clone(), verdict, None)),
        };
        match self.policy_servers.sign(&policy, event).await {
            Ok(signed) => {
                let verdict = judgement.judge(view, &signed, source).await?;
                Ok((signed, verdict, None))
            }
            Err(unsigned) => {
                judgement.not_recommended.insert(event.event_id().clone());
                let verdict = judgement.judge(view, event, source).await?;
                Ok((event.clone(), verdict, Some(unsigned)))
            }
        }
    }

    /// The event of a local user, signed by the room's policy server, if the room uses one. Without its signature nothing is sent
    /// but what ends the user's own membership: no policy server, be it away or hostile, keeps anybody in a room.
    ///
    /// # Errors
    /// [`RoomError::Unsigned`]
    pub(super) async fn signed_by_policy(
        &self,
        judgement: &Judgement,
        view: &mut View<'_>,
        event: Event,
    ) -> Result<Event, RoomError> {
        let Some(policy) = judgement.unsigned_by(view, &event).await? else { return Ok(event) };
        match self.policy_servers.sign(&policy, &event).await {
            Err(_) if is_own_leave(&event) => Ok(event),
            signed => Ok(signed?),
        }
    }
}

/// Whether a user ends their own membership by it.
fn is_own_leave(event: &Event) -> bool {
    event.is_state("m.room.member", event.sender().as_str()) && event.membership() == Some(Membership::Leave)
}
