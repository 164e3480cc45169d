//! Under which history visibility an event was sent (Client-Server API, "Room History Visibility").
//!
//! What each visibility shows to whom is [`HistoryVisibility::shows`]: the same for local users and for other servers.

use super::{event::Event, state_content::HistoryVisibility};

/// The visibilities that an event was sent under, of which one is enough to see it: that of the state before it, where that is
/// known, by the event that stands there; and where the event itself states one, that too.
pub fn around(event: &Event, before: Option<Option<&Event>>) -> Vec<HistoryVisibility> {
    let of = |stated: Option<&Event>| HistoryVisibility::of(stated.map(Event::content));
    let stated = event.is_state("m.room.history_visibility", "").then(|| of(Some(event)));
    before.map(of).into_iter().chain(stated).collect()
}
