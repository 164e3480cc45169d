//! Asking other servers for their users' keys (Server-Server API, "End-to-End Encryption", "Device Management").
//!
//! What a local user who shares a room with another server's user has asked for is held, and asked for again once an update
//! says that it has changed. Of all others each query asks anew.

use std::collections::BTreeMap;

use futures_util::{StreamExt, stream};
use serde_json::json;

use crate::{
    admission::{Kind, Rate, Turn},
    error::MatrixError,
    matrix::{
        device_keys::UserKeys,
        identifiers::{ServerName, UserId},
        json::{self, Object, Value},
    },
    platform::DatabaseError,
    server::Server,
    store::{
        device_lists::{FetchLease, FetchedList, MAX_LIST_BYTES},
        one_time_keys::{OneTimeKey, Wanted},
        places::place,
        user_keys::{KeyReader, KeysFound},
    },
};

/// How many servers are asked at the same time: the platform keeps six connections open for an event.
const CONCURRENT: usize = 5;

/// For so long, in milliseconds, nobody asks again for a list that could not be had.
const PAUSE_MS: i64 = 5_000;
/// How often it is looked whether somebody else has fetched a list, in milliseconds.
const LOOK_MS: u32 = 250;

/// How many one-time keys of a device one server, or one local user, gets at once and again in an hour; then it gets the fallback
/// key. A device keeps some fifty.
const ONE_TIME_KEYS: Rate = Rate { burst: 20, seconds: 3_600 };
/// For how many pairs of user and device it is counted what each server or local user claims: devices that are made up must not push
/// the counts of the real ones out of memory.
const PLACES: i64 = 1_024;

/// The servers that did not answer, and why.
pub type Failures = BTreeMap<ServerName, String>;

/// Of each user the devices that are asked for; all where none are named.
pub type Asked = BTreeMap<String, Vec<String>>;

/// The keys of local users and of other servers' users, for the local user `reader`.
///
/// # Errors
/// Where the database fails. What other servers do not answer is a failure of theirs.
pub async fn query(
    server: &Server,
    reader: &str,
    local: &Asked,
    remote: &Asked,
    timeout_ms: u32,
) -> Result<(BTreeMap<String, UserKeys>, Failures), MatrixError> {
    let users: Vec<String> = remote.keys().cloned().collect();
    let mut found = server.store.user_keys(local, &users, KeyReader::User(reader)).await?;
    let is_missing = |user: &String| !found.current.contains(user);
    let (mut left, mut others): (Vec<String>, Vec<String>) =
        users.into_iter().filter(is_missing).partition(|user| found.shares.contains_key(user));
    let mut failures = Failures::new();
    let clock = &server.platform.clock;
    let deadline = clock.now_ms() + i64::from(timeout_ms);
    loop {
        let now = clock.now_ms();
        let (free, leased): (Vec<String>, Vec<String>) =
            left.into_iter().partition(|user| may_fetch(&found, user, now));
        let (put_off, mut awaited): (Vec<String>, Vec<String>) =
            leased.into_iter().partition(|user| matches!(found.leases.get(user), Some(FetchLease::PutOff(_))));
        failed(put_off, "it did not answer a moment ago", &mut failures);
        // Of a list that many clients ask for at the same time, as they do when it has changed, one request is made.
        let mine = match free.is_empty() {
            true => Vec::new(),
            false => server.store.begin_fetch(&free, now, deadline).await?,
        };
        awaited.extend(free.into_iter().filter(|user| !mine.contains(user)));
        let missing = mine.into_iter().chain(std::mem::take(&mut others));
        fetch(server, users_by_server(missing), deadline, &mut found, &mut failures).await?;
        left = awaited;
        if left.is_empty() || clock.now_ms() >= deadline {
            break;
        }
        clock.sleep(LOOK_MS).await;
        found.update(server.store.user_keys(&Asked::new(), &left, KeyReader::User(reader)).await?);
        left.retain(|user| !found.current.contains(user));
    }
    failed(left, "it did not answer in time", &mut failures);
    for (user, devices) in remote.iter().filter(|(_, devices)| !devices.is_empty()) {
        if let Some(keys) = found.keys.get_mut(user) {
            keys.devices.retain(|device, _| devices.contains(device));
        }
    }
    Ok((found.keys, failures))
}

/// Asks servers for keys, and holds those of users with whom a room is shared.
async fn fetch(
    server: &Server,
    missing: BTreeMap<ServerName, Vec<String>>,
    deadline: i64,
    found: &mut KeysFound,
    failures: &mut Failures,
) -> Result<(), MatrixError> {
    if missing.is_empty() {
        return Ok(());
    }
    let seen = server.store.seen().await?;
    let answers: Vec<_> = stream::iter(missing)
        .map(|(name, users)| async move {
            let answer = ask(server, &name, &users, deadline).await;
            (name, users, answer)
        })
        .buffer_unordered(CONCURRENT)
        .collect()
        .await;
    let (mut lists, mut put_off, mut too_long) = (Vec::new(), Vec::new(), Vec::new());
    for (name, users, answer) in answers {
        let (mut keys, stream_id) = match answer {
            Ok(answer) => answer,
            Err(Unanswered { why, was_asked }) => {
                // Whoever was not even asked is asked by the next one who wants to know.
                if was_asked {
                    put_off.extend(users.into_iter().filter(|user| found.shares.contains_key(user)));
                }
                failures.insert(name, why);
                continue;
            }
        };
        for user_id in users {
            let keys = keys.remove(&user_id).unwrap_or_default();
            if found.shares.contains_key(&user_id) {
                if length(&keys) <= MAX_LIST_BYTES {
                    lists.push(FetchedList { user_id: user_id.clone(), keys: keys.clone(), stream_id, seen });
                } else {
                    too_long.push(user_id.clone());
                }
            }
            found.insert(user_id, keys);
        }
    }
    if !lists.is_empty() {
        server.store.put_fetched(&lists).await?;
    }
    if !put_off.is_empty() {
        server.store.put_off_fetch(&put_off, server.platform.clock.now_ms() + PAUSE_MS).await?;
    }
    // Each who wants such a list fetches it.
    if !too_long.is_empty() {
        server.store.put_off_fetch(&too_long, 0).await?;
    }
    Ok(())
}

/// Whether nobody fetches a user's list, and nobody has in vain a moment ago.
fn may_fetch(found: &KeysFound, user: &str, now: i64) -> bool {
    found.leases.get(user).is_none_or(|lease| lease.until() <= now)
}

fn failed(users: Vec<String>, why: &str, failures: &mut Failures) {
    failures.extend(users_by_server(users.into_iter()).into_keys().map(|name| (name, why.to_owned())));
}

/// Asks one server for keys; with the number of the newest update that they hold, where it says so, as it does of one user.
async fn ask(
    server: &Server,
    name: &ServerName,
    users: &[String],
    deadline: i64,
) -> Result<(BTreeMap<String, UserKeys>, Option<i64>), Unanswered> {
    let timeout_ms = time_left(server, deadline).map_err(|why| Unanswered { why, was_asked: false })?;
    let failed = |why: String| Unanswered { why, was_asked: true };
    if let [user] = users {
        let id = UserId::parse(user).map_err(|error| failed(error.to_string()))?;
        let answer = server.federation.user_devices(name, &id, timeout_ms).await;
        let answer = answer.map_err(|error| failed(error.to_string()))?;
        return Ok((BTreeMap::from([(user.clone(), answer.keys)]), answer.stream_id));
    }
    let answer = server.federation.query_user_keys(name, users, timeout_ms).await;
    Ok((answer.map_err(|error| failed(error.to_string()))?, None))
}

/// Why a server has not answered.
struct Unanswered {
    why: String,
    /// Whether it was asked at all.
    was_asked: bool,
}

/// Claims keys of other servers' users, each for the device that is named: by user and device, what was given.
pub async fn claim(
    server: &Server,
    wanted: &[(UserId, Wanted)],
    timeout_ms: u32,
) -> (BTreeMap<String, Object>, Failures) {
    let deadline = server.platform.clock.now_ms() + i64::from(timeout_ms);
    let wanted = by_server(wanted.iter().cloned());
    let answers: Vec<_> = stream::iter(wanted)
        .map(|(name, wanted)| async move {
            let answer = match time_left(server, deadline) {
                Ok(timeout_ms) => {
                    let answer = server.federation.claim_user_keys(&name, &wanted, timeout_ms).await;
                    answer.map_err(|error| error.to_string())
                }
                Err(why) => Err(why),
            };
            (name, wanted, answer)
        })
        .buffer_unordered(CONCURRENT)
        .collect()
        .await;
    let (mut claimed, mut failures) = (BTreeMap::<String, Object>::new(), Failures::new());
    for (name, wanted, answer) in answers {
        let answer = match answer {
            Ok(answer) => answer,
            Err(why) => {
                failures.insert(name, why);
                continue;
            }
        };
        for Wanted { user_id, device_id, algorithm, .. } in wanted {
            let keys = answer.get(&user_id).and_then(|devices| devices.get(&device_id)).and_then(Value::as_object);
            let of_algorithm = |id: &&str| id.split_once(':').is_some_and(|(of, _)| *of == *algorithm);
            let key = keys.into_iter().flat_map(Object::iter).find(|(id, _)| of_algorithm(id));
            if let Some((id, key)) = key {
                claimed.entry(user_id).or_default().object_at(&device_id).insert(id, key.clone());
            }
        }
    }
    (claimed, failures)
}

/// A key of ours as answers to claims hold it: its ID with the algorithm, and the key.
///
/// # Errors
/// Where what is stored is no key.
pub fn claimed_key(key: &OneTimeKey) -> Result<(String, Value), DatabaseError> {
    let value = json::parse(key.key.as_bytes());
    let value = value.map_err(|_| DatabaseError::Shape("a one-time key that is no JSON".to_owned()))?;
    Ok((format!("{}:{}", key.algorithm, key.key_id), value))
}

/// Bounds how many one-time keys of a device `who` gets, another server or a local user: beyond that only the fallback key, so that
/// nobody uses up all that others need.
pub fn bound_claims(server: &Server, who: &str, wanted: &mut [Wanted]) {
    let now = server.platform.clock.now_ms();
    for wanted in wanted {
        let place = place(&json!([wanted.user_id, wanted.device_id]).to_string(), PLACES);
        let who = json!([who, place]).to_string();
        let turn = server.admission.take(Kind::KeyClaims, &who, ONE_TIME_KEYS, 0, now);
        wanted.only_fallback = turn != Turn::Now;
    }
}

fn users_by_server(users: impl Iterator<Item = String>) -> BTreeMap<ServerName, Vec<String>> {
    by_server(users.filter_map(|user| Some((UserId::parse(&user).ok()?, user))))
}

fn by_server<T>(of: impl Iterator<Item = (UserId, T)>) -> BTreeMap<ServerName, Vec<T>> {
    let mut by_server: BTreeMap<ServerName, Vec<T>> = BTreeMap::new();
    for (user, item) in of {
        if let Ok(name) = ServerName::parse(user.server_name()) {
            by_server.entry(name).or_default().push(item);
        }
    }
    by_server
}

fn time_left(server: &Server, deadline: i64) -> Result<u32, String> {
    let left = deadline - server.platform.clock.now_ms();
    u32::try_from(left).ok().filter(|left| *left > 0).ok_or_else(|| "there was no time left to ask".to_owned())
}

/// How long the text of a user's keys is, as a string in JSON, as which it travels to the database.
fn length(keys: &UserKeys) -> usize {
    let length = |keys: &Object| Value::from(keys.to_text()).to_text().len() + 300;
    keys.devices.values().chain(keys.cross_signing.values()).map(length).sum()
}
