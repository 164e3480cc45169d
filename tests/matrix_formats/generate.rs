//! Generated events. A seed names a whole run: on failure the tests print the seed of the event.

use verge::matrix::{
    json::{Object, Value},
    room_version::{EventIds, RoomVersion},
    signing::SigningKey,
};

/// The key of the spec's test vectors.
pub(crate) const SEED: &str = "YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1";
/// The server of the spec's test vectors.
pub(crate) const SERVER: &str = "domain";

pub(crate) fn signing_key() -> SigningKey {
    SigningKey::from_line(&format!("ed25519 1 {SEED}")).unwrap()
}

/// SplitMix64: small, and the same everywhere.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap()
    }

    pub(crate) fn pick<'a, T: ?Sized>(&mut self, items: &[&'a T]) -> &'a T {
        items[self.below(items.len())]
    }

    pub(crate) fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
}

const TYPES: [&str; 12] = [
    "m.room.member",
    "m.room.create",
    "m.room.join_rules",
    "m.room.power_levels",
    "m.room.aliases",
    "m.room.history_visibility",
    "m.room.redaction",
    "m.room.server_acl",
    "m.room.third_party_invite",
    "m.room.message",
    "m.room.name",
    "org.example.odd \" \\ \u{7}",
];
/// Every key that some redaction algorithm treats in some way, and some that none does.
const CONTENT_KEYS: [&str; 26] = [
    "membership",
    "join_authorised_via_users_server",
    "third_party_invite",
    "creator",
    "room_version",
    "additional_creators",
    "join_rule",
    "allow",
    "deny",
    "ban",
    "events",
    "events_default",
    "invite",
    "kick",
    "redact",
    "state_default",
    "users",
    "users_default",
    "notifications",
    "aliases",
    "history_visibility",
    "redacts",
    "body",
    "日本語",
    "\u{10348}",
    "",
];
const TOP_KEYS: [&str; 8] =
    ["origin", "membership", "prev_state", "redacts", "replaces_state", "event_id", "org.example.unknown", "age"];

/// Any value that canonical JSON allows.
pub(crate) fn value(random: &mut Random, depth: usize) -> Value {
    match random.below(if depth == 0 { 5 } else { 8 }) {
        0 => Value::Null,
        1 => Value::Bool(random.chance(50)),
        2 => Value::Integer(i64::try_from(random.next() >> 11).unwrap() * if random.chance(50) { 1 } else { -1 }),
        3 => Value::Integer(i64::try_from(random.below(200)).unwrap() - 100),
        4 => Value::String(text(random)),
        5 => Value::Array((0..random.below(4)).map(|_| value(random, depth - 1)).collect()),
        _ => (0..random.below(5)).map(|_| (text(random), value(random, depth - 1))).collect::<Object>().into(),
    }
}

fn text(random: &mut Random) -> String {
    let alphabet = ['a', 'B', '7', ' ', '"', '\\', '/', '\n', '\u{0}', '\u{1f}', '\u{7f}', 'é', '本', '\u{2028}', '😀'];
    (0..random.below(9)).map(|_| alphabet[random.below(alphabet.len())]).collect()
}

fn id(random: &mut Random, version: &RoomVersion) -> Value {
    match version.event_ids {
        EventIds::Given => {
            let id = Value::from(format!("${}:domain", random.next()));
            vec![id, Object::from_iter([("sha256", "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU")]).into()].into()
        }
        _ => format!("${:043}", random.next()).into(),
    }
}

/// An event with all that its format asks for except hashes and signatures, of random type and content.
pub(crate) fn event(random: &mut Random, version: &RoomVersion) -> Object {
    let event_type = random.pick(&TYPES);
    let mut content = Object::new();
    for _ in 0..random.below(8) {
        let key = random.pick(&CONTENT_KEYS);
        content.insert(key, value(random, 3));
    }
    if event_type == "m.room.member" {
        let memberships = ["join", "invite", "leave", "ban", "knock"];
        content.insert("membership", random.pick(&memberships));
        // A signature of the authorising user's server is a test of its own.
        content.remove("join_authorised_via_users_server");
        if random.chance(50) {
            let signed = Object::from_iter([("mxid", Value::from("@a:b")), ("token", value(random, 1))]);
            let members = [("display_name", value(random, 1)), ("signed", Value::from(signed))];
            content.insert("third_party_invite", Object::from_iter(members));
        } else {
            content.remove("third_party_invite");
        }
    }
    let mut event = Object::from_iter([
        ("auth_events", Value::Array((0..random.below(5)).map(|_| id(random, version)).collect())),
        ("content", content.into()),
        ("depth", Value::Integer(i64::try_from(random.below(1_000_000)).unwrap())),
        ("origin_server_ts", Value::Integer(i64::try_from(random.next() >> 20).unwrap())),
        ("prev_events", Value::Array((0..random.below(3)).map(|_| id(random, version)).collect())),
        ("room_id", "!x:domain".into()),
        ("sender", format!("@{}:{SERVER}", random.below(5)).into()),
        ("type", event_type.into()),
    ]);
    if random.chance(50) {
        event.insert("state_key", text(random));
    }
    for _ in 0..random.below(3) {
        let key = random.pick(&TOP_KEYS);
        event.insert(key, value(random, 2));
    }
    match version.event_ids {
        EventIds::Given => drop(event.insert("event_id", format!("${}:{SERVER}", random.next()))),
        // A string that other implementations read as an id would be an argument about another thing.
        _ => drop(event.remove("event_id")),
    }
    if version.room_id_is_create_hash && event_type == "m.room.create" {
        event.insert("state_key", "");
        event.remove("room_id");
    }
    event
}

/// Changes some bytes of `text`: single ones, cuts, copies, and tokens that mean something.
pub(crate) fn mutated(random: &mut Random, text: &[u8]) -> Vec<u8> {
    let tokens: [&[u8]; 14] = [
        b"{",
        b"}",
        b"[",
        b"]",
        b"\"",
        b"\\",
        b"\\ud800",
        b"null",
        b"-0",
        b"1e999",
        b"9223372036854775808",
        b":",
        b"\xff",
        b"$",
    ];
    let mut bytes = text.to_vec();
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len() + 1);
        match random.below(4) {
            0 if at < bytes.len() => bytes[at] = u8::try_from(random.below(256)).unwrap(),
            1 => bytes.truncate(at),
            2 => drop(bytes.splice(at..at, random.pick(&tokens).iter().copied())),
            _ => {
                let end = (at + random.below(20)).min(bytes.len());
                bytes.drain(at..end);
            }
        }
    }
    bytes
}
