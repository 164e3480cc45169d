//! Joins by an answer without the room's members, which are had later.

use std::{cell::Cell, rc::Rc};

use futures_util::future::join;
use http::StatusCode;
use serde_json::{Value, json};
use verge::{
    federation::outbound::membership,
    matrix::{
        event::Event,
        identifiers::{EventId, RoomId, ServerName, UserId},
        json::Object,
        state_content::Membership,
    },
    platform::Clock,
    program::Program,
    room::{Draft, Extent},
    router::{Response, json_response},
};

use crate::common::{
    homeserver::object,
    network::{Homeserver, World},
    peer::{Peer, PeerRoom, encode},
    sqlite::Sqlite,
};

mod anew;
mod unasked;

/// What `a.example` answers to who asks for a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answers {
    Truly,
    /// With an error.
    Never,
    /// Without the room's power levels.
    WithoutLevels,
}

/// A room on `a.example` with a dozen of its users and one of a peer, which Bob on `b.example` is about to join.
struct Faster {
    world: World,
    a: Homeserver,
    b: Homeserver,
    alice: UserId,
    bob: UserId,
    room: RoomId,
    peer: Rc<Peer>,
    dave: String,
    theirs: PeerRoom,
    answers: Rc<Cell<Answers>>,
}

const MEMBERS: usize = 12;

fn faster(version: &str) -> Faster {
    faster_in(version, Some("The hall"))
}

fn faster_in(version: &str, name: Option<&str>) -> Faster {
    let world = World::new();
    let a = world.server("a.example");
    let alice = a.user(&world, "alice");
    let room = a.public_room(&world, &alice, version);
    if let Some(name) = name {
        a.send(&world, &room, &alice, Draft::state("m.room.name", "", object(json!({ "name": name }))));
    }
    for n in 0..MEMBERS {
        let user = a.user(&world, &format!("member{n}"));
        a.send(&world, &room, &user, Draft::membership(user.as_str(), Membership::Join, Object::new()));
    }
    let peer = Peer::new(&world, "peer.example");
    let dave = peer.user("dave");
    let theirs = peer.join(&a, room.as_str(), &dave);
    let b = world.server_over("b.example", Sqlite::in_memory(), &[("FASTER_JOINS", "on")]);
    let bob = b.user(&world, "bob");
    world.settle();
    let answers = Rc::new(Cell::new(Answers::Never));
    let (server, given) = (Rc::clone(&a.server), Rc::clone(&answers));
    world.connect(
        "a.example",
        Rc::new(move |request| {
            let (server, given) = (Rc::clone(&server), Rc::clone(&given));
            Box::pin(async move {
                let is_state = request.uri().path().starts_with("/_matrix/federation/v1/state/");
                let response = server.handle(request).await;
                if is_state { altered(given.get(), response) } else { response }
            })
        }),
    );
    Faster { world, a, b, alice, bob, room, peer, dave, theirs, answers }
}

fn altered(answers: Answers, response: Response) -> Response {
    match answers {
        Answers::Truly => response,
        Answers::Never => json_response(StatusCode::BAD_GATEWAY, &json!({ "errcode": "M_UNKNOWN", "error": "?" })),
        Answers::WithoutLevels => {
            let mut answer: Value = serde_json::from_slice(response.body()).unwrap();
            let state = answer["pdus"].as_array_mut().unwrap();
            state.retain(|event| event["type"] != "m.room.power_levels");
            json_response(StatusCode::OK, &answer)
        }
    }
}

impl Faster {
    fn try_join(&self, user: &UserId, via: &str) -> Result<EventId, (u16, &'static str)> {
        let via = vec![ServerName::parse(via).unwrap()];
        let joined = self.world.run(membership::join(&self.b, user, &self.room, via, Object::new()));
        joined.map_err(|error| (error.status.as_u16(), error.errcode))
    }

    /// Bob joins the room, and its members cannot be found out.
    fn join(&self) -> EventId {
        let joined = self.try_join(&self.bob, "a.example").unwrap();
        self.world.settle();
        assert_eq!(self.extent(), Extent::Partial, "{:?}", self.world.logs());
        joined
    }

    fn extent(&self) -> Extent {
        self.world.run(self.b.rooms.room(&self.room)).unwrap().unwrap().extent
    }

    /// The scheduled trigger of B, when everything is due that was put off.
    fn later(&self) {
        self.world.advance(60 * 60 * 1_000);
        self.world.run(self.b.scheduled());
        self.world.settle();
    }

    fn completes(&self) {
        self.answers.set(Answers::Truly);
        self.later();
        assert_eq!(self.extent(), Extent::Whole, "{:?}", self.world.logs());
        self.is_whole();
    }

    /// B has the room as A has it.
    fn is_whole(&self) {
        let state = self.b.state(&self.world, &self.room);
        assert_eq!(state, self.a.state(&self.world, &self.room));
        let servers = "SELECT server, joined FROM room_servers WHERE to_pos IS NULL ORDER BY server";
        assert_eq!(self.b.database.rows(servers), self.a.database.rows(servers));
        let members = "SELECT server, user_id FROM server_members ORDER BY server, user_id";
        assert_eq!(self.b.database.rows(members), self.a.database.rows(members));
        for table in ["claimed_events", "large_joins", "pending_joins", "staged_pdus", "events WHERE claimed"] {
            assert_eq!(self.count(table), 0, "{table}: {:?}", self.world.logs());
        }
    }

    fn count(&self, sql: &str) -> usize {
        self.b.database.rows(&format!("SELECT COUNT(*) FROM {sql}"))[0][0].parse().unwrap()
    }

    /// What `a.example` answers to a join without members is altered so from now on.
    fn alters(&self, alter: impl Fn(&mut serde_json::Map<String, Value>) + 'static) {
        let (server, alter) = (Rc::clone(&self.a.server), Rc::new(alter));
        self.world.connect(
            "a.example",
            Rc::new(move |request| {
                let (server, alter) = (Rc::clone(&server), Rc::clone(&alter));
                Box::pin(async move {
                    let omits = request.uri().query() == Some("omit_members=true");
                    let response = server.handle(request).await;
                    if !omits {
                        return response;
                    }
                    let mut answer: Value = serde_json::from_slice(response.body()).unwrap();
                    alter(answer.as_object_mut().unwrap());
                    json_response(StatusCode::OK, &answer)
                })
            }),
        );
    }

    fn member(&self, n: usize) -> UserId {
        UserId::parse(&format!("@member{n}:a.example")).unwrap()
    }

    fn says(&self, from: &Homeserver, user: &UserId, body: &str) -> Event {
        let event = from.say(&self.world, &self.room, user, body);
        self.world.settle();
        event
    }
}

#[test]
fn people_talk_before_it_is_known_who_is_in_the_room() {
    for version in ["10", "12"] {
        let faster = faster(version);
        faster.join();
        let known = faster.b.state(&faster.world, &faster.room);
        // Nobody but who made the join possible: not even those after whom the room would be called.
        assert_eq!(known.iter().filter(|(kind, _, _)| kind == "m.room.member").count(), 1, "{known:?}");
        // Who has to hear of the room is known.
        let servers = "SELECT server FROM room_servers WHERE to_pos IS NULL ORDER BY server";
        assert_eq!(faster.b.database.rows(servers), [["a.example"], ["b.example"], ["peer.example"]]);
        let ours = faster.says(&faster.b, &faster.bob, "hello");
        assert!(faster.a.shows(ours.event_id().as_str()));
        let told = |request: &&http::Request<bytes::Bytes>| request.uri().path().contains("/v1/send/");
        assert!(faster.peer.received.borrow().iter().any(|request| told(&request)));
        let theirs = faster.says(&faster.a, &faster.member(3), "hello yourself");
        assert!(faster.b.shows(theirs.event_id().as_str()), "{:?}", faster.world.logs());
        // What they change of the room counts too.
        let named = Draft::state("m.room.name", "", object(json!({ "name": "The other hall" })));
        let named = faster.a.send(&faster.world, &faster.room, &faster.alice, named);
        let renamed = object(json!({ "displayname": "Four" }));
        let four = faster.member(4);
        faster.a.send(&faster.world, &faster.room, &four, Draft::membership(four.as_str(), Membership::Join, renamed));
        let five = faster.member(5);
        faster.a.send(
            &faster.world,
            &faster.room,
            &five,
            Draft::membership(five.as_str(), Membership::Leave, Object::new()),
        );
        faster.world.settle();
        assert!(faster.b.shows(named.event_id().as_str()));
        assert_eq!(faster.b.membership(&faster.world, &faster.room, four.as_str()).as_deref(), Some("join"));
        faster.completes();
        assert_eq!(faster.b.membership(&faster.world, &faster.room, five.as_str()).as_deref(), Some("leave"));
        // What was there before the join is history: nobody is asked for it where something is missing.
        let join = faster.b.database.rows("SELECT e.depth FROM partial_rooms AS p JOIN events AS e USING (event_id)");
        let first = faster.world.run(faster.b.store.first_depth(&faster.room)).unwrap();
        assert_eq!(join, [[first.to_string()]], "version {version}");
        let after = faster.says(&faster.a, &faster.member(6), "still here");
        assert!(faster.b.shows(after.event_id().as_str()));
        assert!(faster.a.shows(faster.says(&faster.b, &faster.bob, "good").event_id().as_str()));
        let logs = faster.world.logs().join("\n");
        for step in ["asked for", "judged", "kept", "is whole"] {
            assert!(logs.contains(step), "{step}: {logs}");
        }
    }
}

#[test]
fn a_join_that_nothing_holds_up_is_completed_after_the_answer() {
    let faster = faster("11");
    faster.answers.set(Answers::Truly);
    faster.try_join(&faster.bob, "a.example").unwrap();
    faster.world.settle();
    assert_eq!(faster.extent(), Extent::Whole, "{:?}", faster.world.logs());
    faster.is_whole();
}

#[test]
fn nobody_is_told_of_a_state_in_part() {
    let faster = faster("12");
    let joined = faster.join();
    let said = faster.says(&faster.b, &faster.bob, "hello");
    let room = encode(faster.room.as_str());
    let ask = |path: &str, expected: u16| {
        let (status, answer) = faster.peer.get(&faster.b, &format!("/_matrix/federation/v1/{path}"));
        assert_eq!(status, expected, "{path}: {answer}");
    };
    for event in [joined.as_str(), said.event_id().as_str()] {
        ask(&format!("state/{room}?event_id={}", encode(event)), 404);
        ask(&format!("state_ids/{room}?event_id={}", encode(event)), 404);
        // What is known as a whole.
        ask(&format!("event/{}", encode(event)), 200);
        ask(&format!("event_auth/{room}/{}", encode(event)), 200);
        ask(&format!("backfill/{room}?v={}&limit=10", encode(event)), 200);
    }
    let erin = encode(&faster.peer.user("erin"));
    for template in ["make_join", "make_knock", "make_leave"] {
        ask(&format!("{template}/{room}/{erin}?ver=12"), 404);
    }
    let (join_id, join) = {
        let content = json!({ "membership": "join" });
        let draft = faster.theirs.draft(
            faster.world.now_ms(),
            &faster.peer.user("erin"),
            json!({
                "type": "m.room.member", "state_key": faster.peer.user("erin"), "content": content,
            }),
        );
        faster.peer.sign("12", draft)
    };
    let target = format!("/_matrix/federation/v2/send_join/{room}/{}", encode(&join_id));
    assert_eq!(faster.peer.put(&faster.b, &target, &join).0, 404);
    // Whom we do not know we neither invite nor put out.
    for membership in [Membership::Invite, Membership::Leave, Membership::Ban] {
        let draft = Draft::membership(faster.member(2).as_str(), membership, Object::new());
        let sent = faster.world.run(faster.b.rooms.send(&faster.room, &faster.bob, draft));
        assert!(sent.unwrap_err().to_string().contains("not known here yet"));
    }
    faster.completes();
    ask(&format!("state/{room}?event_id={}", encode(joined.as_str())), 200);
    ask(&format!("state_ids/{room}?event_id={}", encode(said.event_id().as_str())), 200);
    ask(&format!("make_join/{room}/{erin}?ver=12"), 200);
}

#[test]
fn who_was_banned_is_found_out_when_the_members_are_there() {
    for version in ["10", "12"] {
        let mut faster = faster(version);
        let ban = Draft::membership(&faster.dave, Membership::Ban, Object::new());
        faster.a.send(&faster.world, &faster.room, &faster.alice, ban);
        faster.world.settle();
        let joined = faster.join();
        // Dave's server makes out that he is in the room: by his join, which he was let in by once.
        let join = faster.world.run(faster.b.rooms.event(&joined)).unwrap().unwrap().event;
        (faster.theirs.last, faster.theirs.depth) = (joined.to_string(), join.depth());
        let (peer, dave) = (Rc::clone(&faster.peer), faster.dave.clone());
        let (said, event) = faster.theirs.say(&peer, &dave, "let me in");
        let chain: Vec<Value> = faster.theirs.state.values().cloned().collect();
        peer.answers(move |request| {
            let asks = request.uri().path().contains("/event_auth/");
            asks.then(|| json_response(StatusCode::OK, &json!({ "auth_chain": chain })))
        });
        assert_eq!(peer.send(&faster.b, "t1", &[event]).0, 200);
        faster.world.settle();
        assert!(faster.b.shows(&said), "{:?}", faster.world.logs());
        let heard = faster.says(&faster.b, &faster.bob, "who are you?");
        faster.answers.set(Answers::Truly);
        faster.later();
        assert!(!faster.b.shows(&said), "{:?}", faster.world.logs());
        assert!(faster.b.shows(heard.event_id().as_str()));
        assert_eq!(faster.b.membership(&faster.world, &faster.room, &dave).as_deref(), Some("ban"));
        assert_eq!(faster.extent(), Extent::Whole);
        let servers = "SELECT server FROM room_servers WHERE to_pos IS NULL ORDER BY server";
        assert_eq!(faster.b.database.rows(servers), [["a.example"], ["b.example"]]);
    }
}

#[test]
fn another_server_gives_what_the_resident_server_does_not() {
    let faster = faster("12");
    let c = faster.world.server("c.example");
    let carol = c.user(&faster.world, "carol");
    let via = vec![ServerName::parse("a.example").unwrap()];
    faster.world.run(membership::join(&c, &carol, &faster.room, via, Object::new())).unwrap();
    faster.world.settle();
    // The answer to Bob's join is the last that A gives of any state.
    faster.try_join(&faster.bob, "a.example").unwrap();
    let mut hours = 0;
    while faster.extent() != Extent::Whole {
        faster.world.settle();
        faster.later();
        hours += 1;
        assert!(hours < 40, "{:?}", faster.world.logs());
    }
    // Not before the resident server has had most of a day.
    assert!(hours > 15, "{hours}");
    faster.is_whole();
}

/// Whether a state is too large is for us to say: what status another server refuses it with says nothing of that.
#[test]
fn who_refuses_a_state_as_too_large_does_not_end_the_asking() {
    let faster = faster("12");
    let c = faster.world.server("c.example");
    let carol = c.user(&faster.world, "carol");
    let via = vec![ServerName::parse("a.example").unwrap()];
    faster.world.run(membership::join(&c, &carol, &faster.room, via, Object::new())).unwrap();
    faster.world.settle();
    let (server, asked) = (Rc::clone(&c.server), Rc::new(Cell::new(0)));
    let times = Rc::clone(&asked);
    faster.world.connect(
        "c.example",
        Rc::new(move |request| {
            let (server, times) = (Rc::clone(&server), Rc::clone(&times));
            Box::pin(async move {
                if request.uri().path().starts_with("/_matrix/federation/v1/state/") {
                    times.set(times.get() + 1);
                    if times.get() == 1 {
                        let refusal = json!({ "errcode": "M_FORBIDDEN", "error": "That is too large." });
                        return json_response(StatusCode::PAYLOAD_TOO_LARGE, &refusal);
                    }
                }
                server.handle(request).await
            })
        }),
    );
    faster.try_join(&faster.bob, "a.example").unwrap();
    let mut hours = 0;
    while faster.extent() != Extent::Whole {
        faster.world.settle();
        faster.later();
        hours += 1;
        assert!(hours < 40, "asked {} times: {:?}", asked.get(), faster.world.logs());
    }
    assert_eq!(asked.get(), 2);
    faster.is_whole();
}

#[test]
fn a_server_that_did_not_let_us_in_cannot_leave_out_a_ban() {
    let faster = faster("12");
    let c = faster.world.server("c.example");
    let carol = c.user(&faster.world, "carol");
    let via = vec![ServerName::parse("a.example").unwrap()];
    faster.world.run(membership::join(&c, &carol, &faster.room, via, Object::new())).unwrap();
    let ban = Draft::membership(&faster.dave, Membership::Ban, Object::new());
    faster.a.send(&faster.world, &faster.room, &faster.alice, ban);
    faster.world.settle();
    let (server, dave) = (Rc::clone(&c.server), faster.dave.clone());
    let asked = Rc::new(Cell::new(0));
    let times = Rc::clone(&asked);
    faster.world.connect(
        "c.example",
        Rc::new(move |request| {
            let (server, dave, times) = (Rc::clone(&server), dave.clone(), Rc::clone(&times));
            Box::pin(async move {
                let is_state = request.uri().path().starts_with("/_matrix/federation/v1/state/");
                let response = server.handle(request).await;
                if !is_state {
                    return response;
                }
                times.set(times.get() + 1);
                let mut answer: Value = serde_json::from_slice(response.body()).unwrap();
                answer["pdus"].as_array_mut().unwrap().retain(|event| event["state_key"] != dave.as_str());
                json_response(StatusCode::OK, &answer)
            })
        }),
    );
    faster.try_join(&faster.bob, "a.example").unwrap();
    for _ in 0..4 {
        faster.world.settle();
        faster.later();
        assert_eq!((faster.extent(), asked.get()), (Extent::Partial, 0), "{:?}", faster.world.logs());
    }
    faster.completes();
    assert_eq!(faster.b.membership(&faster.world, &faster.room, &faster.dave).as_deref(), Some("ban"));
}

#[test]
fn a_state_that_contradicts_the_answer_to_our_join_is_not_believed() {
    let faster = faster("12");
    faster.answers.set(Answers::WithoutLevels);
    faster.try_join(&faster.bob, "a.example").unwrap();
    for _ in 0..3 {
        faster.world.settle();
        faster.later();
        assert_eq!(faster.extent(), Extent::Partial, "{:?}", faster.world.logs());
    }
    assert!(faster.a.shows(faster.says(&faster.b, &faster.bob, "hello").event_id().as_str()));
    faster.completes();
}

#[test]
fn completion_that_is_cut_off_again_and_again_goes_on() {
    let faster = faster("12");
    faster.join();
    faster.says(&faster.b, &faster.bob, "hello");
    faster.answers.set(Answers::Truly);
    let mut rounds = 0;
    while faster.count("large_joins") > 0 {
        faster.world.advance(60 * 60 * 1_000);
        // As if the isolate were gone, each time a little later.
        let server = faster.b.with_wall(3 + rounds);
        faster.world.run(server.sweep_large_joins(&server.meter.budget(1 + rounds)));
        rounds += 1;
        assert!(rounds < 80, "{:?}", faster.world.logs());
    }
    assert!(rounds > 3, "{rounds}");
    faster.completes();
}

/// A byte of the state comes just before each would be too late: that holds up neither the run of the trigger, nor what is due in
/// other rooms.
#[test]
fn a_state_that_drips_holds_up_nothing_else() {
    let faster = faster("12");
    faster.join();
    let (world, peer, dave) = (&faster.world, &faster.peer, &faster.dave);
    let other = faster.b.public_room(world, &faster.bob, "12");
    let mut theirs = peer.join(&faster.b, other.as_str(), dave);
    let (_, lost) = theirs.say(peer, dave, "lost");
    let (said, event) = theirs.say(peer, dave, "said");
    assert_eq!(peer.send(&faster.b, "t1", &[event]).0, 200);
    world.settle();
    assert!(!faster.b.shows(&said));
    peer.answers(move |request| {
        let asks = request.uri().path().contains("/get_missing_events/");
        asks.then(|| json_response(StatusCode::OK, &json!({ "events": [lost] })))
    });
    faster.answers.set(Answers::Truly);
    world.drip("a.example", "/v1/state/", 1, 119_000);
    world.advance(60 * 60 * 1_000);
    let begun = world.now_ms();
    let soon = async {
        world.sleep(60_000).await;
        faster.b.shows(&said)
    };
    let ((), is_judged_soon) = world.run(join(faster.b.scheduled(), soon));
    assert!(is_judged_soon, "{:?}", world.logs());
    let took = world.now_ms() - begun;
    assert!(took < 10 * 60 * 1_000, "{took} ms");
}

/// So much has changed since the join that there are not calls enough to give each event its state: the current state is whole all
/// the same, and what comes next is judged by it.
#[test]
fn much_that_came_meanwhile_does_not_hold_up_the_whole_state() {
    let faster = faster("12");
    faster.join();
    for n in 0..400 {
        let topic = Draft::state("m.room.topic", "", object(json!({ "topic": n.to_string() })));
        faster.a.send(&faster.world, &faster.room, &faster.alice, topic);
    }
    faster.world.settle();
    faster.answers.set(Answers::Truly);
    for _ in 0..3 {
        faster.world.advance(60 * 60 * 1_000);
        // What the platform allows for each run.
        faster.world.run(Program::from(faster.b.with_wall(1_000)).scheduled());
        faster.world.settle();
    }
    assert_ne!(faster.extent(), Extent::Partial, "{:?}", faster.world.logs().last());
    let state = faster.b.state(&faster.world, &faster.room);
    assert_eq!(state, faster.a.state(&faster.world, &faster.room));
    let after = faster.says(&faster.a, &faster.member(6), "still here");
    assert!(faster.b.shows(after.event_id().as_str()));
    assert_eq!(faster.b.state(&faster.world, &faster.room), state);
}

/// A reading that is cut off is not begun anew as soon as its lease is over.
#[test]
fn the_rest_of_a_state_is_not_asked_for_without_a_pause() {
    let faster = faster("12");
    faster.join();
    let (store, now) = (&faster.b.store, || faster.world.now_ms());
    faster.world.advance(60 * 60 * 1_000);
    let take = || faster.world.run(store.take_large_join(now(), now() + 120_000)).unwrap();
    let large = take().unwrap();
    let begun = faster.world.run(store.read_anew(&large, now() + 1_000_000)).unwrap().unwrap();
    assert_eq!(begun.attempts, large.attempts + 1);
    faster.world.advance(999_999);
    assert!(take().is_none());
    faster.world.advance(1);
    assert_eq!(take().unwrap().attempts, begun.attempts);
}

#[test]
fn who_leaves_meanwhile_has_left_and_may_come_back() {
    let faster = faster("12");
    faster.join();
    let leave = Draft::membership(faster.bob.as_str(), Membership::Leave, Object::new());
    faster.b.send(&faster.world, &faster.room, &faster.bob, leave);
    faster.world.settle();
    assert_eq!(faster.a.membership(&faster.world, &faster.room, faster.bob.as_str()).as_deref(), Some("leave"));
    // Nobody here needs the members any more.
    faster.answers.set(Answers::Truly);
    faster.later();
    assert_eq!((faster.extent(), faster.count("large_joins")), (Extent::Partial, 0));
    faster.try_join(&faster.bob, "a.example").unwrap();
    faster.world.settle();
    assert_eq!(faster.extent(), Extent::Whole, "{:?}", faster.world.logs());
    faster.is_whole();
}

#[test]
fn another_local_user_joins_meanwhile_through_another_server() {
    for version in ["10", "12"] {
        let faster = faster(version);
        let (erin, mallory) = (faster.b.user(&faster.world, "erin"), faster.b.user(&faster.world, "mallory"));
        let ban = Draft::membership(mallory.as_str(), Membership::Ban, Object::new());
        faster.a.send(&faster.world, &faster.room, &faster.alice, ban);
        faster.world.settle();
        faster.join();
        faster.try_join(&erin, "a.example").unwrap();
        assert_eq!(faster.try_join(&mallory, "a.example"), Err((403, "M_FORBIDDEN")));
        faster.world.settle();
        assert_eq!(faster.extent(), Extent::Partial);
        assert!(faster.a.shows(faster.says(&faster.b, &erin, "me too").event_id().as_str()));
        faster.completes();
        assert_eq!(faster.b.membership(&faster.world, &faster.room, erin.as_str()).as_deref(), Some("join"));
    }
}

/// The whole state is that before our join: by then an invite that came since may be newer.
#[test]
fn an_invite_that_came_meanwhile_outlives_the_whole_state() {
    let faster = faster("12");
    let (world, room) = (&faster.world, &faster.room);
    let erin = faster.b.user(world, "erin");
    for membership in [Membership::Ban, Membership::Leave] {
        faster.a.send(world, room, &faster.alice, Draft::membership(erin.as_str(), membership, Object::new()));
    }
    world.settle();
    faster.join();
    // The invite cites a message that does not get through.
    world.connect(
        "b.example",
        Rc::new(|_| Box::pin(async { json_response(StatusCode::BAD_GATEWAY, &json!({ "errcode": "M_UNKNOWN" })) })),
    );
    faster.says(&faster.a, &faster.alice, "nobody hears this");
    let invite = Draft::membership(erin.as_str(), Membership::Invite, Object::new());
    let invite = faster.a.send(world, room, &faster.alice, invite);
    let inviter = ServerName::parse("a.example").unwrap();
    world.run(faster.b.rooms.receive_invite(&inviter, &invite, Vec::new())).unwrap();
    let held = format!("SELECT membership FROM local_memberships WHERE user_id = '{erin}'");
    assert_eq!(faster.b.database.rows(&held), [["invite"]]);
    faster.answers.set(Answers::Truly);
    faster.later();
    assert_ne!(faster.extent(), Extent::Partial, "{:?}", world.logs());
    assert_eq!(faster.b.database.rows(&held), [["invite"]]);
}
#[test]
fn a_server_is_in_the_room_though_all_leave_whom_we_know_of_it() {
    // A room without a name is told with those after whom it is called.
    let faster = faster_in("12", None);
    faster.join();
    let state = faster.b.state(&faster.world, &faster.room);
    let known = state.iter().filter(|(kind, user, _)| kind == "m.room.member" && user.ends_with(":a.example"));
    let known: Vec<UserId> = known.map(|(_, user, _)| UserId::parse(user).unwrap()).collect();
    assert!(!known.is_empty() && known.len() < MEMBERS, "{known:?}");
    for user in &known {
        let leave = Draft::membership(user.as_str(), Membership::Leave, Object::new());
        faster.a.send(&faster.world, &faster.room, user, leave);
        faster.world.settle();
        assert_eq!(faster.b.membership(&faster.world, &faster.room, user.as_str()).as_deref(), Some("leave"));
    }
    let servers = "SELECT server FROM room_servers WHERE to_pos IS NULL ORDER BY server";
    assert_eq!(faster.b.database.rows(servers), [["a.example"], ["b.example"], ["peer.example"]]);
    assert!(faster.a.shows(faster.says(&faster.b, &faster.bob, "who is left?").event_id().as_str()));
    faster.completes();
}

#[test]
fn servers_that_leave_out_nothing_are_joined_through_as_ever() {
    // Who leaves out members and does not say which servers are in the room is asked for all of it,
    joins_the_old_way(|answer| drop(answer.remove("servers_in_room")));
}

#[test]
fn servers_that_name_too_many_others_are_joined_through_as_ever() {
    let names: Vec<String> = (0..=20_000).map(|n| format!("s{n}.example")).collect();
    joins_the_old_way(move |answer| drop(answer.insert("servers_in_room".to_owned(), json!(names))));
}

/// Bob joins by an answer without members that is altered so, and then by a whole one.
fn joins_the_old_way(alter: impl Fn(&mut serde_json::Map<String, Value>) + 'static) {
    let faster = faster("12");
    faster.alters(alter);
    faster.try_join(&faster.bob, "a.example").unwrap();
    let asked = faster.world.traffic();
    let joins: Vec<_> =
        asked.iter().filter(|sent| sent.from == "b.example" && sent.line.contains("/send_join/")).collect();
    assert_eq!(joins.len(), 2, "{joins:?}");
    assert!(joins[0].line.ends_with("?omit_members=true") && !joins[1].line.contains('?'));
    faster.world.settle();
    assert_eq!(faster.extent(), Extent::Whole);
    faster.is_whole();
}
