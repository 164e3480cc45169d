//! Presence, within one server and between two.

use ruma_common::serde::Raw;
use ruma_events::presence::PresenceEvent;
use serde_json::{Value, json};
use verge::matrix::identifiers::UserId;

use crate::{
    home::{Home, User, next, quote, refused},
    typing::{apart, together},
};

fn set(home: &Home, user: &User, body: Value) -> (u16, Value) {
    home.put(user, &path(user), body)
}

fn path(user: &User) -> String {
    format!("/presence/{}/status", quote(&user.id))
}

/// Users, states and status messages in a sync's answer, each event as ruma reads it.
fn told(answer: &Value) -> Vec<[String; 3]> {
    let events = answer["presence"]["events"].as_array().unwrap();
    let read = |event: &Value| {
        let raw: Raw<PresenceEvent> = serde_json::from_value(event.clone()).unwrap();
        let read = raw.deserialize().unwrap_or_else(|error| panic!("{event}: {error}"));
        let content = read.content;
        [read.sender.to_string(), content.presence.to_string(), content.status_msg.unwrap_or_default()]
    };
    events.iter().map(read).collect()
}

fn of(user: &User, state: &str, status: &str) -> [String; 3] {
    [user.id.as_str(), state, status].map(str::to_owned)
}

/// The scheduled trigger comes by so many times.
pub(crate) fn minutes_pass(home: &Home, count: usize) {
    for _ in 0..count {
        home.world.advance(60_000);
        home.world.run(home.server.scheduled());
        home.world.settle();
    }
}

#[test]
fn who_shares_a_room_sees_it() {
    let (home, alice, bob, _) = together();
    let stranger = home.register("stranger");
    let (of_alice, of_stranger) = (next(&home.sync(&alice, "")), next(&home.sync(&stranger, "")));
    let body = json!({ "presence": "unavailable", "status_msg": "at lunch" });
    assert_eq!(set(&home, &bob, body), (200, json!({})));
    home.world.advance(3_000);
    let answer = home.sync(&alice, &of_alice);
    assert_eq!(told(&answer), [of(&bob, "unavailable", "at lunch")]);
    assert_eq!(told(&home.sync(&alice, &next(&answer))), [[""; 3]; 0]);
    assert_eq!(told(&home.sync(&alice, "")), [of(&bob, "unavailable", "at lunch")]);
    assert_eq!(told(&home.sync(&stranger, &of_stranger)), [[""; 3]; 0]);
    let expected = json!({
        "presence": "unavailable", "status_msg": "at lunch", "last_active_ago": 3_000, "currently_active": false,
    });
    assert_eq!(home.get(&alice, &path(&bob)), (200, expected.clone()));
    assert_eq!(home.get(&bob, &path(&bob)), (200, expected));
    refused(&home.get(&stranger, &path(&bob)), 403, "M_FORBIDDEN");
    refused(&home.get(&bob, &path(&alice)), 404, "M_NOT_FOUND");
    assert_eq!(home.get(&alice, &path(&alice)), (200, json!({ "presence": "offline" })), "of oneself it is known");
    // Who is not there is not told of at first.
    set(&home, &bob, json!({ "presence": "offline" }));
    assert_eq!(told(&home.sync(&alice, &of_alice)), [of(&bob, "offline", "")]);
    assert_eq!(told(&home.sync(&alice, "")), [[""; 3]; 0]);
}

#[test]
fn filters_are_heeded() {
    let (home, alice, bob, _) = together();
    let since = next(&home.sync(&alice, ""));
    set(&home, &bob, json!({ "presence": "online" }));
    for filter in
        [json!({ "not_types": ["m.*"] }), json!({ "not_senders": [bob.id] }), json!({ "senders": [alice.id] })]
    {
        let filter = quote(&json!({ "presence": filter }).to_string());
        assert_eq!(told(&home.sync(&alice, &format!("{since}&filter={filter}"))), [[""; 3]; 0]);
    }
    assert_eq!(told(&home.sync(&alice, &since)), [of(&bob, "online", "")]);
}

#[test]
fn what_is_wrong_is_refused() {
    let (home, alice, bob, _) = together();
    let online = json!({ "presence": "online" });
    refused(&home.put(&alice, &path(&bob), online.clone()), 403, "M_FORBIDDEN");
    refused(&home.call(None, "PUT", &path(&bob), Some(online)), 401, "M_MISSING_TOKEN");
    refused(&home.call(None, "GET", &path(&bob), None), 401, "M_MISSING_TOKEN");
    refused(&home.get(&bob, "/presence/bob/status"), 400, "M_INVALID_PARAM");
    refused(&set(&home, &bob, json!({})), 400, "M_MISSING_PARAM");
    refused(&set(&home, &bob, json!({ "presence": "busy" })), 400, "M_INVALID_PARAM");
    refused(&set(&home, &bob, json!({ "presence": 1 })), 400, "M_BAD_JSON");
    refused(&set(&home, &bob, json!({ "presence": "online", "status_msg": 1 })), 400, "M_BAD_JSON");
    let long = "x".repeat(1_025);
    refused(&set(&home, &bob, json!({ "presence": "online", "status_msg": long })), 400, "M_INVALID_PARAM");
    assert_eq!(home.database.rows("SELECT * FROM presence"), [[""; 0]; 0]);
}

#[test]
fn it_goes_to_the_other_server_both_ways_and_only_what_is_news() {
    let (one, alice, two, bob, _) = apart();
    for (from, user, to, other) in [(&one, &alice, &two, &bob), (&two, &bob, &one, &alice)] {
        let since = next(&to.sync(other, ""));
        set(from, user, json!({ "presence": "online", "status_msg": "here" }));
        from.world.settle();
        assert_eq!(told(&to.sync(other, &since)), [of(user, "online", "here")]);
        let sent = from.world.traffic().len();
        set(from, user, json!({ "presence": "online", "status_msg": "here" }));
        from.world.settle();
        assert_eq!(from.world.traffic().len(), sent);
    }
}

/// By the parameter `set_presence`; here and on another server.
#[test]
fn who_syncs_is_there_as_long_as_they_do() {
    let (one, alice, two, bob, _) = apart();
    let carol = one.register("carol");
    let room = one.room(&carol, json!({ "preset": "public_chat" }));
    assert_eq!(one.post(&alice, &format!("/join/{}", quote(&room)), json!({})).0, 200);
    let (of_bob, of_carol) = (next(&two.sync(&bob, "")), next(&one.sync(&carol, "")));
    let row = || one.database.rows("SELECT presence, synced_until, pos FROM presence");
    let syncs = |asked: &str| {
        one.sync(&alice, asked);
        one.world.settle();
    };
    // Neither of these has her be there.
    syncs("");
    syncs("set_presence=offline");
    assert!(row().is_empty());
    refused(&one.get(&alice, "/sync?set_presence=busy"), 400, "M_INVALID_PARAM");

    syncs("set_presence=unavailable");
    let told_both = |state: &str| {
        let seen = [told(&two.sync(&bob, &of_bob)), told(&one.sync(&carol, &of_carol))];
        assert_eq!(seen, [[of(&alice, state, "")], [of(&alice, state, "")]]);
    };
    told_both("unavailable");
    // Another of her clients is in use; the first says nothing new meanwhile.
    syncs("set_presence=online");
    told_both("online");
    let (noted, sent) = (row(), one.world.traffic().len());
    one.world.advance(3 * 60_000);
    syncs("set_presence=online");
    syncs("set_presence=unavailable");
    assert_eq!((row(), one.world.traffic().len()), (noted.clone(), sent), "syncs cost nothing for four minutes");
    one.world.advance(90_000);
    syncs("set_presence=online");
    let again = row();
    assert_eq!((&again[0][0], &again[0][2]), (&noted[0][0], &noted[0][2]), "no news");
    assert_ne!(again[0][1], noted[0][1]);
    // Her clients are gone.
    minutes_pass(&one, 5);
    told_both("online");
    minutes_pass(&one, 2);
    told_both("offline");
    // What she says herself holds until she says something else.
    one.world.advance(60_000);
    assert_eq!(set(&one, &alice, json!({ "presence": "online" })).0, 200);
    one.world.settle();
    minutes_pass(&one, 10);
    told_both("online");
}

/// The scheduled trigger for so many minutes; in each the client syncs before.
fn minutes(home: &Home, user: &User, count: u32, asked: &str, mut then: impl FnMut()) {
    for _ in 0..count {
        home.world.advance(60_000);
        home.sync(user, asked);
        home.world.settle();
        home.world.run(home.server.scheduled());
        home.world.settle();
        then();
    }
}

#[test]
fn who_goes_idle_is_not_gone() {
    let (home, alice, bob, _) = together();
    let since = next(&home.sync(&bob, ""));
    home.sync(&alice, "set_presence=online");
    home.world.settle();
    let mut states = Vec::new();
    minutes(&home, &alice, 20, "set_presence=unavailable", || {
        states.push(told(&home.sync(&bob, &since))[0][1].clone());
    });
    states.dedup();
    assert_eq!(states, ["online", "unavailable"]);
    // Where none of her clients syncs any more, she is gone.
    minutes_pass(&home, 7);
    assert_eq!(told(&home.sync(&bob, &since)), [of(&alice, "offline", "")]);
}

#[test]
fn what_users_say_themselves_outlasts_their_syncs() {
    let (home, alice, bob, _) = together();
    let since = next(&home.sync(&bob, ""));
    home.sync(&alice, "set_presence=online");
    home.world.settle();
    // No news to others, yet it is she who says it now.
    assert_eq!(set(&home, &alice, json!({ "presence": "online" })).0, 200);
    minutes_pass(&home, 10);
    assert_eq!(told(&home.sync(&bob, &since)), [of(&alice, "online", "")]);
}

/// Beside somebody who has ended the account and is in many rooms.
#[test]
fn it_ends_while_others_leave_their_rooms() {
    let (home, alice, bob, _) = together();
    let carol = home.register("carol");
    (0..60).for_each(|_| drop(home.room(&carol, json!({}))));
    home.sync(&alice, "set_presence=online");
    home.world.settle();
    assert_eq!(home.get(&bob, &path(&alice)).1["presence"], "online");
    home.world.advance(6 * 60_000);
    let (own, user) = (&home.server.config.server_name, UserId::parse(&carol.id).unwrap());
    home.world.run(home.server.store.deactivate(own, &user, false, home.world.now_ms())).unwrap();
    minutes_pass(&home, 2);
    assert_eq!(home.database.rows("SELECT count(*) FROM departures"), [["1"]], "she has not left them all yet");
    assert_eq!(home.get(&bob, &path(&alice)).1["presence"], "offline");
}

#[test]
fn it_ends_for_all_who_are_gone() {
    let home = Home::new();
    home.database.rows(
        "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 150) \
         INSERT INTO presence (user_id, presence, last_active_ts, currently_active, rooms, pos, synced_until) \
         SELECT '@u' || n || ':hs.test', 'online', 1, 1, '[]', -n, 2 FROM n",
    );
    minutes_pass(&home, 1);
    assert_eq!(home.database.rows("SELECT presence, count(*) FROM presence GROUP BY 1"), [["offline", "150"]]);
    assert_eq!(home.database.rows("SELECT count(DISTINCT pos) FROM presence"), [["150"]]);
}

/// Synapse takes users of whom it has heard nothing for half an hour to be gone.
#[test]
fn of_who_stays_others_are_told_again() {
    let (one, alice, _two, _, room) = apart();
    let carol = one.register("carol");
    joins(&one, &carol, &room);
    let sent = || {
        one.world.settle();
        let traffic = one.world.traffic();
        traffic.iter().filter(|sent| sent.to == "two.test" && sent.line.contains("/send/")).count()
    };
    for state in ["online", "unavailable"] {
        set(&one, &alice, json!({ "presence": state }));
        let (before, pos) = (sent(), one.database.rows("SELECT pos FROM presence"));
        let since = next(&one.sync(&carol, ""));
        minutes_pass(&one, 24);
        assert_eq!(sent() - before, 0);
        minutes_pass(&one, 2);
        assert_eq!(sent() - before, 1);
        minutes_pass(&one, 26);
        assert_eq!(sent() - before, 2);
        assert_eq!(one.database.rows("SELECT pos FROM presence"), pos);
        assert_eq!(told(&one.sync(&carol, &since)), [[""; 3]; 0]);
    }
    set(&one, &alice, json!({ "presence": "offline" }));
    let before = sent();
    minutes_pass(&one, 60);
    assert_eq!(sent(), before);
}

#[test]
fn who_stays_is_there_for_another_server_until_that_is_gone() {
    let (one, alice, two, bob, _) = apart();
    set(&one, &alice, json!({ "presence": "online" }));
    one.world.settle();
    let seen = || two.get(&bob, &path(&alice)).1["presence"].clone();
    for _ in 0..70 {
        one.world.advance(60_000);
        for home in [&one, &two] {
            one.world.run(home.server.scheduled());
        }
        one.world.settle();
        assert_eq!(seen(), "online");
    }
    let since = next(&two.sync(&bob, ""));
    minutes_pass(&two, 31);
    assert_eq!(seen(), "offline");
    assert_eq!(told(&two.sync(&bob, &since)), [of(&alice, "offline", "")]);
}

/// More than a server takes the presence of from one transaction.
#[test]
fn all_of_many_who_stay_are_there_for_another_server() {
    let (one, _, two, _, room) = apart();
    for n in 0..70 {
        let user = one.register(&format!("user{n}"));
        joins(&one, &user, &room);
        set(&one, &user, json!({ "presence": "online" }));
    }
    one.world.settle();
    // So that all of them are due in the same minute.
    one.database.rows(&format!("UPDATE presence SET told_ts = {}", one.world.now_ms()));
    let there = || two.database.rows("SELECT count(*) FROM presence WHERE presence = 'online'");
    assert_eq!(there(), [["70"]]);
    for _ in 0..32 {
        one.world.advance(60_000);
        for home in [&one, &two] {
            one.world.run(home.server.scheduled());
        }
        one.world.settle();
    }
    assert_eq!(there(), [["70"]]);
}

/// Those whose presence is known when the server learns to tell of them again, and to end them.
#[test]
fn who_was_there_before_is_told_of_again_or_ends() {
    let (one, alice, two, bob, _) = apart();
    set(&one, &alice, json!({ "presence": "online" }));
    set(&two, &bob, json!({ "presence": "online" }));
    one.world.settle();
    let migration = include_str!("../../migrations/0068_presence_told.sql");
    one.database.rows("UPDATE presence SET told_after = NULL, told_ts = NULL, heard_until = NULL");
    for update in migration.split("UPDATE ").skip(1) {
        one.database.rows(&format!("UPDATE {}", update.split(';').next().unwrap()));
    }
    let rows = one.database.rows("SELECT user_id, told_after, told_ts, heard_until > 1800000 FROM presence ORDER BY 1");
    assert_eq!(rows, [[alice.id.as_str(), "[\"\",\"\"]", "0", "NULL"], [bob.id.as_str(), "NULL", "NULL", "1"]]);
}

/// What a version from before that writes, which answers beside this one while this one is deployed.
#[test]
fn whom_an_older_version_noted_is_told_of_again_or_ends() {
    let (one, alice, two, bob, _) = apart();
    let older = "UPDATE presence SET told_after = NULL, told_ts = NULL, heard_until = NULL";
    let row = |user: &User| {
        let row = one.database.rows(&format!(
            "SELECT presence, told_ts > 0, told_after IS NULL, heard_until > 0 FROM presence WHERE user_id = '{}'",
            user.id
        ));
        row.concat().join(" ")
    };
    let syncs = |asked: &str| {
        one.sync(&alice, asked);
        one.world.settle();
    };
    for state in ["unavailable", "online"] {
        syncs(&format!("set_presence={state}"));
        one.database.rows(older);
        one.world.advance(5 * 60_000);
        // That another client of hers is idle is no news.
        if state == "online" {
            syncs("set_presence=unavailable");
            assert_eq!(row(&alice), "online NULL 1 NULL");
            one.world.advance(30_000);
        }
        syncs(&format!("set_presence={state}"));
        assert_eq!(row(&alice), format!("{state} 1 0 NULL"));
    }
    one.database.rows(older);
    set(&one, &alice, json!({ "presence": "online" }));
    assert_eq!(row(&alice), "online 1 0 NULL");
    // Of whom it has noted to be gone others are told once more.
    one.database.rows("UPDATE presence SET presence = 'offline', told_ts = 1 WHERE told_ts > 1");
    minutes_pass(&one, 1);
    assert_eq!(row(&alice), "offline NULL 0 NULL");
    // His server tells of him again.
    set(&two, &bob, json!({ "presence": "online" }));
    two.world.settle();
    one.database.rows(older);
    two.database.rows("UPDATE presence SET told_ts = 0 WHERE told_ts > 0");
    minutes_pass(&two, 1);
    assert_eq!(row(&bob), "online NULL 1 1");
}

#[test]
fn others_are_told_again_of_so_many_at_a_time() {
    let home = Home::new();
    home.database.rows(
        "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 150) \
         INSERT INTO presence (user_id, presence, last_active_ts, currently_active, rooms, pos, told_after, told_ts) \
         SELECT '@u' || n || ':hs.test', 'online', 1, 1, '[]', -n, '[\"\",\"\"]', n FROM n",
    );
    for left in [50, 0, 0] {
        minutes_pass(&home, 1);
        let left_over = home.database.rows("SELECT count(*) FROM presence WHERE told_ts < 1000");
        assert_eq!(left_over, [[left.to_string()]]);
    }
    assert_eq!(home.database.rows("SELECT min(pos), max(pos) FROM presence"), [["-150", "-1"]]);
}

fn joins(home: &Home, user: &User, room: &str) {
    let (status, answer) = home.post(user, &format!("/join/{}?via=two.test", quote(room)), json!({}));
    assert_eq!(status, 200, "{answer}");
    home.world.settle();
}

#[test]
fn it_follows_users_into_rooms_and_out_of_them() {
    let (home, alice, bob, room) = together();
    let (carol, dora) = (home.register("carol"), home.register("dora"));
    for (user, state) in [(&bob, "online"), (&carol, "unavailable"), (&dora, "offline")] {
        set(&home, user, json!({ "presence": state, "status_msg": "here" }));
    }
    let [of_alice, of_bob, of_carol] = [&alice, &bob, &carol].map(|user| next(&home.sync(user, "")));
    refused(&home.get(&alice, &path(&carol)), 403, "M_FORBIDDEN");
    joins(&home, &carol, &room);
    joins(&home, &dora, &room);
    // Those who are there hear of whom comes, and who comes of those who are there.
    for (user, since) in [(&alice, &of_alice), (&bob, &of_bob)] {
        let answer = home.sync(user, since);
        assert_eq!(told(&answer), [of(&carol, "unavailable", "here")]);
        assert_eq!(told(&home.sync(user, &next(&answer))), [[""; 3]; 0], "once");
    }
    let answer = home.sync(&carol, &of_carol);
    let mut seen = told(&answer);
    seen.sort();
    assert_eq!(seen, [of(&bob, "online", "here"), of(&carol, "unavailable", "here")]);
    assert_eq!(told(&home.sync(&carol, &next(&answer))), [[""; 3]; 0], "once");
    assert_eq!(home.get(&alice, &path(&carol)).0, 200);
    assert_eq!(home.get(&carol, &path(&bob)).0, 200);
    assert_eq!(home.get(&bob, &path(&dora)).0, 200);
    // A new profile is no news of it.
    let since = next(&home.sync(&alice, ""));
    let name = format!("/profile/{}/displayname", quote(&carol.id));
    assert_eq!(home.put(&carol, &name, json!({ "displayname": "C" })).0, 200);
    assert_eq!(told(&home.sync(&alice, &since)), [[""; 3]; 0]);
    assert_eq!(home.post(&carol, &format!("/rooms/{}/leave", quote(&room)), json!({})).0, 200);
    refused(&home.get(&alice, &path(&carol)), 403, "M_FORBIDDEN");
    set(&home, &carol, json!({ "presence": "online" }));
    assert_eq!(told(&home.sync(&alice, &since)), [[""; 3]; 0]);
}

#[test]
fn it_is_told_to_the_servers_of_a_room_that_a_user_joins() {
    let world = crate::common::network::World::new();
    let [one, two] = ["one.test", "two.test"].map(|name| Home::with(&world, name, &[("REGISTRATION", "open")]));
    let (alice, bob, carol) = (one.register("alice"), two.register("bob"), two.register("carol"));
    set(&one, &alice, json!({ "presence": "online", "status_msg": "here" }));
    for user in [&bob, &carol] {
        let room = two.room(user, json!({ "preset": "public_chat" }));
        let since = next(&two.sync(user, ""));
        let (status, errcode) = if user.id == bob.id { (404, "M_NOT_FOUND") } else { (403, "M_FORBIDDEN") };
        refused(&two.get(user, &path(&alice)), status, errcode);
        joins(&one, &alice, &room);
        // Of what is told at a time to one server there is a second between.
        world.advance(2_000);
        world.settle();
        assert_eq!(told(&two.sync(user, &since)), [of(&alice, "online", "here")]);
        assert_eq!(two.get(user, &path(&alice)).0, 200);
    }
}
