//! What relates to an event, and the threads of a room (Client-Server API, "Relationships API", "Threading").

use http::StatusCode;

use super::{
    auth::{self, Session},
    bundles::Bundles,
    messages,
    tokens::Token,
    visibility::{self, Reader},
};
use crate::{
    error::MatrixError,
    matrix::{
        identifiers::EventId,
        json::{Object, Value},
    },
    router::{Call, Handled, raw_json_response},
    server::Server,
    store::{
        positions::TimelinePos,
        relations::{MAX_DEPTH, Related, RelationsRead, ThreadRoot, ThreadsRead},
        snapshots::{StateFound, StateReads},
        timeline::TimelineEvent,
    },
};

/// How many events a page has where the client does not say, and at most.
const LIMIT: (i64, i64) = (20, 100);

/// `GET /_matrix/client/v1/rooms/{roomId}/relations/{eventId}`, and those of a type, and of a type of events.
pub(super) async fn relations(server: &Server, call: &Call) -> Handled {
    let session = auth::session(server, call).await?;
    let parent = EventId::parse(call.parameter(1)).map_err(|_| visibility::no_such_event())?;
    let [rel_type, event_type] = [2, 3].map(|index| Some(call.parameter(index)).filter(|text| !text.is_empty()));
    let backwards = match call.query("dir").as_deref() {
        Some("b") | None => true,
        Some("f") => false,
        Some(_) => return Err(MatrixError::invalid_param("\"dir\" must be b or f.")),
    };
    let deep = call.query("recurse").map(|text| text.parse::<bool>()).transpose();
    let deep = deep.map_err(|_| MatrixError::invalid_param("\"recurse\" must be true or false."))?;
    let limit = page_limit(call)?;
    let (from, to) = (token(call, "from")?, token(call, "to")?);
    let reader = Reader::enter_for_event(server, &session, call.parameter(0)).await?;
    let placed = server.store.timeline_event(&reader.room_id, &parent, session.reader()).await?;
    let placed = placed.filter(|event| event.pos <= reader.last).ok_or_else(visibility::no_such_event)?;
    let (after, upto) = if backwards {
        (to.unwrap_or(TimelinePos::OLDEST), from.unwrap_or(TimelinePos::END))
    } else {
        (from.unwrap_or(TimelinePos::OLDEST), to.unwrap_or(TimelinePos::END))
    };
    let read = RelationsRead {
        room_id: &reader.room_id,
        parent: &parent,
        rel_type,
        event_type,
        after,
        to: upto.min(reader.last),
        backwards,
        limit: limit + 1,
        deep: deep == Some(true),
        reader: session.reader(),
    };
    let Related { mut events, looked_to } = server.store.related(&read).await?;
    let is_full = events.len() as i64 > limit;
    events.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
    let last = if is_full { events.last().map(|event| event.pos) } else { looked_to };
    let mut reads = StateReads::default();
    reader.wants(std::slice::from_ref(&placed), &mut reads);
    let page = Page { server, session: &session, reader: &reader };
    let (chunk, found) = page.told(reads, &events).await?;
    if !reader.sees(&placed, &found) {
        return Err(visibility::no_such_event());
    }
    let mut answer = Object::from_iter([("chunk", Value::Array(chunk))]);
    if let Some(last) = last {
        let end = if backwards { last.before() } else { last };
        answer.insert("next_batch", Token::at(end).to_string());
    }
    if let Some(from) = from {
        answer.insert("prev_batch", Token::at(from).to_string());
    }
    if deep.is_some() {
        answer.insert("recursion_depth", if deep == Some(true) { MAX_DEPTH } else { 1 });
    }
    Ok(raw_json_response(StatusCode::OK, answer.to_text()))
}

/// `GET /_matrix/client/v1/rooms/{roomId}/threads`
pub(super) async fn threads(server: &Server, call: &Call) -> Handled {
    let session = auth::session(server, call).await?;
    let participated = match call.query("include").as_deref() {
        None | Some("all") => false,
        Some("participated") => true,
        Some(_) => return Err(MatrixError::invalid_param("\"include\" must be all or participated.")),
    };
    let limit = page_limit(call)?;
    let from = token(call, "from")?;
    let reader = Reader::enter(server, &session, call.parameter(0)).await?;
    let read = ThreadsRead {
        room_id: &reader.room_id,
        last: reader.last,
        to: from.unwrap_or(TimelinePos::END).min(reader.last),
        participated,
        limit: limit + 1,
        reader: session.reader(),
    };
    let mut threads = server.store.threads(&read).await?;
    let is_last = threads.len() as i64 <= limit;
    threads.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
    let end = threads.last().filter(|_| !is_last).map(|thread| thread.newest.before());
    // What ignored users have begun is told redacted.
    let roots = threads.into_iter().map(|ThreadRoot { mut root, is_ignored, .. }| {
        if is_ignored {
            root.seen.event = root.seen.event.redacted();
        }
        root
    });
    let roots: Vec<TimelineEvent> = roots.collect();
    let page = Page { server, session: &session, reader: &reader };
    let (chunk, _) = page.told(StateReads::default(), &roots).await?;
    let mut answer = Object::from_iter([("chunk", Value::Array(chunk))]);
    if let Some(end) = end {
        answer.insert("next_batch", Token::at(end).to_string());
    }
    Ok(raw_json_response(StatusCode::OK, answer.to_text()))
}

/// Events of a room, as a page shows them.
struct Page<'a> {
    server: &'a Server,
    session: &'a Session,
    reader: &'a Reader,
}

impl Page<'_> {
    /// Those of the events that the reader may see, with what relates to them. Reads what else is wanted, too.
    async fn told(
        &self,
        mut reads: StateReads,
        events: &[TimelineEvent],
    ) -> Result<(Vec<Value>, StateFound), MatrixError> {
        let Self { server, session, reader } = self;
        reader.wants(events, &mut reads);
        visibility::wants_replaced(events, &mut reads);
        let (found, bundles) = Bundles::read(server, session, &reads, &[(reader, events)]).await?;
        let now_ms = server.platform.clock.now_ms();
        let seen = events.iter().filter(|event| reader.sees(event, &found));
        let told = seen.map(|event| bundles.timeline_event(reader, event, &found, now_ms));
        Ok((told.collect(), found))
    }
}

fn page_limit(call: &Call) -> Result<i64, MatrixError> {
    match messages::limit_of(call, LIMIT.0)? {
        limit if limit > 0 => Ok(limit.min(LIMIT.1)),
        _ => Err(MatrixError::invalid_param("\"limit\" must be greater than zero.")),
    }
}

fn token(call: &Call, name: &str) -> Result<Option<TimelinePos>, MatrixError> {
    Ok(messages::token_of(call, name)?.map(|token| token.events))
}
