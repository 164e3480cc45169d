//! `GET /sync` (Client-Server API, "Syncing").
//!
//! What is asked for, and how a sync waits, is here. One with nothing new costs one round trip a look, and looks again when the
//! platform says that there may be news; what the filter leaves out, or an ignored user says, is none: see [`news`]. One with new
//! messages costs one more for what the state says about them, where it says anything, and for the members who sent them, where
//! these are loaded lazily: see [`plan`]. What is told is in [`answer`].

mod answer;
mod news;
mod plan;
mod rooms;
mod stripped_state;

use plan::Answer;

use super::{
    auth::{self, Session},
    filters::Filter,
    fleeting::Fleeting,
    presence,
    tokens::{SyncToken, Token},
};
use crate::{
    error::MatrixError,
    matrix::{identifiers::RoomId, state_content::Membership},
    platform::news::Subject,
    router::{Call, Handled},
    server::Server,
    store::{
        positions::TimelinePos,
        sync::{RestRead, SyncFound, SyncRead, SyncRoom},
        sync_fleeting::{FleetingAt, FleetingRead},
    },
};

/// The longest a sync waits, in milliseconds.
const MAX_TIMEOUT_MS: i64 = 30_000;

/// `GET /sync`
pub(super) async fn sync(server: &Server, call: &Call) -> Handled {
    let session = auth::session(server, call).await?;
    let filter = Filter::asked(server, &session, call.query("filter").as_deref()).await?;
    let since =
        call.query("since").filter(|since| !since.is_empty()).map(|since| SyncToken::parse(&since)).transpose()?;
    let is_first = since.is_none();
    let SyncToken { at: from, rest } = since.unwrap_or_default();
    let full_state = boolean(call, "full_state")? || rest.as_ref().is_some_and(|rest| rest.whole);
    let state_after = boolean(call, "use_state_after")?;
    if let Some(asked) = presence::asked(call)? {
        presence::note(server, &session.user, asked);
    }
    let timeout = match call.query("timeout") {
        Some(text) => text.parse::<i64>().map_err(|_| MatrixError::invalid_param("\"timeout\" must be an integer."))?,
        None => 0,
    };
    // A token from /messages may stand before the beginning of what syncs tell.
    let events_since = rest.as_ref().map_or(from.events, |rest| rest.since).max(TimelinePos::START);
    let mut read = SyncRead {
        user_id: session.user.as_str(),
        device_id: &session.device_id,
        since: events_since,
        account_data_since: from.account_data,
        device_lists_since: (!is_first).then_some(from.device_lists),
        to_device_since: Some(from.to_device),
        key_counts: true,
        fleeting: None,
        all_joined: full_state || events_since == TimelinePos::START,
        include_leave: filter.include_leave,
        limit: filter.timeline.limit(),
        filter: filter.timeline.page(),
        rest: rest.as_ref().map(|rest| RestRead { after: &rest.after, again: rest.cut.is_some(), to: from.events }),
    };
    let waits = !is_first && !full_state && rest.is_none();
    let deadline = server.platform.clock.now_ms().saturating_add(timeout.clamp(0, MAX_TIMEOUT_MS));
    let fleeting_since = (!is_first).then_some(from.fleeting);
    let (mut found, mut fleeting) =
        look(server, &session, &filter, &mut read, fleeting_since, waits.then_some(deadline)).await?;
    let events_since = read.since;
    if !is_first && !filter.state.lazy_load_members {
        // What was read in a room while its members were not known was passed over, as the room itself was.
        let told_anew = |room: &&SyncRoom| {
            room.members.since(events_since) && room.membership == Membership::Join && room.pos <= events_since
        };
        let rooms: Vec<RoomId> = found.rooms.iter().filter(told_anew).map(|room| room.room_id.clone()).collect();
        fleeting.tell_anew(server.store.receipts_in(&session.user, &rooms).await?, &filter);
    }
    let (events, account_data, at) = match &rest {
        None => (found.events, found.account_data, fleeting.at),
        // The rest is told as it was.
        Some(_) => (from.events, from.account_data, from.fleeting),
    };
    let to_device = found.inbox.told_upto.unwrap_or(found.to_device).max(from.to_device);
    let now = Token { events, account_data, device_lists: found.device_lists, to_device, fleeting: at };
    if !read.key_counts {
        // Others take keys meanwhile, and the device uploads new ones.
        found.key_counts = server.store.key_counts(session.user.as_str(), &session.device_id).await?;
    }
    // Where rooms are still to come, or have just come, what is fleeting is told again: it may be of those.
    let known = if is_first { fleeting.at } else { from.fleeting };
    let answer = Answer {
        server,
        session: &session,
        filter: &filter,
        is_first,
        since: events_since,
        now,
        known,
        fleeting,
        full_state,
        state_after,
        goes_on_in: rest.and_then(|rest| Some((rest.after, rest.cut?))),
    };
    answer.write(found).await
}

/// Looks for what is new until there is something, or until the time `deadline`; only once where there is none. Each further look reads
/// only what has come since the one before.
async fn look(
    server: &Server,
    session: &Session,
    filter: &Filter,
    read: &mut SyncRead<'_>,
    mut fleeting_since: Option<FleetingAt>,
    deadline: Option<i64>,
) -> Result<(SyncFound, Fleeting), MatrixError> {
    let mut listener = server.platform.news.listen();
    loop {
        let now = server.platform.clock.now_ms();
        read.fleeting = Some(FleetingRead { since: fleeting_since, now });
        let mut found = server.store.sync(read).await?;
        let fleeting = Fleeting::of(std::mem::take(&mut found.fleeting), filter, now);
        let has_news = news::is_any(&found, read, filter);
        if !has_news && fleeting.is_empty() {
            // Somebody's keys change all the time: it is news for those who share a room with them.
            let others = std::mem::take(&mut found.changed_keys.others);
            let own_server = server.config.server_name.as_str();
            found.changed_keys.others = server.store.sharing(own_server, session.user.as_str(), others).await?;
        }
        let left = deadline.map_or(0, |deadline| deadline.saturating_sub(server.platform.clock.now_ms()));
        if has_news || !found.changed_keys.is_empty() || !fleeting.is_empty() || left <= 0 {
            return Ok((found, fleeting));
        }
        // What was passed over is as if an answer with nothing in it had come before.
        read.since = found.events;
        fleeting_since = Some(fleeting.at);
        read.account_data_since = found.account_data.max(read.account_data_since);
        read.device_lists_since = Some(found.device_lists);
        read.key_counts = false;
        if fleeting.is_cut {
            continue;
        }
        if listener.is_choosy() {
            let rooms = server.store.rooms_of(&session.user, Membership::Join).await?;
            // Also those that the filter leaves out: that the keys of who is in them have changed is told.
            let rooms = rooms.into_iter().map(|room_id| Subject::Room(room_id.to_string()));
            let mine = [Subject::User(session.user.to_string()), Subject::Presence, Subject::Keys];
            listener.listen_to(rooms.chain(mine).collect());
        }
        // Nothing is written when somebody who was shown as typing has stopped.
        let until = fleeting.at.typing_until;
        let longest = if until > 0 { left.min(until.saturating_sub(now)) } else { left };
        listener.next(u32::try_from(longest).unwrap_or(u32::MAX)).await;
    }
}

fn boolean(call: &Call, name: &str) -> Result<bool, MatrixError> {
    match call.query(name).as_deref() {
        Some("true") => Ok(true),
        None | Some("false" | "") => Ok(false),
        Some(_) => Err(MatrixError::invalid_param(format!("{name:?} must be true or false."))),
    }
}
