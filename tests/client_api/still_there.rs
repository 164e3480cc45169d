//! Telling many servers again of many users who are still there.

use std::{cell::Cell, collections::BTreeMap, rc::Rc};

use serde_json::json;

use crate::{
    home::Home,
    presence::minutes_pass,
    typing::{Told, members},
};

/// 50 users in a room with 40 hosts, who are there and of whom these are to be told again; and what they are told, which
/// answer after so many milliseconds. Where they are is to be asked first.
fn many_in_a_room_with_many(answer_ms: u32) -> (Home, Told) {
    let home = Home::new();
    home.world.time_out();
    let room = home.room(&home.register("alice"), json!({}));
    let names: Vec<String> = (10..50).map(|n| format!("s{n}.test")).collect();
    let told = members(&home, &room, &names, &Rc::new(Cell::new(answer_ms)));
    home.database.rows("UPDATE room_servers SET server = replace(server, ':443', '')");
    let users = "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 50)";
    home.database.rows(&format!(
        "{users} INSERT INTO local_memberships (user_id, room_id, membership, event_id, pos) \
         SELECT '@u' || n || ':hs.test', '{room}', 'join', '$u' || n, n FROM n"
    ));
    home.database.rows(&format!(
        "{users} INSERT INTO presence (user_id, presence, last_active_ts, currently_active, rooms, pos, told_after, told_ts) \
         SELECT '@u' || n || ':hs.test', 'online', 1, 1, '[]', -n, '[\"\",\"\"]', n FROM n"
    ));
    (home, told)
}

/// How many users' presence each host was told.
fn counts(told: &Told) -> Vec<usize> {
    told.borrow().values().map(|edus| edus.iter().map(|edu| edu["push"].as_array().unwrap().len()).sum()).collect()
}

#[test]
fn others_are_told_again_of_many_by_an_isolate_that_knows_no_server_yet() {
    let (home, told) = many_in_a_room_with_many(0);
    home.world.interleave();
    minutes_pass(&home, 1);
    assert_eq!(counts(&told), [50; 40]);
}

#[test]
fn for_whom_there_was_no_time_are_told_a_little_later() {
    let (home, told) = many_in_a_room_with_many(4_000);
    home.database.rows("UPDATE room_servers SET server = server || ':443' WHERE server LIKE 's%'");
    minutes_pass(&home, 1);
    let heard = counts(&told).len();
    assert!(heard < 40, "there is no time for all");
    minutes_pass(&home, 2);
    assert_eq!(counts(&told).len(), heard, "not over and over");
    minutes_pass(&home, 15);
    assert_eq!(counts(&told).len(), 40);
}

/// Of whom they are to be told again, and who turns out to be gone a moment later.
#[test]
fn who_is_gone_is_not_still_there() {
    let (home, told) = many_in_a_room_with_many(0);
    home.database.rows("UPDATE presence SET synced_until = 1000 - told_ts");
    minutes_pass(&home, 1);
    for edus in told.borrow().values() {
        let updates = edus.iter().flat_map(|edu| edu["push"].as_array().unwrap());
        let last: BTreeMap<_, _> = updates.map(|update| (update["user_id"].as_str(), &update["presence"])).collect();
        assert_eq!(last.values().filter(|presence| **presence == "offline").count(), 50);
    }
}
