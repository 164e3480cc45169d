//! Joins through other servers that do not go the usual way.

use std::{cell::RefCell, future::poll_fn, pin::pin, rc::Rc, task::Poll};

use futures_util::{FutureExt, future::select};
use http::StatusCode;
use serde_json::{Value, json};
use verge::{platform::Clock, router::json_response};

use crate::{
    common::network::World,
    home::{Home, User, quote, refused, request_of},
};

const OPEN: [(&str, &str); 1] = [("REGISTRATION", "open")];

/// From now on `home` answers five seconds late to requests whose path holds `part`.
pub fn answer_late(home: &Home, name: &str, part: &str) {
    home.world.answer_late(name, part, 5_000);
}

/// Sends a request as a client that hangs up after a second.
pub fn hang_up(home: &Home, user: &User, path: &str, body: &str) {
    let request = request_of(user, "POST", path, body.to_owned());
    home.world.run(async {
        select(pin!(home.server.handle(request)), home.world.sleep(1_000)).await;
    });
}

/// As [`hang_up`], of a client that has had so many turns in a world where everything takes its turns.
pub fn hang_up_after(home: &Home, request: http::Request<bytes::Bytes>, turns: usize) {
    let mut handled = home.server.handle(request);
    let mut taken = 0;
    home.world.run(poll_fn(|context| {
        taken += 1;
        match taken <= turns && handled.poll_unpin(context).is_pending() {
            true => Poll::Pending,
            false => Poll::Ready(()),
        }
    }));
}

#[test]
fn a_join_runs_on_when_the_client_hangs_up() {
    let world = World::new();
    let (one, two) = (Home::with(&world, "one.test", &OPEN), Home::with(&world, "two.test", &OPEN));
    let (alice, bob) = (one.register("alice"), two.register("bob"));
    let room = one.room(&alice, json!({ "preset": "public_chat" }));
    answer_late(&one, "one.test", "/send_join/");
    hang_up(&two, &bob, &format!("/join/{}?via=one.test", quote(&room)), "{}");
    let meanwhile = one.say(&alice, &room, "meanwhile", "t1");
    world.settle();
    assert_eq!(two.get(&bob, "/joined_rooms").1["joined_rooms"], json!([room]));
    let (status, event) = two.get(&bob, &format!("/rooms/{}/event/{}", quote(&room), quote(&meanwhile)));
    assert_eq!((status, &event["content"]["body"]), (200, &json!("meanwhile")), "{event} {:?}", world.logs());
    for table in ["staged_pdus", "pending_joins"] {
        assert!(two.database.rows(&format!("SELECT 1 FROM {table}")).is_empty(), "{table}");
    }
}

#[test]
fn a_rejected_invite_and_an_invite_run_on_when_the_client_hangs_up() {
    let world = World::new();
    let (one, two) = (Home::with(&world, "one.test", &OPEN), Home::with(&world, "two.test", &OPEN));
    let (alice, bob) = (one.register("alice"), two.register("bob"));
    let room = one.room(&alice, json!({ "preset": "private_chat" }));
    answer_late(&two, "two.test", "/invite/");
    hang_up(&one, &alice, &format!("/rooms/{}/invite", quote(&room)), &json!({ "user_id": bob.id }).to_string());
    world.settle();
    let member = format!("/rooms/{}/state/m.room.member/{}", quote(&room), quote(&bob.id));
    assert_eq!(one.get(&alice, &member).1["membership"], "invite", "{:?}", world.logs());
    answer_late(&one, "one.test", "/send_leave/");
    hang_up(&two, &bob, &format!("/rooms/{}/leave", quote(&room)), "{}");
    world.settle();
    assert_eq!(one.get(&alice, &member).1["membership"], "leave");
    let memberships = two.database.rows("SELECT membership FROM local_memberships");
    assert_eq!(memberships, [["leave"]]);
}

#[test]
fn all_are_invited_to_a_new_room_when_the_client_hangs_up() {
    let world = World::new();
    let one = Home::with(&world, "one.test", &OPEN);
    let others: Vec<_> = ["two.test", "three.test"].iter().map(|name| Home::with(&world, name, &OPEN)).collect();
    let alice = one.register("alice");
    let invited: Vec<_> = others.iter().map(|home| home.register("bob").id).collect();
    answer_late(&others[0], "two.test", "/invite/");
    answer_late(&others[1], "three.test", "/invite/");
    hang_up(&one, &alice, "/createRoom", &json!({ "invite": invited, "visibility": "public" }).to_string());
    world.settle();
    let rooms = one.database.rows("SELECT room_id FROM rooms");
    let [[room]] = rooms.iter().map(Vec::as_slice).collect::<Vec<_>>()[..] else { panic!("{rooms:?}") };
    for user in invited {
        let member = one.get(&alice, &format!("/rooms/{}/state/m.room.member/{}", quote(room), quote(&user))).1;
        assert_eq!(member["membership"], "invite", "{user} {:?}", world.logs());
    }
}

#[test]
fn others_have_their_turn_while_the_state_of_a_large_room_is_checked() {
    let world = World::new();
    let (one, two) = (Home::with(&world, "one.test", &OPEN), Home::with(&world, "two.test", &OPEN));
    let (alice, bob) = (one.register("alice"), two.register("bob"));
    let small = one.room(&alice, json!({ "preset": "public_chat" }));
    let large = one.room(&alice, json!({ "preset": "public_chat" }));
    for key in 0..500 {
        let path = format!("/rooms/{}/state/m.test/{key}", quote(&large));
        assert_eq!(one.put(&alice, &path, json!({})).0, 200);
    }
    let pauses_of_a_join = |room: &str| {
        let before = world.pauses();
        let (status, answer) = two.post(&bob, &format!("/join/{}?via=one.test", quote(room)), json!({}));
        assert_eq!(status, 200, "{answer} {:?}", world.logs());
        world.pauses() - before
    };
    assert_eq!(pauses_of_a_join(&small), 0);
    // They are parsed, checked, judged, and written, 50 at a time.
    let pauses = pauses_of_a_join(&large);
    assert!((4 * (500 / 50)..5 * (500 / 50)).contains(&pauses), "{pauses}");
    let path = format!("/rooms/{}/state/m.test/499", quote(&large));
    assert_eq!(two.get(&bob, &path), (200, json!({})));
}

/// Here and through another server, by each way to join.
#[test]
fn what_a_client_says_of_its_join_is_in_it() {
    let world = World::new();
    let (one, two) = (Home::with(&world, "one.test", &OPEN), Home::with(&world, "two.test", &OPEN));
    let alice = one.register("alice");
    for (home, name) in [(&one, "bob"), (&two, "carol")] {
        for (way, user) in [("id", home.register(&format!("{name}1"))), ("path", home.register(&format!("{name}2")))] {
            let room = one.room(&alice, json!({ "preset": "public_chat" }));
            let path = match way {
                "id" => format!("/join/{}?via=one.test", quote(&room)),
                _ => format!("/rooms/{}/join?via=one.test", quote(&room)),
            };
            for wrong in [
                json!({ "displayname": 1 }),
                json!({ "avatar_url": [] }),
                json!({ "reason": {} }),
                json!({ "foo": 1.5 }),
            ] {
                refused(&home.post(&user, &path, wrong), 400, "M_BAD_JSON");
            }
            refused(&home.post(&user, &path, json!({ "foo": "x".repeat(50_000) })), 413, "M_TOO_LARGE");
            assert!(!world.traffic().iter().any(|sent| sent.line.contains(&quote(&room))), "no server is asked");
            let body = json!({
                "foo": "bar", "displayname": "Somebody", "reason": "why not", "is_direct": null, "membership": "ban",
                "join_authorised_via_users_server": alice.id, "third_party_signed": {}, "third_party_invite": {},
            });
            let (status, answer) = home.post(&user, &path, body);
            assert_eq!(status, 200, "{answer} {:?}", world.logs());
            world.settle();
            let member = format!("/rooms/{}/state/m.room.member/{}", quote(&room), quote(&user.id));
            let expected =
                json!({ "membership": "join", "foo": "bar", "displayname": "Somebody", "reason": "why not" });
            assert_eq!(one.get(&alice, &member), (200, expected), "{name}, {way}");
            assert_eq!(home.post(&user, &format!("/rooms/{}/leave", quote(&room)), json!({})).0, 200);
            world.settle();
        }
    }
}

/// Of a room that is here it is known what fits into an event of it.
#[test]
fn no_server_is_asked_for_the_place_of_what_fits_into_no_event() {
    let world = World::new();
    let (one, two) = (Home::with(&world, "one.test", &OPEN), Home::with(&world, "two.test", &OPEN));
    let (alice, bob, carol) = (one.register("alice"), one.register("bob"), two.register("carol"));
    let body = json!({ "preset": "public_chat", "initial_state": [
        { "type": "m.room.join_rules", "content": { "join_rule": "knock" } }] });
    for (membership, body) in [("join", json!({ "preset": "public_chat" })), ("knock", body)] {
        // As it is with room IDs that name their server.
        let mut body = body;
        body["room_version"] = json!("11");
        let room = one.room(&alice, body);
        let put = |home: &Home, user: &User, value: Value| {
            let path = format!("/rooms/{}/state/m.room.member/{}", quote(&room), quote(&user.id));
            home.put(user, &path, json!({ "membership": membership, "foo": value }))
        };
        for (home, user) in [(&one, &bob), (&two, &carol)] {
            refused(&put(home, user, json!("x".repeat(66_000))), 413, "M_TOO_LARGE");
            refused(&put(home, user, json!(1.5)), 400, "M_BAD_JSON");
            assert!(!world.traffic().iter().any(|sent| sent.line.contains(&quote(&room))), "no server is asked");
        }
        for (home, user) in [(&one, &bob), (&two, &carol)] {
            let (status, answer) = put(home, user, json!("x".repeat(58_000)));
            assert_eq!(status, 200, "{answer} {:?}", world.logs());
            world.settle();
            let member = format!("/rooms/{}/state/m.room.member/{}", quote(&room), quote(&user.id));
            let (_, content) = one.get(&alice, &member);
            assert_eq!((&content["membership"], content["foo"].as_str().unwrap().len()), (&json!(membership), 58_000));
        }
    }
}

#[test]
fn nobody_can_rejoin_a_room_that_everybody_has_left() {
    for version in ["10", "12"] {
        let home = Home::new();
        let (alice, bob) = (home.register("alice"), home.register("bob"));
        let room = home.room(&alice, json!({ "preset": "public_chat", "room_version": version, "invite": [bob.id] }));
        assert_eq!(home.post(&alice, &format!("/rooms/{}/leave", quote(&room)), json!({})).0, 200);
        for user in [&alice, &bob] {
            for path in [format!("/rooms/{}/join", quote(&room)), format!("/join/{}?via=hs.test", quote(&room))] {
                refused(&home.post(user, &path, json!({})), 404, "M_NOT_FOUND");
            }
        }
        assert!(!home.world.logs().iter().any(|line| line.contains("500")), "{:?}", home.world.logs());
    }
}

#[test]
fn an_invite_is_accepted_through_any_server_in_the_room_when_the_inviter_has_left() {
    for version in ["10", "12"] {
        let world = World::new();
        let [one, two, three] = ["one.test", "two.test", "three.test"].map(|name| Home::with(&world, name, &OPEN));
        let (alice, bob, carol) = (one.register("alice"), two.register("bob"), three.register("carol"));
        // Dora is of the inviter's own server.
        let dora = one.register("dora");
        let body = json!({ "preset": "private_chat", "room_version": version, "invite": [carol.id, bob.id, dora.id] });
        let room = one.room(&alice, body);
        world.settle();
        let join = format!("/join/{}?via=three.test", quote(&room));
        assert_eq!(three.post(&carol, &format!("/join/{}?via=one.test", quote(&room)), json!({})).0, 200);
        world.settle();
        assert_eq!(one.post(&alice, &format!("/rooms/{}/leave", quote(&room)), json!({})).0, 200);
        world.settle();
        for (home, user) in [(&two, &bob), (&one, &dora)] {
            let (status, answer) = home.post(user, &join, json!({}));
            assert_eq!(status, 200, "{answer} {:?}", world.logs());
            world.settle();
            let member = format!("/rooms/{}/state/m.room.member/{}", quote(&room), quote(&user.id));
            assert_eq!(three.get(&carol, &member).1["membership"], "join");
        }
    }
}

#[test]
fn the_servers_that_a_client_names_are_asked_first() {
    for parameter in ["via", "server_name"] {
        for by_alias in [true, false] {
            let world = World::new();
            let [one, two, three] = ["one.test", "two.test", "three.test"].map(|name| Home::with(&world, name, &OPEN));
            let (alice, bob, carol) = (one.register("alice"), two.register("bob"), three.register("carol"));
            let room = one.room(&alice, json!({ "preset": "public_chat", "room_alias_name": "hall" }));
            assert_eq!(three.post(&carol, "/join/%23hall%3Aone.test", json!({})).0, 200);
            world.settle();
            let target = if by_alias { "#hall:one.test" } else { room.as_str() };
            let path = format!("/join/{}?{parameter}=three.test", quote(target));
            let (status, answer) = two.post(&bob, &path, json!({}));
            assert_eq!(status, 200, "{answer} {:?}", world.logs());
            let traffic = world.traffic();
            let asked = traffic.iter().filter(|sent| sent.from == "two.test" && sent.line.contains("/make_join/"));
            let asked: Vec<&str> = asked.map(|sent| sent.to.as_str()).collect();
            assert_eq!(asked, ["three.test"], "{parameter}, {target}");
        }
    }
}

/// From now on `home` answers to `send_join` with what `change` makes of its answer.
fn change_joins(home: &Home, name: &str, change: fn(&mut Value)) {
    let server = Rc::clone(&home.server);
    home.world.connect(
        name,
        Rc::new(move |request| {
            let server = Rc::clone(&server);
            Box::pin(async move {
                let joins = request.uri().path().contains("/send_join/");
                let response = server.handle(request).await;
                if !joins {
                    return response;
                }
                let mut answer: Value = serde_json::from_slice(response.body()).unwrap();
                change(&mut answer);
                json_response(StatusCode::OK, &answer)
            })
        }),
    );
}

#[test]
fn a_restricted_join_is_ours_only_with_the_signature_of_who_vouches_for_it() {
    let without: [fn(&mut Value); 3] = [
        |answer| drop(answer.as_object_mut().unwrap().remove("event")),
        |answer| drop(answer["event"]["signatures"].as_object_mut().unwrap().remove("one.test")),
        |answer| {
            let other = answer["state"][0]["signatures"]["one.test"].clone();
            answer["event"]["signatures"]["one.test"] = other;
        },
    ];
    // Of the answer nothing counts but the signature.
    let with: [fn(&mut Value); 2] = [|_| {}, |answer| answer["event"]["content"]["displayname"] = json!("Mallory")];
    let all = without.map(|change| (change, false)).into_iter().chain(with.map(|change| (change, true)));
    for (index, (change, joins)) in all.enumerate() {
        let world = World::new();
        let (one, two) = (Home::with(&world, "one.test", &OPEN), Home::with(&world, "two.test", &OPEN));
        let (alice, bob) = (one.register("alice"), two.register("bob"));
        let club = one.room(&alice, json!({ "preset": "public_chat" }));
        let rules = json!({ "join_rule": "restricted", "allow": [{ "type": "m.room_membership", "room_id": club }] });
        let state = json!([{ "type": "m.room.join_rules", "content": rules }]);
        let room = one.room(&alice, json!({ "initial_state": state }));
        let path = |room: &str| format!("/join/{}?via=one.test", quote(room));
        assert_eq!(two.post(&bob, &path(&club), json!({})).0, 200);
        change_joins(&one, "one.test", change);
        let answer = two.post(&bob, &path(&room), json!({}));
        let held =
            two.database.rows(&format!("SELECT json FROM events WHERE room_id = '{room}' AND sender = '{}'", bob.id));
        if joins {
            assert_eq!(answer.0, 200, "{index}: {}", answer.1);
            let join: Value = serde_json::from_str(&held[0][0]).unwrap();
            assert!(join["signatures"]["one.test"].is_object() && join["signatures"]["two.test"].is_object(), "{join}");
            assert_eq!(join["content"]["displayname"], "bob");
        } else {
            refused(&answer, 502, "M_UNKNOWN");
            assert!(held.is_empty(), "{index}: {held:?}");
            assert_eq!(two.get(&bob, "/joined_rooms").1["joined_rooms"], json!([club]));
        }
    }
}

/// Spec, `send_join`: the request "SHOULD fail with a 5xx error rather than being passed through".
#[test]
fn what_is_wrong_with_our_own_join_is_no_fault_of_the_client() {
    let world = World::new();
    let (one, two) = (Home::with(&world, "one.test", &OPEN), Home::with(&world, "two.test", &OPEN));
    let (alice, bob) = (one.register("alice"), two.register("bob"));
    let room = one.room(&alice, json!({ "preset": "public_chat" }));
    for (errcode, expected) in [
        ("M_INVALID_PARAM", (502, "M_UNKNOWN")),
        ("M_MISSING_PARAM", (502, "M_UNKNOWN")),
        ("M_BAD_STATE", (400, "M_BAD_STATE")),
    ] {
        let server = Rc::clone(&one.server);
        world.connect(
            "one.test",
            Rc::new(move |request| {
                let server = Rc::clone(&server);
                Box::pin(async move {
                    if request.uri().path().contains("/send_join/") {
                        return json_response(StatusCode::BAD_REQUEST, &json!({ "errcode": errcode, "error": "No." }));
                    }
                    server.handle(request).await
                })
            }),
        );
        let answer = two.post(&bob, &format!("/join/{}?via=one.test", quote(&room)), json!({}));
        refused(&answer, expected.0, expected.1);
    }
}

/// Who cannot enter is told why, in the resident server's words: so much of them as a client can show.
#[test]
fn why_a_room_cannot_be_entered_is_passed_on() {
    let home = Home::with(&World::new(), "hs.test", &OPEN);
    let alice = home.register("alice");
    let said: Rc<RefCell<(u16, Value)>> = Rc::default();
    let saying = Rc::clone(&said);
    home.world.connect(
        "peer.test",
        Rc::new(move |_| {
            let (status, body) = saying.borrow().clone();
            Box::pin(async move { json_response(StatusCode::from_u16(status).unwrap(), &body) })
        }),
    );
    let entered = |how: &str, status: u16, body: Value| {
        *said.borrow_mut() = (status, body);
        home.post(&alice, &format!("/{how}/{}?via=peer.test", quote("!theirs:peer.test")), json!({}))
    };
    let error = |errcode: &str| json!({ "errcode": errcode, "error": "Not today." });
    for how in ["join", "knock"] {
        let mut body = error("M_INCOMPATIBLE_ROOM_VERSION");
        body["room_version"] = json!("99");
        assert_eq!(entered(how, 400, body.clone()), (400, body));
        for (status, errcode) in [
            (400, "M_INVALID_PARAM"),
            (400, "M_BAD_STATE"),
            (400, "M_UNABLE_TO_AUTHORISE_JOIN"),
            (403, "M_FORBIDDEN"),
            (403, "M_GUEST_ACCESS_FORBIDDEN"),
            (404, "M_NOT_FOUND"),
        ] {
            assert_eq!(entered(how, status, error(errcode)), (status, error(errcode)), "{how}");
        }
        // What would mean something else to a client, or nothing.
        for errcode in ["M_UNKNOWN_TOKEN", "M_CONSENT_NOT_GIVEN", "ORG.EXAMPLE.MOON"] {
            assert_eq!(entered(how, 403, error(errcode)), (403, error("M_UNKNOWN")), "{how}");
        }
        for (status, body) in [
            (401, error("M_UNKNOWN_TOKEN")),
            (404, error("M_UNRECOGNIZED")),
            (400, json!({ "error": "Not today." })),
            (500, error("M_UNKNOWN")),
        ] {
            refused(&entered(how, status, body), 502, "M_UNKNOWN");
        }
        let long = json!({ "errcode": "M_FORBIDDEN", "error": "no ".repeat(20_000) });
        let told = entered(how, 403, long).1["error"].as_str().unwrap().len();
        assert!(told <= 500, "{told}");
    }
}
