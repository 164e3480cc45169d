//! `https://<hostname>/.well-known/matrix/server`: Server-Server API, "Resolving server names", step 3.
//!
//! Answers and failures are kept in the database and in this isolate, for as long as the answer's cache headers say
//! within bounds, failures with exponential backoff. Once an answer is stale, it is used a little longer where asking
//! again fails for a passing reason: a web server that is down should not take the homeserver's name with it.

use std::{cell::RefCell, collections::BTreeMap, rc::Rc, time::UNIX_EPOCH};

use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode, Uri, header};

use super::destination::{Destination, Name, Scope};
use crate::{
    log::LogRecord,
    matrix::{
        identifiers::ServerName,
        json::{self, Value},
    },
    platform::{DatabaseError, Platform, TransportError},
    store::{Store, well_known::WellKnownRow},
};

const PATH: &str = "/.well-known/matrix/server";
/// How long all of it may take, redirects included.
const TIMEOUT_MS: i64 = 10_000;
/// The longest body that is read.
const MAX_BODY_BYTES: usize = 50 * 1024;
/// How many redirects are followed.
const MAX_REDIRECTS: usize = 10;

const MINUTE_MS: i64 = 60_000;
const HOUR_MS: i64 = 60 * MINUTE_MS;
/// How long an answer without cache headers is fresh.
const DEFAULT_FRESH_MS: i64 = 24 * HOUR_MS;
/// The bounds to what the headers say; the lower one keeps a host that forbids caching from being asked for each request.
const MIN_FRESH_MS: i64 = 5 * MINUTE_MS;
const MAX_FRESH_MS: i64 = 48 * HOUR_MS;
/// How long a stale answer is used where the host cannot be asked (never beyond [`MAX_FRESH_MS`] after it was given).
const STALE_MS: i64 = 2 * HOUR_MS;
/// How long the first passing failure is kept, doubled by each further one, and the longest any failure is kept.
const FIRST_FAILURE_MS: i64 = 2 * MINUTE_MS;
const MAX_FAILURE_MS: i64 = HOUR_MS;
/// How many hosts this isolate remembers.
const MAX_CACHED: usize = 4096;

/// Looks up delegations.
pub(super) struct WellKnown {
    platform: Platform,
    store: Store,
    scope: Scope,
    cache: Rc<WellKnownCache>,
}

/// What one isolate knows of delegations, by host.
#[derive(Default)]
pub(super) struct WellKnownCache(RefCell<BTreeMap<String, WellKnownRow>>);

impl WellKnown {
    pub(super) fn new(platform: Platform, scope: Scope, cache: Rc<WellKnownCache>) -> Self {
        Self { store: Store::new(platform.database.clone()), platform, scope, cache }
    }

    fn log_failure(&self, what: &'static str, host: &str, error: &DatabaseError) {
        let record = LogRecord::error(what).because(error);
        self.platform.log.write(match ServerName::parse(host) {
            Ok(host) => record.destination(&host),
            Err(_) => record,
        });
    }

    /// The server name that `host` delegates to, if it does. It is a valid server name.
    pub(super) async fn delegation(&self, host: &str) -> Option<String> {
        let now = self.platform.clock.now_ms();
        let known = self.cached(host, now).await;
        if let Some(row) = &known
            && now < row.fresh_until_ts
        {
            return row.delegated.clone();
        }
        let row = match self.fetch(host).await {
            Ok(answer) => WellKnownRow {
                delegated: Some(answer.delegated),
                fresh_until_ts: now + answer.fresh_ms,
                usable_until_ts: now + (answer.fresh_ms + STALE_MS).min(MAX_FRESH_MS),
                failures: 0,
            },
            Err(failure) => after_failure(known, failure, now),
        };
        if let Err(error) = self.store.put_well_known(host, &row).await {
            self.log_failure("the .well-known of a server cannot be stored", host, &error);
        }
        let delegated = row.delegated.clone();
        self.remember(host, row);
        delegated
    }

    /// Reads together what the database knows of hosts that are to be asked for soon, as far as this isolate does not know it.
    pub(super) async fn look_up(&self, mut hosts: Vec<String>) {
        let now = self.platform.clock.now_ms();
        hosts.retain(|host| self.fresh(host, now).is_none());
        // One is read as it is asked for.
        if hosts.len() < 2 {
            return;
        }
        match self.store.well_known_of(&hosts).await {
            Ok(rows) => rows.into_iter().for_each(|(host, row)| self.remember(&host, row)),
            Err(error) => {
                let record = LogRecord::error("the .well-known of several servers cannot be read");
                self.platform.log.write(record.because(&error));
            }
        }
    }

    /// What this isolate knows of `host`, while it is fresh.
    fn fresh(&self, host: &str, now: i64) -> Option<WellKnownRow> {
        self.cache.0.borrow().get(host).filter(|row| now < row.fresh_until_ts).cloned()
    }

    /// What is known of `host`: from this isolate while it is fresh there, else from the database.
    async fn cached(&self, host: &str, now: i64) -> Option<WellKnownRow> {
        if let Some(row) = self.fresh(host, now) {
            return Some(row);
        }
        match self.store.well_known(host).await {
            Ok(row) => {
                let row = row?;
                self.remember(host, row.clone());
                Some(row)
            }
            Err(error) => {
                // Asking the host is slower, not wrong.
                self.log_failure("the .well-known of a server cannot be read", host, &error);
                None
            }
        }
    }

    fn remember(&self, host: &str, row: WellKnownRow) {
        let mut cache = self.cache.0.borrow_mut();
        if cache.len() >= MAX_CACHED {
            cache.clear();
        }
        cache.insert(host.to_owned(), row);
    }

    /// Asks `host`, following redirects.
    async fn fetch(&self, host: &str) -> Result<Answer, Failure> {
        let deadline = self.platform.clock.now_ms() + TIMEOUT_MS;
        let mut location = Location { authority: host.to_owned(), path: PATH.to_owned() };
        let mut visited = Vec::new();
        loop {
            let response = self.get(&location, deadline).await?;
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return read(&response, self.platform.clock.now_ms());
            }
            let target = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
            let next = target.and_then(|target| location.join(target)).ok_or(Failure::Lasting)?;
            visited.push(location);
            if visited.len() > MAX_REDIRECTS || visited.contains(&next) {
                return Err(Failure::Lasting);
            }
            location = next;
        }
    }

    async fn get(&self, location: &Location, deadline: i64) -> Result<Response<Bytes>, Failure> {
        let name = Name::parse(&location.authority).map_err(|_| Failure::Lasting)?;
        self.scope.check(&name).map_err(|_| Failure::Lasting)?;
        let timeout_ms = u32::try_from(deadline - self.platform.clock.now_ms()).unwrap_or(0);
        if timeout_ms == 0 {
            return Err(Failure::Passing);
        }
        let destination = Destination::of_web(&name);
        let request = http::Request::get(&location.path).body(Bytes::new()).map_err(|_| Failure::Lasting)?;
        match self.platform.transport.send(destination.request(request, timeout_ms, MAX_BODY_BYTES)).await {
            Ok(response) => Ok(response),
            Err(TransportError::TooLarge | TransportError::Unsupported(_)) => Err(Failure::Lasting),
            Err(_) => Err(Failure::Passing),
        }
    }
}

/// A valid answer.
struct Answer {
    delegated: String,
    fresh_ms: i64,
}

/// Why there is no valid answer.
enum Failure {
    /// The host could not be asked just now.
    Passing,
    /// The host has no delegation, or an invalid one.
    Lasting,
}

/// What is remembered after a failure.
fn after_failure(known: Option<WellKnownRow>, failure: Failure, now: i64) -> WellKnownRow {
    let failures = known.as_ref().map_or(0, |row| row.failures).saturating_add(1);
    match failure {
        Failure::Lasting => {
            WellKnownRow { delegated: None, fresh_until_ts: now + MAX_FAILURE_MS, usable_until_ts: 0, failures }
        }
        Failure::Passing => {
            let doublings = u32::try_from(failures - 1).unwrap_or(0).min(10);
            let fresh_until_ts = now + (FIRST_FAILURE_MS << doublings).min(MAX_FAILURE_MS);
            match known.filter(|row| now < row.usable_until_ts) {
                Some(stale) => {
                    WellKnownRow { fresh_until_ts: fresh_until_ts.min(stale.usable_until_ts), failures, ..stale }
                }
                None => WellKnownRow { delegated: None, fresh_until_ts, usable_until_ts: 0, failures },
            }
        }
    }
}

fn read(response: &Response<Bytes>, now: i64) -> Result<Answer, Failure> {
    let status = response.status();
    if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS || status == StatusCode::REQUEST_TIMEOUT {
        return Err(Failure::Passing);
    }
    if status != StatusCode::OK || response.body().len() > MAX_BODY_BYTES {
        return Err(Failure::Lasting);
    }
    let body = json::parse(response.body()).map_err(|_| Failure::Lasting)?;
    let delegated = body.get("m.server").and_then(Value::as_str).ok_or(Failure::Lasting)?;
    Name::parse(delegated).map_err(|_| Failure::Lasting)?;
    let fresh_ms = freshness_ms(response.headers(), now).unwrap_or(DEFAULT_FRESH_MS);
    Ok(Answer { delegated: delegated.to_owned(), fresh_ms: fresh_ms.clamp(MIN_FRESH_MS, MAX_FRESH_MS) })
}

/// How long the headers allow an answer to be kept (RFC 9111); `None` where they do not say.
fn freshness_ms(headers: &HeaderMap, now: i64) -> Option<i64> {
    let controls = headers.get_all(header::CACHE_CONTROL);
    let mut max_age = None;
    for directive in controls.iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(',')) {
        let (name, value) = directive.split_once('=').unwrap_or((directive, ""));
        match name.trim().to_ascii_lowercase().as_str() {
            "no-store" | "no-cache" => return Some(0),
            // A number too large for us is a long time, and what is not a number is ignored.
            "max-age" => max_age = seconds(value.trim().trim_matches('"')).or(max_age),
            _ => {}
        }
    }
    if let Some(max_age) = max_age {
        let age = headers.get(header::AGE).and_then(|value| value.to_str().ok()).and_then(seconds).unwrap_or(0);
        return Some((max_age - age).max(0) * 1000);
    }
    let expires = headers.get(header::EXPIRES)?;
    // An invalid date, `0` especially, lies in the past.
    Some(expires.to_str().ok().and_then(http_date_ms).map_or(0, |at| (at - now).max(0)))
}

/// A number of seconds, at most about 30 years.
pub(super) fn seconds(digits: &str) -> Option<i64> {
    (!digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()))
        .then(|| digits.parse().unwrap_or(i64::MAX).min(1_000_000_000))
}

/// A date as HTTP writes it, in each of the three forms of RFC 9110, in milliseconds since the epoch.
pub(super) fn http_date_ms(text: &str) -> Option<i64> {
    let since_epoch = httpdate::parse_http_date(text).ok()?.duration_since(UNIX_EPOCH).ok()?;
    i64::try_from(since_epoch.as_millis()).ok()
}

/// An `https` URL: its authority, and its path and query.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Location {
    authority: String,
    path: String,
}

impl Location {
    /// Where `target`, the `Location` header of this page, leads (RFC 3986, section 5.2); `None` where that is not `https`.
    fn join(&self, target: &str) -> Option<Self> {
        let target = target.split('#').next().unwrap_or_default();
        let absolute = match target.get(..8) {
            Some(scheme) if scheme.eq_ignore_ascii_case("https://") => target.get(8..),
            _ => target.strip_prefix("//"),
        };
        let (authority, path) = match absolute {
            Some(rest) => {
                let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
                (
                    authority.to_ascii_lowercase(),
                    if path.starts_with('/') { path.to_owned() } else { format!("/{path}") },
                )
            }
            None if target.starts_with('/') => (self.authority.clone(), target.to_owned()),
            None if target.split(['/', '?']).next().is_some_and(|start| start.contains(':')) => return None,
            None => {
                let path = self.path.split('?').next().unwrap_or_default();
                let base = if target.starts_with('?') { path } else { &path[..=path.rfind('/')?] };
                (self.authority.clone(), format!("{base}{target}"))
            }
        };
        let path = without_dot_segments(&path);
        path.parse::<Uri>().ok()?;
        Some(Self { authority: authority.strip_suffix(":443").map(str::to_owned).unwrap_or(authority), path })
    }
}

/// RFC 3986, section 5.2.4, over the path before the query.
fn without_dot_segments(path: &str) -> String {
    let (path, query) = path.split_at(path.find('?').unwrap_or(path.len()));
    let mut kept: Vec<&str> = Vec::new();
    let mut segments = path.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment {
            "." | ".." => {
                if segment == ".." {
                    kept.pop();
                }
                if last {
                    kept.push("");
                }
            }
            _ => kept.push(segment),
        }
    }
    format!("/{}{query}", kept.join("/"))
}
