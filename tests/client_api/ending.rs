//! Passwords, the end of accounts, and third-party identifiers.

use serde_json::{Value, json};
use verge::{
    matrix::{
        identifiers::{RoomId, UserId},
        json::Object,
        state_content::Membership,
    },
    program::Program,
    room::Draft,
    server::Server,
};

use crate::{
    common::network::World,
    cross_signing::{Keys, UPLOAD},
    home::{Answer, Home, User, quote, refused},
    joining::{answer_late, hang_up},
    typing::{apart, together},
};

fn login(home: &Home, name: &str, password: &str) -> Answer {
    let body = json!({ "type": "m.login.password", "user": name, "password": password });
    home.call(None, "POST", "/login", Some(body))
}

/// With the password that [`Home::register`] gives.
fn auth(user: &User) -> Value {
    let name = user.id[1..].split(':').next().unwrap();
    with_password(user, &format!("{name}'s"))
}

fn with_password(user: &User, password: &str) -> Value {
    json!({ "type": "m.login.password", "identifier": { "type": "m.id.user", "user": user.id }, "password": password })
}

fn change(home: &Home, user: &User, more: Value) -> Answer {
    let mut body = json!({ "new_password": "new", "auth": auth(user) });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    home.post(user, "/account/password", body)
}

#[test]
fn a_password_is_changed_by_who_has_the_old_one() {
    let home = Home::new();
    let (alice, bob) = (home.register("alice"), home.register("bob"));
    let other = User::of(&login(&home, "alice", "alice's").1);
    assert_eq!(home.get(&alice, "/capabilities").1["capabilities"]["m.change_password"]["enabled"], true);
    // Without the password, with a wrong one, and with somebody else's.
    let asked = home.post(&alice, "/account/password", json!({ "new_password": "new" }));
    assert_eq!((asked.0, &asked.1["flows"]), (401, &json!([{ "stages": ["m.login.password"] }])));
    for auth in [with_password(&alice, "wrong"), auth(&bob)] {
        let (status, answer) = change(&home, &alice, json!({ "auth": auth }));
        assert_eq!((status, answer["errcode"].as_str()), (401, Some("M_FORBIDDEN")));
    }
    for (more, errcode) in [
        (json!({ "new_password": null }), "M_MISSING_PARAM"),
        (json!({ "new_password": 1 }), "M_BAD_JSON"),
        (json!({ "new_password": "" }), "M_INVALID_PARAM"),
        (json!({ "new_password": "x".repeat(513) }), "M_INVALID_PARAM"),
        (json!({ "logout_devices": 1 }), "M_BAD_JSON"),
    ] {
        refused(&change(&home, &alice, more), 400, errcode);
    }
    refused(&home.call(None, "POST", "/account/password", Some(json!({}))), 401, "M_MISSING_TOKEN");
    assert_eq!(home.get(&other, "/account/whoami").0, 200);
    assert_eq!(login(&home, "alice", "alice's").0, 200);
    // All others are logged out.
    assert_eq!(change(&home, &alice, json!({})), (200, json!({})));
    assert_eq!(home.get(&alice, "/account/whoami").0, 200);
    refused(&home.get(&other, "/account/whoami"), 401, "M_UNKNOWN_TOKEN");
    refused(&login(&home, "alice", "alice's"), 403, "M_FORBIDDEN");
    let other = User::of(&login(&home, "alice", "new").1);
    // But where they shall not be.
    let more = json!({ "new_password": "newer", "logout_devices": false, "auth": with_password(&alice, "new") });
    assert_eq!(change(&home, &alice, more).0, 200);
    assert_eq!(home.get(&other, "/account/whoami").0, 200);
    assert_eq!(home.get(&bob, "/account/whoami").0, 200);
    assert_eq!(login(&home, "bob", "bob's").0, 200);
}

#[test]
fn who_ends_an_account_is_logged_out_and_leaves_all_rooms() {
    let (one, alice, two, bob, room) = apart();
    let own = one.room(&alice, json!({}));
    let invited = two.room(&bob, json!({ "invite": [alice.id] }));
    two.world.settle();
    let carol = one.register("carol");
    let near = one.room(&carol, json!({ "invite": [alice.id] }));
    one.put(&alice, &format!("/user/{}/account_data/m.x", quote(&alice.id)), json!({ "secret": 1 }));
    let path = "/account/deactivate";
    let asked = one.post(&alice, path, json!({}));
    assert_eq!((asked.0, &asked.1["flows"]), (401, &json!([{ "stages": ["m.login.password"] }])));
    let (status, answer) = one.post(&alice, path, json!({ "auth": with_password(&alice, "wrong") }));
    assert_eq!((status, answer["errcode"].as_str()), (401, Some("M_FORBIDDEN")));
    refused(&one.call(None, "POST", path, Some(json!({}))), 401, "M_MISSING_TOKEN");
    refused(&one.post(&alice, path, json!({ "erase": "yes" })), 400, "M_BAD_JSON");
    assert_eq!(one.get(&alice, "/account/whoami").0, 200);
    let ended = one.post(&alice, path, json!({ "auth": auth(&alice) }));
    assert_eq!(ended, (200, json!({ "id_server_unbind_result": "success" })));
    refused(&one.get(&alice, "/account/whoami"), 401, "M_UNKNOWN_TOKEN");
    refused(&login(&one, "alice", "alice's"), 403, "M_USER_DEACTIVATED");
    refused(&login(&one, "alice", ""), 403, "M_USER_DEACTIVATED");
    let body = json!({ "username": "alice", "password": "x", "auth": { "type": "m.login.dummy" } });
    refused(&one.call(None, "POST", "/register", Some(body)), 400, "M_USER_IN_USE");
    refused(&one.call(None, "GET", "/register/available?username=alice", None), 400, "M_USER_IN_USE");
    one.world.settle();
    let members =
        |home: &Home, user: &User, room: &str| home.get(user, &format!("/rooms/{}/joined_members", quote(room))).1;
    assert!(members(&two, &bob, &room)["joined"].get(&alice.id).is_none());
    let left = one.database.rows("SELECT DISTINCT membership FROM local_memberships WHERE user_id = '@alice:one.test'");
    assert_eq!(left, [["leave"]]);
    let state = |home: &Home, user: &User, room: &str| {
        home.get(user, &format!("/rooms/{}/state/m.room.member/{}", quote(room), quote(&alice.id))).1["membership"]
            .clone()
    };
    assert_eq!((state(&two, &bob, &invited), state(&one, &carol, &near)), (json!("leave"), json!("leave")));
    assert_eq!(one.database.rows("SELECT count(*) FROM departures"), [["0"]]);
    assert_eq!(one.database.rows("SELECT count(*) FROM account_data WHERE user_id = '@alice:one.test'"), [["0"]]);
    assert_eq!(one.call(None, "GET", &format!("/profile/{}", quote(&alice.id)), None).1["displayname"], "alice");
    assert!(!own.is_empty());
}

/// Nobody else was told of them.
#[test]
fn signatures_on_the_keys_of_others_go_with_the_account() {
    let (home, alice, bob, _) = together();
    let (hers, his) = (Keys::new(&alice), Keys::new(&bob));
    for (user, keys) in [(&alice, &hers), (&bob, &his)] {
        assert_eq!(home.post(user, UPLOAD, keys.body()).0, 200);
    }
    for (by, keys, of, theirs) in [(&alice, &hers, &bob, &his), (&bob, &his, &alice, &hers)] {
        let signed = json!({ &of.id: { &theirs.master.public: keys.user_signing.sign(theirs.master.unsigned()) } });
        assert_eq!(home.post(by, "/keys/signatures/upload", signed), (200, json!({ "failures": {} })));
    }
    assert_eq!(home.database.rows("SELECT count(*) FROM key_signatures"), [["2"]]);
    assert_eq!(home.post(&alice, "/account/deactivate", json!({ "auth": auth(&alice) })).0, 200);
    assert_eq!(home.database.rows("SELECT user_id, signer FROM key_signatures"), Vec::<Vec<String>>::new());
}

#[test]
fn who_is_erased_has_no_name_any_more() {
    let (home, alice, _, _) = together();
    assert_eq!(home.post(&alice, "/account/deactivate", json!({ "auth": auth(&alice), "erase": true })).0, 200);
    assert_eq!(home.call(None, "GET", &format!("/profile/{}", quote(&alice.id)), None), (200, json!({})));
}

/// What the user is told of an event: its content, and in another place the same.
fn told(home: &Home, user: &User, room: &str, event: &str) -> Value {
    let (status, answer) = home.get(user, &format!("/rooms/{}/event/{}", quote(room), quote(event)));
    assert_eq!(status, 200, "{answer}");
    let page = home.get(user, &format!("/rooms/{}/messages?dir=b&limit=100", quote(room))).1;
    let listed = page["chunk"].as_array().unwrap().iter().find(|listed| listed["event_id"] == event).unwrap();
    assert_eq!(listed["content"], answer["content"]);
    let around = home.get(user, &format!("/rooms/{}/context/{}", quote(room), quote(event))).1;
    assert_eq!(around["event"]["content"], answer["content"]);
    answer["content"].clone()
}

fn finds(home: &Home, user: &User, words: &str) -> usize {
    let criteria = json!({ "search_categories": { "room_events": { "search_term": words } } });
    let (status, answer) = home.post(user, "/search", criteria);
    assert_eq!(status, 200, "{answer}");
    answer["search_categories"]["room_events"]["results"].as_array().unwrap().len()
}

#[test]
fn what_the_erased_have_sent_is_shown_to_those_alone_who_were_there() {
    let (home, alice, bob, room) = together();
    let (carol, dave) = (home.register("carol"), home.register("dave"));
    let enter = |user: &User| assert_eq!(home.post(user, &format!("/join/{}", quote(&room)), json!({})).0, 200);
    let leave = |user: &User, room: &str| {
        assert_eq!(home.post(user, &format!("/rooms/{}/leave", quote(room)), json!({})).0, 200);
    };
    enter(&dave);
    leave(&dave, &room);
    let name = |user: &User, text: &str| {
        let path = format!("/rooms/{}/state/m.room.name", quote(&room));
        home.put(user, &path, json!({ "name": text })).1["event_id"].as_str().unwrap_or_default().to_owned()
    };
    let (first, second) = (name(&alice, "the first name"), name(&alice, "the second name"));
    let said = home.say(&alice, &room, "a secret", "1");
    let answer = home.say(&bob, &room, "no secret", "2");
    enter(&dave);
    enter(&carol);
    let content = json!({ "msgtype": "m.text", "body": "a secret" });
    for user in [&bob, &carol, &dave] {
        assert_eq!(told(&home, user, &room, &said), content);
    }
    assert_eq!(finds(&home, &carol, "secret"), 2);
    let erase = json!({ "auth": auth(&alice), "erase": true });
    assert_eq!(home.post(&alice, "/account/deactivate", erase).0, 200);
    home.world.settle();
    // Bob was there. Carol came later; Dave was there before and after.
    assert_eq!((told(&home, &bob, &room, &said), finds(&home, &bob, "secret")), (content, 2));
    for user in [&carol, &dave] {
        assert_eq!(told(&home, user, &room, &said), json!({}));
        assert_eq!((told(&home, user, &room, &first), told(&home, user, &room, &second)), (json!({}), json!({})));
        assert_eq!(told(&home, user, &room, &answer)["body"], "no secret");
        assert_eq!(finds(&home, user, "secret"), 1);
        let whole = home.sync(user, "").to_string();
        assert!(!whole.contains("a secret") && !whole.contains("the first name"), "{whole}");
        // The room is still called so.
        let state = home.get(user, &format!("/rooms/{}/state/m.room.name", quote(&room))).1;
        assert_eq!(state["name"], "the second name");
    }
    let whole = home.get(&bob, &format!("/rooms/{}/event/{}", quote(&room), quote(&second))).1;
    assert_eq!(whole["unsigned"]["prev_content"]["name"], "the first name");
    let pruned = home.get(&carol, &format!("/rooms/{}/event/{}", quote(&room), quote(&second))).1;
    assert_eq!(pruned["unsigned"]["prev_content"], json!({}));
    // Who comes after it all.
    let late = home.register("late");
    enter(&late);
    assert_eq!(told(&home, &late, &room, &said), json!({}));
}

#[test]
fn a_room_that_was_forgotten_is_not_forgotten_by_an_erasure() {
    for is_erased in [true, false] {
        let (home, alice, bob, room) = together();
        let said = home.say(&alice, &room, "a secret", "1");
        for path in ["leave", "forget"] {
            assert_eq!(home.post(&alice, &format!("/rooms/{}/{path}", quote(&room)), json!({})).0, 200);
        }
        let body = json!({ "auth": auth(&alice), "erase": is_erased });
        assert_eq!(home.post(&alice, "/account/deactivate", body).0, 200);
        home.world.settle();
        let carol = home.register("carol");
        assert_eq!(home.post(&carol, &format!("/join/{}", quote(&room)), json!({})).0, 200);
        assert_eq!(told(&home, &bob, &room, &said)["body"], "a secret");
        let content = if is_erased { json!({}) } else { json!({ "msgtype": "m.text", "body": "a secret" }) };
        assert_eq!(told(&home, &carol, &room, &said), content);
        for table in ["forgotten_rooms", "account_data", "devices"] {
            let rows = format!("SELECT * FROM {table} WHERE user_id = '{}'", alice.id);
            assert!(home.database.rows(&rows).is_empty(), "{table}");
        }
    }
}

/// The server dies after the answer: another goes on, whether the server that sent an invite can be reached or not.
#[test]
fn rooms_are_left_after_a_restart() {
    let (one, alice, two, bob, _) = apart();
    two.room(&bob, json!({ "invite": [alice.id] }));
    two.world.settle();
    one.world.cut("one.test", "two.test");
    let user = UserId::parse(&alice.id).unwrap();
    let own = &one.server.config.server_name;
    one.world.run(one.server.store.deactivate(own, &user, false, one.world.now_ms())).unwrap();
    let memberships = || {
        one.database
            .rows("SELECT membership FROM local_memberships WHERE user_id = '@alice:one.test' ORDER BY membership")
    };
    assert_eq!(memberships(), [["invite"], ["join"]]);
    // Nobody could ask for the end a second time.
    refused(&one.get(&alice, "/account/whoami"), 401, "M_UNKNOWN_TOKEN");
    let platform = one.world.platform("one.test", one.database.clone());
    let restarted = Program::from(Server::new(one.server.config.clone(), platform));
    one.world.run(restarted.scheduled());
    one.world.settle();
    assert_eq!(memberships(), [["leave"], ["leave"]]);
    assert_eq!(one.database.rows("SELECT count(*) FROM departures"), [["0"]]);
}

/// What another server lets in or what a sweep finishes comes when the account has ended.
#[test]
fn a_room_that_is_entered_while_the_account_ends_is_left() {
    for (what, preset, rule) in [("join", "public_chat", "public"), ("knock", "private_chat", "knock")] {
        let world = World::new();
        let open = [("REGISTRATION", "open")];
        let (one, two) = (Home::with(&world, "one.test", &open), Home::with(&world, "two.test", &open));
        let (alice, bob) = (one.register("alice"), two.register("bob"));
        let rules = json!([{ "type": "m.room.join_rules", "content": { "join_rule": rule } }]);
        let room = one.room(&alice, json!({ "preset": preset, "initial_state": rules }));
        answer_late(&one, "one.test", &format!("/send_{what}/"));
        hang_up(&two, &bob, &format!("/{what}/{}?via=one.test", quote(&room)), "{}");
        assert_eq!(two.post(&bob, "/account/deactivate", json!({ "auth": auth(&bob) })).0, 200);
        let memberships = || two.database.rows("SELECT membership FROM local_memberships").concat();
        assert!(memberships().is_empty());
        world.settle();
        world.advance(60_000);
        world.run(two.server.scheduled());
        world.settle();
        assert_eq!(memberships(), ["leave"], "{what}: {:?}", world.logs());
        let path = format!("/rooms/{}/state/m.room.member/{}", quote(&room), quote(&bob.id));
        assert_eq!(one.get(&alice, &path).1["membership"], "leave");
        assert_eq!(two.database.rows("SELECT count(*) FROM departures"), [["0"]]);
    }
}

/// As if there were no such user; by an invite nobody comes back.
#[test]
fn who_has_ended_the_account_is_not_invited() {
    let (one, alice, two, bob, _) = apart();
    let carol = one.register("carol");
    assert_eq!(one.post(&alice, "/account/deactivate", json!({ "auth": auth(&alice) })).0, 200);
    one.world.settle();
    for (home, user) in [(&one, &carol), (&two, &bob)] {
        let room = home.room(user, json!({}));
        let invite =
            |user_id: &str| home.post(user, &format!("/rooms/{}/invite", quote(&room)), json!({ "user_id": user_id }));
        let asked = invite(&alice.id);
        assert!((400..500).contains(&asked.0), "{asked:?}");
        assert_eq!(asked, invite("@nobody:one.test"));
        home.world.settle();
    }
    let memberships = || {
        let of_alice = "SELECT DISTINCT membership FROM local_memberships WHERE user_id = '@alice:one.test' \
             ORDER BY membership";
        one.database.rows(of_alice).concat()
    };
    assert_eq!(memberships(), ["leave"]);
    // An invite that was under way is declined.
    let room = RoomId::parse(&one.room(&carol, json!({}))).unwrap();
    let draft = Draft::membership(&alice.id, Membership::Invite, Object::new());
    let sender = UserId::parse(&carol.id).unwrap();
    one.world.run(one.server.rooms.send(&room, &sender, draft)).unwrap();
    assert_eq!(memberships(), ["invite", "leave"]);
    one.world.run(one.server.scheduled());
    one.world.settle();
    assert_eq!(memberships(), ["leave"]);
    assert_eq!(one.database.rows("SELECT count(*) FROM departures"), [["0"]]);
}

#[test]
fn there_are_no_third_party_identifiers() {
    let home = Home::new();
    let alice = home.register("alice");
    assert_eq!(home.get(&alice, "/account/3pid"), (200, json!({ "threepids": [] })));
    refused(&home.call(None, "GET", "/account/3pid", None), 401, "M_MISSING_TOKEN");
    assert_eq!(home.get(&alice, "/capabilities").1["capabilities"]["m.3pid_changes"]["enabled"], false);
    for path in ["/account/3pid", "/account/3pid/add", "/account/3pid/bind"] {
        refused(&home.post(&alice, path, json!({ "client_secret": "x", "sid": "x" })), 403, "M_FORBIDDEN");
        refused(&home.call(None, "POST", path, Some(json!({}))), 401, "M_MISSING_TOKEN");
    }
    for (path, result) in [("delete", "success"), ("unbind", "no-support")] {
        let path = format!("/account/3pid/{path}");
        let answer = home.post(&alice, &path, json!({ "medium": "email", "address": "a@x" }));
        assert_eq!(answer, (200, json!({ "id_server_unbind_result": result })));
        refused(&home.post(&alice, &path, json!({ "medium": "email" })), 400, "M_MISSING_PARAM");
        refused(&home.call(None, "POST", &path, Some(json!({}))), 401, "M_MISSING_TOKEN");
    }
    let body = json!({ "client_secret": "x", "email": "a@x", "send_attempt": 1 });
    for medium in ["email", "msisdn"] {
        for place in ["account/3pid", "register"] {
            let answer = home.call(None, "POST", &format!("/{place}/{medium}/requestToken"), Some(body.clone()));
            refused(&answer, 403, "M_THREEPID_DENIED");
        }
        let answer = home.call(None, "POST", &format!("/account/password/{medium}/requestToken"), Some(body.clone()));
        refused(&answer, 400, "M_THREEPID_NOT_FOUND");
    }
}
