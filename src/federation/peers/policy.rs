//! Asking policy servers for their signatures (Server-Server API, "Asking for a Policy Server signature on an event").

use std::{
    cell::RefCell,
    collections::{BTreeMap, VecDeque},
    rc::Rc,
};

use http::StatusCode;

use super::requests::{FederationClient, RequestError};
use crate::{
    config::Config,
    log::LogRecord,
    matrix::{
        event::Event,
        identifiers::{EventId, ServerName},
        policy_server::PolicyServer,
        signing::POLICY_KEY_ID,
    },
    platform::{Clock, LocalBoxFuture, Log},
    room::{PolicyServers, Unsigned},
};

/// A policy server that was not reached is left alone for so long, in milliseconds; each time in a row for twice as long,
const PAUSE_MS: i64 = 5_000;
/// at most for so long.
const LONGEST_PAUSE_MS: i64 = 60_000;

/// How many answers are remembered, for when a commit is lost and the event is judged again.
const MAX_ANSWERS: usize = 500;

/// How many servers are remembered that were not reached.
const MAX_AWAY: usize = 500;

/// What an isolate knows of policy servers. Plain values only.
#[derive(Default)]
pub struct PolicyMemory {
    answers: RefCell<VecDeque<Answer>>,
    away: RefCell<BTreeMap<ServerName, Away>>,
}

struct Answer {
    event_id: EventId,
    policy: PolicyServer,
    signature: Result<String, Unsigned>,
}

#[derive(Clone, Copy)]
struct Away {
    times: u32,
    until: i64,
}

/// Asks policy servers on behalf of one homeserver, which may be one itself.
pub struct PolicyClient {
    pub(super) federation: Rc<FederationClient>,
    pub(super) config: Rc<Config>,
    pub(super) clock: Rc<dyn Clock>,
    pub(super) log: Rc<dyn Log>,
    pub(super) memory: Rc<PolicyMemory>,
}

impl PolicyServers for PolicyClient {
    fn sign<'a>(&'a self, policy: &'a PolicyServer, event: &'a Event) -> LocalBoxFuture<'a, Result<Event, Unsigned>> {
        Box::pin(async move {
            let signature = match self.memory.answer(policy, event.event_id()) {
                Some(answer) => answer?,
                None => self.ask(policy, event).await?,
            };
            event.with_signature(policy.via.as_str(), POLICY_KEY_ID, &signature, &policy.key).map_err(|error| {
                let record = LogRecord::warning("a policy server's signature is wrong").destination(&policy.via);
                self.log.write(record.room(event.room_id()).event(event.event_id()).because(&error));
                Unsigned::Away
            })
        })
    }
}

impl PolicyClient {
    /// A client that shares `memory` with others of the same configuration.
    pub fn new(
        federation: Rc<FederationClient>,
        config: Rc<Config>,
        clock: Rc<dyn Clock>,
        log: Rc<dyn Log>,
        memory: Rc<PolicyMemory>,
    ) -> Self {
        Self { federation, config, clock, log, memory }
    }

    /// The signature of the policy server, which is asked for it unless it was away just now.
    async fn ask(&self, policy: &PolicyServer, event: &Event) -> Result<String, Unsigned> {
        let via = &policy.via;
        if *via == self.config.server_name {
            return self.own_signature(event);
        }
        if self.memory.is_away(via, self.clock.now_ms()) {
            return Err(Unsigned::Away);
        }
        let signature = match self.federation.policy_sign(via, event.json()).await {
            Ok(signature) => Ok(signature),
            Err(RequestError::Status { status, errcode, error, .. })
                if status.is_client_error() && !is_passing(status) =>
            {
                Err(Unsigned::Refused { status, errcode, error })
            }
            Err(error) => {
                let record = LogRecord::warning("a policy server cannot be asked").destination(via);
                self.log.write(record.room(event.room_id()).because(&error));
                self.memory.note_away(via, self.clock.now_ms());
                return Err(Unsigned::Away);
            }
        };
        self.memory.note(policy, event.event_id(), &signature);
        signature
    }

    /// Our own signature, for rooms whose policy server we are.
    fn own_signature(&self, event: &Event) -> Result<String, Unsigned> {
        let refused = |status: StatusCode, errcode: &str, error: &str| {
            Err(Unsigned::Refused { status, errcode: errcode.to_owned(), error: error.to_owned() })
        };
        let Some(policy) = &self.config.policy else {
            return refused(StatusCode::NOT_FOUND, "M_UNRECOGNIZED", "This server is not a policy server.");
        };
        match policy.rule.refusal(event) {
            Some(why) => refused(StatusCode::BAD_REQUEST, "M_FORBIDDEN", why),
            None => Ok(event.signature_by(&policy.key)),
        }
    }
}

/// Whether a status says that the same question may well be answered otherwise soon.
fn is_passing(status: StatusCode) -> bool {
    matches!(status, StatusCode::UNAUTHORIZED | StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS)
}

impl PolicyMemory {
    fn answer(&self, policy: &PolicyServer, event_id: &EventId) -> Option<Result<String, Unsigned>> {
        let answers = self.answers.borrow();
        let known = answers.iter().find(|known| known.event_id == *event_id && known.policy == *policy)?;
        Some(known.signature.clone())
    }

    fn note(&self, policy: &PolicyServer, event_id: &EventId, signature: &Result<String, Unsigned>) {
        self.away.borrow_mut().remove(&policy.via);
        let mut answers = self.answers.borrow_mut();
        if answers.len() >= MAX_ANSWERS {
            answers.pop_front();
        }
        let (event_id, policy, signature) = (event_id.clone(), policy.clone(), signature.clone());
        answers.push_back(Answer { event_id, policy, signature });
    }

    fn is_away(&self, server: &ServerName, now: i64) -> bool {
        self.away.borrow().get(server).is_some_and(|away| away.until > now)
    }

    fn note_away(&self, server: &ServerName, now: i64) {
        let mut away = self.away.borrow_mut();
        let times = away.get(server).map_or(0, |away| away.times);
        if away.len() >= MAX_AWAY {
            away.clear();
        }
        let pause = PAUSE_MS.saturating_mul(1 << times.min(10)).min(LONGEST_PAUSE_MS);
        away.insert(server.clone(), Away { times: times.saturating_add(1), until: now + pause });
    }
}
