//! Filters (Client-Server API, "Filtering"): stored ones, inline ones, and what they let through.
//!
//! Honoured are: of `room` `rooms`, `not_rooms`, `include_leave`; of its `timeline` and `state` the lists of types, senders
//! and rooms, `contains_url`, `limit`, `lazy_load_members` and `unread_thread_notifications`; of both `account_data` the types; of `ephemeral` types and rooms,
//! of `presence` types and senders. `event_fields` lets a server send more than was asked for.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::{auth, body::Body};
use crate::{
    error::MatrixError,
    matrix::{
        event::Event,
        identifiers::{RoomId, UserId},
        json::{self, Object},
    },
    router::{Call, Handled, ok, raw_json_response},
    server::Server,
    store::timeline::PageFilter,
};

/// The longest filter, in bytes of canonical JSON.
const MAX_FILTER_BYTES: usize = 65_536;
/// How many timeline events of a room a sync holds where the filter does not say.
const DEFAULT_LIMIT: i64 = 10;
/// How many it holds at most.
const MAX_LIMIT: i64 = 100;

/// `POST /user/{userId}/filter`
pub(super) async fn upload(server: &Server, call: &Call) -> Handled {
    let session = auth::session(server, call).await?;
    own(&session, call.parameter(0))?;
    let filter = Body::of(server, call).await?.into_object();
    Filter::of(&filter)?;
    let text = filter.to_text();
    if text.len() > MAX_FILTER_BYTES {
        return Err(MatrixError::too_large("The filter is too long."));
    }
    let digest = Sha256::digest(text.as_bytes());
    let filter_id = URL_SAFE_NO_PAD.encode(digest.get(..12).unwrap_or_default());
    server.store.put_filter(session.user.as_str(), &filter_id, &text).await?;
    ok(&json!({ "filter_id": filter_id }))
}

/// `GET /user/{userId}/filter/{filterId}`
pub(super) async fn download(server: &Server, call: &Call) -> Handled {
    let session = auth::session(server, call).await?;
    own(&session, call.parameter(0))?;
    let filter = server.store.filter(session.user.as_str(), call.parameter(1)).await?;
    let filter = filter.ok_or_else(|| MatrixError::not_found("There is no such filter."))?;
    Ok(raw_json_response(http::StatusCode::OK, filter))
}

/// Checks that a user's own things are asked for.
///
/// # Errors
/// 403 `M_FORBIDDEN` for those of somebody else.
pub(super) fn own(session: &auth::Session, user_id: &str) -> Result<(), MatrixError> {
    if session.user.as_str() == user_id { Ok(()) } else { Err(MatrixError::forbidden("This belongs to another user.")) }
}

/// A filter of `/sync`.
#[derive(Debug, Default)]
pub(super) struct Filter {
    /// What of the timelines is sent.
    pub(super) timeline: EventFilter,
    /// What of the state is sent.
    pub(super) state: EventFilter,
    /// What of the account data of no room is sent.
    pub(super) account_data: EventFilter,
    /// What of the rooms' account data is sent.
    pub(super) room_account_data: EventFilter,
    /// What is sent of typing and receipts.
    pub(super) ephemeral: EventFilter,
    /// What is sent of presence.
    pub(super) presence: EventFilter,
    /// Whether rooms that were left before are sent at first.
    pub(super) include_leave: bool,
    rooms: Option<Vec<String>>,
    not_rooms: Vec<String>,
}

impl Filter {
    /// The filter that a sync asks for: inline, by the ID of a stored one, or none.
    ///
    /// # Errors
    /// 400 where it is malformed, or where there is no filter of that ID.
    pub(super) async fn asked(
        server: &Server,
        session: &auth::Session,
        asked: Option<&str>,
    ) -> Result<Self, MatrixError> {
        let Some(asked) = asked.filter(|text| !text.is_empty()) else { return Ok(Self::default()) };
        if asked.starts_with('{') {
            return Self::of(&parse(asked)?);
        }
        let unknown = || MatrixError::invalid_param("There is no filter with this ID.");
        let text = server.store.filter(session.user.as_str(), asked).await?.ok_or_else(unknown)?;
        // It may have been stored when no ID in it was looked at.
        Self::read(&parse(&text)?)
    }

    fn of(filter: &Object) -> Result<Self, MatrixError> {
        let filter = Self::read(filter)?;
        check_rooms(filter.rooms.as_deref(), &filter.not_rooms)?;
        let Self { timeline, state, account_data, room_account_data, ephemeral, presence, .. } = &filter;
        for part in [timeline, state, account_data, room_account_data, ephemeral, presence] {
            part.check()?;
        }
        Ok(filter)
    }

    fn read(filter: &Object) -> Result<Self, MatrixError> {
        let filter = Body::part(filter);
        let part = |body: &Body, key: &str| -> Result<EventFilter, MatrixError> {
            body.object(key)?.map_or(Ok(EventFilter::default()), EventFilter::read)
        };
        let room = filter.object("room")?.map(Body::part).unwrap_or_default();
        Ok(Self {
            timeline: part(&room, "timeline")?,
            state: part(&room, "state")?,
            account_data: part(&filter, "account_data")?,
            room_account_data: part(&room, "account_data")?,
            ephemeral: part(&room, "ephemeral")?,
            presence: part(&filter, "presence")?,
            include_leave: room.flag("include_leave")?,
            rooms: room.texts("rooms")?,
            not_rooms: room.texts("not_rooms")?.unwrap_or_default(),
        })
    }

    /// Whether anything of this room is sent.
    pub(super) fn room(&self, room_id: &str) -> bool {
        allows(self.rooms.as_deref(), &self.not_rooms, room_id, str::eq)
    }
}

/// A filter of events.
#[derive(Debug, Default)]
pub(super) struct EventFilter {
    /// How many events, where it says.
    limit: Option<i64>,
    /// Whether only the members that matter for the events shown are sent.
    pub(super) lazy_load_members: bool,
    /// Whether what is not read is counted by thread.
    pub(super) unread_thread_notifications: bool,
    page: PageFilter,
    rooms: Option<Vec<String>>,
    not_rooms: Vec<String>,
}

impl EventFilter {
    /// Reads the JSON text of a filter, as `/messages` has it in its query.
    ///
    /// # Errors
    /// 400 where it is malformed.
    pub(super) fn parse(text: Option<&str>) -> Result<Self, MatrixError> {
        text.filter(|text| !text.is_empty()).map_or(Ok(Self::default()), |text| Self::of(&parse(text)?))
    }

    /// Reads a filter.
    ///
    /// # Errors
    /// 400 where it is malformed.
    pub(super) fn of(filter: &Object) -> Result<Self, MatrixError> {
        let filter = Self::read(filter)?;
        filter.check()?;
        Ok(filter)
    }

    fn check(&self) -> Result<(), MatrixError> {
        check_rooms(self.rooms.as_deref(), &self.not_rooms)?;
        let mut senders = self.page.senders.iter().flatten().chain(&self.page.not_senders);
        let are_users = senders.all(|id| UserId::parse_any_length(id).is_ok());
        are_users
            .then_some(())
            .ok_or_else(|| MatrixError::invalid_param("The filter names a sender that is no user ID."))
    }

    fn read(filter: &Object) -> Result<Self, MatrixError> {
        let filter = Body::part(filter);
        Ok(Self {
            limit: filter.integer("limit")?,
            lazy_load_members: filter.flag("lazy_load_members")?,
            unread_thread_notifications: filter.flag("unread_thread_notifications")?,
            page: PageFilter {
                types: filter.texts("types")?,
                not_types: filter.texts("not_types")?.unwrap_or_default(),
                senders: filter.texts("senders")?,
                not_senders: filter.texts("not_senders")?.unwrap_or_default(),
                contains_url: filter.maybe("contains_url")?,
            },
            rooms: filter.texts("rooms")?,
            not_rooms: filter.texts("not_rooms")?.unwrap_or_default(),
        })
    }

    /// How many events.
    pub(super) fn limit(&self) -> i64 {
        self.limit.unwrap_or(DEFAULT_LIMIT).clamp(0, MAX_LIMIT)
    }

    /// What the store's pages take.
    pub(super) fn page(&self) -> &PageFilter {
        &self.page
    }

    /// Whether an event of the room is let through.
    pub(super) fn event(&self, room_id: &str, event: &Event) -> bool {
        let url = event.content().contains_key("url");
        self.sent(event.event_type(), event.sender().as_str())
            && self.page.contains_url.is_none_or(|wanted| wanted == url)
            && self.room(room_id)
    }

    /// Whether events of this type are let through that this user has sent.
    pub(super) fn sent(&self, event_type: &str, sender: &str) -> bool {
        self.event_type(event_type) && allows(self.page.senders.as_deref(), &self.page.not_senders, sender, str::eq)
    }

    /// Whether events of this type are let through.
    pub(super) fn event_type(&self, event_type: &str) -> bool {
        allows(self.page.types.as_deref(), &self.page.not_types, event_type, matches)
    }

    /// Whether events of this room are let through.
    pub(super) fn room(&self, room_id: &str) -> bool {
        allows(self.rooms.as_deref(), &self.not_rooms, room_id, str::eq)
    }
}

fn check_rooms(only: Option<&[String]>, never: &[String]) -> Result<(), MatrixError> {
    let are_rooms = only.unwrap_or_default().iter().chain(never).all(|id| RoomId::parse_any_length(id).is_ok());
    are_rooms.then_some(()).ok_or_else(|| MatrixError::invalid_param("The filter names a room by what is no room ID."))
}

fn parse(text: &str) -> Result<Object, MatrixError> {
    let value = json::parse(text.as_bytes())
        .map_err(|error| MatrixError::not_json(format!("The filter is malformed: {error}.")))?;
    value.into_object().ok_or_else(|| MatrixError::bad_json("The filter must be a JSON object."))
}

fn allows(only: Option<&[String]>, never: &[String], text: &str, like: impl Fn(&str, &str) -> bool) -> bool {
    only.is_none_or(|only| only.iter().any(|item| like(item, text))) && !never.iter().any(|item| like(item, text))
}

/// Whether `text` matches `pattern`, in which `*` stands for any characters. Linear but for the pieces' own searches.
fn matches(pattern: &str, text: &str) -> bool {
    let mut pieces = pattern.split('*');
    let Some(mut rest) = text.strip_prefix(pieces.next().unwrap_or_default()) else { return false };
    let Some(last) = pieces.next_back() else { return rest.is_empty() };
    for piece in pieces {
        let Some((_, after)) = rest.split_once(piece) else { return false };
        rest = after;
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn wildcards() {
        let yes = [
            ("m.room.message", "m.room.message"),
            ("m.*", "m.room.name"),
            ("*", ""),
            ("*.name", "m.room.name"),
            ("m.*.n*e", "m.room.name"),
            ("m.room.**", "m.room."),
        ];
        for (pattern, text) in yes {
            assert!(matches(pattern, text), "{pattern} {text}");
        }
        let no = [
            ("m.room.message", "m.room.messages"),
            ("m.*", "org.m.x"),
            ("*.name", "m.room.names"),
            ("", "x"),
            ("a*a", "a"),
            ("?", "x"),
            ("[a]", "a"),
        ];
        for (pattern, text) in no {
            assert!(!matches(pattern, text), "{pattern} {text}");
        }
    }
}
