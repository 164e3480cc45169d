//! What other servers see of a room's history.

use std::{collections::BTreeMap, rc::Rc};

use serde_json::{Value, json};
use verge::{
    federation::outbound::membership,
    matrix::{
        event::Event,
        identifiers::{EventId, RoomId, ServerName, UserId},
        json::Object,
        state_content::Membership,
        state_trie::NodeId,
    },
    room::Draft,
};

use crate::common::{
    generator::Random,
    homeserver::{object, state_events},
    network::{Homeserver, World},
    peer::{Peer, encode, event_id},
};

/// Alice's room, which nobody else is in yet.
struct Room {
    world: World,
    a: Homeserver,
    alice: UserId,
    id: RoomId,
}

fn room(version: &str) -> Room {
    let world = World::new();
    let a = world.server("a.example");
    let alice = a.user(&world, "alice");
    let id = a.public_room(&world, &alice, version);
    Room { world, a, alice, id }
}

impl Room {
    fn send(&self, draft: Draft) -> Event {
        self.a.send(&self.world, &self.id, &self.alice, draft)
    }

    fn say(&self, body: &str) -> Event {
        self.a.say(&self.world, &self.id, &self.alice, body)
    }

    fn show_to(&self, visibility: &str) -> Event {
        let content = object(json!({ "history_visibility": visibility }));
        self.send(Draft::state("m.room.history_visibility", "", content))
    }

    fn invite(&self, user: &str) -> Event {
        self.send(Draft::membership(user, Membership::Invite, object(json!({}))))
    }

    fn kick(&self, user: &str) -> Event {
        self.send(Draft::membership(user, Membership::Leave, object(json!({}))))
    }

    /// A user of `peer` is there for a while: what was said before their invite, before their join, then, and after they left.
    fn bob_comes_and_goes(&self, peer: &Rc<Peer>) -> [Event; 4] {
        let bob = peer.user("bob");
        let before = self.say("before");
        self.invite(&bob);
        let invited = self.say("invited");
        peer.join(&self.a, self.id.as_str(), &bob);
        let joined = self.say("joined");
        self.kick(&bob);
        [before, invited, joined, self.say("left")]
    }

    /// Whether `peer` is given the event whole; else it is given the same event, redacted.
    fn shows(&self, peer: &Rc<Peer>, event: &Event) -> bool {
        let target = format!("/_matrix/federation/v1/event/{}", encode(event.event_id().as_str()));
        let (status, answer) = peer.get(&self.a, &target);
        assert_eq!(status, 200, "{answer}");
        is_whole(&answer["pdus"][0], event)
    }

    /// The same as `backfill` and `get_missing_events` have it.
    fn shows_in_history(&self, peer: &Rc<Peer>, events: &[&Event]) -> Vec<bool> {
        let last = self.say("the last");
        let room = encode(self.id.as_str());
        let target = format!("/_matrix/federation/v1/backfill/{room}?v={}&limit=100", encode(last.event_id().as_str()));
        let (status, backfilled) = peer.get(&self.a, &target);
        assert_eq!(status, 200, "{backfilled}");
        let wanted = json!({ "earliest_events": [], "latest_events": [last.event_id().as_str()], "limit": 20 });
        let (status, missing) =
            peer.post(&self.a, &format!("/_matrix/federation/v1/get_missing_events/{room}"), &wanted);
        assert_eq!(status, 200, "{missing}");
        let version = last.version().id;
        let find = |list: &Value, event: &Event| {
            let mut list = list.as_array().unwrap().iter();
            list.find(|given| event_id(version, given) == event.event_id().as_str()).map(|given| is_whole(given, event))
        };
        events
            .iter()
            .map(|event| {
                let shown = find(&backfilled["pdus"], event).unwrap();
                // These are the newest twenty alone.
                assert!(find(&missing["events"], event).is_none_or(|missing| missing == shown));
                shown
            })
            .collect()
    }
}

fn is_whole(given: &Value, event: &Event) -> bool {
    assert_eq!(event_id(event.version().id, given), event.event_id().as_str(), "it is the same event, if redacted");
    let whole: Value = serde_json::from_str(event.json()).unwrap();
    let redacted: Value = serde_json::from_str(event.redacted().json()).unwrap();
    assert!(*given == whole || *given == redacted, "{given}");
    *given == whole
}

#[test]
fn what_a_server_sees_is_what_its_users_see() {
    // What is shown of before the invite, between invite and join, after the join, and of the time after they left.
    for (visibility, shown) in [
        ("world_readable", [true, true, true, true]),
        ("shared", [true, true, true, true]),
        ("unknown", [true, true, true, true]),
        ("invited", [false, true, true, false]),
        ("joined", [false, false, true, false]),
    ] {
        for version in ["10", "12"] {
            let room = room(version);
            let peer = Peer::new(&room.world, "peer.example");
            room.show_to(visibility);
            let events = room.bob_comes_and_goes(&peer);
            let events = events.each_ref();
            // Another user of the server brings it back.
            peer.join(&room.a, room.id.as_str(), &peer.user("carol"));
            assert_eq!(events.map(|event| room.shows(&peer, event)), shown, "{visibility} {version}");
            assert_eq!(room.shows_in_history(&peer, &events), shown, "{visibility} {version}");
        }
    }
}

#[test]
fn what_the_erased_have_sent_a_server_sees_if_its_users_were_there() {
    for (visibility, shown) in [("shared", [false, false, true, false]), ("joined", [false, false, true, false])] {
        for version in ["10", "12"] {
            let room = room(version);
            let peer = Peer::new(&room.world, "peer.example");
            room.show_to(visibility);
            let events = room.bob_comes_and_goes(&peer);
            let events = events.each_ref();
            let carol = room.a.user(&room.world, "carol");
            room.world
                .run(room.a.rooms.send(
                    &room.id,
                    &carol,
                    Draft::membership(carol.as_str(), Membership::Join, object(json!({}))),
                ))
                .unwrap();
            let hers = room.a.say(&room.world, &room.id, &carol, "hers");
            let now = room.world.now_ms();
            let own = &room.a.config.server_name;
            room.world.run(room.a.store.deactivate(own, &room.alice, true, now)).unwrap();
            peer.join(&room.a, room.id.as_str(), &peer.user("dave"));
            assert_eq!(events.map(|event| room.shows(&peer, event)), shown, "{visibility} {version}");
            assert_eq!(room.shows_in_history(&peer, &events), shown, "{visibility} {version}");
            // Others' events are shown as before.
            assert_eq!(room.shows(&peer, &hers), visibility == "shared", "{visibility} {version}");
            // The state is whole: by its IDs, which content hashes make, it is the room's.
            let target = format!(
                "/_matrix/federation/v1/state/{}?event_id={}",
                encode(room.id.as_str()),
                encode(hers.event_id().as_str())
            );
            let (status, state) = peer.get(&room.a, &target);
            assert_eq!(status, 200, "{state}");
            assert!(state["pdus"].to_string().contains(&format!("\"history_visibility\":\"{visibility}\"")));
        }
    }
}

#[test]
fn what_may_not_be_seen_is_not_named_by_its_time() {
    let room = room("12");
    let peer = Peer::new(&room.world, "peer.example");
    room.show_to("joined");
    room.world.advance(10_000);
    let hidden = room.say("hidden");
    room.world.advance(10_000);
    let joined = peer.join(&room.a, room.id.as_str(), &peer.user("bob")).last;
    room.world.advance(10_000);
    let shown = room.say("shown");
    let ask = |ts: i64, dir: &str| {
        let target = format!("/_matrix/federation/v1/timestamp_to_event/{}", encode(room.id.as_str()));
        let (status, answer) = peer.get(&room.a, &format!("{target}?ts={ts}&dir={dir}"));
        assert_eq!(status, 200, "{answer}");
        answer["event_id"].as_str().unwrap().to_owned()
    };
    assert_eq!(ask(hidden.origin_server_ts(), "f"), joined);
    assert_eq!(ask(shown.origin_server_ts(), "b"), shown.event_id().as_str());
    assert_ne!(ask(hidden.origin_server_ts(), "b"), hidden.event_id().as_str());
}

/// However much of it stands between.
#[test]
fn what_may_be_seen_is_found_behind_what_may_not() {
    let room = room("12");
    let peer = Peer::new(&room.world, "peer.example");
    let bob = peer.user("bob");
    let say_much = || {
        for n in 0..2_200 {
            room.world.advance(10);
            room.say(&format!("{n}"));
        }
    };
    let calls = room.a.database.calls.clone();
    let ask = |ts: i64, dir: &str| {
        let target = format!("/_matrix/federation/v1/timestamp_to_event/{}", encode(room.id.as_str()));
        let before = calls.get();
        let (status, answer) = peer.get(&room.a, &format!("{target}?ts={ts}&dir={dir}"));
        assert!(calls.get() - before <= 26, "{}", calls.get() - before);
        (status, answer["event_id"].as_str().unwrap_or_default().to_owned())
    };
    room.show_to("joined");
    let early = room.say("hidden").origin_server_ts();
    // Others who come and go decide nothing, and one who was invited alone has seen nothing.
    let carol = peer.user("carol");
    room.invite(&carol);
    room.kick(&carol);
    for n in 0..150 {
        room.world.advance(10);
        room.invite(&format!("@user{n}:b.example"));
    }
    say_much();
    let joined = peer.join(&room.a, room.id.as_str(), &bob).last;
    let seen = room.say("shown");
    let kicked = room.kick(&bob);
    say_much();
    let late = room.say("hidden").origin_server_ts();
    room.world.advance(10);
    let back = peer.join(&room.a, room.id.as_str(), &bob).last;
    let found = ask(early, "f");
    assert!(found.0 == 200 && found.1 != joined, "Carol's leave is about a user of the server: {found:?}");
    let after_carol = early + 1_000;
    assert_eq!(ask(after_carol, "f"), (200, joined));
    assert_eq!(ask(late, "b"), (200, kicked.event_id().to_string()));
    assert_eq!(ask(kicked.origin_server_ts() + 1, "f"), (200, back));
    assert_eq!(ask(seen.origin_server_ts(), "b").0, 200);
}

#[test]
fn what_may_be_seen_is_found_behind_history_whose_state_is_not_known() {
    let room = room("12");
    let peer = Peer::new(&room.world, "peer.example");
    room.show_to("joined");
    peer.join(&room.a, room.id.as_str(), &peer.user("bob"));
    let events: Vec<Event> = (0..60)
        .map(|n| {
            room.world.advance(10);
            room.say(&format!("{n}"))
        })
        .collect();
    for event in &events[..59] {
        let sql = format!("UPDATE events SET state_before = NULL WHERE event_id = '{}'", event.event_id());
        room.a.database.rows(&sql);
    }
    let ts = events[0].origin_server_ts();
    let target = format!("/_matrix/federation/v1/timestamp_to_event/{}?ts={ts}&dir=f", encode(room.id.as_str()));
    let (status, answer) = peer.get(&room.a, &target);
    assert_eq!((status, answer["event_id"].as_str()), (200, Some(events[59].event_id().as_str())), "{answer}");
}

#[test]
fn changes_of_the_visibility_are_seen_from_either_side() {
    let room = room("11");
    let peer = Peer::new(&room.world, "peer.example");
    let closed = room.show_to("joined");
    let hidden = room.say("hidden");
    // Content that redaction takes away tells whether an event is whole.
    let opened = room.send(Draft::state(
        "m.room.history_visibility",
        "",
        object(json!({ "history_visibility": "shared", "x": 1 })),
    ));
    let open = room.say("open");
    let closed_again = room.send(Draft::state(
        "m.room.history_visibility",
        "",
        object(json!({ "history_visibility": "joined", "x": 2 })),
    ));
    let between = room.send(Draft::state(
        "m.room.history_visibility",
        "",
        object(json!({ "history_visibility": "invited", "x": 3 })),
    ));
    peer.join(&room.a, room.id.as_str(), &peer.user("bob"));
    let events = [&closed, &hidden, &opened, &open, &closed_again, &between];
    let expected = [true, false, true, true, true, false];
    assert_eq!(events.map(|event| room.shows(&peer, event)), expected);
    assert_eq!(room.shows_in_history(&peer, &events), expected);
}

#[test]
fn the_state_at_an_event_decides_and_not_when_it_came() {
    let room = room("12");
    let (peer, other) = (Peer::new(&room.world, "peer.example"), Peer::new(&room.world, "other.example"));
    room.show_to("joined");
    let carol = other.user("carol");
    let mut theirs = other.join(&room.a, room.id.as_str(), &carol);
    peer.join(&room.a, room.id.as_str(), &peer.user("bob"));
    room.say("by now Bob is here");
    // Carol's server has not heard of Bob's join.
    let (id, pdu) = theirs.say(&other, &carol, "without Bob");
    assert_eq!(other.send(&room.a, "1", std::slice::from_ref(&pdu)).1["pdus"][&id], json!({}));
    assert!(room.a.shows(&id));
    let target = format!("/_matrix/federation/v1/event/{}", encode(&id));
    assert_eq!(peer.get(&room.a, &target).1["pdus"][0]["content"], json!({}));
    assert_eq!(other.get(&room.a, &target).1["pdus"][0]["content"], pdu["content"]);
}

#[test]
fn whoever_of_a_server_was_there_counts() {
    let room = room("12");
    let peer = Peer::new(&room.world, "peer.example");
    room.show_to("joined");
    let users: Vec<String> = (0..24).map(|n| peer.user(&format!("user{n}"))).collect();
    for user in &users {
        peer.join(&room.a, room.id.as_str(), user);
    }
    for user in &users {
        if *user != users[11] {
            room.kick(user);
        }
    }
    let with_one = room.say("one of them is there");
    room.kick(&users[11]);
    let with_none = room.say("none is there");
    peer.join(&room.a, room.id.as_str(), &users[0]);
    assert!(room.shows(&peer, &with_one) && !room.shows(&peer, &with_none));
}

#[test]
fn history_whose_state_is_not_known_is_shown_where_nothing_was_ever_restricted() {
    let room = room("12");
    let peer = Peer::new(&room.world, "peer.example");
    let said = room.say("of which we know no state");
    peer.join(&room.a, room.id.as_str(), &peer.user("bob"));
    room.a.database.rows(&format!("UPDATE events SET state_before = NULL WHERE event_id = '{}'", said.event_id()));
    assert!(room.shows(&peer, &said));
    room.show_to("invited");
    room.show_to("shared");
    assert!(!room.shows(&peer, &said));
}

/// Whoever joins a room holds its state without what was before it. Every server in the room is told of that state whole, and
/// fetches what it lacks of it one by one.
#[test]
fn state_whose_own_state_is_not_known_is_shown_to_a_server_in_the_room() {
    for version in ["10", "12"] {
        let room = room(version);
        let (b, peer) = (room.world.server("b.example"), Peer::new(&room.world, "peer.example"));
        room.show_to("joined");
        let old = room.send(Draft::state("m.room.topic", "", object(json!({ "topic": "a slip" }))));
        let mut redaction = Draft::message("m.room.redaction", object(json!({ "redacts": old.event_id().as_str() })));
        redaction.redacts = Some(old.event_id().to_string());
        let said = room.say("before");
        let content = object(json!({ "allow": ["*"], "deny": ["mallory.example"] }));
        let acl = room.send(Draft::state("m.room.server_acl", "", content));
        let bob = b.user(&room.world, "bob");
        let via = vec![ServerName::parse("a.example").unwrap()];
        room.world.run(membership::join(&b, &bob, &room.id, via, Object::new())).unwrap();
        room.world.settle();
        let target = |event: &Event| format!("/_matrix/federation/v1/event/{}", encode(event.event_id().as_str()));
        assert_eq!(peer.get(&b, &target(&acl)).0, 403, "it is not in the room");
        peer.join(&room.a, room.id.as_str(), &peer.user("carol"));
        room.send(redaction);
        room.world.settle();
        let shown = |event: &Event| {
            let (status, answer) = peer.get(&b, &target(event));
            assert_eq!(status, 200, "{answer}");
            is_whole(&answer["pdus"][0], event)
        };
        assert!(shown(&acl));
        let last = b.say(&room.world, &room.id, &bob, "the last");
        let (id, from) = (encode(room.id.as_str()), encode(last.event_id().as_str()));
        let (_, answer) = peer.get(&b, &format!("/_matrix/federation/v1/backfill/{id}?v={from}&limit=100"));
        let given = answer["pdus"].as_array().unwrap();
        let given = given.iter().find(|pdu| event_id(version, pdu) == acl.event_id().as_str());
        assert!(given.is_some_and(|given| is_whole(given, &acl)), "{answer}");
        assert!(!shown(&old), "it was redacted");
        assert_eq!(peer.get(&b, &target(&said)).0, 404);
    }
}

#[test]
fn what_is_read_and_written_for_it() {
    let room = room("12");
    let peer = Peer::new(&room.world, "peer.example");
    peer.join(&room.a, room.id.as_str(), &peer.user("bob"));
    let calls = |room: &Room| {
        let last = room.say("hello");
        let (id, encoded) = (encode(room.id.as_str()), encode(last.event_id().as_str()));
        ["event/{event}", "backfill/{room}?v={event}&limit=50", "state_ids/{room}?event_id={event}"].map(|target| {
            let target = target.replace("{room}", &id).replace("{event}", &encoded);
            let before = room.a.database.calls.get();
            assert_eq!(peer.get(&room.a, &format!("/_matrix/federation/v1/{target}")).0, 200);
            room.a.database.calls.get() - before
        })
    };
    assert_eq!(calls(&room), [1, 2, 1]);
    let rows =
        || ["SELECT * FROM restricted_history", "SELECT * FROM server_members"].map(|sql| room.a.database.rows(sql));
    assert!(rows()[0].is_empty());
    room.show_to("joined");
    assert_eq!(calls(&room), [3, 4, 1]);
    room.show_to("shared");
    // An older event than all of this is among those of a backfill.
    assert_eq!(calls(&room)[0], 2);
    let before = rows();
    room.say("a message");
    let content = object(json!({ "displayname": "Alice" }));
    room.send(Draft::membership(room.alice.as_str(), Membership::Join, content));
    assert_eq!(rows(), before);
    // What a migration of an older database makes of its events is what is written since.
    let migrated = "SELECT e.room_id, substr(e.state_key, instr(e.state_key, ':') + 1), e.state_key, MIN(e.depth) \
        FROM events AS e WHERE e.event_type = 'm.room.member' \
          AND json_extract(e.json, '$.content.membership') IN ('invite', 'join') \
        GROUP BY e.room_id, e.state_key ORDER BY 1, 2, 3";
    assert_eq!(room.a.database.rows(migrated), before[1]);
    assert_eq!(before[1].len(), 2);
}

/// Generated rooms, in which every event is compared with what all of the state at it says.
#[test]
fn generated_histories_are_shown_by_the_state_at_each_event() {
    for seed in 0..6 {
        let mut random = Random::new(seed);
        let room = room(if seed % 2 == 0 { "12" } else { "10" });
        let peers = ["one.example", "two.example"].map(|name| Peer::new(&room.world, name));
        let users: Vec<(usize, String)> = (0..6).map(|n| (n % 2, peers[n % 2].user(&format!("user{n}")))).collect();
        for step in 0..40 {
            let (peer, user) = random.pick(&users).clone();
            let membership = room.a.membership(&room.world, &room.id, &user);
            let membership = membership.as_deref().and_then(Membership::parse);
            match random.below(6) {
                0 => {
                    let visibility = *random.pick(&["world_readable", "shared", "invited", "joined", "joined"]);
                    room.show_to(visibility);
                }
                1 if membership != Some(Membership::Join) && membership != Some(Membership::Invite) => {
                    room.invite(&user);
                }
                2 | 3 if membership != Some(Membership::Join) => {
                    peers[peer].join(&room.a, room.id.as_str(), &user);
                }
                4 if matches!(membership, Some(Membership::Join | Membership::Invite)) => {
                    room.kick(&user);
                }
                _ => {
                    room.say(&format!("{step}"));
                }
            }
        }
        for (index, peer) in peers.iter().enumerate() {
            let bring = format!("@back:{}", ["one.example", "two.example"][index]);
            peer.join(&room.a, room.id.as_str(), &bring);
        }
        let rows = room.a.database.rows("SELECT event_id, state_before FROM events WHERE state_before IS NOT NULL");
        let mut shown = 0;
        for row in &rows {
            let event = room.world.run(room.a.rooms.event(&EventId::parse(&row[0]).unwrap())).unwrap().unwrap().event;
            if event.json() == event.redacted().json() {
                continue;
            }
            let state = room.world.run(state_events(&room.a.server, NodeId::parse(&row[1]).unwrap()));
            for (index, peer) in peers.iter().enumerate() {
                let server = ["one.example", "two.example"][index];
                let expected = may_see(&event, &state, server);
                assert_eq!(room.shows(peer, &event), expected, "seed {seed}: {} to {server}", event.json());
                shown += usize::from(expected);
            }
        }
        assert!(shown > 0);
    }
}

/// The rule as the spec says it, by all of the state.
fn may_see(event: &Event, state: &[Event], server: &str) -> bool {
    let text =
        |event: &Event, name: &str| event.content().get(name).and_then(|value| value.as_str()).map(str::to_owned);
    let mut visibilities: Vec<Option<String>> = vec![
        state
            .iter()
            .find(|event| event.is_state("m.room.history_visibility", ""))
            .and_then(|event| text(event, "history_visibility")),
    ];
    if event.event_type() == "m.room.history_visibility" {
        visibilities.push(text(event, "history_visibility"));
    }
    let is_of = |user: &str| user.ends_with(&format!(":{server}"));
    let mut memberships: BTreeMap<String, Vec<Option<String>>> = BTreeMap::new();
    for member in state.iter().chain([event]).filter(|event| event.event_type() == "m.room.member") {
        let user = member.state_key().unwrap();
        if is_of(user) {
            memberships.entry(user.to_owned()).or_default().push(text(member, "membership"));
        }
    }
    let is = |membership: &str| memberships.values().flatten().any(|found| found.as_deref() == Some(membership));
    is_of(event.sender().as_str())
        || visibilities.iter().any(|visibility| match visibility.as_deref() {
            Some("joined") => is("join"),
            Some("invited") => is("join") || is("invite"),
            _ => true,
        })
}
