//! Typing notifications, within one server and between two.

use futures_util::future::join;
use ruma_common::serde::Raw;
use ruma_events::AnySyncEphemeralRoomEvent;
use serde_json::{Value, json};
use verge::platform::Clock;

use crate::{
    common::network::World,
    home::{Home, User, next, quote, refused, request_of},
};

const OPEN: [(&str, &str); 1] = [("REGISTRATION", "open")];

/// Alice and Bob in a room of one server.
pub(crate) fn together() -> (Home, User, User, String) {
    let home = Home::new();
    let (alice, bob) = (home.register("alice"), home.register("bob"));
    let room = home.room(&alice, json!({ "preset": "public_chat" }));
    assert_eq!(home.post(&bob, &format!("/join/{}", quote(&room)), json!({})).0, 200);
    (home, alice, bob, room)
}

/// Alice's and Bob's servers, and their room.
pub(crate) fn apart() -> (Home, User, Home, User, String) {
    let world = World::new();
    let (one, two) = (Home::with(&world, "one.test", &OPEN), Home::with(&world, "two.test", &OPEN));
    let (alice, bob) = (one.register("alice"), two.register("bob"));
    let room = one.room(&alice, json!({ "preset": "public_chat" }));
    assert_eq!(two.post(&bob, &format!("/join/{}?via=one.test", quote(&room)), json!({})).0, 200);
    world.settle();
    (one, alice, two, bob, room)
}

pub(crate) fn types(home: &Home, user: &User, room: &str, body: Value) -> (u16, Value) {
    home.put(user, &format!("/rooms/{}/typing/{}", quote(room), quote(&user.id)), body)
}

/// The ephemeral events of the room in a sync's answer, each as ruma reads it.
pub(crate) fn ephemeral(answer: &Value, room: &str) -> Vec<Value> {
    let events = answer["rooms"]["join"][room]["ephemeral"]["events"].as_array().cloned().unwrap_or_default();
    for event in &events {
        let raw: Raw<AnySyncEphemeralRoomEvent> = serde_json::from_value(event.clone()).unwrap();
        let read = raw.deserialize().unwrap_or_else(|error| panic!("{event}: {error}"));
        assert!(!matches!(read, AnySyncEphemeralRoomEvent::_Custom(_)), "{event}");
    }
    events
}

fn typists(users: &[&str]) -> Vec<Value> {
    vec![json!({ "type": "m.typing", "content": { "user_ids": users } })]
}

fn sync(home: &Home, user: &User, since: &mut String) -> Value {
    let answer = home.sync(user, since);
    *since = next(&answer);
    answer
}

#[test]
fn others_see_who_types_and_who_has_ceased() {
    let (home, alice, bob, room) = together();
    let (mut of_alice, mut of_bob) = (next(&home.sync(&alice, "")), next(&home.sync(&bob, "")));
    assert_eq!(types(&home, &bob, &room, json!({ "typing": true, "timeout": 20_000 })), (200, json!({})));
    assert_eq!(ephemeral(&sync(&home, &alice, &mut of_alice), &room), typists(&[&bob.id]));
    assert_eq!(ephemeral(&sync(&home, &bob, &mut of_bob), &room), typists(&[&bob.id]));
    // A client that comes now is told too.
    assert_eq!(ephemeral(&home.sync(&alice, ""), &room), typists(&[&bob.id]));
    // That he goes on is no news.
    home.world.advance(15_000);
    types(&home, &bob, &room, json!({ "typing": true, "timeout": 20_000 }));
    assert_eq!(sync(&home, &alice, &mut of_alice)["rooms"]["join"], json!({}));
    home.world.advance(10_000);
    assert_eq!(sync(&home, &alice, &mut of_alice)["rooms"]["join"], json!({}));
    types(&home, &alice, &room, json!({ "typing": true }));
    assert_eq!(ephemeral(&sync(&home, &alice, &mut of_alice), &room), typists(&[&alice.id, &bob.id]));
    types(&home, &bob, &room, json!({ "typing": false }));
    assert_eq!(ephemeral(&sync(&home, &alice, &mut of_alice), &room), typists(&[&alice.id]));
    // Who says nothing more has ceased when the time is over.
    home.world.advance(31_000);
    assert_eq!(ephemeral(&sync(&home, &alice, &mut of_alice), &room), typists(&[]));
    assert_eq!(sync(&home, &alice, &mut of_alice)["rooms"]["join"], json!({}));
    assert_eq!(ephemeral(&home.sync(&alice, ""), &room), typists(&[])[..0]);
    // Nor is there news in that somebody does not type who did not.
    let streams = || home.database.rows("SELECT * FROM streams ORDER BY 1");
    let before = streams();
    types(&home, &bob, &room, json!({ "typing": false }));
    assert_eq!(streams(), before);
}

#[test]
fn a_waiting_sync_is_told_at_once_and_when_the_time_is_over() {
    for wakes in [true, false] {
        let world = World::new();
        if wakes {
            world.wake_by_commits();
        }
        let home = Home::with(&world, "hs.test", &OPEN);
        let (alice, bob) = (home.register("alice"), home.register("bob"));
        let room = home.room(&alice, json!({ "preset": "public_chat" }));
        home.post(&bob, &format!("/join/{}", quote(&room)), json!({}));
        let mut since = next(&home.sync(&alice, ""));
        let waited = |since: &str| request_of(&alice, "GET", &format!("/sync?{since}&timeout=30000"), "");
        let path = format!("/rooms/{}/typing/{}", quote(&room), quote(&bob.id));
        let body = json!({ "typing": true, "timeout": 10_000 }).to_string();
        let begin = async {
            world.sleep(1_000).await;
            home.server.handle(request_of(&bob, "PUT", &path, body)).await
        };
        let start = world.now_ms();
        let (answer, _) = world.run(join(home.server.handle(waited(&since)), begin));
        let answer: Value = serde_json::from_slice(answer.body()).unwrap();
        assert_eq!(ephemeral(&answer, &room), typists(&[&bob.id]));
        assert!(world.now_ms() - start <= if wakes { 1_000 } else { 5_000 });
        since = next(&answer);
        let answer = world.run(home.server.handle(waited(&since)));
        let answer: Value = serde_json::from_slice(answer.body()).unwrap();
        assert_eq!(ephemeral(&answer, &room), typists(&[]));
        assert!((11_000..11_100).contains(&(world.now_ms() - start)), "{}", world.now_ms() - start);
    }
}

#[test]
fn what_is_wrong_is_refused() {
    let (home, alice, bob, room) = together();
    let stranger = home.register("stranger");
    let yes = json!({ "typing": true });
    let as_bob = format!("/rooms/{}/typing/{}", quote(&room), quote(&bob.id));
    refused(&home.put(&alice, &as_bob, yes.clone()), 403, "M_FORBIDDEN");
    refused(&home.call(None, "PUT", &as_bob, Some(yes.clone())), 401, "M_MISSING_TOKEN");
    refused(&types(&home, &stranger, &room, yes.clone()), 403, "M_FORBIDDEN");
    refused(&types(&home, &bob, "!unknown:hs.test", yes.clone()), 403, "M_FORBIDDEN");
    refused(&types(&home, &bob, "room", yes), 400, "M_INVALID_PARAM");
    refused(&types(&home, &bob, &room, json!({})), 400, "M_MISSING_PARAM");
    refused(&types(&home, &bob, &room, json!({ "typing": "true" })), 400, "M_BAD_JSON");
    refused(&types(&home, &bob, &room, json!({ "typing": true, "timeout": "1" })), 400, "M_BAD_JSON");
    assert_eq!(home.database.rows("SELECT * FROM typing"), [[""; 0]; 0]);
    assert_eq!(types(&home, &bob, &room, json!({ "typing": false, "timeout": -5 })).0, 200);
}

#[test]
fn nobody_else_sees_it_and_filters_are_heeded() {
    let (home, alice, bob, room) = together();
    let stranger = home.register("stranger");
    let (since, of_stranger) = (next(&home.sync(&alice, "")), next(&home.sync(&stranger, "")));
    types(&home, &bob, &room, json!({ "typing": true }));
    assert_eq!(home.sync(&stranger, &of_stranger)["rooms"]["join"], json!({}));
    for filter in [
        json!({ "room": { "ephemeral": { "types": ["m.receipt"] } } }),
        json!({ "room": { "ephemeral": { "not_rooms": [room] } } }),
        json!({ "room": { "not_rooms": [room] } }),
    ] {
        let before = home.world.now_ms();
        let filter = quote(&filter.to_string());
        let answer = home.sync(&alice, &format!("{since}&timeout=2000&filter={filter}"));
        assert_eq!(answer["rooms"]["join"], json!({}));
        // And nobody is woken for nothing.
        assert_eq!(home.world.now_ms() - before, 2_000);
    }
    // Who has left is not told.
    home.post(&alice, &format!("/rooms/{}/leave", quote(&room)), json!({}));
    let since = next(&home.sync(&alice, &since));
    types(&home, &bob, &room, json!({ "typing": false }));
    assert_eq!(home.sync(&alice, &since)["rooms"]["join"], json!({}));
}

#[test]
fn it_goes_to_the_other_server_and_costs_no_row_where_nobody_else_is() {
    let (one, alice, two, bob, room) = apart();
    let mut since = next(&two.sync(&bob, ""));
    let rows =
        || ["typing", "streams", "destinations"].map(|table| one.database.rows(&format!("SELECT * FROM {table}")));
    let before = rows();
    for (typing, expected) in [(true, vec![alice.id.as_str()]), (false, vec![])] {
        types(&one, &alice, &room, json!({ "typing": typing }));
        one.world.settle();
        assert_eq!(ephemeral(&sync(&two, &bob, &mut since), &room), typists(&expected));
    }
    assert_eq!(rows(), before);
    let mut since = next(&one.sync(&alice, ""));
    types(&two, &bob, &room, json!({ "typing": true }));
    one.world.settle();
    assert_eq!(ephemeral(&sync(&one, &alice, &mut since), &room), typists(&[&bob.id]));
    // His server falls silent.
    one.world.advance(61_000);
    assert_eq!(ephemeral(&sync(&one, &alice, &mut since), &room), typists(&[]));
}

#[test]
fn a_server_that_is_away_is_not_told_later_nor_asked_all_the_time() {
    let (one, alice, two, bob, room) = apart();
    let since = next(&two.sync(&bob, ""));
    one.world.cut("one.test", "two.test");
    let sent =
        || one.world.traffic().iter().filter(|sent| sent.to == "two.test" && sent.line.contains("/send/")).count();
    let before = sent();
    for n in 0..50 {
        types(&one, &alice, &room, json!({ "typing": n % 2 == 0 }));
        one.world.settle();
        one.world.advance(1_000);
    }
    assert!(sent() - before <= 2, "{}", sent() - before);
    one.world.mend("one.test", "two.test");
    one.world.advance(120_000);
    one.world.run(one.server.scheduled());
    one.world.settle();
    assert_eq!(two.sync(&bob, &since)["rooms"]["join"], json!({}));
    types(&one, &alice, &room, json!({ "typing": true }));
    one.world.settle();
    assert_eq!(ephemeral(&two.sync(&bob, &since), &room), typists(&[&alice.id]));
}

#[test]
fn who_types_fast_is_told_of_once_a_second() {
    let (one, alice, _two, _bob, room) = apart();
    let sent =
        || one.world.traffic().iter().filter(|sent| sent.to == "two.test" && sent.line.contains("/send/")).count();
    let before = sent();
    one.world.run(async {
        for n in 0..40 {
            let path = format!("/_matrix/client/v3/rooms/{}/typing/{}", quote(&room), quote(&alice.id));
            let request = http::Request::builder()
                .method("PUT")
                .uri(path)
                .header("Authorization", format!("Bearer {}", alice.token))
                .body(bytes::Bytes::from(json!({ "typing": n % 2 == 0 }).to_string()))
                .unwrap();
            assert_eq!(one.server.handle(request).await.status(), 200);
            one.world.sleep(100).await;
        }
    });
    one.world.settle();
    let transactions = sent() - before;
    assert!((3..=6).contains(&transactions), "{transactions}");
}

/// Lets hosts with these names be members of the room, which answer after so many milliseconds. What each of those was told that were
/// told something is noted.
pub(crate) fn members(home: &Home, room: &str, names: &[String], delay_ms: &std::rc::Rc<std::cell::Cell<u32>>) -> Told {
    let told = Told::default();
    for name in names {
        let (told, world, delay_ms, host) = (told.clone(), home.world.clone(), delay_ms.clone(), name.clone());
        home.world.connect(
            name,
            std::rc::Rc::new(move |request| {
                let (told, world, delay_ms, host) = (told.clone(), world.clone(), delay_ms.get(), host.clone());
                Box::pin(async move {
                    if !request.uri().path().contains("/send/") {
                        return verge::router::json_response(http::StatusCode::NOT_FOUND, &json!({}));
                    }
                    let body: Value = serde_json::from_slice(request.body()).unwrap();
                    let edus = body["edus"].as_array().cloned().unwrap_or_default();
                    told.borrow_mut()
                        .entry(host)
                        .or_default()
                        .extend(edus.into_iter().map(|edu| edu["content"].clone()));
                    world.sleep(delay_ms).await;
                    verge::router::json_response(http::StatusCode::OK, &json!({ "pdus": {} }))
                })
            }),
        );
        home.database.rows(&format!(
            "INSERT INTO room_servers (room_id, server, from_pos, to_pos, joined) VALUES ('{room}', '{name}:443', 1000000, NULL, 1)"
        ));
    }
    told
}

pub(crate) type Told = std::rc::Rc<std::cell::RefCell<std::collections::BTreeMap<String, Vec<Value>>>>;

/// However many servers are in a room: not always the same ones hear what its users do.
#[test]
fn all_servers_of_a_large_room_hear_in_turn() {
    let home = Home::new();
    let alice = home.register("alice");
    let room = home.room(&alice, json!({ "preset": "public_chat" }));
    let names: Vec<String> = (0..450).map(|n| format!("s{n}.test")).collect();
    let told = members(&home, &room, &names, &std::rc::Rc::default());
    let mut before = 0;
    for n in 0..5 {
        assert_eq!(types(&home, &alice, &room, json!({ "typing": true })).0, 200);
        home.world.settle();
        let after = told.borrow().len();
        assert!(after - before <= 200, "its cost is bounded");
        // Whoever has heard that somebody types hears too that they have ceased.
        assert_eq!(types(&home, &alice, &room, json!({ "typing": false })).0, 200);
        home.world.settle();
        assert_eq!(told.borrow().len(), after, "{n}");
        before = after;
        home.world.advance(61_000);
    }
    assert_eq!(told.borrow().len(), 450);
}

#[test]
fn all_servers_that_share_rooms_hear_who_is_there_in_turn() {
    let home = Home::new();
    let alice = home.register("alice");
    let delay = std::rc::Rc::default();
    let rooms = [(); 3].map(|()| home.room(&alice, json!({ "preset": "public_chat" })));
    // Each server in two of three rooms.
    let names: Vec<String> = (0..450).map(|n| format!("s{n}.test")).collect();
    let told: Vec<Told> = rooms
        .iter()
        .enumerate()
        .map(|(n, room)| members(&home, room, &[&names[..150 * n], &names[150 * (n + 1)..]].concat(), &delay))
        .collect();
    // How many were told, and how many have last heard that she is there.
    let heard = || {
        let told: Vec<_> = told.iter().map(|told| told.borrow()).collect();
        let last = told.iter().flat_map(|told| told.values().map(|edus| last_presence(edus)));
        (told.iter().map(|told| told.len()).sum::<usize>(), last.filter(|last| last != "offline").count())
    };
    for n in 0..4 {
        for (state, there) in [("online", 200), ("unavailable", 200), ("offline", 0)] {
            is(&home, &alice, state);
            assert_eq!(heard().1, there, "{n} {state}");
            home.world.advance(61_000);
        }
    }
    assert_eq!(heard().0, 450);
}

/// Alice is to be `state`; whoever hears of it has.
fn is(home: &Home, alice: &User, state: &str) {
    let path = format!("/presence/{}/status", quote(&alice.id));
    assert_eq!(home.put(alice, &path, json!({ "presence": state })).0, 200);
    home.world.settle();
}

fn last_presence(edus: &[Value]) -> String {
    edus.last().unwrap()["push"][0]["presence"].as_str().unwrap().to_owned()
}

/// A server that is in several rooms takes one place of those that hear at a time.
#[test]
fn who_shares_many_rooms_hears_of_presence_once() {
    let home = Home::new();
    let alice = home.register("alice");
    let rooms = [(); 4].map(|()| home.room(&alice, json!({ "preset": "public_chat" })));
    let names: Vec<String> = (0..160).map(|n| format!("s{n}.test")).collect();
    let told: Vec<Told> = rooms.iter().map(|room| members(&home, room, &names, &std::rc::Rc::default())).collect();
    let more: Vec<String> = (200..240).map(|n| format!("s{n}.test")).collect();
    let more = members(&home, &rooms[3], &more, &std::rc::Rc::default());
    for state in ["online", "offline", "online"] {
        is(&home, &alice, state);
        for (told, count) in [(told.last().unwrap(), 160), (&more, 40)] {
            let told = told.borrow();
            assert_eq!(told.values().filter(|edus| last_presence(edus) == state).count(), count, "{state}");
        }
    }
}

/// Isolates agree on who has heard that somebody is there. A server that was away then takes no place of theirs.
#[test]
fn who_heard_of_somebody_hears_that_they_are_gone_from_any_isolate() {
    let home = Home::new();
    let other = home.world.server_over("hs.test", home.database.clone(), &[]);
    let alice = home.register("alice");
    let room = home.room(&alice, json!({ "preset": "public_chat" }));
    let names: Vec<String> = (0..450).map(|n| format!("s{n}.test")).collect();
    let told = members(&home, &room, &names, &std::rc::Rc::default());
    let away = |count| {
        home.database.rows("DELETE FROM destinations");
        home.database.rows(&format!(
            "INSERT INTO destinations (destination, retry_at) SELECT server, 1e15 FROM room_servers \
             WHERE server <> 'hs.test' AND server LIKE '%7.test:443' LIMIT {count}"
        ));
    };
    away(40);
    is(&home, &alice, "online");
    assert_eq!(told.borrow().len(), 200);
    away(0);
    let path = format!("/presence/{}/status", quote(&alice.id));
    let gone = json!({ "presence": "offline" }).to_string();
    assert_eq!(home.world.run(other.server.handle(request_of(&alice, "PUT", &path, gone))).status(), 200);
    home.world.settle();
    assert!(told.borrow().values().all(|edus| last_presence(edus) == "offline"));
}

/// Whoever was not even tried, as others took so long, is told the next thing at once.
#[test]
fn who_was_not_tried_has_not_failed() {
    let home = Home::new();
    let alice = home.register("alice");
    let room = home.room(&alice, json!({ "preset": "public_chat" }));
    let names: Vec<String> = (10..30).map(|n| format!("s{n}.test")).collect();
    let delay = std::rc::Rc::new(std::cell::Cell::new(15_000));
    let told = members(&home, &room, &names, &delay);
    let began = home.world.now_ms();
    assert_eq!(types(&home, &alice, &room, json!({ "typing": true })).0, 200);
    home.world.settle();
    assert!(told.borrow().len() < 20, "there was no time for all of them");
    assert!(home.world.now_ms() - began < 40_000, "{}", home.world.now_ms() - began);
    delay.set(0);
    assert_eq!(types(&home, &alice, &room, json!({ "typing": false })).0, 200);
    home.world.settle();
    assert_eq!(told.borrow().len(), 20);
}

/// Alice in a room with five hosts that hang, and 20 that answer at once: what these have heard of her.
fn beside_those_that_hang() -> (Home, impl Fn(bool, u32), impl Fn() -> Vec<Vec<bool>>) {
    let home = Home::new();
    home.world.time_out();
    let alice = home.register("alice");
    let room = home.room(&alice, json!({ "preset": "public_chat" }));
    let named = |from: usize, to| (from..to).map(|n| format!("s{n}.test")).collect::<Vec<_>>();
    members(&home, &room, &named(10, 15), &std::rc::Rc::new(std::cell::Cell::new(60_000)));
    let told = members(&home, &room, &named(15, 35), &std::rc::Rc::default());
    let (world, server) = (home.world.clone(), home.server.clone());
    let types_and_waits = move |is_typing: bool, ms| {
        let path = format!("/rooms/{}/typing/{}", quote(&room), quote(&alice.id));
        let body = json!({ "typing": is_typing }).to_string();
        world.run(async {
            assert_eq!(server.handle(request_of(&alice, "PUT", &path, body)).await.status(), 200);
            world.sleep(ms).await;
        });
    };
    let heard = move || {
        let told = told.borrow();
        told.values().map(|edus| edus.iter().map(|edu| edu["typing"].as_bool().unwrap()).collect()).collect()
    };
    (home, types_and_waits, heard)
}

#[test]
fn those_that_hang_keep_it_from_nobody() {
    let (_home, types_and_waits, heard) = beside_those_that_hang();
    types_and_waits(true, 25_000);
    types_and_waits(false, 5_000);
    assert_eq!(heard(), [[true, false]; 20]);
}

/// Those without a port in their name are first asked where they are.
#[test]
fn those_that_hang_when_asked_where_they_are_keep_it_from_nobody() {
    let (home, types_and_waits, heard) = beside_those_that_hang();
    for n in 10..15 {
        let world = home.world.clone();
        let hangs = move |_| -> verge::platform::LocalBoxFuture<'static, verge::router::Response> {
            let world = world.clone();
            Box::pin(async move {
                world.sleep(60_000).await;
                verge::router::json_response(http::StatusCode::OK, &json!({ "pdus": {} }))
            })
        };
        home.world.connect(&format!("s{n}.test"), std::rc::Rc::new(hangs));
        home.database.rows(&format!("UPDATE room_servers SET server = 's{n}.test' WHERE server = 's{n}.test:443'"));
    }
    types_and_waits(true, 25_000);
    types_and_waits(false, 5_000);
    assert_eq!(heard(), [[true, false]; 20]);
}

/// By an isolate that has not asked for any of them yet.
#[test]
fn what_the_database_knows_of_where_many_are_is_read_in_one_call() {
    let home = Home::new();
    let alice = home.register("alice");
    let room = home.room(&alice, json!({ "preset": "public_chat" }));
    let names: Vec<String> = (10..50).map(|n| format!("s{n}.test")).collect();
    let told = members(&home, &room, &names, &std::rc::Rc::default());
    // Without a port in their name they are first asked where they are.
    home.database.rows("UPDATE room_servers SET server = replace(server, ':443', '')");
    let path = format!("/rooms/{}/typing/{}", quote(&room), quote(&alice.id));
    let calls: Vec<u64> = [true, false, true]
        .map(|is_typing| {
            let isolate = home.world.server_over("hs.test", home.database.clone(), &[]);
            let (body, before) = (json!({ "typing": is_typing }).to_string(), home.database.calls.get());
            assert_eq!(home.world.run(isolate.server.handle(request_of(&alice, "PUT", &path, body))).status(), 200);
            home.world.settle();
            home.database.calls.get() - before
        })
        .into();
    assert!(told.borrow().values().all(|edus| edus.len() == 3));
    assert!(calls[0] > 80 && calls[1] < 10 && calls[2] == calls[1], "{calls:?}");
}

#[test]
fn what_comes_while_some_hang_is_told_at_once() {
    let (_home, types_and_waits, heard) = beside_those_that_hang();
    types_and_waits(true, 5_000);
    types_and_waits(false, 1_000);
    let heard = heard();
    assert_eq!(heard.len(), 20);
    assert!(heard.iter().all(|heard| heard.last() == Some(&false)), "{heard:?}");
}

#[test]
fn those_that_have_hung_come_last() {
    let (_home, types_and_waits, heard) = beside_those_that_hang();
    types_and_waits(true, 120_000);
    types_and_waits(false, 1_000);
    assert_eq!(heard(), [[true, false]; 20]);
}
