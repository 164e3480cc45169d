//! Whom to ask about an event: a server that knows it, is not set aside, and was not asked yet.

use std::collections::{HashMap, HashSet};

use crate::{
    federation::{
        outbound::standing::{SetAside, Standing},
        peers::requests::RequestError,
    },
    matrix::{
        event::Event,
        identifiers::{EventId, RoomId, ServerName},
    },
    room::RoomError,
    server::Server,
};

/// How many of the room's servers are asked that have nothing to do with the event.
const MAX_OTHERS: usize = 3;

/// After this many useless answers a question is dropped.
const MAX_ANSWERS: usize = 4;

/// What may be asked of a server about an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Question {
    /// The event's auth chain.
    AuthChain,
    /// The events between ours and it.
    EventsBefore,
    /// It, and the state before it.
    StateBefore,
    /// It alone, and others that are lacking with it.
    Event,
}

/// See the module.
pub(super) struct Whom<'s> {
    server: &'s Server,
    room_id: RoomId,
    /// The servers that should know an event, the best first.
    sources: HashMap<EventId, Vec<ServerName>>,
    /// Some of the room's servers, once they were needed.
    others: Option<Vec<ServerName>>,
    asked: HashSet<(Question, EventId, ServerName)>,
    /// How many servers were asked a question.
    answers: HashMap<(Question, EventId), usize>,
    set_aside: SetAside,
    /// Which servers have said that they do not give an event.
    denied: HashSet<(EventId, ServerName)>,
}

impl<'s> Whom<'s> {
    pub(super) fn new(server: &'s Server, room_id: &RoomId) -> Self {
        Self {
            server,
            room_id: room_id.clone(),
            sources: HashMap::new(),
            others: None,
            asked: HashSet::new(),
            answers: HashMap::new(),
            set_aside: SetAside::default(),
            denied: HashSet::new(),
        }
    }

    /// Whether the event is known already.
    pub(super) fn knows(&self, event_id: &EventId) -> bool {
        self.sources.contains_key(event_id)
    }

    /// An event that servers have sent us. Its own server knows it best: anybody may have relayed it to us first, so as to be
    /// the one who is asked.
    pub(super) fn sent(&mut self, event: &Event, senders: &[ServerName]) {
        let servers = own_server(event).into_iter().chain(senders.iter().cloned());
        self.put(event, servers);
    }

    /// An event that `giver` has given us when it was asked: so it may know what comes before it.
    pub(super) fn given(&mut self, event: &Event, giver: &ServerName) {
        self.put(event, [giver.clone()].into_iter().chain(own_server(event)));
    }

    /// An event that is to be asked for like one of which nothing was known.
    pub(super) fn forget(&mut self, event_id: &EventId) {
        self.sources.remove(event_id);
    }

    /// A server that is asked nothing more in this look: what it gives is not taken.
    pub(super) fn ask_no_more(&mut self, name: &ServerName) {
        self.set_aside.add(name);
    }

    /// A server that is asked about an event first.
    pub(super) fn should_know(&mut self, event_id: &EventId, server: &ServerName) {
        if *server != self.server.config.server_name {
            self.sources.insert(event_id.clone(), vec![server.clone()]);
        }
    }

    fn put(&mut self, event: &Event, servers: impl Iterator<Item = ServerName>) {
        let mut sources: Vec<ServerName> = Vec::new();
        for server in servers {
            if server != self.server.config.server_name && !sources.contains(&server) {
                sources.push(server);
            }
        }
        self.sources.insert(event.event_id().clone(), sources);
    }

    /// The next server to put `question` about the event `about` to, which `known` cites or is; `None` where nobody is left.
    ///
    /// # Errors
    /// Where the database fails.
    pub(super) async fn next(
        &mut self,
        question: Question,
        about: &EventId,
        known: &EventId,
    ) -> Result<Option<ServerName>, RoomError> {
        if self.answers.get(&(question, about.clone())).is_some_and(|answers| *answers >= MAX_ANSWERS) {
            return Ok(None);
        }
        let sources = self.sources.get(known).cloned().unwrap_or_default();
        if let Some(first) = sources.first()
            && self.may_ask(question, about, first)
        {
            return Ok(Some(first.clone()));
        }
        let others = self.others().await?;
        let others = others.iter().filter(|name| !sources.contains(name)).take(MAX_OTHERS).cloned();
        let mut order = in_turns(sources.iter().skip(1).cloned(), others);
        Ok(order.find(|name| self.may_ask(question, about, name)))
    }

    fn may_ask(&self, question: Question, about: &EventId, name: &ServerName) -> bool {
        !self.is_set_aside(name) && !self.asked.contains(&(question, about.clone(), name.clone()))
    }

    /// Notes that a server is asked, so that it is not asked again.
    pub(super) fn note(&mut self, question: Question, about: &EventId, name: &ServerName) {
        self.asked.insert((question, about.clone(), name.clone()));
    }

    /// Notes that a server's answer has not helped.
    pub(super) fn note_useless(&mut self, question: Question, about: &EventId) {
        *self.answers.entry((question, about.clone())).or_default() += 1;
    }

    /// Notes what came of asking a server for something about the event `about`.
    pub(super) fn note_outcome<T>(&mut self, name: &ServerName, about: &EventId, outcome: &Result<T, RequestError>) {
        self.note_standing(name, outcome);
        if let Err(error @ RequestError::Status { .. }) = outcome
            && Standing::of(error) == Standing::Answered
        {
            self.denied.insert((about.clone(), name.clone()));
        }
    }

    /// As [`Whom::note_outcome`], for one of many events.
    pub(super) fn note_standing<T>(&mut self, name: &ServerName, outcome: &Result<T, RequestError>) {
        self.set_aside.note(name, outcome);
    }

    /// Whether a server has said that it does not give this event.
    pub(super) fn has_denied(&self, name: &ServerName, id: &EventId) -> bool {
        self.denied.contains(&(id.clone(), name.clone()))
    }

    /// Whether a server is asked nothing more in this look: it is away, or fails at everything.
    pub(super) fn is_set_aside(&self, name: &ServerName) -> bool {
        self.set_aside.contains(name)
    }

    async fn others(&mut self) -> Result<Vec<ServerName>, RoomError> {
        if let Some(others) = &self.others {
            return Ok(others.clone());
        }
        // A few more than are asked: some of them are sources already.
        let others = self.server.some_residents(&self.room_id, 4 * MAX_OTHERS).await?;
        self.others = Some(others.clone());
        Ok(others)
    }
}

fn own_server(event: &Event) -> Option<ServerName> {
    ServerName::parse(event.sender().server_name()).ok()
}

/// One of each in turns: however many servers have relayed an event, others are asked too.
fn in_turns<T>(one: impl Iterator<Item = T>, other: impl Iterator<Item = T>) -> impl Iterator<Item = T> {
    let (mut one, mut other) = (one.fuse(), other.fuse());
    let mut turn = false;
    std::iter::from_fn(move || {
        turn = !turn;
        if turn { one.next().or_else(|| other.next()) } else { other.next().or_else(|| one.next()) }
    })
}
