//! Our events as ruma's crates take them.

use ruma_common::{
    EventId, MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedRoomId, OwnedUserId, RoomId, RoomVersionId, UserId,
    room_version_rules::RoomVersionRules,
};
use ruma_events::TimelineEventType;
use serde_json::value::{RawValue, to_raw_value};
use verge::matrix::{event::Event, json::Value, room_version::RoomVersion};

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
