//! From a judgement to a commit: what the change of the current state means for memberships and for the servers that
//! must hear of the room.

use std::collections::BTreeMap;

use super::{
    RoomError, Rooms,
    judge::Judgement,
    view::{EventPair, View},
};
use crate::{
    matrix::{
        event::Event,
        identifiers::{EventId, ServerName, UserId},
        state_content::Membership,
    },
    store::commit::{CommitPos, MembershipChange, Missing, NewEvent, RoomCommit, StateFrom},
};

impl Rooms {
    /// The commit that makes a judgement true.
    pub(super) async fn commit_of(&self, view: &mut View<'_>, judgement: Judgement) -> Result<RoomCommit, RoomError> {
        let guard = judgement.guard();
        let Judgement {
            room,
            extremities,
            state,
            states: after_each,
            mut new,
            copies,
            rejected,
            unplaced,
            readmitted,
            redactions,
            claimed_before: _,
            not_recommended: _,
            missing,
            rejected_at,
            beside,
            unsettled,
        } = judgement;
        let last = after_each.len().saturating_sub(1);
        let missing = missing.into_iter().map(|(earlier, event_id)| Missing {
            event_id,
            before: CommitPos::FromEnd(last.saturating_sub(earlier)),
            passed: 0,
        });
        let mut joined: BTreeMap<ServerName, i64> = BTreeMap::new();
        let mut invited = 0;
        let (mut memberships, mut states): (Vec<MembershipChange>, Vec<StateFrom>) = (Vec::new(), Vec::new());
        let (mut before, mut later) = (room.state, after_each.len());
        // Event by event: whom one removes must not see the next.
        for after in after_each {
            later -= 1;
            if after == before {
                continue;
            }
            let differences = view.diff(before, after).await?;
            let known = memberships.len();
            for changed in changed_members(view, differences).await? {
                let change = changed.more(Membership::Join);
                invited += changed.more(Membership::Invite);
                let ChangedMember { user_id, before, after } = changed;
                if let Some(event) = after.as_ref().filter(|after| ends_what_is_pending(before.as_ref(), after)) {
                    self.tell_also(&user_id, event, &mut new);
                }
                if let Ok(server) = ServerName::parse(user_id.server_name())
                    && change != 0
                {
                    *joined.entry(server).or_default() += change;
                }
                if user_id.server_name() == self.server_name().as_str()
                    && let Some(event) = after.as_ref().or(before.as_ref())
                {
                    memberships.push(MembershipChange {
                        user_id,
                        membership: membership(after.as_ref()),
                        event_id: event.event_id().clone(),
                        invite_state: None,
                        via: None,
                        later,
                    });
                }
            }
            // Those who left see the state as it was then; for all others the last one is enough.
            if memberships.len() > known || after == state {
                states.push(StateFrom { later, state: after });
            }
            before = after;
        }
        Ok(RoomCommit {
            guard,
            extremities,
            states,
            events: new,
            copies,
            nodes: view.take_made(),
            joined: joined.into_iter().filter(|(_, change)| *change != 0).collect(),
            invited,
            memberships,
            redactions,
            rejected,
            unplaced,
            readmitted,
            rejected_at,
            beside,
            unsettled,
            missing: missing.collect(),
            ..RoomCommit::new(room.room_id, room.room_version, state)
        })
    }

    /// Has the server of `user_id` told of `event`, if it is for us to tell others of it.
    fn tell_also(&self, user_id: &UserId, event: &Event, new: &mut [NewEvent]) {
        let server = ServerName::parse(user_id.server_name()).ok().filter(|server| server != self.server_name());
        let new = new.iter_mut().find(|new| new.event.event_id() == event.event_id());
        if let Some(outgoing) = new.and_then(|new| new.outbox.as_mut()) {
            outgoing.also = server;
        }
    }
}

/// Whether somebody else ends an invite or a knock: the user's server may not be in the room, and must hear of it nevertheless.
fn ends_what_is_pending(before: Option<&Event>, after: &Event) -> bool {
    let is_other = after.state_key() != Some(after.sender().as_str());
    is_other
        && matches!(membership(before), Membership::Invite | Membership::Knock)
        && matches!(membership(Some(after)), Membership::Leave | Membership::Ban)
}

/// A user whose membership event in the current state changed.
pub(super) struct ChangedMember {
    pub(super) user_id: UserId,
    pub(super) before: Option<Event>,
    pub(super) after: Option<Event>,
}

impl ChangedMember {
    /// How many users more have this membership now: one, none, or one less.
    pub(super) fn more(&self, wanted: Membership) -> i64 {
        let is = |event: &Option<Event>| i64::from(membership(event.as_ref()) == wanted);
        is(&self.after) - is(&self.before)
    }
}

/// The members among what differs. Reads what is not at hand, in one call.
pub(super) async fn changed_members(
    view: &mut View<'_>,
    mut pairs: Vec<EventPair>,
) -> Result<Vec<ChangedMember>, RoomError> {
    // Both events of a pair have one key: where one is known and no member, the other need not be read.
    let is_other = |view: &View<'_>, id: &Option<EventId>| {
        let event = id.as_ref().and_then(|id| view.event(id));
        event.is_some_and(|event| event.event_type() != "m.room.member")
    };
    pairs.retain(|(before, after)| !is_other(view, before) && !is_other(view, after));
    let ids: Vec<EventId> = pairs.iter().flat_map(|(before, after)| before.iter().chain(after)).cloned().collect();
    view.load_events(&ids).await?;
    let mut changed = Vec::new();
    for (before, after) in pairs {
        let event = |id: Option<EventId>| id.and_then(|id| view.event(&id)).cloned();
        let (before, after) = (event(before), event(after));
        let Some(any) = after.as_ref().or(before.as_ref()) else { continue };
        if any.event_type() != "m.room.member" {
            continue;
        }
        // A state key that is not a user ID cannot have been joined.
        let Some(Ok(user_id)) = any.state_key().map(UserId::parse) else { continue };
        changed.push(ChangedMember { user_id, before, after });
    }
    Ok(changed)
}

/// What a membership event says; a user without one counts as having left.
pub(super) fn membership(event: Option<&Event>) -> Membership {
    event.and_then(Event::membership).unwrap_or(Membership::Leave)
}
