//! What stands between the servers: it loses, cuts and doubles the honest servers' transactions, and does to what the
//! malicious server says and hears what [`crate::malice`] says.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

use http::StatusCode;
use serde_json::{Value, json};
use verge::{
    platform::{Clock, TransportError},
    router::{Request, Response, json_response},
};

use crate::{
    common::{
        generator::Random,
        network::{Passing, World},
        sqlite::Sqlite,
    },
    dice::Dice,
    faults::{Fault, Faults},
    signing,
    world::{EVIL, HONEST, Story},
};

/// Where transactions are sent.
pub const SEND: &str = "/_matrix/federation/v1/send/";

/// So many requests no world takes; servers that send more have begun something without end.
const MAX_REQUESTS: u64 = 15_000;

/// What became of a request.
pub type Outcome = Result<Response, TransportError>;

/// See the module.
pub struct Network {
    pub world: World,
    pub faults: Faults,
    pub story: Story,
    /// The malicious server's database.
    pub evil: Sqlite,
    pub dice: Dice,
    /// What the links from one honest server to another do to transactions at present; good ones are not here.
    links: RefCell<BTreeMap<(String, String), Link>>,
    away: RefCell<BTreeSet<String>>,
    /// Transactions that arrived, to arrive again.
    arrived: RefCell<Vec<(String, Request)>>,
    healed: Cell<bool>,
    /// Whether the malicious server goes on when the network has healed.
    persists: Cell<bool>,
    requests: Cell<u64>,
}

/// What a link does to transactions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    Loses,
    Deafens,
    Cuts,
    Doubles,
}

impl Network {
    pub fn new(world: &World, seed: u64, faults: Faults, evil: Sqlite, story: Story) -> Rc<Self> {
        Rc::new(Self {
            world: world.clone(),
            persists: Cell::new(faults.has(Fault::Persist)),
            faults,
            story,
            evil,
            dice: Dice::new(Random::new(seed)),
            links: RefCell::default(),
            away: RefCell::default(),
            arrived: RefCell::default(),
            healed: Cell::new(false),
            requests: Cell::new(0),
        })
    }

    /// Puts itself between the servers.
    pub fn tap(self: Rc<Self>) {
        let world = self.world.clone();
        world.tap(Rc::new(move |passing| {
            let network = Rc::clone(&self);
            Box::pin(async move { network.pass(passing).await })
        }));
    }

    /// Lets a link be as it is said, or good.
    pub fn set(&self, from: &str, to: &str, link: Option<Link>) {
        self.story.tell(&format!("-- from {from} to {to}: {link:?}"));
        let key = (from.to_owned(), to.to_owned());
        match link {
            Some(link) => drop(self.links.borrow_mut().insert(key, link)),
            None => drop(self.links.borrow_mut().remove(&key)),
        }
    }

    /// Takes a server off the network, or puts it back.
    pub fn set_away(&self, name: &str, away: bool) {
        self.story.tell(&format!("-- {name} is {}", if away { "away" } else { "back" }));
        match away {
            true => drop(self.away.borrow_mut().insert(name.to_owned())),
            false => drop(self.away.borrow_mut().remove(name)),
        }
    }

    /// Whether the server is off the network.
    pub fn is_away(&self, name: &str) -> bool {
        self.away.borrow().contains(name)
    }

    /// From now on nothing is lost; the malicious server may go on.
    pub fn heal(&self) {
        self.story.tell("-- the network has healed");
        self.links.borrow_mut().clear();
        self.away.borrow_mut().clear();
        self.healed.set(true);
    }

    /// From now on the malicious server tells the truth.
    pub fn confess(&self) {
        self.story.tell(&format!("-- {EVIL} gives what it has"));
        self.persists.set(false);
    }

    /// Whether the fault is to happen now, if it is one that happens by itself.
    pub fn has(&self, fault: Fault) -> bool {
        self.faults.has(fault) && (!self.healed.get() || self.persists.get())
    }

    async fn pass(&self, passing: Passing) -> Outcome {
        self.requests.set(self.requests.get() + 1);
        assert!(self.requests.get() < MAX_REQUESTS, "the servers never come to rest");
        if self.is_away(&passing.from) || self.is_away(&passing.to) {
            return Err(TransportError::Failed("the server is away".to_owned()));
        }
        let path = passing.request.uri().path();
        match (path.starts_with(SEND), passing.from.as_str(), passing.to.as_str()) {
            (true, from, EVIL) if HONEST.contains(&from) => {
                self.relay(&passing).await;
                Ok((passing.host)(passing.request).await)
            }
            (true, EVIL, _) => self.malicious_transaction(passing).await,
            (true, ..) => self.honest_transaction(passing).await,
            (false, from, to)
                if !self.healed.get()
                    && self.faults.has(Fault::Overload)
                    && [from, to].iter().all(|name| HONEST.contains(name))
                    && !path.contains("_join/")
                    && self.dice.percent(50) =>
            {
                self.story.tell(&format!("   {from} asks {to} for {path}: 503"));
                Ok(json_response(StatusCode::SERVICE_UNAVAILABLE, &json!({ "errcode": "M_UNKNOWN", "error": "later" })))
            }
            (false, from, EVIL) if HONEST.contains(&from) => self.malicious_answer(passing).await,
            _ => Ok((passing.host)(passing.request).await),
        }
    }

    async fn honest_transaction(&self, passing: Passing) -> Outcome {
        let Passing { from, to, mut request, host } = passing;
        let link = self.links.borrow().get(&(from.clone(), to.clone())).copied();
        self.tell_transaction(&from, &to, &request, &format!("{link:?}"));
        if link == Some(Link::Cuts) {
            request = self.with_pdus(&from, &to, &request, |pdus| {
                let kept = pdus.len() - 1;
                let mut left = pdus.into_iter().filter(|_| self.dice.percent(50)).collect::<Vec<_>>();
                left.truncate(kept);
                left
            });
        }
        if link == Some(Link::Loses) {
            return Ok(json_response(StatusCode::OK, &json!({ "pdus": {} })));
        }
        let response = host(request.clone()).await;
        match link {
            // Not always: two that heard only each other's questions would repeat them for ever.
            Some(Link::Deafens) if self.dice.percent(60) => {
                self.world.sleep(60_000).await;
                return Err(TransportError::TimedOut);
            }
            Some(Link::Doubles) => {
                host(request.clone()).await;
                self.arrived.borrow_mut().push((to.clone(), request));
                let again = self.dice.below(self.arrived.borrow().len());
                let (to, request) = self.arrived.borrow()[again].clone();
                if !self.is_away(&to)
                    && let Some(host) = self.world.host(&to)
                {
                    host(request).await;
                }
            }
            _ => {}
        }
        Ok(response)
    }

    /// The transaction with what `change` makes of its PDUs, signed anew.
    pub fn with_pdus(
        &self,
        from: &str,
        to: &str,
        request: &Request,
        change: impl FnOnce(Vec<Value>) -> Vec<Value>,
    ) -> Request {
        let mut body: Value = serde_json::from_slice(request.body()).unwrap();
        let pdus = body["pdus"].as_array().unwrap().clone();
        body["pdus"] = Value::Array(change(pdus));
        signing::request(from, to, request.method().as_str(), request.uri().path(), Some(&body))
    }

    /// Tells what a transaction holds, and what becomes of it.
    pub fn tell_transaction(&self, from: &str, to: &str, request: &Request, fate: &str) {
        let body: Value = serde_json::from_slice(request.body()).unwrap();
        let pdus = body["pdus"].as_array().unwrap();
        let pdus: Vec<String> = pdus.iter().map(describe).collect();
        self.story.tell(&format!("   {from} -> {to} ({fate}): {}", pdus.join(", ")));
    }
}

/// A PDU in a few words.
pub fn describe(pdu: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let kind = text(&pdu["type"]);
    let what = match kind.as_str() {
        "m.room.message" => text(&pdu["content"]["body"]),
        "m.room.member" => format!("{} {}", text(&pdu["state_key"]), text(&pdu["content"]["membership"])),
        _ => kind,
    };
    format!("[{} {what}]", text(&pdu["sender"]).split(':').next().unwrap_or_default())
}
