//! Events of generated rooms as they come over the wire: signed by their servers, and some of them damaged on the way.

use std::{cell::RefCell, collections::BTreeMap};

use serde_json::json;
use sha2::{Digest, Sha256};
use verge::matrix::{
    base64,
    event::{Event, hash_and_sign},
    hashes,
    identifiers::UserId,
    json::{Object, Value},
    redaction,
    room_version::{EventIds, RoomVersion},
    server_keys::{KeyRing, KnownKey},
    signing::SigningKey,
};

use super::generator::Random;

/// A PDU, and the keys that its receiver knows.
pub struct SignedPdu {
    pub version: &'static RoomVersion,
    pub pdu: Object,
    /// The servers whose signatures the spec asks for, by its text.
    pub signers: Vec<String>,
    pub damage: Damage,
    /// By server and key id.
    keys: BTreeMap<(String, String), KnownKey>,
}

/// What happened to a PDU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Damage {
    None,
    /// Content that redaction takes away.
    Content,
    /// A member that redaction takes away.
    Member,
    /// A member that is signed.
    SignedMember,
    /// The content hash, after signing.
    Hash,
    /// The content hash, which is signed.
    SignedHash,
    /// As that, and it is no base64.
    MalformedHash,
    /// The content hash and the signatures are right, and written in the URL-safe alphabet.
    OtherAlphabet,
    /// It was redacted, as servers do that have redacted it.
    Redacted,
    /// A third-party invite was put in, which would excuse the sender's server from signing.
    Excuse,
    /// A server's signatures are missing.
    Unsigned,
    /// Of one server there is only a signature by a key that its receiver does not know.
    UnknownKey,
    /// A server's signature is one of something else.
    WrongSignature,
    /// It is no base64, or too short.
    MalformedSignature,
    /// A second signature of a server is by another known key, and right.
    TwoKeys,
    /// As that, and wrong.
    SecondWrong,
    /// A second signature is by a key that its receiver does not know, or of an unknown algorithm, or of a server that has no
    /// say, and is nonsense.
    Ignored,
    /// A key's `valid_until_ts` is just before the event, or that of the fetch.
    NotValid,
    /// It is the time of the event.
    JustValid,
    /// A key expired just before the event.
    Expired,
    /// It expired at the time of the event.
    JustExpired,
}

const DAMAGES: [Damage; 20] = [
    Damage::Content,
    Damage::Member,
    Damage::SignedMember,
    Damage::Hash,
    Damage::SignedHash,
    Damage::MalformedHash,
    Damage::OtherAlphabet,
    Damage::Redacted,
    Damage::Excuse,
    Damage::Unsigned,
    Damage::UnknownKey,
    Damage::WrongSignature,
    Damage::MalformedSignature,
    Damage::TwoKeys,
    Damage::SecondWrong,
    Damage::Ignored,
    Damage::NotValid,
    Damage::JustValid,
    Damage::Expired,
    Damage::JustExpired,
];
/// How long a key counts after it was fetched, whatever it says.
const WEEK: i64 = 7 * 24 * 60 * 60 * 1000;

impl SignedPdu {
    /// Signs some of the events by all that must, and damages it. What becomes of an event depends on itself and on the seed,
    /// so that it stays the same while a room shrinks.
    pub fn some_of<'a>(events: impl Iterator<Item = &'a Event>, seed: u64) -> Vec<Self> {
        let signed = events.filter_map(|event| {
            let (event_type, sender, key) = (event.event_type(), event.sender(), event.state_key());
            let seed = Sha256::digest(format!("{seed} {event_type} {sender} {key:?} {}", event.origin_server_ts()));
            let mut random = Random::new(u64::from_le_bytes(seed[..8].try_into().unwrap()));
            random.percent(25).then(|| Self::new(event, &mut random))
        });
        signed.collect()
    }

    /// Signs an event by all that must, and damages it.
    fn new(event: &Event, random: &mut Random) -> Self {
        let version = event.version();
        let mut pdu = event.object().clone();
        pdu.remove("signatures");
        if version.restricted && event.event_type() == "m.room.member" && random.percent(10) {
            // Whatever the membership is, and whoever sends it.
            pdu.object_at("content").insert("join_authorised_via_users_server", "@carol:b.example");
        }
        let signers = signers(&pdu, version);
        let damage = if random.percent(25) { Damage::None } else { *random.pick(&DAMAGES) };
        let hash = match damage {
            Damage::SignedHash => Some(base64::encode(&[7; 32])),
            Damage::MalformedHash => Some("A".to_owned()),
            Damage::OtherAlphabet => Some(base64::encode_url_safe(&hashes::content_hash(&pdu))),
            _ => None,
        };
        if let Some(hash) = hash {
            // `hash_and_sign` would put it right: sign by hand.
            pdu.insert("hashes", Object::from_iter([("sha256", hash)]));
            for server in &signers {
                let mut signed = redaction::redact(&pdu, version);
                with_key(server, 1, |key| key.sign_object(&mut signed, server));
                pdu.insert("signatures", signed.get("signatures").unwrap().clone());
            }
        } else {
            for server in &signers {
                with_key(server, 1, |key| hash_and_sign(&mut pdu, version, server, key));
            }
        }
        if signers.is_empty() {
            // Somebody has signed it, of whom nothing is asked.
            with_key("d.example", 1, |key| hash_and_sign(&mut pdu, version, "d.example", key));
        }
        let mut signed = Self { version, pdu, signers, damage, keys: BTreeMap::new() };
        for server in signed.signers.clone() {
            signed.learn(&server, 1);
        }
        signed.do_damage(random);
        signed
    }

    fn do_damage(&mut self, random: &mut Random) {
        let server = if self.signers.is_empty() { "d.example".to_owned() } else { random.pick(&self.signers).clone() };
        let sent = self.pdu.get("origin_server_ts").and_then(Value::as_i64).unwrap();
        let wrong = base64::encode(&Sha256::digest("wrong").repeat(2));
        match self.damage {
            Damage::None | Damage::SignedHash | Damage::MalformedHash => {}
            Damage::Content => drop(self.pdu.object_at("content").insert("x.damage", 1)),
            Damage::Member => drop(self.pdu.insert("org.example.damage", 1)),
            Damage::SignedMember => drop(self.pdu.insert("depth", 987_654)),
            Damage::Hash => drop(self.pdu.object_at("hashes").insert("sha256", base64::encode(&[7; 32]))),
            Damage::OtherAlphabet => {
                for server in self.signers.clone() {
                    let signature = self.pdu.object_at("signatures").object_at(&server).get(&key_id(1)).cloned();
                    let signature = signature.as_ref().and_then(Value::as_str).unwrap();
                    self.put(&server, &key_id(1), &signature.replace('+', "-").replace('/', "_"));
                }
            }
            Damage::Redacted => self.pdu = redaction::redact(&self.pdu, self.version),
            Damage::Excuse => {
                let content = self.pdu.object_at("content");
                content.insert("third_party_invite", Value::from(json!({ "signed": { "token": "t" } })));
            }
            Damage::Unsigned => {
                self.pdu.object_at("signatures").remove(&server);
                if random.percent(30) {
                    self.pdu.object_at("signatures").insert(server, Object::new());
                }
            }
            Damage::UnknownKey => drop(self.keys.remove(&(server, key_id(1)))),
            Damage::WrongSignature => self.put(&server, &key_id(1), &wrong),
            Damage::MalformedSignature => {
                let signature = *random.pick(&["", "AAAA", "{}"]);
                self.put(&server, &key_id(1), signature);
            }
            Damage::TwoKeys => {
                self.learn(&server, 2);
                let mut signed = redaction::redact(&self.pdu, self.version);
                with_key(&server, 2, |key| key.sign_object(&mut signed, &server));
                self.pdu.insert("signatures", signed.get("signatures").unwrap().clone());
            }
            Damage::SecondWrong => {
                self.learn(&server, 2);
                self.put(&server, &key_id(2), &wrong);
            }
            Damage::Ignored => match random.below(3) {
                0 => self.put(&server, &key_id(3), &wrong),
                1 => self.put(&server, "rsa:1", &wrong),
                _ => self.put("elsewhere.example", &key_id(1), &wrong),
            },
            Damage::NotValid | Damage::JustValid | Damage::Expired | Damage::JustExpired => {
                let Some(key) = self.keys.get_mut(&(server, key_id(1))) else { return };
                let (late, at) = (sent - 1, sent);
                let by_fetch = random.percent(50);
                match self.damage {
                    Damage::NotValid if by_fetch => key.fetched_ts = late - WEEK,
                    Damage::NotValid => key.valid_until_ts = late,
                    Damage::JustValid if by_fetch => key.fetched_ts = at - WEEK,
                    Damage::JustValid => key.valid_until_ts = at,
                    Damage::Expired => key.expired_ts = Some(late),
                    _ => key.expired_ts = Some(at),
                }
            }
        }
    }

    fn put(&mut self, server: &str, key_id: &str, signature: &str) {
        self.pdu.object_at("signatures").object_at(server).insert(key_id, signature);
    }

    /// Its receiver knows the key of this number of the server, which is valid for long.
    fn learn(&mut self, server: &str, number: u8) {
        let key = with_key(server, number, SigningKey::verify_key);
        let known = KnownKey { key, valid_until_ts: i64::MAX, expired_ts: None, fetched_ts: i64::MAX / 2 };
        self.keys.insert((server.to_owned(), key_id(number)), known);
    }

    /// The keys as we take them.
    pub fn ring(&self) -> KeyRing {
        let mut ring = KeyRing::new();
        for ((server, key_id), key) in &self.keys {
            ring.insert(server, key_id, key.clone());
        }
        ring
    }

    /// The keys in base64 and until when each is valid, or was, in nested maps by server and key id.
    pub fn keys(&self) -> BTreeMap<String, BTreeMap<String, (String, i64)>> {
        let mut servers: BTreeMap<String, BTreeMap<String, (String, i64)>> = BTreeMap::new();
        for ((server, key_id), key) in &self.keys {
            let until = key.expired_ts.unwrap_or(key.valid_until_ts.min(key.fetched_ts + WEEK));
            servers.entry(server.clone()).or_default().insert(key_id.clone(), (key.key.to_base64(), until));
        }
        servers
    }

    /// `content.membership`, where it is a text.
    pub fn membership(&self) -> Option<&str> {
        self.pdu.get("content")?.get("membership")?.as_str()
    }
}

/// Server-Server API, "Validating hashes and signatures on received events", and rule 4.2 of the authorisation rules of room
/// version 8: the servers that must sign.
fn signers(pdu: &Object, version: &RoomVersion) -> Vec<String> {
    let text = |name: &str| pdu.get(name).and_then(Value::as_str).unwrap();
    let domain = |id: &str| id.split_once(':').unwrap().1.to_owned();
    let content = pdu.get("content").unwrap();
    let is_member = text("type") == "m.room.member";
    let is_invite = is_member && content.get("membership").and_then(Value::as_str) == Some("invite");
    let mut servers = Vec::new();
    if !(is_invite && content.get("third_party_invite").is_some()) {
        servers.push(domain(text("sender")));
    }
    if version.event_ids == EventIds::Given && domain(text("event_id")) != domain(text("sender")) {
        servers.push(domain(text("event_id")));
    }
    let authoriser = content.get("join_authorised_via_users_server").and_then(Value::as_str);
    if let Some(user) = authoriser.filter(|user| version.restricted && is_member && UserId::parse(user).is_ok()) {
        servers.push(domain(user));
    }
    servers.sort();
    servers.dedup();
    servers
}

fn key_id(number: u8) -> String {
    format!("ed25519:{number}")
}

/// Keys are made once for each thread: it takes some time.
fn with_key<T>(server: &str, number: u8, use_key: impl FnOnce(&SigningKey) -> T) -> T {
    thread_local! {
        static KEYS: RefCell<BTreeMap<(String, u8), SigningKey>> = const { RefCell::new(BTreeMap::new()) };
    }
    KEYS.with_borrow_mut(|keys| {
        let key = keys.entry((server.to_owned(), number)).or_insert_with(|| {
            let seed = base64::encode(&Sha256::digest(format!("{server} {number}")));
            SigningKey::from_line(&format!("ed25519 {number} {seed}")).unwrap()
        });
        use_key(key)
    })
}
