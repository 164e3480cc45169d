//! What must hold when the network has healed.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use verge::matrix::identifiers::RoomId;

use crate::{
    actors::HOUR_MS,
    common::peer::encode,
    oracle::{Made, Oracle},
    wire::describe,
    world::{EVIL, Member, Scene},
};

/// The most pages from the room's end to its start.
const PAGES: usize = 100;
/// How often users page back for what has not come yet, at most.
const ROUNDS: usize = 4;

impl Scene {
    /// What does not hold, where all stood at the event `last`.
    pub fn failures(&self, oracle: &Oracle, last: &str) -> Vec<String> {
        let mut failures = Vec::new();
        // What paging back brings is judged after the answer, and asked for again where it came altered.
        for member in self.honest() {
            failures.extend(self.page_back(member).err().map(|why| format!("{}: {why}", member.name)));
        }
        self.let_time_pass(HOUR_MS);
        let before = self.known();
        for member in self.honest() {
            let name = member.name;
            match self.page_back(member) {
                Ok(found) => {
                    for made in &oracle.accepted {
                        match found.get(&made.id) {
                            None if oracle.excuses(name, made) => {}
                            None => failures.push(format!("{name} does not show {}", self.tell_of(member, made))),
                            Some(event) if event["content"] != made.json["content"] => {
                                failures.push(format!("{name} shows {} as {event}", self.tell_of(member, made)));
                            }
                            Some(_) => {}
                        }
                    }
                }
                Err(why) => failures.push(format!("{name}: {why}")),
            }
            let database = &member.home.database;
            for (what, sql) in [
                ("staged", "SELECT event_id FROM staged_pdus"),
                ("hidden", "SELECT event_id FROM events WHERE soft_failed OR outlier"),
            ] {
                let these: BTreeSet<String> = database.rows(sql).concat().into_iter().collect();
                let honest = oracle.accepted.iter().filter(|made| these.contains(&made.id));
                let honest = honest.filter(|made| what != "hidden" || !oracle.excuses(name, made));
                failures.extend(honest.map(|made| format!("{name} has {what} {}", self.tell_of(member, made))));
            }
            failures.extend(database.wrong_member_counts().into_iter().map(|wrong| format!("{name} has {wrong}")));
        }
        failures.extend(self.until_all_is_known(oracle, before));
        for member in self.honest() {
            let name = member.name;
            // What the malicious server has withheld until now may come when all stand together: nobody else knows of it then.
            let (theirs, others): (Vec<String>, Vec<String>) = self
                .extremities_of(member)
                .into_iter()
                .filter(|id| id != last)
                .partition(|id| self.sender_of(member, id).ends_with(&format!(":{EVIL}")));
            failures.extend(others.iter().map(|id| format!("{name} stands at {id}, too")));
            if !theirs.is_empty() {
                continue;
            }
            let state = member.home.state(&self.world, &RoomId::parse(&self.room).unwrap());
            for (have, entries, others) in [("has", &state, &oracle.state), ("lacks", &oracle.state, &state)] {
                let different = entries.iter().filter(|entry| !others.contains(entry));
                failures.extend(different.map(|entry| format!("{name} {have} in its state {entry:?}")));
            }
        }
        failures
    }

    /// Users page back for as long as that brings anything; `before` is what was known before they did last. What leads
    /// to the last event and is known to no honest server comes then: the malicious server alone has it, and has let the
    /// others see only that it exists. What fails meanwhile.
    fn until_all_is_known(&self, oracle: &Oracle, mut before: Vec<BTreeSet<String>>) -> Vec<String> {
        let mut failures = Vec::new();
        for _ in 0..ROUNDS {
            let known = self.known();
            let is_withheld = oracle.all.iter().any(|id| known.iter().all(|of_one| !of_one.contains(id)));
            if is_withheld {
                self.network.confess();
            } else if known == before {
                break;
            }
            before = known;
            for member in self.honest() {
                failures.extend(self.page_back(member).err().map(|why| format!("{}: {why}", member.name)));
            }
            self.let_time_pass(HOUR_MS);
        }
        failures
    }

    /// The events that each honest server knows, whatever it thinks of them.
    fn known(&self) -> Vec<BTreeSet<String>> {
        let tables = ["events", "rejected_events", "staged_pdus"].map(|table| format!("SELECT event_id FROM {table}"));
        let sql = tables.join(" UNION ");
        self.honest().iter().map(|member| member.home.database.rows(&sql).concat().into_iter().collect()).collect()
    }

    /// All events that a user finds, paging back to the room's start.
    fn page_back(&self, member: &Member) -> Result<BTreeMap<String, Value>, String> {
        let person = *member.joined(&self.room).first().ok_or("nobody is in the room")?;
        let mut found = BTreeMap::new();
        let mut from = String::new();
        for _ in 0..PAGES {
            let path = format!("/rooms/{}/messages?dir=b&limit=100{from}", encode(&self.room));
            let (status, page) = member.call(&self.world, person, "GET", &path, None);
            if status != 200 {
                return Err(format!("/messages answers {status} {page}"));
            }
            for event in page["chunk"].as_array().unwrap() {
                found.insert(event["event_id"].as_str().unwrap().to_owned(), event.clone());
            }
            match page["end"].as_str() {
                Some(end) => from = format!("&from={end}"),
                None if found.values().any(|event| event["type"] == "m.room.create") => return Ok(found),
                None => return Err(format!("/messages ends before the room's start: {:#?}", self.world.logs())),
            }
        }
        Err("the history comes to no end".to_owned())
    }

    fn sender_of(&self, member: &Member, id: &str) -> String {
        member.home.database.rows(&format!("SELECT sender FROM events WHERE event_id = '{id}'")).concat().concat()
    }

    /// An event, and what a server thinks of it.
    fn tell_of(&self, member: &Member, made: &Made) -> String {
        let database = &member.home.database;
        let rows = database.rows(&format!("SELECT * FROM events WHERE event_id = '{}'", made.id));
        let opinion = rows.first().map_or_else(|| "not held".to_owned(), |row| row[9..].join(" "));
        format!("{} {} ({opinion})", describe(&made.json), made.id)
    }
}
