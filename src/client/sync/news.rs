//! Whether what a waiting sync has found is any news to its client: what its filter leaves out is not, nor what an ignored user says,
//! nor a redaction without effect, of which nobody is told.

use crate::{
    client::filters::Filter,
    matrix::state_content::Membership,
    store::{
        sync::{ChangedAccountData, SyncFound, SyncRead, SyncRoom},
        timeline::TimelineEvent,
    },
};

/// Whether there is anything to tell but whose keys have changed, and what is fleeting. Where there is nothing, the next look may
/// begin where this one has ended: what it has passed over needs no telling later.
pub(super) fn is_any(found: &SyncFound, read: &SyncRead<'_>, filter: &Filter) -> bool {
    found.is_cut
        || !found.inbox.messages.is_empty()
        || found.changed_account_data.iter().any(|changed| is_account_data_told(changed, filter))
        || found.rooms.iter().any(|room| is_room_told(room, found, read, filter))
}

fn is_account_data_told(changed: &ChangedAccountData, filter: &Filter) -> bool {
    let ChangedAccountData { room_id, event_type, .. } = changed;
    match room_id.as_str() {
        "" => filter.account_data.event_type(event_type),
        room_id => filter.room(room_id) && filter.room_account_data.event_type(event_type),
    }
}

/// Of a room that the client knows, and whose state is what it was, gaps are told, and events that the filter lets through, the
/// user wants to see, and have an effect.
fn is_room_told(room: &SyncRoom, found: &SyncFound, read: &SyncRead<'_>, filter: &Filter) -> bool {
    let room_id = room.room_id.as_str();
    if !filter.room(room_id) {
        return false;
    }
    let is_known = room.membership == Membership::Join && room.pos <= read.since && !room.members.since(read.since);
    let state = room.room.map(|(_, state)| state);
    if !is_known || state.is_none() || state != room.state_since {
        return true;
    }
    // Where nothing is left out and there are no events, it is something else that is new.
    let Some(new) = found.timelines.get(&room.room_id) else { return read.filter.is_empty() };
    let has_more = i64::try_from(new.events.len()).is_ok_and(|events| events > read.limit);
    let is_told = |TimelineEvent { seen, .. }: &TimelineEvent| {
        filter.timeline.event(room_id, &seen.event) && !found.unwanted.hides(&seen.event) && !seen.is_powerless
    };
    filter.timeline.room(room_id) && (new.after_gap || has_more || new.events.iter().any(is_told))
}
