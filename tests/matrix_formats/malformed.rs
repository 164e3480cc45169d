//! Generated PDUs with one thing wrong, against ruma's check of the format and against Synapse's.

use std::collections::BTreeMap;

use ruma_common::{CanonicalJsonObject, RoomVersionId};
use verge::matrix::{
    event::{Event, MAX_EVENT_BYTES, ReceivedPdu, hash_and_sign},
    json::{self, Object, Value},
    room_version::{EventIds, RoomVersion},
};

use crate::{
    common::synapse::Synapse,
    generate::{self, Random, SERVER, signing_key},
};

const EVENTS: u64 = 400;
/// How long a member is that is too long in bytes, and not in characters.
const MORE_BYTES: &str = "150 characters of 2 bytes";

/// What becomes of a PDU before its signatures are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    Dropped,
    /// It is kept, as rejected.
    Rejected,
    Taken,
}

#[test]
fn malformed_events_are_judged_as_by_ruma_and_synapse() {
    let mut synapse = Synapse::start();
    let mut outcomes: BTreeMap<(Oracle, Outcome, bool), usize> = BTreeMap::new();
    for version in RoomVersion::all() {
        let cases: Vec<Case> = (0..EVENTS).map(|seed| Case::new(version, &mut Random(seed))).collect();
        let texts: Vec<String> = cases.iter().map(|case| case.pdu.to_text()).collect();
        let answer = synapse.as_mut().map(|synapse| synapse.check(version, &texts));
        for (position, case) in cases.iter().enumerate() {
            let ours = case.ours();
            let ruma = case.ruma().map(|theirs| (Oracle::Ruma, theirs));
            let synapse = answer.as_ref().map(|answer| (Oracle::Synapse, outcome(answer.format(position))));
            for (oracle, theirs) in ruma.into_iter().chain(synapse) {
                let agrees = ours == theirs;
                assert!(
                    agrees || case.is_known(oracle, ours, theirs),
                    "version {version}, seed {position}, {} {}: {ours:?} here, {theirs:?} in {oracle:?}\n{}",
                    case.member,
                    case.what,
                    case.pdu.to_text()
                );
                *outcomes.entry((oracle, ours, agrees)).or_default() += 1;
            }
        }
    }
    println!("{outcomes:?}");
    let oracles =
        if answers(&outcomes, Oracle::Synapse) { vec![Oracle::Ruma, Oracle::Synapse] } else { vec![Oracle::Ruma] };
    for oracle in oracles {
        for (ours, least) in [(Outcome::Taken, 1_000), (Outcome::Dropped, 700)] {
            let agreed = outcomes.get(&(oracle, ours, true)).copied().unwrap_or_default();
            assert!(agreed > least, "{oracle:?} {ours:?}: {agreed}");
        }
    }
}

fn answers(outcomes: &BTreeMap<(Oracle, Outcome, bool), usize>, oracle: Oracle) -> bool {
    outcomes.keys().any(|(of, _, _)| *of == oracle)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Oracle {
    Ruma,
    Synapse,
}

fn outcome(answer: Result<Option<&str>, &str>) -> Outcome {
    match answer {
        Ok(None) => Outcome::Taken,
        Ok(Some(_)) => Outcome::Rejected,
        Err(_) => Outcome::Dropped,
    }
}

/// A PDU, and what is wrong with which member, or with the whole event.
struct Case {
    version: &'static RoomVersion,
    pdu: Object,
    member: &'static str,
    what: String,
}

const MEMBERS: [&str; 12] = [
    "auth_events",
    "content",
    "depth",
    "event_id",
    "hashes",
    "origin_server_ts",
    "prev_events",
    "room_id",
    "sender",
    "signatures",
    "state_key",
    "type",
];

impl Case {
    fn new(version: &'static RoomVersion, random: &mut Random) -> Self {
        let mut pdu = generate::event(random, version);
        hash_and_sign(&mut pdu, version, SERVER, &signing_key());
        let (member, what) = match random.below(8) {
            0 => ("event", "as it should be".to_owned()),
            1 => {
                let member = random.pick(&MEMBERS);
                pdu.remove(member);
                (member, "missing".to_owned())
            }
            2 | 3 => {
                let member = random.pick(&MEMBERS);
                let junk = ["null", "true", "7", "-1", "\"\"", "\"x\"", "[]", "{}", "[null]", "[[]]", "[{}]", "[\"\"]"];
                let junk = random.pick(&junk);
                pdu.insert(member, json::parse(junk.as_bytes()).unwrap());
                (member, junk.to_owned())
            }
            4 => {
                let (member, prefix, suffix) = *random.pick(&[
                    &("type", "", ""),
                    &("state_key", "", ""),
                    &("sender", "@", ":domain"),
                    &("room_id", "!", ":domain"),
                    &("event_id", "$", ":domain"),
                ]);
                let (character, length, what) = *random.pick(&[
                    &("a", 255, "255 bytes"),
                    &("a", 256, "256 bytes"),
                    &("é", 150, MORE_BYTES),
                    &("é", 256, "256 characters"),
                ]);
                let length = length - prefix.len() - suffix.len();
                pdu.insert(member, format!("{prefix}{}{suffix}", character.repeat(length)));
                (member, what.to_owned())
            }
            5 => {
                let (member, count) = *random.pick(&[
                    &("auth_events", 10),
                    &("auth_events", 11),
                    &("prev_events", 20),
                    &("prev_events", 21),
                ]);
                let id = |at: usize| match version.event_ids {
                    EventIds::Given => {
                        vec![Value::from(format!("$a{at}:domain")), Object::from_iter([("sha256", "AAAA")]).into()]
                            .into()
                    }
                    _ => Value::from(format!("${at:043}")),
                };
                pdu.insert(member, (0..count).map(id).collect::<Vec<Value>>());
                (member, count.to_string())
            }
            6 => {
                let (length, what) = *random.pick(&[
                    &(MAX_EVENT_BYTES - 1, "65535"),
                    &(MAX_EVENT_BYTES, "65536"),
                    &(MAX_EVENT_BYTES + 1, "65537"),
                ]);
                pdu.object_at("content").insert("body", "");
                let missing = length.saturating_sub(pdu.to_text().len());
                pdu.object_at("content").insert("body", "x".repeat(missing));
                ("event", format!("{what} bytes"))
            }
            _ => {
                let numbers = [
                    "9007199254740991",
                    "9007199254740992",
                    "9223372036854775807",
                    "9223372036854775808",
                    "1.0",
                    "1e3",
                ];
                let (member, number) = (random.pick(&["depth", "origin_server_ts", "x.other"]), random.pick(&numbers));
                pdu.insert(member, json::parse(number.as_bytes()).unwrap());
                (member, number.to_owned())
            }
        };
        Self { version, pdu, member, what }
    }

    fn ours(&self) -> Outcome {
        match ReceivedPdu::from_value(self.pdu.clone().into(), self.version) {
            Err(_) => Outcome::Dropped,
            Ok(pdu) => {
                let kept = Event::from_store(pdu.event_id().as_str(), &self.pdu.to_text(), self.version).unwrap();
                if kept.oversized_member().is_some() { Outcome::Rejected } else { Outcome::Taken }
            }
        }
    }

    /// `None` where ruma cannot read the JSON.
    fn ruma(&self) -> Option<Outcome> {
        let pdu: CanonicalJsonObject = serde_json::from_str(&self.pdu.to_text()).ok()?;
        let rules = RoomVersionId::try_from(self.version.id).unwrap().rules().unwrap();
        let checked = ruma_state_res::check_pdu_format(&pdu, &rules.event_format);
        Some(if checked.is_ok() { Outcome::Taken } else { Outcome::Dropped })
    }

    /// Where an oracle differs and the spec decides.
    fn is_known(&self, oracle: Oracle, ours: Outcome, theirs: Outcome) -> bool {
        let (member, what) = (self.member, &*self.what);
        let is_id = matches!(member, "event_id" | "room_id" | "sender");
        let is_list = matches!(member, "auth_events" | "prev_events");
        match (oracle, ours, theirs) {
            // Its check is of a few members, and leaves the grammar of ids to who reads them.
            (Oracle::Ruma, Outcome::Dropped, Outcome::Taken) => {
                is_id || is_list || matches!(member, "content" | "hashes" | "origin_server_ts" | "signatures")
                    // A create event of version 12 without `state_key` is no create event and needs a room.
                    || self.version.room_id_is_create_hash && member == "state_key"
            }
            // It drops by bytes in versions 1 to 10 too, what others keep as rejected.
            (Oracle::Ruma, Outcome::Rejected, Outcome::Dropped) => what == MORE_BYTES,
            // "MUST NOT be larger than 65536 bytes".
            (Oracle::Ruma, Outcome::Taken, Outcome::Dropped) => what == "65536 bytes",
            // It leaves the grammar of ids, and whether there are signatures at all, to the check of those.
            (Oracle::Synapse, Outcome::Dropped, Outcome::Taken) => {
                is_id || is_list && what == "[\"\"]" || (member, what) == ("signatures", "missing")
            }
            (Oracle::Synapse, Outcome::Taken, Outcome::Dropped) => match member {
                // It counts `unsigned`, which it adds.
                "event" => what.ends_with(" bytes"),
                // It counts the create event that the room id implies.
                "auth_events" => self.version.room_id_is_create_hash && what == "10",
                // "Must be less than the maximum value for an integer (2^63 - 1)", of which it is told to be where it would be more.
                "depth" => !self.version.strict_json && what.starts_with('9'),
                // From version 3 on `event_id` is one of the members that the spec says nothing of.
                "event_id" => self.version.event_ids != EventIds::Given,
                _ => false,
            },
            _ => false,
        }
    }
}
