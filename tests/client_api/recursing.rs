//! What relates to an event through others.

use std::ops::RangeInclusive;

use serde_json::Value;

use crate::{gaps::ids, home::quote, relating::Room};

#[test]
fn what_relates_indirectly_is_found_three_levels_deep() {
    let room = Room::new();
    let parent = room.says(&room.alice, "parent");
    let mut chain = vec![parent.clone()];
    for n in 0..5 {
        chain.push(room.related(&room.bob, &format!("r{n}"), if n == 1 { "org.other" } else { "org.x" }, &chain[n]));
    }
    let get = |rest: &str| room.relations(&room.alice, &format!("{}{rest}", quote(&parent))).1;
    let deep = get("?recurse=true");
    assert_eq!(deep["recursion_depth"], 3);
    assert_eq!(ids(&deep["chunk"]), [chain[3].clone(), chain[2].clone(), chain[1].clone()]);
    assert_eq!(ids(&get("?recurse=true&dir=f&limit=2")["chunk"]), [chain[1].clone(), chain[2].clone()]);
    assert_eq!(ids(&get("?recurse=false")["chunk"]), [chain[1].clone()]);
    // What relates through another type of relation is not of this one.
    assert_eq!(ids(&get("/org.x?recurse=true")["chunk"]), [chain[1].clone()]);
    // A flood beside it costs a bounded walk, and pages go on.
    let flood: Vec<String> = (0..30).map(|n| room.related(&room.bob, &format!("f{n}"), "m.thread", &parent)).collect();
    let (mut found, mut from) = (Vec::new(), String::new());
    loop {
        let page = get(&format!("?recurse=true&limit=7{from}"));
        found.extend(ids(&page["chunk"]));
        let Some(next) = page["next_batch"].as_str() else { break };
        from = format!("&from={next}");
    }
    assert_eq!(found.len(), 33);
    assert_eq!(found[..30], flood.iter().rev().cloned().collect::<Vec<_>>()[..]);
}

/// Members choose how many events they send, and what types of relations.
#[test]
fn what_relates_indirectly_costs_no_more_in_a_flood() {
    let room = Room::new();
    let [parent, crowd, flooded] = [0; 3].map(|_| room.says(&room.alice, "parent"));
    let reply = room.related(&room.bob, "reply", "m.thread", &crowd);
    let reaction = room.reacts(&room.bob, "+1", &reply).1["event_id"].as_str().unwrap().to_owned();
    let first = room.related(&room.bob, "first", "m.thread", &flooded);
    let asked = |to: &str, rest: &str| {
        let (mut found, mut from) = (Vec::new(), String::new());
        loop {
            // A page may hold less than it could, or nothing, and lead on.
            let page = room.page(to, &format!("limit=2{rest}{from}"));
            found.extend(ids(&page["chunk"]));
            match page["next_batch"].as_str() {
                Some(next) if found.len() < 2 => from = format!("&from={next}"),
                _ => break,
            }
        }
        found.truncate(2);
        found
    };
    // None of these types comes before those of the specification.
    room.flood(1..=1_000, "'a.' || n", "$elsewhere");
    room.flood(1_001..=6_000, "'m.thread'", &crowd);
    room.flood(6_001..=36_000, "'m.annotation'", &flooded);
    for dir in ["b", "f"] {
        let page = |newest: [&str; 2], n: usize| {
            if dir == "b" { newest.map(str::to_owned) } else { [n, n - 1].map(|n| format!("${n}")) }
        };
        assert_eq!(asked(&crowd, &format!("&recurse=true&dir={dir}")), page([&reaction, &reply], 6_000));
        assert_eq!(asked(&flooded, &format!("&recurse=true&dir={dir}")), page([&first, "$6001"], 36_000));
        assert_eq!(asked(&flooded, &format!("&dir={dir}")), page([&first, "$6001"], 36_000));
        assert_eq!(asked(&parent, &format!("&recurse=true&dir={dir}")), [""; 0]);
    }
}

/// What relates to an event comes at any time after it.
#[test]
fn what_relates_indirectly_comes_in_one_page_each() {
    let room = Room::new();
    let parent = room.says(&room.alice, "parent");
    let reacts = |key: &str, to: &str| room.reacts(&room.bob, key, to).1["event_id"].as_str().unwrap().to_owned();
    let one = room.related(&room.bob, "one", "m.thread", &parent);
    let two = room.related(&room.bob, "two", "m.thread", &parent);
    room.related(&room.bob, "of another", "m.thread", "$another");
    let late = reacts("+1", &one);
    let three = room.edits(&room.alice, "three", &parent);
    let later = room.related(&room.bob, "later", "m.reference", &late);
    let four = room.related(&room.bob, "four", "m.thread", &parent);
    room.related(&room.bob, "too deep", "m.reference", &later);
    let latest = reacts("+2", &two);
    let expected = [one, two, late, three, later, four, latest];
    for limit in 1..=3 {
        assert_eq!(room.deep_pages(&parent, "f", limit), expected, "{limit}");
        let newest_first: Vec<String> = expected.iter().rev().cloned().collect();
        assert_eq!(room.deep_pages(&parent, "b", limit), newest_first, "{limit}");
    }
    let [annotations, messages] = ["/m.annotation", "/m.thread/m.room.message"].map(|rest| {
        let (status, page) = room.relations(&room.alice, &format!("{}{rest}?recurse=true&dir=f", quote(&parent)));
        assert_eq!(status, 200, "{page}");
        ids(&page["chunk"])
    });
    assert_eq!(annotations, [""; 0]);
    assert_eq!(messages, [0, 1, 5].map(|n: usize| expected[n].clone()));
    // Of more than is looked at at once, too, with much between it that does not belong to it.
    room.flood(1..=5_500, "'m.thread'", &parent);
    room.flood(5_501..=11_000, "'m.thread'", "$another");
    room.flood(11_001..=11_500, "'m.thread'", &parent);
    let late = [reacts("+1", "$3"), reacts("+1", "$11005")];
    room.related(&room.bob, "of another", "m.reference", &reacts("+1", "$6000"));
    let flood = (1..=5_500).chain(11_001..=11_500).rev().map(|n| format!("${n}"));
    let mut expected: Vec<String> = flood.chain(expected).chain(late).collect();
    assert_eq!(room.deep_pages(&parent, "f", 100), expected);
    expected.reverse();
    assert_eq!(room.deep_pages(&parent, "b", 100), expected);
}

impl Room {
    /// A page of relations, which costs no more than it may.
    fn page(&self, parent: &str, query: &str) -> Value {
        let before = self.home.database.steps.get();
        let (status, answer) = self.relations(&self.alice, &format!("{}?{query}", quote(parent)));
        assert_eq!(status, 200, "{answer}");
        let steps = self.home.database.steps.get() - before;
        assert!(steps < 300_000, "{steps}");
        answer
    }

    /// What all pages hold, one after the other.
    fn deep_pages(&self, parent: &str, dir: &str, limit: usize) -> Vec<String> {
        let (mut found, mut from) = (Vec::new(), String::new());
        loop {
            let page = self.page(parent, &format!("recurse=true&dir={dir}&limit={limit}{from}"));
            assert!(ids(&page["chunk"]).len() <= limit);
            found.extend(ids(&page["chunk"]));
            let Some(next) = page["next_batch"].as_str() else { return found };
            from = format!("&from={next}");
        }
    }

    /// Events $n, each older than the one before, that relate to one in a way that is said in SQL.
    fn flood(&self, n: RangeInclusive<usize>, rel_type: &str, parent: &str) {
        let (from, to) = n.into_inner();
        let each = format!("WITH RECURSIVE each(n) AS (SELECT {from} UNION ALL SELECT n + 1 FROM each WHERE n < {to})");
        let of_a_message =
            "FROM each CROSS JOIN (SELECT * FROM events WHERE event_type = 'm.room.message' LIMIT 1) AS e";
        self.home.database.rows(&format!(
            "INSERT INTO events (event_nid, event_id, room_id, event_type, sender, depth, origin_server_ts, json, outlier, \
               state_before, state_after, pos) \
             {each} SELECT 1000000 + n, '$' || n, e.room_id, e.event_type, e.sender, e.depth, e.origin_server_ts, \
               json_set(e.json, '$.content.\"m.relates_to\"', json_object('rel_type', {rel_type}, 'event_id', '{parent}')), 0, \
               e.state_before, e.state_after, -n {of_a_message}"
        ));
        self.home.database.rows(&format!(
            "INSERT INTO timeline (room_id, pos, event_nid) {each} SELECT e.room_id, -n, 1000000 + n {of_a_message}"
        ));
        self.home.database.rows(&format!(
            "INSERT INTO relations (room_id, rel_type, parent, pos, event_nid, event_type, sender) \
             {each} SELECT e.room_id, {rel_type}, '{parent}', -n, 1000000 + n, e.event_type, e.sender {of_a_message}"
        ));
    }
}
