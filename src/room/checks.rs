//! The checks on receipt of a PDU from the fourth on: whether an event is allowed by its auth events, by the state before it, and by
//! the room's current state ([`super::judge`]).

use super::{
    RoomError,
    judge::{Judgement, Rejection, lacks_what_is_read},
    view::{StateAt, TypeAndKey, View, type_and_key},
};
use crate::{
    matrix::{
        auth_events,
        auth_rules::{self, AuthError, AuthEvent},
        event::Event,
        identifiers::EventId,
        state_content::Membership,
        state_trie::NodeId,
    },
    store::rooms::{Extent, Room},
};

/// That an event is of its room's version. By another one's rules it would be judged as something else than the room takes it for,
/// and nobody could read it again.
///
/// # Errors
/// [`RoomError::Invalid`].
pub(super) fn check_version(room: &Room, event: &Event) -> Result<(), RoomError> {
    let (of_room, of_event) = (room.room_version.id, event.version().id);
    if of_room == of_event {
        return Ok(());
    }
    Err(RoomError::Invalid(format!("The room is of version {of_room}, and the event of version {of_event}.")))
}

impl Judgement {
    /// Checks 6 and 7 once more, of what rested on a claim: whether `event` is soft-failed. No policy server is asked. Where others have
    /// built upon the event, and so have we (`adopted`), a user who has left meanwhile is not to be kept out by what the room is now;
    /// one who was put out is, and so is what the room's policy server has not signed.
    pub(super) async fn is_soft_failed(
        &self,
        view: &mut View<'_>,
        event: &Event,
        before: StateAt,
        adopted: bool,
    ) -> Result<bool, RoomError> {
        let forbidden = self.forbidden_now(view, event, before).await?.is_some();
        if forbidden && !(adopted && self.has_left(view, event).await?) {
            return Ok(true);
        }
        Ok(self.unsigned_by(view, event).await?.is_some())
    }

    /// Whether the sender of `event` has left the room, and of their own accord.
    async fn has_left(&self, view: &mut View<'_>, event: &Event) -> Result<bool, RoomError> {
        let member = type_and_key("m.room.member", event.sender().as_str());
        let state = view.state(self.state, &[member]).await?;
        Ok(state
            .iter()
            .any(|member| member.membership() == Some(Membership::Leave) && member.sender() == event.sender()))
    }

    /// Check 6: which rule `event` breaks in the current state, if any.
    pub(super) async fn forbidden_now(
        &self,
        view: &mut View<'_>,
        event: &Event,
        before: StateAt,
    ) -> Result<Option<String>, RoomError> {
        if before.root == self.state || stands_in(view, event, self.state).await? {
            return Ok(None);
        }
        // The current state does not know who joined in a stretch that is lacking, or was filled in as history. So what stands on a
        // claim about that stretch is checked against both together, never against the current state alone.
        if !before.claimed && self.check_state(view, event, self.state).await?.is_none() {
            return Ok(None);
        }
        let current = self.state_with(view, event, before.root).await?;
        if before.root == current || stands_in(view, event, current).await? {
            return Ok(None);
        }
        self.check_state(view, event, current).await
    }

    /// Checks 4 and 5: which rule `event` breaks, if any. A whole copy need not break one that an altered copy breaks.
    pub(super) async fn broken_rule(
        &self,
        view: &mut View<'_>,
        event: &Event,
        before: StateAt,
    ) -> Result<Option<Rejection>, RoomError> {
        let for_good = |why: String| Ok(Some(Rejection::for_good(why)));
        if event.room_id() != &self.room.room_id {
            return for_good("it is of another room".to_owned());
        }
        if let Some(member) = event.oversized_member() {
            return for_good(format!("`{member}` is too long"));
        }
        let rejected = event.auth_events().iter().filter_map(|id| Some((id, view.rejected(id)?.may_be_overturned())));
        if let Some(rejection) = rejected_auth_event(rejected) {
            return Ok(Some(rejection));
        }
        let mut needed = event.auth_events().to_vec();
        if event.version().room_id_is_create_hash {
            needed.push(event.room_id().create_event_id());
            view.load_events(&needed).await?;
        }
        let find = |id: &EventId| {
            let stored = view.stored(id)?;
            Some(AuthEvent { event: &stored.event, rejected: false })
        };
        if let Err(error) = auth_rules::check_auth_event_list(event, find) {
            return for_good(error.to_string());
        }
        let auth_events: Vec<Event> = needed.iter().filter_map(|id| Some(view.stored(id)?.event.clone())).collect();
        if let Err(error) = auth_rules::check(event, auth_events.as_slice()) {
            let provisional = may_mislead(&auth_events, event);
            return Ok(Some(Rejection { why: format!("{error} (by its auth events)"), provisional }));
        }
        let forbidden = match stands_in(view, event, before.root).await? {
            // Another server has claimed what was there after the event.
            true => self.check_by_what_it_displaced(view, event, before.root).await?,
            false => self.check_state(view, event, before.root).await?,
        };
        let Some(why) = forbidden else { return Ok(None) };
        let provisional = before.claimed || may_mislead(&view.state(before.root, &auth_keys(event)).await?, event);
        Ok(Some(Rejection { why, provisional }))
    }

    /// Which rule `event` breaks in the state `root`, if any.
    async fn check_state(&self, view: &mut View<'_>, event: &Event, root: NodeId) -> Result<Option<String>, RoomError> {
        let state = view.state(root, &auth_keys(event)).await?;
        Ok(self.check(view, event, state))
    }

    /// Which rule `event` breaks in the state `root`, in which it stands itself: what it cites under its own key stood there before.
    async fn check_by_what_it_displaced(
        &self,
        view: &mut View<'_>,
        event: &Event,
        root: NodeId,
    ) -> Result<Option<String>, RoomError> {
        let mut state = view.state(root, &auth_keys(event)).await?;
        state.retain(|stands| stands.event_id() != event.event_id());
        let same_key = |cited: &Event| event.state_key().is_some_and(|key| cited.is_state(event.event_type(), key));
        let cited = event.auth_events().iter().filter_map(|id| Some(&view.stored(id)?.event));
        state.extend(cited.filter(|cited| same_key(cited)).cloned());
        Ok(self.check(view, event, state))
    }

    fn check(&self, view: &View<'_>, event: &Event, mut state: Vec<Event>) -> Option<String> {
        if self.room.extent == Extent::Partial {
            let cited = event.auth_events().iter().filter_map(|id| Some(&view.stored(id)?.event));
            fill_in(&mut state, event, cited);
        }
        auth_rules::check(event, state.as_slice()).err().map(|error| error.to_string())
    }
}

/// Whether `event` stands in the state `root`.
async fn stands_in(view: &mut View<'_>, event: &Event, root: NodeId) -> Result<bool, RoomError> {
    let Some(state_key) = event.state_key() else { return Ok(false) };
    let found = view.state_ids(root, &[type_and_key(event.event_type(), state_key)]).await?;
    Ok(found.iter().any(|(_, id)| id == event.event_id()))
}

/// Why an event is rejected that cites these rejected auth events, each with whether that verdict may be overturned.
pub(super) fn rejected_auth_event<'a>(rejected: impl Iterator<Item = (&'a EventId, bool)>) -> Option<Rejection> {
    let (id, provisional) = rejected.min_by_key(|(_, provisional)| *provisional)?;
    Some(Rejection { why: AuthError::RejectedAuthEvent(id.clone()).to_string(), provisional })
}

/// Whether any of `state` is held altered without what the rules for `event` read of it.
pub(super) fn may_mislead(state: &[Event], event: &Event) -> bool {
    state.iter().any(|held| lacks_what_is_read(held) && held.event_id() != event.event_id())
        && matches!(event.event_type(), "m.room.member" | "m.room.third_party_invite")
}

/// The keys of all state by which the rules judge `event`.
pub(super) fn auth_keys(event: &Event) -> Vec<TypeAndKey> {
    let selected = auth_events::selection(
        event.version(),
        event.event_type(),
        event.sender().as_str(),
        event.state_key(),
        event.content(),
    );
    let implied = event.version().room_id_is_create_hash.then_some(("m.room.create", ""));
    selected.into_iter().chain(implied).map(|(event_type, state_key)| type_and_key(event_type, state_key)).collect()
}

/// Adds to the state by which `event` is judged those memberships that it cites, of users of whom the state says nothing: where the
/// members of a room are not known, that is all that there is to go by.
pub(super) fn fill_in<'c>(state: &mut Vec<Event>, event: &Event, cited: impl Iterator<Item = &'c Event>) {
    let keys = auth_keys(event);
    for cited in cited.filter(|cited| cited.event_type() == "m.room.member") {
        let Some(user) = cited.state_key() else { continue };
        let is_asked = keys.iter().any(|(event_type, key)| event_type == "m.room.member" && key == user);
        if is_asked && !state.iter().any(|known| known.is_state("m.room.member", user)) {
            state.push(cited.clone());
        }
    }
}
