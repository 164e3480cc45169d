//! Authorisation rules: which events a room's state allows.
//!
//! Server-Server API, "Checks performed on receipt of a PDU", checks 4 to 6, by the rules of the page of each room version
//! ("Authorisation rules"). [`RoomVersion`](super::room_version::RoomVersion) says which of them a version has, so that
//! each rule stands here once; the names of the numbers are those of version 12:
//!
//! | rules | |
//! |---|---|
//! | 1 | `m.room.create`: `create` |
//! | 2, 3 | the room ID, and the list `auth_events`: [`check_auth_event_list`] |
//! | 4, 6 to 9, 11 | any event: [`check`] |
//! | 5 | `m.room.member`: `member` and `third_party_invite` |
//! | 10 | `m.room.power_levels`: `power_level_changes` |
//! | 4 of versions 1 to 5, 11 of versions 1 and 2 | `m.room.aliases`, `m.room.redaction`: [`check`] |
//!
//! Signatures, the countersignature of a restricted join (rule 5.2) among them, were verified before an [`Event`] came to
//! be. Whether the redaction that an event asks for is carried out is no authorisation rule and is judged elsewhere.
//!
//! Where the spec leaves a case open, the answer is Synapse's, because a room whose servers differ falls apart:
//! - A room without `m.room.join_rules`, or without `join_rule` in it, is invite-only.
//! - A property that is added to `m.room.power_levels`, or removed, is judged by the one value that is there; its default
//!   is not a value.
//! - A key of `users` is a user ID if it begins with `@` and has a colon, whatever its domain and length. The state key of a membership
//!   is one if it has a colon: moderators ban whom no server could have.
//! - A level of another type than a level's, which before version 10 a room's first `m.room.power_levels` may hold, makes
//!   the rules that ask for it fail.
//!
//! Where the spec does not, verdicts differ from Synapse's in these cases:
//! - An `m.room.power_levels` with a state key other than `""` is judged by the one under `""`. Synapse looks for one under its own
//!   key, which is never among the auth events, and so allows any changes.
//! - Only `m.federate: false` keeps other servers' users from sending. With Synapse any value but `true` does, and memberships of users
//!   of other servers are refused too, whoever sends them.
//! - In versions 1 and 2 a redaction whose `redacts` is no string takes the power to redact. With Synapse it takes none.
//! - From version 8 on, a membership other than a join that has `join_authorised_via_users_server`, but no signature of that user's
//!   server, is dropped as wrongly signed. The spec rejects it; Synapse asks for the signature on joins alone, and allows it.
//! - Of an `m.room.third_party_invite` the first 20 keys count, and 20 pairs of a key and a signature are tried: more would be work without
//!   a bound. Synapse reads all keys, but of each the first wrong signature ends the attempt, where the spec asks for any right one.
//! - In versions 1 to 4 a key that is known to have expired signs nothing later than that, as the spec now says. With Synapse it does.
//! - Before version 10 `true`, and a text with an underscore between digits, are no levels. Synapse takes them for 1 and for a number.

mod create;
mod error;
mod member;
mod power_level_changes;
mod third_party_invite;

pub use error::AuthError;

use super::{
    auth_events,
    event::Event,
    identifiers::EventId,
    json::Value,
    power_levels::{Level, PowerLevels},
    state_content::{JoinRule, Membership},
};

/// The state of a room that an event is judged by.
///
/// The rules ask for a handful of keys per event and nothing else: those of [`auth_events::selection`] and
/// `m.room.create`.
pub trait AuthState {
    /// The event of this type and state key.
    fn get(&self, event_type: &str, state_key: &str) -> Option<&Event>;
}

impl<S: AuthState + ?Sized> AuthState for &S {
    fn get(&self, event_type: &str, state_key: &str) -> Option<&Event> {
        (**self).get(event_type, state_key)
    }
}

/// A list of state events, such as an event's auth events. Of two with one key the first counts.
impl AuthState for [Event] {
    fn get(&self, event_type: &str, state_key: &str) -> Option<&Event> {
        self.iter().find(|event| event.is_state(event_type, state_key))
    }
}

/// An event that another one names in its `auth_events`, with what became of it.
#[derive(Debug, Clone, Copy)]
pub struct AuthEvent<'a> {
    /// The event.
    pub event: &'a Event,
    /// Whether it was rejected.
    pub rejected: bool,
}

/// The rules that do not depend on the room's state, and so are checked once for an event: rule 1 of `m.room.create`, and
/// for other events the rules about the list `auth_events` and, from version 12 on, about the room ID.
///
/// `find` knows the events that `event` names in `auth_events`, and from version 12 on the create event that its room ID
/// names.
///
/// # Errors
/// The first rule that is broken, or an event that `find` does not know.
pub fn check_auth_event_list<'a>(
    event: &Event,
    find: impl Fn(&EventId) -> Option<AuthEvent<'a>>,
) -> Result<(), AuthError> {
    check_list_by(event, &find)
}

/// Not generic: the rules are much code, and would be there again for each kind of list and state.
fn check_list_by<'a>(event: &Event, find: &dyn Fn(&EventId) -> Option<AuthEvent<'a>>) -> Result<(), AuthError> {
    if event.event_type() == "m.room.create" {
        return create::check(event);
    }
    if event.version().room_id_is_create_hash {
        let named = find(&event.room_id().create_event_id());
        if !named.is_some_and(|create| create.event.event_type() == "m.room.create" && !create.rejected) {
            return Err(AuthError::RoomIdOfNoCreateEvent);
        }
    }
    let allowed = auth_events::selection(
        event.version(),
        event.event_type(),
        event.sender().as_str(),
        event.state_key(),
        event.content(),
    );
    let mut seen = [false; auth_events::MAX_SELECTED];
    for id in event.auth_events() {
        let AuthEvent { event: auth_event, rejected } =
            find(id).ok_or_else(|| AuthError::MissingAuthEvent(id.clone()))?;
        let position = allowed.iter().position(|(event_type, state_key)| auth_event.is_state(event_type, state_key));
        match position.and_then(|position| seen.get_mut(position)) {
            None => return Err(AuthError::UnexpectedAuthEvent(id.clone())),
            Some(seen) if *seen => return Err(AuthError::DuplicateAuthEvent(id.clone())),
            Some(seen) => *seen = true,
        }
        if rejected {
            return Err(AuthError::RejectedAuthEvent(id.clone()));
        }
        if auth_event.room_id() != event.room_id() {
            return Err(AuthError::AuthEventOfAnotherRoom(id.clone()));
        }
    }
    let has_create = allowed.iter().zip(seen).any(|((event_type, _), seen)| seen && *event_type == "m.room.create");
    if !has_create && !event.version().room_id_is_create_hash {
        return Err(AuthError::NoCreateEvent);
    }
    Ok(())
}

/// The rules that depend on the room's state: all but those of [`check_auth_event_list`].
///
/// # Errors
/// The first rule that is broken.
pub fn check(event: &Event, state: &(impl AuthState + ?Sized)) -> Result<(), AuthError> {
    check_by(event, &state)
}

fn check_by(event: &Event, state: &dyn AuthState) -> Result<(), AuthError> {
    if event.event_type() == "m.room.create" {
        return create::check(event);
    }
    let room = Room { state, create: state.get("m.room.create", "").ok_or(AuthError::NoCreateEvent)? };
    let sender = event.sender();
    if room.create.content().get("m.federate") == Some(&Value::Bool(false))
        && sender.server_name() != room.create.sender().server_name()
    {
        return Err(AuthError::NotFederated);
    }
    if event.event_type() == "m.room.aliases" && event.version().aliases_auth_rule {
        let own = event.state_key() == Some(sender.server_name());
        return if own { Ok(()) } else { Err(AuthError::AliasesOfAnotherServer) };
    }
    if event.event_type() == "m.room.member" {
        return member::check(event, &room);
    }
    if room.membership(sender.as_str()) != Membership::Join {
        return Err(AuthError::SenderNotJoined);
    }
    let levels = room.levels();
    let power = levels.user(sender.as_str())?;
    if event.event_type() == "m.room.third_party_invite" {
        return AuthError::unless_enough(&power, &levels.level(Level::Invite)?);
    }
    AuthError::unless_enough(&power, &levels.event(event.event_type(), event.state_key().is_some())?)?;
    if event.state_key().is_some_and(|key| key.starts_with('@') && key != sender.as_str()) {
        return Err(AuthError::StateKeyOfAnotherUser);
    }
    match event.event_type() {
        "m.room.power_levels" => power_level_changes::check(event, &room, &power),
        "m.room.redaction" if event.version().redaction_auth_rule => {
            let domain = event.event_id().server_name();
            if domain.is_some() && event.redacts().and_then(server_of) == domain {
                return Ok(());
            }
            AuthError::unless_enough(&power, &levels.level(Level::Redact)?)
        }
        _ => Ok(()),
    }
}

/// The room's state as the rules see it.
struct Room<'a> {
    state: &'a dyn AuthState,
    create: &'a Event,
}

impl<'a> Room<'a> {
    fn power_levels(&self) -> Option<&'a Event> {
        self.state.get("m.room.power_levels", "")
    }

    fn levels(&self) -> PowerLevels<'a> {
        PowerLevels::from_state(self.create, self.power_levels())
    }

    /// A user's current membership state. A user without an event counts as one who left.
    fn membership(&self, user_id: &str) -> Membership {
        self.state.get("m.room.member", user_id).and_then(Event::membership).unwrap_or(Membership::Leave)
    }

    fn join_rule(&self) -> JoinRule {
        JoinRule::of(self.state.get("m.room.join_rules", "").map(Event::content), self.create.version())
    }
}

/// The domain of an event ID of room versions 1 and 2.
fn server_of(event_id: &str) -> Option<&str> {
    event_id.split_once(':').map(|(_, server)| server)
}
