//! Asking for whole copies of events that are held without their content: whoever relays an event, or is asked for history, may
//! give an altered copy, of which only the redacted form is kept.

use std::cell::RefCell;

use futures_util::{StreamExt, stream};

use super::standing::SetAside;
use crate::{
    federation::pdus,
    log::LogRecord,
    matrix::{
        event::{ContentHash, Event},
        identifiers::{RoomId, ServerName},
    },
    room::{Room, RoomError},
    server::Server,
    store::altered::Altered,
};

/// How many events are asked for in turns, the newest first, how many each time, and how many at the same time.
const MAX_EVENTS: i64 = 200;
const MAX_EVENTS_EACH_TIME: usize = 20;
const AT_A_TIME: usize = 4;

/// How many servers are asked for one event besides its own.
const MAX_OTHERS: usize = 3;

impl Server {
    /// Asks for whole copies of events of the room that are held without their content, and takes those that come. Begins with
    /// nothing after `until`; `looks` is how often that was done with this time. Whether any are left to be asked for.
    pub(super) async fn complete_copies(&self, room: &Room, looks: i64, until: i64) -> Result<bool, RoomError> {
        let room_id = &room.room_id;
        let mut altered = self.store.altered(room_id, MAX_EVENTS).await?;
        if altered.is_empty() {
            return Ok(false);
        }
        let count = altered.len();
        // Those of which nobody has a whole copy, as they were redacted before we came, must not keep others from their turn.
        let before = usize::try_from(looks - 1).unwrap_or_default().saturating_mul(MAX_EVENTS_EACH_TIME);
        altered.rotate_left(before % count);
        altered.truncate(MAX_EVENTS_EACH_TIME);
        let servers = self.some_residents(room_id, usize::MAX).await?;
        let set_aside: RefCell<SetAside> = RefCell::default();
        let asked = altered.iter().map(|altered| self.whole_copy(room, altered, &servers, &set_aside, until));
        let copies: Vec<Option<Event>> = stream::iter(asked).buffered(AT_A_TIME).collect().await;
        let copies: Vec<Event> = copies.into_iter().flatten().collect();
        if !copies.is_empty() {
            self.rooms.take_copies(room_id, &copies).await?;
        }
        Ok(copies.len() < count)
    }

    /// The event with its content, from its own server or another one.
    async fn whole_copy(
        &self,
        room: &Room,
        altered: &Altered,
        servers: &[ServerName],
        set_aside: &RefCell<SetAside>,
        until: i64,
    ) -> Option<Event> {
        let id = &altered.event_id;
        let own = ServerName::parse(altered.sender.server_name()).ok().filter(|own| *own != self.config.server_name);
        // Each event begins with another one of the others.
        let first = id.as_str().bytes().fold(0, |sum, byte| sum + usize::from(byte)) % servers.len().max(1);
        let others = servers.iter().cycle().skip(first).take(servers.len()).filter(|name| Some(*name) != own.as_ref());
        for name in own.iter().chain(others.take(MAX_OTHERS)) {
            if set_aside.borrow().contains(name) || self.platform.clock.now_ms() >= until {
                continue;
            }
            let outcome = self.federation.event(name, id).await;
            set_aside.borrow_mut().note(name, &outcome);
            if let Ok(text) = outcome
                && let Some(event) = self.check_copy(&room.room_id, room, &text).await
                && event.event_id() == id
            {
                return Some(event);
            }
        }
        None
    }

    async fn check_copy(&self, room_id: &RoomId, room: &Room, text: &[u8]) -> Option<Event> {
        let events = match pdus::verify_history(self, room_id, room.room_version, &[text]).await {
            Ok(events) => events?,
            Err(error) => {
                self.platform
                    .log
                    .write(LogRecord::warning("a copy could not be checked").room(room_id).because(&error));
                return None;
            }
        };
        events.into_iter().find(|event| event.content_hash() == ContentHash::Right)
    }
}
