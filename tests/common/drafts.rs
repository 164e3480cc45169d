//! What people do in generated rooms: they fight over power, race each other with bans, joins, leaves and knocks, join
//! restricted rooms, redeem third-party invites, and lie.

use ed25519_dalek::{Signer, SigningKey};
use serde_json::json;
use verge::matrix::{
    base64,
    json::{self, Object, Value},
    power_levels::{PowerLevel, PowerLevels},
    state_content::Membership,
};

use super::{
    generator::{Generator, Numbers, Random},
    rooms::{State, USERS},
};

pub(super) const LEVELS: [i64; 9] = [0, 1, 25, 49, 50, 51, 75, 99, 100];
pub(super) const NAMED_LEVELS: [&str; 7] =
    ["users_default", "events_default", "state_default", "ban", "redact", "kick", "invite"];
const EVENT_TYPES: [&str; 6] =
    ["m.room.name", "m.room.message", "m.room.power_levels", "m.room.join_rules", "m.room.redaction", "x.custom"];

/// An event before it has a place in the graph.
pub(super) struct Draft {
    pub(super) event_type: &'static str,
    pub(super) sender: String,
    pub(super) state_key: Option<String>,
    pub(super) content: Object,
    pub(super) redacts: Option<String>,
}

impl Draft {
    pub(super) fn new(
        event_type: &'static str,
        sender: &str,
        state_key: Option<&str>,
        content: serde_json::Value,
    ) -> Self {
        Self {
            event_type,
            sender: sender.to_owned(),
            state_key: state_key.map(str::to_owned),
            content: Value::from(content).into_object().unwrap(),
            redacts: None,
        }
    }
}

impl Generator {
    pub(super) fn draft(&mut self, state: &State) -> Draft {
        let joined = self.users_with(state, "join");
        let sender = match joined.is_empty() || self.random.percent(25) {
            true => *self.random.pick(&USERS),
            false => *self.random.pick(&joined),
        };
        let powerful = self.powerful(state, &joined, sender);
        let other = *self.random.pick(&USERS);
        let membership = |sender: &str, target: &str, membership: &str| {
            Draft::new("m.room.member", sender, Some(target), json!({ "membership": membership }))
        };
        match self.random.below(100) {
            0..20 => {
                let joiner = if self.random.percent(95) { other } else { sender };
                self.join(joiner, other, &joined)
            }
            20..27 => membership(sender, other, "invite"),
            27..34 => membership(powerful, other, "ban"),
            34..40 => membership(powerful, other, "leave"),
            40..45 => membership(sender, sender, "leave"),
            45..50 => membership(other, if self.random.percent(90) { other } else { sender }, "knock"),
            50..68 => self.power_levels(powerful, state),
            68..75 => {
                let content = self.join_rules();
                Draft::new("m.room.join_rules", powerful, Some(""), content)
            }
            75..79 => self.third_party_invite(sender),
            79..84 => self.redeem_third_party_invite(sender, other),
            84..87 => self.redaction(sender),
            87..90 => Draft::new("m.room.message", sender, None, json!({ "body": "hello" })),
            90..93 => Draft::new("m.room.name", powerful, Some(""), json!({ "name": self.random.below(5) })),
            93 => {
                let key = *self.random.pick(&["", "a", sender, other]);
                Draft::new("x.custom", sender, Some(key), json!({ "n": self.random.below(5) }))
            }
            94 => {
                let content = json!({ "history_visibility": "shared", "n": self.random.below(5) });
                Draft::new("m.room.history_visibility", powerful, Some(""), content)
            }
            95..97 => {
                let own = sender.split_once(':').unwrap().1;
                let key = *self.random.pick(&[Some("b.example"), Some(own), Some(own), None, Some("")]);
                Draft::new("m.room.aliases", sender, key, json!({ "aliases": [] }))
            }
            _ => self.hostile(sender, other),
        }
    }

    /// Mostly one of the joined users who may send state events; otherwise `sender`.
    fn powerful(&mut self, state: &State, joined: &[&'static str], sender: &'static str) -> &'static str {
        let of = |event_type: &str| {
            let position = state.get(&(event_type.to_owned(), String::new()))?;
            Some(&self.room.events[*position].event)
        };
        let Some(create) = of("m.room.create") else { return sender };
        let levels = PowerLevels::from_state(create, of("m.room.power_levels"));
        let can = |user: &&&str| levels.user(user).is_ok_and(|level| level >= PowerLevel::from(50));
        let powerful: Vec<&'static str> = joined.iter().filter(can).copied().collect();
        if powerful.is_empty() || self.random.percent(30) {
            sender
        } else {
            powerful[self.random.below(powerful.len())]
        }
    }

    /// Where a room is not federated, Synapse forbids local users to invite or ban remote ones, of which the spec says
    /// nothing. That is a case of its own in the tests of rule 4, and would drown others here.
    pub(super) fn spare_remote_targets(&self, draft: &mut Draft) {
        let federates = self.room.events[0].event.content().get("m.federate") != Some(&Value::Bool(false));
        let is_remote = |user: &str| !user.ends_with(":a.example");
        if let Some(target) = &mut draft.state_key
            && !federates
            && draft.event_type == "m.room.member"
            && is_remote(target)
            && !is_remote(&draft.sender)
        {
            *target = USERS[1].to_owned();
        }
    }

    fn users_with(&self, state: &State, membership: &str) -> Vec<&'static str> {
        let has = |user: &&str| {
            let member = state.get(&("m.room.member".to_owned(), (*user).to_owned()));
            member
                .is_some_and(|position| self.room.events[*position].event.membership() == Membership::parse(membership))
        };
        USERS.iter().copied().filter(has).collect()
    }

    fn join(&mut self, joiner: &str, target: &str, joined: &[&str]) -> Draft {
        let mut content = json!({ "membership": "join" });
        if self.room.version.restricted && self.random.percent(40) {
            let authorising =
                if joined.is_empty() || self.random.percent(10) { target } else { *self.random.pick(joined) };
            content["join_authorised_via_users_server"] = json!(authorising);
        }
        Draft::new("m.room.member", joiner, Some(target), content)
    }

    pub(super) fn join_rules(&mut self) -> serde_json::Value {
        let rules = ["public", "public", "invite", "knock", "restricted", "knock_restricted", "private"];
        let mut content = json!({ "join_rule": self.random.pick(&rules) });
        if self.random.percent(20) {
            content["allow"] = json!([{ "type": "m.room_membership", "room_id": "!other:a.example" }]);
        }
        content
    }

    /// The levels in force with up to three changes.
    fn power_levels(&mut self, sender: &str, state: &State) -> Draft {
        let current = state.get(&("m.room.power_levels".to_owned(), String::new()));
        let current = current.map(|position| self.room.events[*position].event.content().clone());
        let has_current = current.is_some();
        let mut content = current.unwrap_or_default();
        if self.options.complete {
            for name in NAMED_LEVELS {
                if !content.contains_key(name) {
                    content.insert(name, 0);
                }
            }
        }
        for _ in 0..=self.random.below(3) {
            let level = self.level();
            let (property, key) = match self.random.below(10) {
                0..5 => ("users", *self.random.pick(&USERS)),
                5..7 => ("events", *self.random.pick(&EVENT_TYPES)),
                7 => ("notifications", "room"),
                _ => {
                    let name = *self.random.pick(&NAMED_LEVELS);
                    match self.random.percent(30) && !self.options.complete {
                        true => drop(content.remove(name)),
                        false => drop(content.insert(name, level)),
                    }
                    continue;
                }
            };
            let mut levels = content.get(property).and_then(Value::as_object).cloned().unwrap_or_default();
            match self.random.percent(30) {
                true => drop(levels.remove(key)),
                false => drop(levels.insert(key, level)),
            }
            content.insert(property, levels);
        }
        if has_current && self.random.percent(5) && !self.options.complete {
            let junk =
                [json!("fifty"), json!([1]), json!({}), json!("x"), json!({ "@a": 5 }), json!({ USERS[0]: "x" })];
            let property = *self.random.pick(&["users", "events", "notifications", "ban", "users_default"]);
            content.insert(property, self.random.pick(&junk).clone());
        }
        let mut draft = Draft::new("m.room.power_levels", sender, Some(""), json!({}));
        draft.content = content;
        draft
    }

    /// A level, written in one of the ways that the room version has.
    fn level(&mut self) -> Value {
        let level = *self.random.pick(&LEVELS);
        let version = self.room.version;
        if !version.integer_power_levels && self.random.percent(12) {
            let text = match self.random.below(5) {
                0 => format!("  +{level} "),
                1 => format!("000{level}"),
                2 => format!("-{level}"),
                3 => format!("\u{a0}{level}\n"),
                _ => level.to_string(),
            };
            return Value::from(text);
        }
        if self.unusual_numbers() && self.random.percent(15) {
            // Near the other levels, or anything.
            let number = *self.random.pick(&["50.57", "-0.5", "0.99", "5.0e1", "99.999", "1e-3", "49.9999"]);
            return if self.random.percent(60) { json::parse(number.as_bytes()).unwrap() } else { self.number() };
        }
        Value::from(if self.random.percent(5) { -level } else { level })
    }

    pub(super) fn unusual_numbers(&self) -> bool {
        !self.room.version.strict_json && self.options.numbers == Numbers::Floats
    }

    /// Any number that JSON can write and a float or an integer can hold.
    pub(super) fn number(&mut self) -> Value {
        let sign = if self.random.percent(50) { "-" } else { "" };
        let digits = |random: &mut Random, count: usize| -> String {
            let first = char::from(b'1' + random.below(9) as u8);
            let rest = (1..count).map(|_| char::from(b'0' + random.below(10) as u8));
            std::iter::once(first).chain(rest).collect()
        };
        let text = match self.random.below(5) {
            0 => "-0".to_owned(),
            1 => {
                let count = 1 + self.random.below(60);
                format!("{sign}{}", digits(&mut self.random, count))
            }
            2 => format!("{sign}{}.0", digits(&mut self.random, 18)),
            3 => {
                let (whole, exponent) = (digits(&mut self.random, 3), self.random.below(640) as i64 - 340);
                format!("{sign}{whole}.{}E{exponent:+}", digits(&mut self.random, 5))
            }
            _ => loop {
                let float = f64::from_bits(self.random.next());
                if float.is_finite() {
                    break format!("{float:e}");
                }
            },
        };
        json::parse(text.as_bytes()).unwrap()
    }

    fn third_party_invite(&mut self, sender: &str) -> Draft {
        let key = |key: &SigningKey| base64::encode(key.verifying_key().as_bytes());
        let mut content = json!({ "display_name": "j...", "key_validity_url": "https://id.example/valid" });
        content["public_key"] = json!(key(&self.keys[usize::from(self.random.percent(30))]));
        if self.random.percent(50) {
            content["public_keys"] = json!([{ "public_key": key(&self.keys[usize::from(self.random.percent(50))]) }]);
        }
        let token = *self.random.pick(&["token", "token2"]);
        Draft::new("m.room.third_party_invite", sender, Some(token), content)
    }

    fn redeem_third_party_invite(&mut self, sender: &str, target: &str) -> Draft {
        let mxid = if self.random.percent(90) { target } else { sender };
        let mut signed = json!({ "mxid": mxid, "token": self.random.pick(&["token", "token2"]) });
        let mut signature =
            base64::encode(&self.keys[0].sign(Value::from(signed.clone()).to_text().as_bytes()).to_bytes());
        if self.random.percent(10) {
            signature.replace_range(3..4, "A");
        }
        signed["signatures"] = json!({ "id.example": { "ed25519:0": signature } });
        match self.random.below(20) {
            0 => signed = json!({}),
            1 => drop(signed.as_object_mut().unwrap().remove("token")),
            2 => drop(signed.as_object_mut().unwrap().remove("mxid")),
            3 => drop(signed.as_object_mut().unwrap().remove("signatures")),
            _ => {}
        }
        let content =
            json!({ "membership": "invite", "third_party_invite": { "display_name": "j", "signed": signed } });
        Draft::new("m.room.member", sender, Some(target), content)
    }

    fn redaction(&mut self, sender: &str) -> Draft {
        let position = self.random.below(self.room.events.len());
        let redacts = self.room.events[position].event.event_id().to_string();
        let mut draft = Draft::new("m.room.redaction", sender, None, json!({}));
        if self.room.version.redacts_in_content {
            draft.content.insert("redacts", redacts);
        } else {
            draft.redacts = Some(redacts);
        }
        draft
    }

    /// What no honest server makes.
    fn hostile(&mut self, sender: &str, other: &str) -> Draft {
        match self.random.below(12) {
            0 => Draft::new("m.room.member", sender, Some(sender), json!({})),
            1 => Draft::new("m.room.member", sender, Some(sender), json!({ "membership": 5 })),
            2 => Draft::new("m.room.member", sender, Some(other), json!({ "membership": "owner" })),
            3 => Draft::new("m.room.member", sender, Some("nobody"), json!({ "membership": "invite" })),
            4 => Draft::new("m.room.member", sender, None, json!({ "membership": "join" })),
            5 => Draft::new("m.room.member", sender, Some(""), json!({ "membership": "ban" })),
            6 => Draft::new("m.room.join_rules", sender, Some(""), json!({ "join_rule": 3 })),
            7 => Draft::new("m.room.power_levels", sender, Some(""), json!({ "users": [sender] })),
            8 => Draft::new(
                "m.room.member",
                sender,
                Some(other),
                json!({ "membership": "invite", "third_party_invite": 1 }),
            ),
            9 => Draft::new("x.custom", sender, Some("@"), json!({})),
            10 => {
                // Over 255 bytes, which from version 11 on is no event at all.
                let length = if self.room.version.strict_byte_limits { 127 } else { 150 };
                Draft::new("x.custom", sender, Some(&"é".repeat(length)), json!({}))
            }
            _ => Draft::new("m.room.create", sender, Some(""), json!({ "creator": sender, "room_version": "1" })),
        }
    }
}
