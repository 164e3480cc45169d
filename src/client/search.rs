//! Searching what was said in one's own rooms (Client-Server API, "Server Side Search").
//!
//! What the database finds by a piece of text is looked at here word by word: each word of the term must begin a word of the event,
//! whatever its case. Results are given look by look ([`crate::store::search`]); those of the most relevant first are so within a look.

use std::collections::{BTreeMap, HashMap};

use http::StatusCode;

use super::{
    auth::{self, Session},
    body::{Body, lacks},
    bundles::{Bundles, Shown},
    events::{self, Telling},
    filters::EventFilter,
    tokens::Token,
    visibility::{self, Reader},
};
use crate::{
    error::MatrixError,
    matrix::{
        event::Event,
        identifiers::RoomId,
        json::{Object, Value},
        state_trie::{NodeId, StateKeyHash},
    },
    router::{Call, Handled, raw_json_response},
    server::Server,
    store::{
        positions::TimelinePos,
        search::Look,
        snapshots::{StateFound, StateReads},
        timeline::TimelineEvent,
    },
};

/// How many results a page has, and events around each of them on either side, at most.
const MAX_RESULTS: usize = 20;
const MAX_AROUND: i64 = 10;
/// How often a request looks.
const MAX_LOOKS: usize = 4;
/// The longest term, in bytes, and how many words of it count.
const MAX_TERM: usize = 1_000;
const MAX_WORDS: usize = 20;
/// The states of the rooms together that are told with their members, in bytes: of other rooms so many characters are told without.
const MAX_STATE: i64 = 1_000_000;

/// `POST /search`
pub(super) async fn search(server: &Server, call: &Call) -> Handled {
    let session = auth::session(server, call).await?;
    let body = Body::of(server, call).await?;
    let categories = body.object("search_categories")?.map(Body::part);
    let categories = categories.ok_or_else(|| lacks("search_categories"))?;
    let mut answer = Object::new();
    if let Some(criteria) = categories.object("room_events")?.map(Body::part) {
        let criteria = Criteria::of(&criteria)?;
        let at = call.query("next_batch").map(|text| At::parse(&text)).transpose()?;
        let search = Search { server, session: &session, criteria };
        answer.insert("room_events", search.answer(at).await?);
    }
    let answer = Object::from_iter([("search_categories", Value::Object(answer))]);
    Ok(raw_json_response(StatusCode::OK, answer.to_text()))
}

/// Where a page begins: with which look, and how many of what that finds were told before.
#[derive(Debug, Clone, Copy)]
struct At {
    from: TimelinePos,
    told: usize,
}

impl At {
    fn parse(text: &str) -> Result<Self, MatrixError> {
        let (token, told) = text.rsplit_once('.').unwrap_or((text, ""));
        let unknown = || MatrixError::invalid_param("The token is not one of this server's.");
        Ok(Self { from: Token::parse(token)?.events, told: told.parse().map_err(|_| unknown())? })
    }
}

impl std::fmt::Display for At {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", Token::at(self.from), self.told)
    }
}

/// What is asked for.
struct Criteria {
    words: Vec<String>,
    types: Vec<&'static str>,
    filter: EventFilter,
    by_rank: bool,
    /// How many events before and after each result.
    around: Option<(i64, i64)>,
    profiles: bool,
    state: bool,
    groups: Vec<&'static str>,
}

impl Criteria {
    fn of(criteria: &Body) -> Result<Self, MatrixError> {
        let term = criteria.required_text("search_term")?;
        if term.len() > MAX_TERM {
            return Err(MatrixError::invalid_param("\"search_term\" is too long."));
        }
        let all = ["content.body", "content.name", "content.topic"];
        let keys = criteria.texts("keys")?.unwrap_or_else(|| all.map(str::to_owned).to_vec());
        let types = keys.iter().map(|key| match key.as_str() {
            "content.body" => Ok("m.room.message"),
            "content.name" => Ok("m.room.name"),
            "content.topic" => Ok("m.room.topic"),
            _ => Err(MatrixError::invalid_param("This key cannot be searched.")),
        });
        let by_rank = match criteria.text("order_by")? {
            None | Some("rank") => true,
            Some("recent") => false,
            Some(_) => return Err(MatrixError::invalid_param("\"order_by\" must be rank or recent.")),
        };
        let filter = criteria.object("filter")?.map_or(Ok(EventFilter::default()), EventFilter::of)?;
        let context = criteria.object("event_context")?.map(Body::part);
        let around = context.as_ref().map(|context| {
            let limit = |name: &str| Ok::<_, MatrixError>(context.integer(name)?.unwrap_or(5).clamp(0, MAX_AROUND));
            Ok::<_, MatrixError>((limit("before_limit")?, limit("after_limit")?))
        });
        let mut groups = Vec::new();
        if let Some(groupings) = criteria.object("groupings")?.map(Body::part) {
            for group in groupings.list("group_by")? {
                groups.push(match group.as_object().and_then(|group| group.get("key")?.as_str()) {
                    Some("room_id") => "room_id",
                    Some("sender") => "sender",
                    _ => return Err(MatrixError::invalid_param("Results are grouped by room_id or sender.")),
                });
            }
        }
        Ok(Self {
            words: words(term).take(MAX_WORDS).collect(),
            types: types.collect::<Result<_, _>>()?,
            filter,
            by_rank,
            around: around.transpose()?,
            profiles: context.map_or(Ok(false), |context| context.flag("include_profile"))?,
            state: criteria.flag("include_state")?,
            groups,
        })
    }

    /// Three ways to write the longest word, as the database compares it.
    fn texts(&self) -> Option<[String; 3]> {
        let word = self.words.iter().max_by_key(|word| word.len())?;
        let mut letters = word.chars();
        let first: String = letters.next().into_iter().flat_map(char::to_uppercase).collect();
        let title = first + letters.as_str();
        Some([word.clone(), word.to_uppercase(), title].map(|text| text.to_ascii_lowercase()))
    }

    /// How well an event fits; 0 where it does not.
    fn rank(&self, event: &Event) -> i64 {
        let text = text_of(event);
        let of_event: Vec<String> = words(&text).collect();
        let score = |word: &String| {
            let fits =
                |other: &&String| other.starts_with(word.as_str()) || !word.is_ascii() && other.contains(word.as_str());
            let fitting = of_event.iter().filter(fits);
            fitting.map(|other| if other == word { 2_000 } else { 1_000 }).max()
        };
        let scores: Option<Vec<i64>> = self.words.iter().map(score).collect();
        let length = i64::try_from(of_event.len()).unwrap_or(i64::MAX).saturating_add(8);
        scores.map_or(0, |scores| (scores.iter().sum::<i64>().saturating_mul(8) / length).max(1))
    }
}

/// The words of a text, in lower case.
fn words(text: &str) -> impl Iterator<Item = String> {
    text.split(|letter: char| !letter.is_alphanumeric()).filter(|word| !word.is_empty()).map(str::to_lowercase)
}

/// What of an event is searched.
fn text_of(event: &Event) -> String {
    let content = event.content();
    let text = |key: &str| content.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    match event.event_type() {
        "m.room.name" => text("name"),
        "m.room.topic" => {
            let parts = content.get("m.topic").and_then(|topic| topic.as_object()?.get("m.text")?.as_array());
            let plain = parts
                .into_iter()
                .flatten()
                .filter_map(Value::as_object)
                .find(|part| part.get("mimetype").is_none_or(|kind| kind.as_str() == Some("text/plain")));
            let plain = plain.and_then(|part| part.get("body")?.as_str()).unwrap_or_default();
            format!("{} {plain}", text("topic"))
        }
        _ => text("body"),
    }
}

struct Search<'a> {
    server: &'a Server,
    session: &'a Session,
    criteria: Criteria,
}

/// What was found.
struct Hit {
    event: TimelineEvent,
    rank: i64,
}

impl Search<'_> {
    async fn answer(&self, at: Option<At>) -> Result<Object, MatrixError> {
        let (rooms, newest) = self.server.store.own_rooms(self.session.user.as_str()).await?;
        let rooms = rooms.into_iter().filter(|room| self.criteria.filter.room(room.room_id.as_str()));
        let readers: HashMap<RoomId, Reader> = rooms
            .map(|room| {
                let until = room.joined_until;
                let reader = Reader::known(&self.session.user, &room.room_id, room.state, room.joined, until);
                (room.room_id, reader)
            })
            .collect();
        let mut at = Some(at.unwrap_or(At { from: newest, told: 0 }));
        let (mut hits, mut count) = (Vec::new(), 0);
        let limit = usize::try_from(self.criteria.filter.limit()).unwrap_or(MAX_RESULTS).min(MAX_RESULTS);
        if let Some(texts) = self.criteria.texts().filter(|_| !readers.is_empty()) {
            for _ in 0..MAX_LOOKS {
                let Some(now) = at.filter(|_| hits.len() < limit) else { break };
                let (found, down_to) = self.look(&readers, now.from, &texts).await?;
                count += found.len();
                let wanted = limit - hits.len();
                let rest = found.len().saturating_sub(now.told);
                hits.extend(found.into_iter().skip(now.told).take(wanted));
                let ends_here = down_to <= TimelinePos::OLDEST;
                // A full page leads on, though nothing may follow it: clients go on until one says that there is no more.
                at = if rest > wanted || rest == wanted && ends_here {
                    Some(At { told: now.told + wanted, ..now })
                } else {
                    (!ends_here).then_some(At { from: down_to, told: 0 })
                };
            }
        } else {
            at = None;
        }
        let mut answer = self.results(&readers, hits).await?;
        answer.insert("count", Value::from(i64::try_from(count).unwrap_or(i64::MAX)));
        let highlights = self.criteria.words.iter().map(|word| Value::from(word.as_str()));
        answer.insert("highlights", Value::Array(highlights.collect()));
        if let Some(at) = at.filter(|_| limit > 0) {
            answer.insert("next_batch", at.to_string());
        }
        Ok(answer)
    }

    /// What one look finds that the user may see, in the order asked for; and down to where.
    async fn look(
        &self,
        readers: &HashMap<RoomId, Reader>,
        from: TimelinePos,
        texts: &[String; 3],
    ) -> Result<(Vec<Hit>, TimelinePos), MatrixError> {
        let store = &self.server.store;
        let rooms: Vec<(RoomId, TimelinePos)> =
            readers.values().map(|reader| (reader.room_id.clone(), reader.last)).collect();
        let types = &self.criteria.types;
        let look = Look { rooms: &rooms, from, types, texts, reader: self.session.reader() };
        let looked = store.look(&look).await?;
        let mut hits: Vec<(Hit, &Reader)> = Vec::new();
        for event in looked.events {
            let seen = &event.seen.event;
            let rank = self.criteria.rank(seen);
            let reader = readers.get(seen.room_id());
            if let Some(reader) = reader.filter(|reader| {
                rank > 0 && event.pos <= reader.last && self.criteria.filter.event(reader.room_id.as_str(), seen)
            }) {
                hits.push((Hit { event, rank }, reader));
            }
        }
        let mut reads = StateReads::default();
        for (hit, reader) in &hits {
            reader.wants(std::slice::from_ref(&hit.event), &mut reads);
        }
        let found = store.read_states(&reads).await?;
        let seen = hits
            .into_iter()
            .filter(|(hit, reader)| reader.sees(&hit.event, &found) && reader.reads(&hit.event, &found));
        let mut hits: Vec<Hit> = seen.map(|(hit, _)| hit).collect();
        if self.criteria.by_rank {
            hits.sort_by_key(|hit| std::cmp::Reverse((hit.rank, hit.event.pos)));
        }
        Ok((hits, looked.down_to))
    }

    async fn results(&self, readers: &HashMap<RoomId, Reader>, hits: Vec<Hit>) -> Result<Object, MatrixError> {
        let store = &self.server.store;
        let hits: Vec<(Hit, &Reader)> = hits
            .into_iter()
            .filter_map(|hit| Some((readers.get(hit.event.seen.event.room_id())?, hit)))
            .map(|(reader, hit)| (hit, reader))
            .collect();
        let around = match self.criteria.around {
            None => Vec::new(),
            Some(limits) => {
                let places: Vec<_> =
                    hits.iter().map(|(hit, reader)| (&reader.room_id, hit.event.pos, reader.last)).collect();
                store.around_each(&places, limits, self.session.user.as_str()).await?
            }
        };
        let states: BTreeMap<&RoomId, NodeId> =
            hits.iter().map(|(_, reader)| (&reader.room_id, reader.state)).collect();
        let sizes = match self.criteria.state {
            true => store.state_sizes(states.values().copied()).await?,
            false => HashMap::new(),
        };
        let mut reads = self.reads_of(&hits, &around);
        let size = want_states(&states, &sizes, &mut reads);
        let _held = store.room_for_states(size)?;
        let shown: Vec<Shown<'_>> =
            hits.iter().map(|(hit, reader)| (*reader, std::slice::from_ref(&hit.event))).collect();
        let (found, bundles) = Bundles::read(self.server, self.session, &reads, &shown).await?;
        let now_ms = self.server.platform.clock.now_ms();
        let mut results = Vec::new();
        for (nth, (hit, reader)) in hits.iter().enumerate() {
            let tell = |event: &TimelineEvent| bundles.timeline_event(reader, event, &found, now_ms);
            let mut result = Object::from_iter([("rank", Value::from(hit.rank)), ("result", tell(&hit.event))]);
            if let Some(near) = around.get(nth) {
                result.insert("context", self.context_of(&hit.event, near, reader, &found, tell));
            }
            results.push(Value::Object(result));
        }
        let mut answer = Object::from_iter([("results", Value::Array(results))]);
        if self.criteria.state {
            let telling = Telling::alone(now_ms, true);
            let told = states.iter().map(|(room_id, root)| {
                let events = found.whole(*root).iter().chain(found.but_members(*root));
                (room_id.as_str(), Value::Array(events.map(|seen| events::client_event(seen, telling)).collect()))
            });
            answer.insert("state", told.collect::<Object>());
        }
        if !self.criteria.groups.is_empty() {
            let groups = self.criteria.groups.iter().map(|key| (*key, Value::Object(grouped(key, &hits))));
            answer.insert("groups", groups.collect::<Object>());
        }
        Ok(answer)
    }

    /// What is read of the states for hits and the events around each of them.
    fn reads_of(&self, hits: &[(Hit, &Reader)], around: &[Vec<TimelineEvent>]) -> StateReads {
        let mut reads = StateReads { most: Some(MAX_STATE), ..StateReads::default() };
        for (nth, (hit, reader)) in hits.iter().enumerate() {
            let near = around.get(nth).map_or(&[][..], Vec::as_slice);
            for events in [std::slice::from_ref(&hit.event), near] {
                reader.wants(events, &mut reads);
                visibility::wants_replaced(events, &mut reads);
                if self.criteria.profiles {
                    reads.at.extend(events.iter().map(|event| member_at(&hit.event, reader, event)));
                }
            }
        }
        reads.at.sort_unstable();
        reads.at.dedup();
        reads
    }

    /// The events around `hit` that the user may see.
    fn context_of(
        &self,
        hit: &TimelineEvent,
        near: &[TimelineEvent],
        reader: &Reader,
        found: &StateFound,
        tell: impl Fn(&TimelineEvent) -> Value,
    ) -> Object {
        let seen: Vec<&TimelineEvent> = near.iter().filter(|event| reader.sees(event, found)).collect();
        let part = |later: bool| seen.iter().copied().filter(move |event| (event.pos > hit.pos) == later);
        let before: Vec<Value> = part(false).rev().map(&tell).collect();
        let after: Vec<Value> = part(true).map(&tell).collect();
        let ends = |event: Option<&TimelineEvent>| event.map_or(hit.pos, |event| event.pos);
        let mut context = Object::from_iter([
            ("start", Value::from(Token::at(ends(near.first()).min(hit.pos).before()).to_string())),
            ("end", Value::from(Token::at(ends(near.last()).max(hit.pos)).to_string())),
            ("events_before", Value::Array(before)),
            ("events_after", Value::Array(after)),
        ]);
        if self.criteria.profiles {
            let events = seen.iter().copied().chain([hit]);
            context.insert("profile_info", profiles(events, hit, reader, found));
        }
        context
    }
}

/// Adds the states of rooms to what is read: as many as an answer holds with their members, and the others without. How much is kept
/// room for.
fn want_states(states: &BTreeMap<&RoomId, NodeId>, sizes: &HashMap<NodeId, i64>, reads: &mut StateReads) -> i64 {
    let (mut whole, mut others) = (0, 0);
    for (root, size) in states.values().filter_map(|root| sizes.get_key_value(root)) {
        if whole + size <= MAX_STATE {
            whole += size;
            reads.whole.push(*root);
        } else {
            others = MAX_STATE.min(others + size);
            reads.but_members.push(*root);
        }
    }
    whole + others
}

/// Where the membership stands that the sender of `event` had when `hit` was sent.
fn member_at(hit: &TimelineEvent, reader: &Reader, event: &TimelineEvent) -> (NodeId, StateKeyHash) {
    let key = StateKeyHash::member(event.seen.event.sender().as_str());
    (hit.seen.state_before.unwrap_or(reader.state), key)
}

/// What the senders of events were called when `hit` was sent.
fn profiles<'e>(
    events: impl Iterator<Item = &'e TimelineEvent>,
    hit: &TimelineEvent,
    reader: &Reader,
    found: &StateFound,
) -> Object {
    let mut profiles = Object::new();
    for event in events {
        let (root, key) = member_at(hit, reader, event);
        let content = found.at(root, key).map(|seen| seen.event.content());
        let field = |name| Some((name, content?.get(name).filter(|value| value.as_str().is_some())?.clone()));
        let profile: Object = ["displayname", "avatar_url"].into_iter().filter_map(field).collect();
        profiles.insert(event.seen.event.sender().as_str(), profile);
    }
    profiles
}

/// The results by room or by sender, in the order of the first of each.
fn grouped(key: &str, hits: &[(Hit, &Reader)]) -> Object {
    let mut groups: Vec<(String, Vec<Value>)> = Vec::new();
    for (hit, reader) in hits {
        let event = &hit.event.seen.event;
        let name = if key == "room_id" { reader.room_id.as_str() } else { event.sender().as_str() };
        let id = Value::from(event.event_id().as_str());
        match groups.iter_mut().find(|(group, _)| group == name) {
            Some((_, results)) => results.push(id),
            None => groups.push((name.to_owned(), vec![id])),
        }
    }
    let told = (1_i64..).zip(groups).map(|(order, (name, results))| {
        (name, Value::Object(Object::from_iter([("order", Value::from(order)), ("results", Value::Array(results))])))
    });
    let mut object = Object::new();
    told.for_each(|(name, group)| {
        object.insert(name, group);
    });
    object
}
