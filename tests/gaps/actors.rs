//! What users do, what goes wrong meanwhile, and how the servers come together again.
//!
//! Left out is what the specification itself leaves to chance. Whether an event is soft-failed depends on what a server has
//! heard before it: an honest user's message that races an honest ban may be hidden by one server and shown by another, and
//! both are right. So honest users are neither kicked nor banned, and no change of the power levels takes from them what
//! they have; the malicious server's users are and may.

use futures_util::future::join_all;
use serde_json::{Value, json};
use verge::matrix::identifiers::RoomId;

use crate::{
    common::peer::encode,
    faults::Fault,
    wire::Link,
    world::{HONEST, Member, Scene},
};

/// How often each honest server speaks, at most, until all have the same forward extremities.
const ROUNDS: usize = 10;
pub const HOUR_MS: i64 = 60 * 60 * 1_000;

impl Scene {
    /// A while of the room's life.
    pub fn live(&self) {
        for _ in 0..15 + self.dice.below(25) {
            self.world.advance(1 + self.dice.below(20_000) as i64);
            if self.dice.percent(40) {
                self.trouble();
            }
            self.act();
            match self.dice.below(10) {
                0..6 => self.world.settle(),
                6..8 => self.let_time_pass(60_000 + self.dice.below(20 * 60_000) as i64),
                _ => {}
            }
        }
        self.world.settle();
    }

    /// The network heals, and each honest server speaks until all stand at the same events; then one more speaks, so that it is
    /// one event. Its ID.
    pub fn heal(&self) -> Result<String, String> {
        self.network.heal();
        for round in 0..ROUNDS {
            // Who comes back does so when the others have heard each other: see `join`.
            let is_in = |member: &&Member| !member.joined(&self.room).is_empty();
            let (present, absent): (Vec<&Member>, Vec<&Member>) = self.honest().iter().partition(is_in);
            for member in present.into_iter().chain(absent) {
                self.speak(member, &format!("round {round} {}", member.name))?;
            }
            self.let_time_pass(HOUR_MS);
            let extremities = self.extremities();
            if round > 0 && extremities.iter().all(|these| *these == extremities[0]) {
                let last = self.speak(&self.members[0], "the end")?;
                let extremities = self.extremities();
                return match extremities.iter().all(|these| *these == [last.clone()]) {
                    true => Ok(last),
                    false => Err(format!("not all stand at the last event {last}: {extremities:?}")),
                };
            }
        }
        Err(format!("the servers do not come together: {:?}", self.extremities()))
    }

    /// What is under way goes on, and the scheduled triggers come after so many milliseconds.
    pub fn let_time_pass(&self, ms: i64) {
        self.world.settle();
        self.world.advance(ms);
        self.world.run(join_all(self.members.iter().map(|member| member.home.scheduled())));
        self.world.settle();
    }

    fn extremities(&self) -> Vec<Vec<String>> {
        self.honest().iter().map(|member| self.extremities_of(member)).collect()
    }

    /// The events at which a server stands.
    pub fn extremities_of(&self, member: &Member) -> Vec<String> {
        let sql = format!(
            "SELECT x.value ->> 0 FROM rooms, json_each(rooms.extremities) AS x WHERE room_id = '{}' ORDER BY 1",
            self.room
        );
        member.home.database.rows(&sql).concat()
    }

    /// A user of the server says something, and joins before where nobody there is in the room.
    fn speak(&self, member: &Member, text: &str) -> Result<String, String> {
        self.world.advance(1_000);
        let mut refusals = Vec::new();
        for _ in 0..2 {
            for person in member.joined(&self.room) {
                match member.say(&self.world, &self.room, person, text, &format!("t{}", self.dice.count())) {
                    Ok(event_id) => {
                        self.story.tell(&format!("{} says {text:?}: {event_id}", member.people[person].id));
                        self.world.settle();
                        return Ok(event_id);
                    }
                    Err(refusal) => refusals.push(refusal),
                }
            }
            self.join(member, 0);
            self.let_time_pass(HOUR_MS);
            if member.joined(&self.room).is_empty() {
                // By now those who are in the room have heard each other.
                self.join(member, 0);
            }
            if member.joined(&self.room).is_empty() {
                // Nobody has heard that they left, and nobody ever will.
                self.join_through(member, 0, &self.members[0]);
            }
            self.world.settle();
        }
        Err(format!("nobody on {} can speak: {refusals:?} {:#?}", member.name, self.world.logs()))
    }

    /// Something goes wrong, or right again.
    fn trouble(&self) {
        let kinds = [
            (Fault::Lose, Some(Link::Loses)),
            (Fault::Deafen, Some(Link::Deafens)),
            (Fault::Cut, Some(Link::Cuts)),
            (Fault::Double, Some(Link::Doubles)),
            (Fault::Outage, None),
        ];
        let mut possible = kinds.into_iter().filter(|(fault, _)| self.faults.has(*fault)).collect::<Vec<_>>();
        if possible.is_empty() {
            return;
        }
        let from = HONEST[self.dice.below(3)];
        let to = HONEST[self.dice.below(3)];
        match possible.swap_remove(self.dice.below(possible.len())) {
            (Fault::Outage, _) => {
                let away = !self.network.is_away(from) && HONEST.iter().all(|name| !self.network.is_away(name));
                if away || self.network.is_away(from) {
                    self.network.set_away(from, away);
                }
            }
            (_, link) if from != to => self.network.set(from, to, link.filter(|_| self.dice.percent(60))),
            _ => {}
        }
    }

    /// A user does something.
    fn act(&self) {
        if self.dice.percent(20) {
            return self.act_of_evil(&self.members[3]);
        }
        let member = &self.members[self.dice.below(3)];
        let joined = member.joined(&self.room);
        let Some(person) = joined.get(self.dice.below(joined.len())).copied() else {
            if self.dice.percent(40) {
                self.join(member, self.dice.below(2));
            }
            return;
        };
        let has = |person: usize| joined.contains(&person);
        match self.dice.below(100) {
            0..36 => self.say(member, person, 1 + self.dice.below(3)),
            36..48 => self.behind_a_gap(member, person),
            48..56 => self.change_name(member, person),
            56..62 if has(0) || has(1) => {
                let (kind, text) = (["name", "topic"][self.dice.below(2)], format!("{}", self.dice.count()));
                let path = format!("/state/m.room.{kind}");
                self.ask(member, usize::from(!has(0)), "PUT", &path, json!({ kind: text }));
            }
            62..68 if has(0) => self.change_power(member),
            68..73 if has(0) || has(1) => {
                let path = format!("/state/x.mark/{}", self.dice.below(5));
                self.ask(member, usize::from(!has(0)), "PUT", &path, json!({ "mark": self.dice.count() }));
            }
            73..82 => match (0..4).find(|person| !has(*person)) {
                Some(person) => self.join(member, person),
                None => self.say(member, person, 1),
            },
            82..87 if self.faults.has(Fault::Leave) => {
                let leaver = 1 + self.dice.below(3);
                // The first server is always in the room, so that there is always one to join through.
                if has(leaver) && joined.len() > 1 {
                    self.ask(member, leaver, "POST", "/leave", json!({}));
                }
            }
            87..92 if has(0) => {
                let user = &self.members[3].people[self.dice.below(4)].id;
                self.ask(member, 0, "POST", "/kick", json!({ "user_id": user }));
            }
            92..96 if self.faults.has(Fault::Leave) && member.name != HONEST[0] => {
                for person in &joined {
                    self.world.advance(1_000);
                    self.ask(member, *person, "POST", "/leave", json!({}));
                }
            }
            _ => self.say(member, person, 1),
        }
    }

    fn act_of_evil(&self, evil: &Member) {
        let joined = evil.joined(&self.room);
        let Some(person) = joined.get(self.dice.below(joined.len())).copied() else {
            return self.join(evil, self.dice.below(2));
        };
        match self.dice.below(if self.faults.has(Fault::Forbidden) { 13 } else { 10 }) {
            10.. => self.forbidden(evil, person),
            0..5 => self.say(evil, person, 1 + self.dice.below(3)),
            5..7 => self.change_name(evil, person),
            7 => self.ask(evil, person, "PUT", "/state/m.room.topic", json!({ "topic": "of evil" })),
            8 => self.ask(evil, person, "POST", "/leave", json!({})),
            _ => self.join(evil, self.dice.below(4)),
        }
    }

    /// An event that the rules forbid, and one that cites it and is allowed: both go to some honest servers, who cite the second
    /// in what they say to others.
    fn forbidden(&self, evil: &Member, person: usize) {
        let user = &evil.people[person].id;
        let rows = evil.home.database.rows(&format!(
            "SELECT event_id, json FROM events WHERE sender = '{user}' AND event_type = 'm.room.message' \
             AND origin_server_ts > {} ORDER BY event_nid DESC LIMIT 1",
            // What was said before came to some servers as history, of which they do not know the state.
            self.began
        ));
        let Some([last, json]) = rows.first().map(Vec::as_slice) else { return };
        let mut event: Value = serde_json::from_str(json).unwrap();
        let version = if self.room.contains(':') { "11" } else { "12" };
        let mut pdus = Vec::new();
        let mut previous = last.clone();
        for (kind, content) in
            [("m.room.topic", json!({ "topic": "of evil" })), ("m.room.message", json!({ "body": "good" }))]
        {
            self.world.advance(10);
            let fields = event.as_object_mut().unwrap();
            ["hashes", "signatures", "state_key"].iter().for_each(|name| drop(fields.remove(*name)));
            fields.insert("type".to_owned(), json!(kind));
            if kind == "m.room.topic" {
                fields.insert("state_key".to_owned(), json!(""));
            }
            fields.insert("content".to_owned(), content);
            fields.insert("prev_events".to_owned(), json!([previous]));
            fields.insert("origin_server_ts".to_owned(), json!(self.world.now_ms()));
            event["depth"] = json!(event["depth"].as_i64().unwrap() + 1);
            let (id, signed) = crate::signing::event(evil.name, version, event.clone());
            self.by_hand.borrow_mut().push((id.clone(), signed.clone()));
            previous = id;
            pdus.push(signed);
        }
        for to in HONEST.into_iter().filter(|to| !self.network.is_away(to) && self.dice.percent(50)) {
            self.story.tell(&format!("{user} tells {to} what is forbidden, and {previous} after it"));
            let target = format!("{}forbidden{}", crate::wire::SEND, self.dice.count());
            let body = json!({ "origin": evil.name, "origin_server_ts": self.world.now_ms(), "pdus": pdus });
            if let Some(host) = self.world.host(to) {
                self.world.run(host(crate::signing::request(evil.name, to, "PUT", &target, Some(&body))));
            }
        }
    }

    /// One user joins, or speaks for long, and some servers hear only of the end of it.
    fn behind_a_gap(&self, member: &Member, person: usize) {
        if !self.faults.has(Fault::Lose) {
            return self.say(member, person, 2);
        }
        self.world.settle();
        let others: Vec<&str> = HONEST.into_iter().filter(|name| *name != member.name).collect();
        let deprived = if self.dice.percent(50) { &others[..] } else { &others[self.dice.below(2)..][..1] };
        deprived.iter().for_each(|to| self.network.set(member.name, to, Some(Link::Loses)));
        let joined = member.joined(&self.room);
        let newcomer = (0..4).find(|person| !joined.contains(person)).filter(|_| self.dice.percent(60));
        if let Some(newcomer) = newcomer {
            self.join(member, newcomer);
        }
        let speaker = newcomer.unwrap_or(person);
        self.say(member, speaker, [1, 2, 5, 18, 25, 45][self.dice.below(6)]);
        if self.dice.percent(30) {
            self.change_name(member, speaker);
        }
        self.world.settle();
        deprived.iter().for_each(|to| self.network.set(member.name, to, None));
        self.say(member, speaker, 1);
    }

    fn say(&self, member: &Member, person: usize, times: usize) {
        for _ in 0..times {
            self.world.advance(10);
            let (text, txn_id) = (format!("m{}", self.dice.count()), format!("t{}", self.dice.count()));
            let said = member.say(&self.world, &self.room, person, &text, &txn_id);
            self.story.tell(&format!("{} says {text:?}: {}", member.people[person].id, said.unwrap_or_else(|no| no)));
        }
    }

    fn change_name(&self, member: &Member, person: usize) {
        let path = format!("/state/m.room.member/{}", encode(&member.people[person].id));
        let content = json!({ "membership": "join", "displayname": format!("n{}", self.dice.count()) });
        self.ask(member, person, "PUT", &path, content);
    }

    /// Gives the malicious server's users some power, or takes it, and never enough to act against anybody.
    fn change_power(&self, member: &Member) {
        let path = format!("/rooms/{}/state/m.room.power_levels", encode(&self.room));
        let (status, mut levels) = member.call(&self.world, 0, "GET", &path, None);
        if status != 200 {
            return;
        }
        levels["users"][&self.members[3].people[self.dice.below(2)].id] = json!(self.dice.below(40));
        levels["events"]["x.mark"] = json!(self.dice.below(50));
        self.ask(member, 0, "PUT", "/state/m.room.power_levels", levels);
    }

    /// Joins; where nobody of the server is in the room, through an honest server that is, and that has heard what this one's
    /// users did last, and not while those in the room have different power levels. Where one forks the room at a join, and the other
    /// at the same user's leave before it, state resolution may find that the leave came last; and it may where the join cites the
    /// leave, if the power levels that the join cites lose (`a_return_that_loses_against_the_leave_before_it` in
    /// `tests/state_resolution`). Then the server is not in the room, and so nobody tells it.
    fn join(&self, member: &Member, person: usize) {
        let is_resident = |other: &&Member| other.name != member.name && !other.joined(&self.room).is_empty();
        let mut residents: Vec<&Member> = self.honest().iter().filter(is_resident).collect();
        if member.joined(&self.room).is_empty() {
            residents = self.those_who_have_heard(residents, member);
        }
        if let Some(resident) = residents.get(self.dice.below(residents.len())) {
            self.join_through(member, person, resident);
        }
    }

    /// Those of `residents` in whose current state is what `member` last noted of its users; nobody while their power levels differ.
    fn those_who_have_heard<'m>(&self, mut residents: Vec<&'m Member>, member: &Member) -> Vec<&'m Member> {
        let room = RoomId::parse(&self.room).unwrap();
        let states: Vec<_> = residents.iter().map(|resident| resident.home.state(&self.world, &room)).collect();
        let levels = |state: &[(String, String, String)]| {
            state.iter().find(|(event_type, ..)| event_type == "m.room.power_levels").cloned()
        };
        let agree = states.windows(2).all(|two| levels(&two[0]) == levels(&two[1]));
        let sql = format!("SELECT event_id FROM local_memberships WHERE room_id = '{}'", self.room);
        let noted = member.home.database.rows(&sql).concat();
        let mut states = states.iter();
        residents.retain(|_| {
            let state = states.next().unwrap();
            agree && noted.iter().all(|id| state.iter().any(|(_, _, known)| known == id))
        });
        residents
    }

    fn join_through(&self, member: &Member, person: usize, resident: &Member) {
        let path = format!("/join/{}?server_name={}", encode(&self.room), resident.name);
        self.world.advance(10);
        let (status, answer) = member.call(&self.world, person, "POST", &path, Some(json!({})));
        let user = &member.people[person].id;
        self.story.tell(&format!("{user} joins, through {} if need be: {status} {answer}", resident.name));
    }

    /// Anything else that a client asks about the room.
    fn ask(&self, member: &Member, person: usize, method: &str, path: &str, body: Value) {
        self.world.advance(10);
        let target = format!("/rooms/{}{path}", encode(&self.room));
        let (status, answer) = member.call(&self.world, person, method, &target, Some(body));
        let who = &member.people[person].id;
        self.story.tell(&format!("{who} {method} {path}: {status} {answer}"));
    }
}
