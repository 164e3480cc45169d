//! SRV records through DNS over HTTPS, as JSON (`application/dns-json`, which Cloudflare's and Google's resolvers speak).
//!
//! Server-Server API, "Resolving server names", steps 3.3, 3.4, 4 and 5; RFC 2782 for the order of the records. A Worker
//! has no resolver of its own for SRV. Which names may be connected to is decided in [`super::destination`].

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
};

use bytes::Bytes;
use http::{HeaderValue, header};

use super::destination::Destination;
use crate::{
    config::DnsOverHttps,
    log::{LogRecord, Reason},
    matrix::{
        json::{self, Value},
        server_name::is_dns_name,
    },
    platform::{DAY_MS, Platform, Random, TransportError},
};

/// The service, and the one that older deployments still use.
const SERVICES: [&str; 2] = ["_matrix-fed._tcp", "_matrix._tcp"];
/// How long the resolver may take.
const TIMEOUT_MS: u32 = 5_000;
/// The longest answer that is read; a long real one is a few KiB.
const MAX_ANSWER_BYTES: usize = 64 * 1024;
/// How many records of one answer count.
const MAX_RECORDS: usize = 32;
/// How many targets are worth trying.
const MAX_TARGETS: usize = 8;
/// How long answers are kept: the record's own time within these bounds, and that there is no record.
const CACHE_MS: std::ops::RangeInclusive<i64> = 60_000..=DAY_MS;
const CACHE_ABSENCE_MS: i64 = 300_000;
/// How long a resolver that could not be reached is left alone, and a name of which it could not say anything.
const DOWN_MS: i64 = 30_000;
/// How many names are remembered.
const MAX_CACHED: usize = 4096;

/// The DNS record type SRV (RFC 2782).
const TYPE_SRV: i64 = 33;

/// What the DNS says of a host's Matrix service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum SrvAnswer {
    /// The targets to try, in this order.
    Targets(Vec<Target>),
    /// The host says that it runs no such service.
    Refused,
    /// There are no records.
    None,
    /// The resolver could not be asked.
    Unknown,
}

/// Where an SRV record points.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) host: String,
    pub(super) port: u16,
}

/// Asks a resolver, and remembers its answers in this isolate.
pub(super) struct Resolver {
    platform: Platform,
    endpoint: Option<DnsOverHttps>,
    cache: Rc<SrvCache>,
}

/// What one isolate knows of SRV records.
#[derive(Default)]
pub(super) struct SrvCache {
    /// By name.
    known: RefCell<BTreeMap<String, Known>>,
    /// Until when the resolver is left alone.
    down_until: Cell<i64>,
}

/// What is known of a name.
struct Known {
    /// `None` where the resolver could not say.
    records: Option<Vec<Record>>,
    until: i64,
}

impl Resolver {
    pub(super) fn new(platform: Platform, endpoint: Option<DnsOverHttps>, cache: Rc<SrvCache>) -> Self {
        Self { platform, endpoint, cache }
    }

    /// The SRV records of `host` for `_matrix-fed._tcp`, else for `_matrix._tcp`.
    pub(super) async fn matrix_srv(&self, host: &str) -> SrvAnswer {
        for service in SERVICES {
            let Some(records) = self.records(&format!("{service}.{host}")).await else { return SrvAnswer::Unknown };
            if records.is_empty() {
                continue;
            }
            let targets: Vec<_> = order(records, &*self.platform.random)
                .into_iter()
                .filter_map(|record| record.host.map(|host| Target { host, port: record.port }))
                .take(MAX_TARGETS)
                .collect();
            return if targets.is_empty() { SrvAnswer::Refused } else { SrvAnswer::Targets(targets) };
        }
        SrvAnswer::None
    }

    /// The SRV records of `name`; `None` where the resolver could not say.
    async fn records(&self, name: &str) -> Option<Vec<Record>> {
        let endpoint = self.endpoint.as_ref()?;
        let now = self.platform.clock.now_ms();
        let SrvCache { known, down_until } = &*self.cache;
        if let Some(known) = known.borrow().get(name).filter(|known| now < known.until) {
            return known.records.clone();
        }
        if now < down_until.get() {
            return None;
        }
        let records = match self.ask(endpoint, name).await {
            Ok(records) => Some(records),
            Err(why) => {
                let what = match why.is_of_the_name() {
                    true => "no SRV lookups of a name for a while",
                    false => "no SRV lookups for a while",
                };
                self.platform.log.write(LogRecord::warning(what).because(&why).retry_in(DOWN_MS));
                if !why.is_of_the_name() {
                    down_until.set(now + DOWN_MS);
                    return None;
                }
                None
            }
        };
        let keep_ms = match &records {
            Some(records) => {
                let shortest = records.iter().map(|record| record.ttl.saturating_mul(1000)).min();
                shortest.map_or(CACHE_ABSENCE_MS, |ms| ms.clamp(*CACHE_MS.start(), *CACHE_MS.end()))
            }
            None => DOWN_MS,
        };
        let mut known = known.borrow_mut();
        if known.len() >= MAX_CACHED {
            known.clear();
        }
        known.insert(name.to_owned(), Known { records: records.clone(), until: now + keep_ms });
        records
    }

    async fn ask(&self, endpoint: &DnsOverHttps, name: &str) -> Result<Vec<Record>, ResolverError> {
        let request = http::Request::get(format!("{}?name={name}&type=SRV", endpoint.path))
            .header(header::ACCEPT, HeaderValue::from_static("application/dns-json"))
            .body(Bytes::new())
            .map_err(|_| ResolverError::Invalid)?;
        let destination = Destination {
            connect_host: endpoint.host.clone(),
            connect_port: endpoint.port,
            tls_name: endpoint.host.clone(),
            host_header: endpoint.authority.clone(),
        };
        let request = destination.request(request, TIMEOUT_MS, MAX_ANSWER_BYTES);
        let response = self.platform.transport.send(request).await.map_err(ResolverError::Transport)?;
        if response.status() != http::StatusCode::OK {
            return Err(ResolverError::Status(response.status().as_u16()));
        }
        parse_answer(response.body())
    }
}

/// Why the resolver cannot say.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum ResolverError {
    /// The name makes no request.
    #[error("the DNS resolver cannot be asked for such a name")]
    Invalid,
    /// It was not reached.
    #[error("the DNS resolver: {0}")]
    Transport(TransportError),
    /// It answers with another HTTP status than 200.
    #[error("the DNS resolver answers {0}")]
    Status(u16),
    /// Its answer is not JSON.
    #[error("the DNS resolver's answer is not JSON: {0}")]
    NotJson(json::Error),
    /// Its answer has no status.
    #[error("the DNS resolver's answer has no status")]
    NoStatus,
    /// It answers with a status of the DNS that is an error.
    #[error("the DNS resolver answers with status {0}")]
    DnsStatus(i64),
}

impl ResolverError {
    /// Whether it says something of the name alone: whoever has that name may see to it, and others are to be looked up all the same.
    fn is_of_the_name(&self) -> bool {
        use TransportError::{TimedOut, TooLarge};
        matches!(self, Self::Invalid | Self::DnsStatus(_) | Self::Transport(TimedOut | TooLarge))
    }
}

impl Reason for ResolverError {
    fn reason(&self) -> String {
        self.to_string()
    }
}

/// One SRV record.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Record {
    priority: u16,
    weight: u16,
    port: u16,
    /// `None`: the target is `.`, which means that there is no such service.
    host: Option<String>,
    /// Seconds.
    ttl: i64,
}

/// The SRV records of a JSON answer. Records that are not well-formed SRV records are passed over.
fn parse_answer(body: &[u8]) -> Result<Vec<Record>, ResolverError> {
    const NO_ERROR: i64 = 0;
    const NO_SUCH_NAME: i64 = 3;
    let answer = json::parse(body).map_err(ResolverError::NotJson)?;
    match answer.get("Status").and_then(Value::as_i64) {
        Some(NO_ERROR) => {}
        Some(NO_SUCH_NAME) => return Ok(Vec::new()),
        Some(status) => return Err(ResolverError::DnsStatus(status)),
        None => return Err(ResolverError::NoStatus),
    }
    let records = answer.get("Answer").and_then(Value::as_array).unwrap_or_default();
    Ok(records.iter().filter_map(parse_record).take(MAX_RECORDS).collect())
}

/// `{"type": 33, "TTL": 300, "data": "<priority> <weight> <port> <target>"}`.
fn parse_record(record: &Value) -> Option<Record> {
    if record.get("type").and_then(Value::as_i64) != Some(TYPE_SRV) {
        return None;
    }
    let mut fields = record.get("data").and_then(Value::as_str)?.split(' ');
    let mut number = || fields.next().filter(|field| field.bytes().all(|b| b.is_ascii_digit()))?.parse::<u16>().ok();
    let (priority, weight, port) = (number()?, number()?, number()?);
    let target = fields.next().filter(|_| fields.next().is_none())?;
    let host = match target {
        "." => None,
        name if is_dns_name(name) && port > 0 => Some(name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()),
        _ => return None,
    };
    let ttl = record.get("TTL").and_then(Value::as_i64).unwrap_or(0);
    Some(Record { priority, weight, port, host, ttl })
}

/// RFC 2782: the lowest priority first; within one priority drawn by weight, those of weight 0 rarely.
fn order(mut records: Vec<Record>, random: &dyn Random) -> Vec<Record> {
    records.sort_by_key(|record| (record.priority, record.weight));
    let mut ordered = Vec::with_capacity(records.len());
    while let Some(priority) = records.first().map(|record| record.priority) {
        let group = records.iter().take_while(|record| record.priority == priority);
        let total: u64 = group.clone().map(|record| u64::from(record.weight)).sum();
        let mut bytes = [0; 8];
        random.fill(&mut bytes);
        let drawn = u64::from_le_bytes(bytes) % (total + 1);
        let chosen = group
            .scan(0, |sum, record| {
                *sum += u64::from(record.weight);
                Some(*sum)
            })
            .position(|sum| sum >= drawn)
            .unwrap_or(0);
        ordered.push(records.remove(chosen));
    }
    ordered
}
