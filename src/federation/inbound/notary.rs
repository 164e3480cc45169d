//! Other servers' keys, with our signature beside theirs (Server-Server API, "Querying Keys Through Another Server").
//!
//! Anybody may ask, unsigned, and so have us ask any server in the world. What is kept costs one read; no server is asked
//! more than once a minute, nor more of them than an asker's rate allows, nor more than a few for one request. What cannot
//! be had anew is given as it was: whoever verifies an old event needs the key of a server that is gone.
//!
//! What we sign is another server's object. It can pass for nothing else than keys, as it says whose they are in a member
//! (`server_name`) that neither an event nor a request has.

use std::collections::BTreeMap;

use futures_util::stream::{self, StreamExt};
use http::StatusCode;

use super::{malformed, own_keys};
use crate::{
    admission::{Kind, Rate, Turn, network_of_request},
    error::MatrixError,
    matrix::{
        identifiers::ServerName,
        json::{Object, Value},
        server_keys::ServerKeys,
    },
    router::{Call, Handled, raw_json_response},
    server::Server,
    store::key_responses::KeyResponse,
};

/// How many servers' keys one request is answered; more are left out, like those that cannot be had.
const MAX_SERVERS: usize = 500;
/// How many servers are asked for one request, and how many at the same time.
const MAX_ASKED: usize = 20;
const AT_ONCE: usize = 5;
/// No server is asked any more when asking took this long.
const BUDGET_MS: i64 = 10_000;
/// How often one server is asked, and how often all servers together, whoever wants it.
const EACH: Rate = Rate { burst: 1, seconds: 60 };
const ALL: Rate = Rate { burst: 300, seconds: 60 };

/// What must hold of a server's response: with each key that was asked for, until when it is to be valid. Without a key,
/// that is asked of the response.
type Criteria = BTreeMap<Option<String>, i64>;

/// `GET /_matrix/key/v2/query/{serverName}?minimum_valid_until_ts=…`
pub(super) async fn query_one(server: &Server, call: &Call) -> Handled {
    let name = ServerName::parse(call.parameter(0));
    let name = name.map_err(|error| MatrixError::invalid_param(format!("{error}.")))?;
    let minimum = match call.query("minimum_valid_until_ts") {
        Some(text) => {
            text.parse().map_err(|_| MatrixError::invalid_param("`minimum_valid_until_ts` is not a number."))?
        }
        None => server.platform.clock.now_ms(),
    };
    answer(server, call, BTreeMap::from([(name, Criteria::from([(None, minimum)]))])).await
}

/// `POST /_matrix/key/v2/query`
pub(super) async fn query(server: &Server, call: &Call) -> Handled {
    let now = server.platform.clock.now_ms();
    let body = call.json(&server.admission, server.platform.clock.as_ref()).await?;
    let servers = body.get("server_keys").and_then(Value::as_object).ok_or_else(|| malformed("server_keys"))?;
    let mut wanted = BTreeMap::new();
    for (name, keys) in servers.iter() {
        let keys = keys.as_object().ok_or_else(|| malformed("server_keys"))?;
        let mut criteria = Criteria::new();
        for (key_id, criterion) in keys.iter() {
            let criterion = criterion.as_object().ok_or_else(|| malformed("server_keys"))?;
            let minimum = match criterion.get("minimum_valid_until_ts") {
                Some(minimum) => minimum.as_i64().ok_or_else(|| malformed("minimum_valid_until_ts"))?,
                None => now,
            };
            criteria.insert(Some(key_id.to_owned()), minimum);
        }
        if criteria.is_empty() {
            criteria.insert(None, now);
        }
        // There are no keys of what is no server.
        if let Ok(name) = ServerName::parse(name)
            && wanted.len() < MAX_SERVERS
        {
            wanted.insert(name, criteria);
        }
    }
    answer(server, call, wanted).await
}

async fn answer(server: &Server, call: &Call, mut wanted: BTreeMap<ServerName, Criteria>) -> Handled {
    let own_name = server.config.server_name.as_str();
    let mut objects: Vec<Object> = Vec::new();
    if wanted.remove(own_name).is_some() {
        objects.push(own_keys::object(server));
    }
    if !wanted.is_empty() {
        for mut response in responses(server, call, &wanted).await? {
            server.config.signing_key.sign_object(&mut response, own_name);
            objects.push(response);
        }
    }
    let objects = Value::Array(objects.into_iter().map(Value::Object).collect());
    Ok(raw_json_response(StatusCode::OK, Object::from_iter([("server_keys", objects)]).to_text()))
}

/// What the servers published: as it is kept, where that will do or nothing newer can be obtained. Of a server that has published a wanted
/// key earlier, and no longer does, both.
async fn responses(
    server: &Server,
    call: &Call,
    wanted: &BTreeMap<ServerName, Criteria>,
) -> Result<Vec<Object>, MatrixError> {
    let names: Vec<&str> = wanted.keys().map(ServerName::as_str).collect();
    let mut kept = server.store.key_responses(&names).await?;
    let mut lacking = lacking(wanted, &kept);
    if !lacking.is_empty() && server.keys.wait_for_answers(&lacking).await {
        kept = server.store.key_responses(&names).await?;
        lacking = self::lacking(wanted, &kept);
    }
    let new = ask(server, call, lacking).await;
    server.store.keep_key_responses(&new).await?;
    let new = new.into_iter().map(|keys| (String::from(keys.server_name), keys.object));
    let mut published: BTreeMap<String, Vec<Object>> = BTreeMap::new();
    for (server, object) in new.chain(kept.into_iter().map(|response| (response.server, response.object))) {
        published.entry(server).or_default().push(object);
    }
    let told = published.into_iter().flat_map(|(name, objects)| told(objects, wanted.get(name.as_str())));
    Ok(told.collect())
}

/// The newest of what a server published, and what has a wanted key that nothing newer has.
fn told(published: Vec<Object>, wanted: Option<&Criteria>) -> Vec<Object> {
    let mut told: Vec<Object> = Vec::new();
    for object in published {
        let is_new = |id: &str| lists(&object, id) && !told.iter().any(|newer| lists(newer, id));
        if told.is_empty() || wanted.is_some_and(|wanted| wanted.keys().flatten().any(|id| is_new(id))) {
            told.push(object);
        }
    }
    told
}

fn lists(response: &Object, key_id: &str) -> bool {
    ["verify_keys", "old_verify_keys"].iter().any(|keys| lists_among(response, keys, key_id))
}

fn lists_among(response: &Object, keys: &str, key_id: &str) -> bool {
    response.get(keys).is_some_and(|keys| keys.get(key_id).is_some())
}

/// The servers of which what is kept does not do.
fn lacking<'w>(wanted: &'w BTreeMap<ServerName, Criteria>, kept: &[KeyResponse]) -> Vec<&'w ServerName> {
    let does = |(name, criteria): &(&ServerName, &Criteria)| {
        let of_it = || kept.iter().filter(|response| response.server == name.as_str());
        criteria.iter().all(|(key_id, minimum)| of_it().any(|response| holds(response, key_id, *minimum)))
    };
    wanted.iter().filter(|server| !does(server)).map(|(name, _)| name).collect()
}

fn holds(response: &KeyResponse, key_id: &Option<String>, minimum: i64) -> bool {
    match key_id {
        // When it expired does not change.
        Some(id) if lists_among(&response.object, "old_verify_keys", id) => true,
        Some(id) => lists_among(&response.object, "verify_keys", id) && response.valid_until_ts >= minimum,
        // What is earlier was replaced by others.
        None => response.is_newest && response.valid_until_ts >= minimum,
    }
}

/// What those of `servers` answer that may be asked.
async fn ask(server: &Server, call: &Call, servers: Vec<&ServerName>) -> Vec<ServerKeys> {
    let begun = server.platform.clock.now_ms();
    let who = network_of_request(call.request.headers());
    let take = |kind, who: &str, rate| server.admission.take(kind, who, rate, 0, begun) == Turn::Now;
    // The asker's own rate comes first: whoever has used it up must not use up what others may ask.
    let may_be_asked = |name: &&ServerName| {
        server.config.rates.notary.is_none_or(|rate| take(Kind::Notary, &who, rate))
            && take(Kind::NotaryOrigin, name.as_str(), EACH)
            && take(Kind::Notary, "all askers", ALL)
    };
    let asked: Vec<&ServerName> = servers.into_iter().take(MAX_ASKED).filter(may_be_asked).collect();
    let answers = stream::iter(asked).map(|name| async move {
        let in_time = server.platform.clock.now_ms() - begun < BUDGET_MS;
        if in_time { server.keys.ask_anew(name).await } else { None }
    });
    let answers: Vec<Option<ServerKeys>> = answers.buffer_unordered(AT_ONCE).collect().await;
    answers.into_iter().flatten().collect()
}
