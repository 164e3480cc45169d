//! `GET /notifications` (Client-Server API, "Listing Notifications").
//!
//! No list is kept of what users were notified of: the newest events of their rooms are looked through by the push rules of now.

use std::collections::{BTreeSet, HashMap};

use super::{
    account_data, auth,
    events::{self, Telling},
    unread::{self, Judge},
};
use crate::{
    error::MatrixError,
    matrix::{
        identifiers::RoomId,
        json::{Object, Value},
        push::{highlights, notifies},
    },
    router::{Call, Handled, ok},
    server::Server,
    store::{
        positions::TimelinePos,
        unread::{Notified, RoomFacts},
    },
};

/// How many an answer holds where the client does not say.
const DEFAULT_LIMIT: usize = 20;
/// How many it holds at most.
const MAX_LIMIT: usize = 100;
/// How many events are read at once.
const PAGE: i64 = 100;
/// How many times. An answer may hold nothing and say that there is more.
const MAX_PAGES: usize = 5;

/// `GET /notifications`
pub(super) async fn notifications(server: &Server, call: &Call) -> Handled {
    let session = auth::session(server, call).await?;
    let malformed = |name: &str| MatrixError::invalid_param(format!("{name:?} is malformed."));
    let limit = match call.query("limit") {
        Some(text) => text.parse::<usize>().map_err(|_| malformed("limit"))?.clamp(1, MAX_LIMIT),
        None => DEFAULT_LIMIT,
    };
    let mut before = match call.query("from").filter(|text| !text.is_empty()) {
        Some(text) => TimelinePos::new(text.parse().map_err(|_| malformed("from"))?),
        None => TimelinePos::MAX,
    }
    .clamp(TimelinePos::OLDEST, TimelinePos::MAX);
    let only_highlights = call.query("only").as_deref() == Some("highlight");
    let judge = Judge::new(server, &session.user);
    let now_ms = server.platform.clock.now_ms();
    let mut told = Vec::new();
    let mut has_more = true;
    for _ in 0..MAX_PAGES {
        let page = server.store.notified(session.user.as_str(), before, PAGE).await?;
        has_more = i64::try_from(page.len()).is_ok_and(|count| count >= PAGE);
        for (notified, actions) in judged(server, &judge, session.user.as_str(), page).await? {
            if told.len() == limit {
                has_more = true;
                break;
            }
            before = notified.event.pos;
            if notifies(&actions) && (!only_highlights || highlights(&actions)) {
                told.push(notification(&notified, actions, now_ms));
            }
        }
        if told.len() == limit || !has_more {
            break;
        }
    }
    let mut answer = Object::from_iter([("notifications", Value::Array(told))]);
    if has_more {
        answer.insert("next_token", before.get().to_string());
    }
    ok(&answer)
}

/// Each event with what the push rules have done with it.
async fn judged(
    server: &Server,
    judge: &Judge<'_>,
    user_id: &str,
    page: Vec<Notified>,
) -> Result<Vec<(Notified, Vec<Value>)>, MatrixError> {
    let rooms: BTreeSet<&RoomId> = page.iter().map(|notified| &notified.room_id).collect();
    let (settings, facts) = server.store.room_facts(user_id, rooms).await?;
    let mut by_room: HashMap<&RoomId, Vec<usize>> = HashMap::new();
    for (index, notified) in page.iter().enumerate() {
        let event = &notified.event.seen.event;
        let is_hidden = settings.ignored.hides(event.sender().as_str(), event.state_key().is_some());
        if notified.event.seen.redaction.is_none() && !is_hidden {
            by_room.entry(&notified.room_id).or_default().push(index);
        }
    }
    let rules = account_data::push_rules(user_id, settings.push_rules.as_deref())?;
    let rules = rules.prepared();
    let mut verdicts: HashMap<usize, Vec<Value>> = HashMap::new();
    let rooms: Vec<(RoomFacts, Vec<usize>)> =
        by_room.into_iter().filter_map(|(room_id, indices)| Some((*facts.get(room_id)?, indices))).collect();
    let actions = |(facts, indices): &(RoomFacts, Vec<usize>)| {
        let events = indices.iter().filter_map(|index| page.get(*index));
        let events: Vec<Object> = events.map(|notified| unread::seen(&notified.event.seen.event)).collect();
        let events: Vec<&Object> = events.iter().collect();
        judge.actions(*facts, &rules, &events)
    };
    for ((_, indices), actions) in judge.each(rooms, |(facts, _)| *facts, actions).await? {
        verdicts.extend(indices.iter().copied().zip(actions.into_iter().map(<[Value]>::to_vec)));
    }
    let with_actions = page.into_iter().enumerate();
    Ok(with_actions.map(|(index, notified)| (notified, verdicts.remove(&index).unwrap_or_default())).collect())
}

fn notification(notified: &Notified, actions: Vec<Value>, now_ms: i64) -> Value {
    let telling = Telling::alone(now_ms, false);
    let event = &notified.event;
    Value::Object(Object::from_iter([
        ("actions", Value::Array(actions)),
        ("event", events::timeline_event(event, telling)),
        ("read", Value::Bool(notified.is_read)),
        ("room_id", Value::from(notified.room_id.as_str())),
        ("ts", Value::from(event.seen.event.origin_server_ts())),
    ]))
}
