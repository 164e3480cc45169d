//! Our events as ruma's crates take them.

use ruma_common::{
    EventId, MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedRoomId, OwnedUserId, RoomId, RoomVersionId, UserId,
    room_version_rules::RoomVersionRules,
};
use ruma_events::TimelineEventType;
use ruma_state_res::{check_state_dependent_auth_rules, check_state_independent_auth_rules};
use serde_json::value::{RawValue, to_raw_value};
use verge::matrix::{auth_rules::AuthState, event::Event, json::Value, room_version::RoomVersion};

/// An event for `ruma-state-res`.
pub struct RumaEvent {
    event_id: OwnedEventId,
    room_id: Option<OwnedRoomId>,
    sender: OwnedUserId,
    origin_server_ts: MilliSecondsSinceUnixEpoch,
    event_type: TimelineEventType,
    content: Box<RawValue>,
    state_key: Option<String>,
    prev_events: Vec<OwnedEventId>,
    auth_events: Vec<OwnedEventId>,
    redacts: Option<OwnedEventId>,
    rejected: bool,
}

impl RumaEvent {
    /// `None` where ruma does not read one of the identifiers.
    pub fn new(event: &Event, rejected: bool) -> Option<Self> {
        let ids = |ids: &[verge::matrix::identifiers::EventId]| {
            ids.iter().map(|id| EventId::parse(id.as_str()).ok()).collect::<Option<Vec<_>>>()
        };
        let room_id = event.object().get("room_id").and_then(Value::as_str);
        Some(Self {
            event_id: EventId::parse(event.event_id().as_str()).ok()?,
            room_id: match room_id {
                Some(room_id) => Some(RoomId::parse(room_id).ok()?),
                None => None,
            },
            sender: UserId::parse(event.sender().as_str()).ok()?,
            origin_server_ts: MilliSecondsSinceUnixEpoch(event.origin_server_ts().try_into().ok()?),
            event_type: event.event_type().into(),
            content: to_raw_value(event.content()).ok()?,
            state_key: event.state_key().map(str::to_owned),
            prev_events: ids(event.prev_events())?,
            auth_events: ids(event.auth_events())?,
            redacts: event.redacts().and_then(|id| EventId::parse(id).ok()),
            rejected,
        })
    }
}

impl RumaEvent {
    /// The ids in `auth_events`.
    pub fn auth_event_ids(&self) -> &[OwnedEventId] {
        &self.auth_events
    }
}

/// What ruma's authorisation rules say of an event. `find` knows the events that it cites, `state` those of the state that it
/// is judged by.
pub fn verdict<'a>(
    version: &RoomVersion,
    event: &RumaEvent,
    find: impl Fn(&str) -> Option<&'a RumaEvent>,
    state: impl Fn(&str, &str) -> Option<&'a RumaEvent>,
) -> Result<(), String> {
    let rules = rules(version).authorization;
    check_state_independent_auth_rules(&rules, event, |id| find(id.as_str()))?;
    check_state_dependent_auth_rules(&rules, event, |event_type, state_key| state(&event_type.to_string(), state_key))
}

/// Whether ruma refuses, for this reason, what the spec, or where it says nothing Synapse, allows. Each is a case of the
/// tests of the authorisation rules.
pub fn is_too_strict(event: &Event, state: &(impl AuthState + ?Sized), reason: &str) -> bool {
    let absent = |property: &str| {
        let old = state.get("m.room.power_levels", "").map(|old| old.content().contains_key(property));
        old == Some(false) || !event.content().contains_key(property)
    };
    let of_absent = reason
        .strip_prefix("sender does not have enough power to change the power level of `")
        .is_some_and(|property| absent(property.trim_end_matches('`')));
    of_absent
        || reason.contains("no `m.room.join_rules` event") && state.get("m.room.join_rules", "").is_none()
        || reason.contains("`notifications` field") && !event.version().notifications_auth_rule
}

/// What ruma knows of a room version.
pub fn rules(version: &RoomVersion) -> RoomVersionRules {
    RoomVersionId::try_from(version.id).unwrap().rules().unwrap()
}

impl ruma_state_res::Event for RumaEvent {
    type Id = OwnedEventId;

    fn event_id(&self) -> &Self::Id {
        &self.event_id
    }

    fn room_id(&self) -> Option<&RoomId> {
        self.room_id.as_deref()
    }

    fn sender(&self) -> &UserId {
        &self.sender
    }

    fn origin_server_ts(&self) -> MilliSecondsSinceUnixEpoch {
        self.origin_server_ts
    }

    fn event_type(&self) -> &TimelineEventType {
        &self.event_type
    }

    fn content(&self) -> &RawValue {
        &self.content
    }

    fn state_key(&self) -> Option<&str> {
        self.state_key.as_deref()
    }

    fn prev_events(&self) -> Box<dyn DoubleEndedIterator<Item = &Self::Id> + '_> {
        Box::new(self.prev_events.iter())
    }

    fn auth_events(&self) -> Box<dyn DoubleEndedIterator<Item = &Self::Id> + '_> {
        Box::new(self.auth_events.iter())
    }

    fn redacts(&self) -> Option<&Self::Id> {
        self.redacts.as_ref()
    }

    fn rejected(&self) -> bool {
        self.rejected
    }
}

/// The body of a 200 answer as ruma reads it.
pub fn read_answer<R: ruma_common::api::IncomingResponse>(body: &serde_json::Value) -> R {
    use ruma_common::api::IncomingResponseExt;
    let text = body.to_string();
    let response = http::Response::builder().header("content-type", "application/json").body(text.as_bytes()).unwrap();
    R::try_from_http_response(response).unwrap_or_else(|error| panic!("{error}: {body}"))
}
