//! The published room directory: the rooms that this server's users have others find (Client-Server API,
//! "Published room directory"; Server-Server API, "Published Room Directory").
//!
//! A page is made when it is asked for, of the rooms as they are then; only the order, by the number of members, is kept by the
//! commits that change it. A page begins where another ended: a room that moved meanwhile may be told twice or not at all.
//! Where a search leaves out much, a page ends early, and the next one goes on.

use super::{RoomError, Rooms, summary::Summary};
use crate::{
    matrix::json::{Object, Value},
    store::summaries::{PublishedAt, PublishedPlace},
};

/// The most rooms of a page; the rooms read at once, and for one page.
const MAX_LIMIT: usize = 100;
const READ_AT_ONCE: i64 = 25;
const MAX_READ: i64 = 500;
/// A page ends where it is longer than this, in bytes: a topic may be as long as an event.
const MAX_BYTES: usize = 512 * 1024;
/// The longest search term, in bytes, and the most room types.
const MAX_TERM_BYTES: usize = 1_024;
const MAX_TYPES: usize = 50;

/// What somebody wants of the directory.
#[derive(Debug, Clone)]
pub struct PublishedQuery {
    limit: usize,
    at: PublishedAt,
    /// In lower case.
    term: Option<String>,
    /// `None` among them stands for rooms without a type.
    room_types: Option<Vec<Option<String>>>,
}

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asker {
    /// A client of ours.
    Client,
    /// Another server, whose users can do nothing with rooms that are not federated.
    Server,
}

impl PublishedQuery {
    /// The query in the members of a JSON object. A query string has the same but for `filter`.
    ///
    /// # Errors
    /// [`RoomError::Invalid`]
    pub fn of_object(object: &Object) -> Result<Self, RoomError> {
        let typed = |name: &str| object.get(name).filter(|value| **value != Value::Null);
        let invalid = |name: &str| RoomError::Invalid(format!("`{name}` is malformed."));
        let text = |name: &str| match typed(name) {
            None => Ok(None),
            Some(value) => value.as_str().map(Some).ok_or_else(|| invalid(name)),
        };
        if typed("include_all_networks").is_some_and(|all| all.as_bool().is_none()) {
            return Err(invalid("include_all_networks"));
        }
        if text("third_party_instance_id")?.is_some() {
            return Err(RoomError::Invalid("This server knows no third-party networks.".to_owned()));
        }
        let limit = match typed("limit") {
            None => 0,
            Some(limit) => limit.as_i64().filter(|limit| *limit >= 0).ok_or_else(|| invalid("limit"))?,
        };
        let at = match text("since")? {
            None => PublishedAt::Start,
            Some(since) => read_token(since).ok_or_else(|| invalid("since"))?,
        };
        let empty = Object::new();
        let filter = match typed("filter") {
            None => &empty,
            Some(filter) => filter.as_object().ok_or_else(|| invalid("filter"))?,
        };
        let term = match filter.get("generic_search_term") {
            None | Some(Value::Null) => None,
            Some(term) => Some(term.as_str().ok_or_else(|| invalid("generic_search_term"))?),
        };
        let room_types = match filter.get("room_types") {
            None | Some(Value::Null) => None,
            Some(types) => Some(read_types(types).ok_or_else(|| invalid("room_types"))?),
        };
        if term.is_some_and(|term| term.len() > MAX_TERM_BYTES) {
            return Err(invalid("generic_search_term"));
        }
        Ok(Self {
            limit: usize::try_from(limit).ok().filter(|limit| (1..MAX_LIMIT).contains(limit)).unwrap_or(MAX_LIMIT),
            at,
            term: term.filter(|term| !term.is_empty()).map(str::to_lowercase),
            room_types,
        })
    }

    fn takes(&self, summary: &Summary) -> bool {
        let of_type = self
            .room_types
            .as_ref()
            .is_none_or(|types| types.iter().any(|wanted| wanted.as_deref() == summary.room_type()));
        let found = self
            .term
            .as_ref()
            .is_none_or(|term| summary.words().any(|word| word.to_lowercase().contains(term.as_str())));
        of_type && found
    }
}

impl Rooms {
    /// A page of the published room directory, as the endpoints answer.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn published(&self, query: &PublishedQuery, asker: Asker) -> Result<Object, RoomError> {
        let mut chunk: Vec<(PublishedPlace, Object)> = Vec::new();
        let mut at = query.at.clone();
        let (mut read, mut bytes) = (0, 0);
        // Whether there is no room further on.
        let mut is_end = false;
        'page: while read < MAX_READ && !is_end {
            let rooms = self.store.published_rooms(self.server_name(), &at, READ_AT_ONCE).await?;
            let count = rooms.len();
            let is_last = (count as i64) < READ_AT_ONCE;
            for (index, summary) in self.sum_up(rooms).await?.into_iter().enumerate() {
                let place = PublishedPlace { joined: summary.joined(), room_id: summary.room_id().as_str().to_owned() };
                at = match at {
                    PublishedAt::Start | PublishedAt::After(_) => PublishedAt::After(place.clone()),
                    PublishedAt::Before(_) => PublishedAt::Before(place.clone()),
                };
                let is_listed = summary.room.local_joined > 0 && summary.is_open();
                let is_for_them = asker == Asker::Client || summary.is_federated();
                if is_listed && is_for_them && query.takes(&summary) {
                    let entry = summary.published();
                    bytes += entry.to_text().len();
                    chunk.push((place, entry));
                    if chunk.len() == query.limit || bytes > MAX_BYTES {
                        is_end = is_last && index + 1 == count;
                        break 'page;
                    }
                }
            }
            read += READ_AT_ONCE;
            is_end = is_last;
        }
        // Where reading came to a stop the one page goes on; the other is on the far side of what is shown.
        let (next, prev) = match (&query.at, at) {
            (PublishedAt::Before(begun), at) => {
                let ended = place_of(at);
                chunk.reverse();
                let last = chunk.last().map(|(last, _)| last.clone()).or_else(|| ended.clone());
                (last.or_else(|| Some(begun.clone())), ended.filter(|_| !is_end))
            }
            (begun, at) => {
                // The room that the page begins after comes before it.
                let before = |begun: PublishedPlace| PublishedPlace { room_id: String::new(), ..begun };
                let prev = place_of(begun.clone())
                    .map(|begun| chunk.first().map_or(before(begun), |(first, _)| first.clone()));
                (place_of(at).filter(|_| !is_end), prev)
            }
        };
        let mut answer = Object::new();
        answer.insert("chunk", Value::Array(chunk.into_iter().map(|(_, entry)| entry.into()).collect()));
        if let Some(next) = next {
            answer.insert("next_batch", token('n', &next));
        }
        if let Some(prev) = prev {
            answer.insert("prev_batch", token('p', &prev));
        }
        Ok(answer)
    }
}

fn place_of(at: PublishedAt) -> Option<PublishedPlace> {
    match at {
        PublishedAt::Start => None,
        PublishedAt::After(place) | PublishedAt::Before(place) => Some(place),
    }
}

/// A token that leads on after a place (`n`) or back before it (`p`).
fn token(kind: char, place: &PublishedPlace) -> String {
    format!("{kind}{}_{}", place.joined, place.room_id)
}

/// Where a token of ours leads.
fn read_token(token: &str) -> Option<PublishedAt> {
    let (kind, place) = token.split_at_checked(1)?;
    let (joined, room_id) = place.split_once('_')?;
    let place = PublishedPlace {
        joined: joined.parse().ok().filter(|joined| (0..1 << 52).contains(joined))?,
        room_id: room_id.to_owned(),
    };
    match kind {
        "n" => Some(PublishedAt::After(place)),
        "p" => Some(PublishedAt::Before(place)),
        _ => None,
    }
}

fn read_types(types: &Value) -> Option<Vec<Option<String>>> {
    let types = types.as_array().filter(|types| types.len() <= MAX_TYPES)?;
    let read = |room_type: &Value| match room_type {
        Value::Null => Some(None),
        room_type => room_type.as_str().map(|text| Some(text.to_owned())),
    };
    types.iter().map(read).collect()
}
