//! Requests that must be refused: malformed, oversized, unauthorised, out of order. Each gets its documented error with a sentence,
//! and leaves every table of the database as it was.

mod endpoints;
mod handshakes;
mod invites;
mod reading;
mod transactions;
mod users;

use std::{collections::BTreeMap, rc::Rc};

use http::Method;
use serde_json::{Value, json};
use verge::{
    matrix::{
        identifiers::{RoomId, ServerName, UserId},
        json::Object,
        room_version::RoomVersion,
        state_content::Membership,
    },
    platform::Clock,
    room::{Draft, NewRoom},
    router::{Request, json_response},
};

use crate::{
    common::{
        homeserver::object,
        network::{Homeserver, World},
        peer::{Peer, PeerRoom, encode, request, send},
    },
    policy::policy_server,
};

/// Status and errcode.
type Refusal = (u16, &'static str);

const NOT_JSON: Refusal = (400, "M_NOT_JSON");
const BAD_JSON: Refusal = (400, "M_BAD_JSON");
const INVALID: Refusal = (400, "M_INVALID_PARAM");
const MISSING: Refusal = (400, "M_MISSING_PARAM");
const INCOMPATIBLE: Refusal = (400, "M_INCOMPATIBLE_ROOM_VERSION");
const UNAUTHORIZED: Refusal = (401, "M_UNAUTHORIZED");
const FORBIDDEN: Refusal = (403, "M_FORBIDDEN");
const NOT_FOUND: Refusal = (404, "M_NOT_FOUND");
const UNRECOGNIZED: Refusal = (404, "M_UNRECOGNIZED");
const OTHER_METHOD: Refusal = (405, "M_UNRECOGNIZED");
const TOO_LARGE: Refusal = (413, "M_TOO_LARGE");

/// How many requests the tables hold at least.
const AT_LEAST: usize = 150;

/// A request that is refused.
struct Row {
    name: String,
    to: Homeserver,
    request: Request,
    refusal: Refusal,
    /// The tables in which it is noted, by design.
    notes: &'static [&'static str],
}

/// Two servers of ours with rooms of every kind, and peers that stand to them in every way.
struct Stage {
    world: World,
    /// Alice's server, also a policy server.
    a: Homeserver,
    /// Another one, which has joined `room` later than the peers.
    b: Homeserver,
    alice: UserId,
    /// Whom nobody has invited yet.
    dora: UserId,
    /// Who wants no invites.
    shy: UserId,
    /// Anybody may join it; Bob has.
    room: RoomId,
    theirs: PeerRoom,
    /// The same once more.
    other: RoomId,
    elsewhere: PeerRoom,
    /// Its policy server is `a`; Bob has joined it.
    guarded: RoomId,
    /// Only who is invited may join it; nobody is.
    closed: RoomId,
    /// One may knock on it.
    knockable: RoomId,
    /// Members of a room may join it that is not here.
    unknown_condition: RoomId,
    /// Members of `room` may join it, and nobody here may invite.
    ungranted: RoomId,
    /// Its ACL keeps `denied` out, which has joined it before.
    shut: RoomId,
    shut_to: PeerRoom,
    /// Alice has left it.
    left: RoomId,
    /// Of this server alone.
    own: RoomId,
    /// In the rooms above; its user Mallory is banned from `room` and `knockable`.
    peer: Rc<Peer>,
    bob: String,
    mallory: String,
    /// In no room.
    stranger: Rc<Peer>,
    denied: Rc<Peer>,
    /// Its only user has left `room`.
    gone: Rc<Peer>,
    /// Its keys are valid no longer.
    expired: Rc<Peer>,
    /// What Mallory signed before she was banned, and the denied server before the ACL: by endpoint and room.
    signed: BTreeMap<(&'static str, RoomId), (String, Value)>,
    /// Media of a local user: text, and what has not come yet.
    text: String,
    awaited: String,
    /// A user's tokens: of a client, and an OpenID token that has expired.
    token: String,
    expired_token: String,
}

impl Stage {
    fn new() -> Self {
        let world = World::new();
        let (a, alice, guarded) = policy_server(&world);
        let b = world.server("b.example");
        let [peer, stranger, denied, gone, expired] =
            ["peer", "stranger", "denied", "gone", "expired"].map(|name| Peer::new(&world, &format!("{name}.example")));
        for peer in [&peer, &stranger, &denied, &gone, &expired] {
            // Otherwise what waits for them is tried again, and noted, for as long as the test lasts.
            peer.answers(|request| {
                let is_transaction = request.uri().path().starts_with("/_matrix/federation/v1/send/");
                is_transaction.then(|| json_response(http::StatusCode::OK, &json!({ "pdus": {} })))
            });
            peer.key_validity_ms.set(30 * 24 * 3_600_000);
        }
        expired.key_validity_ms.set(-1);
        let (dora, shy) = (a.user(&world, "dora"), a.user(&world, "shy"));
        let blocks = r#"{"default_action":"block"}"#;
        world.run(a.store.put_account_data(shy.as_str(), "", "m.invite_permission_config", blocks)).unwrap();
        let (token, text, awaited, expired_token) = uploads(&world, &a);

        let public = |version: &str| a.public_room(&world, &alice, version);
        let (room, other, shut, left) = (public("12"), public("12"), public("12"), public("12"));
        let rules = |version: &str, rules: Value| a.room(&world, &alice, version, rules);
        let closed = rules("12", json!({ "join_rule": "invite" }));
        let knockable = rules("12", json!({ "join_rule": "knock" }));
        let restricted = |condition: &str| {
            let allow = json!([{ "type": "m.room_membership", "room_id": condition }]);
            rules("10", json!({ "join_rule": "restricted", "allow": allow }))
        };
        let unknown_condition = restricted("!elsewhere:b.example");
        let ungranted = restricted(room.as_str());
        let levels = object(json!({ "users": { alice.as_str(): 50 }, "invite": 60 }));
        a.send(&world, &ungranted, &alice, Draft::state("m.room.power_levels", "", levels));
        let own = NewRoom {
            version: RoomVersion::get("12").unwrap(),
            create_content: object(json!({ "m.federate": false })),
            drafts: vec![
                Draft::membership(alice.as_str(), Membership::Join, Object::new()),
                Draft::state("m.room.join_rules", "", object(json!({ "join_rule": "public" }))),
            ],
        };
        let (own, _) = world.run(a.rooms.create(&alice, &own)).unwrap();

        let (bob, mallory) = (peer.user("bob"), peer.user("mallory"));
        let elsewhere = peer.join(&a, other.as_str(), &bob);
        peer.join(&a, guarded.as_str(), &bob);
        let leaver = gone.user("erin");
        let erin = gone.join(&a, room.as_str(), &leaver);
        let leave = json!({ "type": "m.room.member", "state_key": leaver, "content": { "membership": "leave" } });
        let (_, leave) = gone.sign("12", erin.draft(world.now_ms(), &leaver, leave));
        assert_eq!(gone.send(&a, "leave", &[leave]).0, 200);
        let shut_to = denied.join(&a, shut.as_str(), &denied.user("carol"));
        let mut theirs = peer.join(&a, room.as_str(), &bob);

        let mut signed = BTreeMap::new();
        let template = |peer: &Peer, kind: &str, room: &RoomId, user: &str| {
            let target = format!("make_{kind}/{}/{}?ver=12", encode(room.as_str()), encode(user));
            let (status, answer) = peer.get(&a, &format!("/_matrix/federation/v1/{target}"));
            assert_eq!(status, 200, "{answer}");
            peer.sign("12", answer["event"].clone())
        };
        signed.insert(("join", room.clone()), template(&peer, "join", &room, &mallory));
        signed.insert(("knock", knockable.clone()), template(&peer, "knock", &knockable, &mallory));
        signed.insert(("join", shut.clone()), template(&denied, "join", &shut, &denied.user("dan")));
        signed.insert(("leave", shut.clone()), template(&denied, "leave", &shut, &denied.user("carol")));
        for room in [&room, &knockable] {
            a.send(&world, room, &alice, Draft::membership(&mallory, Membership::Ban, Object::new()));
        }
        let acl = object(json!({ "allow": ["*"], "deny": ["denied.example"] }));
        a.send(&world, &shut, &alice, Draft::state("m.room.server_acl", "", acl));
        a.send(&world, &left, &alice, Draft::membership(alice.as_str(), Membership::Leave, Object::new()));
        let guest = b.user(&world, "guest");
        let via = vec![ServerName::parse("a.example").unwrap()];
        world.run(verge::federation::outbound::membership::join(&b, &guest, &room, via, Object::new())).unwrap();
        world.settle();
        theirs.advance(a.say(&world, &room, &alice, "hello").event_id().as_str());
        world.settle();
        // Everybody is known everywhere, and has been heard of.
        for peer in [&peer, &stranger, &denied, &gone, &expired] {
            for server in [&a, &b] {
                peer.get(server, "/_matrix/federation/v1/query/profile?user_id=%40nobody%3Aa.example");
            }
        }
        world.settle();
        Self {
            world,
            a,
            b,
            alice,
            dora,
            shy,
            room,
            theirs,
            other,
            elsewhere,
            guarded,
            closed,
            knockable,
            unknown_condition,
            ungranted,
            shut,
            shut_to,
            left,
            own,
            peer,
            bob,
            mallory,
            stranger,
            denied,
            gone,
            expired,
            signed,
            text,
            awaited,
            token,
            expired_token,
        }
    }

    /// A row that asks `a` for what `rest` says, below `/_matrix/federation/`.
    fn get(&self, name: &str, peer: &Peer, rest: &str, refusal: Refusal) -> Row {
        self.row(name, &self.a, peer.request(&self.a, Method::GET, &federation(rest), None), refusal)
    }

    fn put(&self, name: &str, peer: &Peer, rest: &str, body: &Value, refusal: Refusal) -> Row {
        self.row(name, &self.a, peer.request(&self.a, Method::PUT, &federation(rest), Some(body)), refusal)
    }

    fn post(&self, name: &str, peer: &Peer, rest: &str, body: &Value, refusal: Refusal) -> Row {
        self.row(name, &self.a, peer.request(&self.a, Method::POST, &federation(rest), Some(body)), refusal)
    }

    /// A row without a signature.
    fn unsigned(&self, name: &str, method: Method, target: &str, body: &Value, refusal: Refusal) -> Row {
        let text = if body.is_null() { String::new() } else { body.to_string() };
        self.row(name, &self.a, request(method, target, &[], text), refusal)
    }

    fn row(&self, name: &str, to: &Homeserver, request: Request, refusal: Refusal) -> Row {
        Row {
            name: format!("{} {}: {name}", request.method(), request.uri().path()),
            to: to.clone(),
            request,
            refusal,
            notes: &[],
        }
    }

    /// The ID of an event of the current state.
    fn state_id(&self, room: &RoomId, event_type: &str, state_key: &str) -> String {
        let state = self.a.state(&self.world, room);
        state.into_iter().find(|(kind, key, _)| kind == event_type && key == state_key).unwrap().2
    }
}

/// The whole target of a path below `/_matrix/federation/`, or of one that is whole already.
fn federation(rest: &str) -> String {
    if rest.starts_with('/') { rest.to_owned() } else { format!("/_matrix/federation/{rest}") }
}

/// A local user's token, media of theirs (a text; nothing yet), and an OpenID token that has expired.
fn uploads(world: &World, a: &Homeserver) -> (String, String, String, String) {
    let body = r#"{"username":"cora","password":"secret","auth":{"type":"m.login.dummy"}}"#;
    let (status, answer) = send(world, a, request(Method::POST, "/_matrix/client/v3/register", &[], body));
    assert_eq!(status, 200, "{answer}");
    let token = answer["access_token"].as_str().unwrap().to_owned();
    let ask = |target: &str, body: &'static str| {
        let (status, answer) = send(world, a, request(Method::POST, target, &[&format!("Bearer {token}")], body));
        assert_eq!(status, 200, "{answer}");
        answer
    };
    let id = |answer: Value| answer["content_uri"].as_str().unwrap().rsplit('/').next().unwrap().to_owned();
    let text = id(ask("/_matrix/media/v3/upload", "no image"));
    let open_id = ask("/_matrix/client/v3/user/%40cora%3Aa.example/openid/request_token", "{}");
    world.advance(3_600_000);
    let awaited = id(ask("/_matrix/media/v1/create", ""));
    (token.clone(), text, awaited, open_id["access_token"].as_str().unwrap().to_owned())
}

/// Every row of every table.
fn everything(server: &Homeserver) -> BTreeMap<String, Vec<Vec<String>>> {
    let tables = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'";
    let rows = |table: &str| {
        let mut rows = server.database.rows(&format!("SELECT * FROM {table}"));
        rows.sort();
        rows
    };
    server.database.rows(tables).iter().map(|table| (table[0].clone(), rows(&table[0]))).collect()
}

/// The tables that differ.
fn changed(before: &BTreeMap<String, Vec<Vec<String>>>, after: &BTreeMap<String, Vec<Vec<String>>>) -> Vec<String> {
    before.keys().filter(|table| before[*table] != after[*table]).cloned().collect()
}

fn rows(stage: &Stage) -> Vec<Row> {
    let parts = [endpoints::rows, handshakes::rows, invites::rows, reading::rows, transactions::rows, users::rows];
    parts.iter().flat_map(|part| part(stage)).collect()
}

#[test]
fn what_must_be_refused_gets_its_error_and_changes_nothing() {
    let stage = Stage::new();
    let rows = rows(&stage);
    assert!(rows.len() >= AT_LEAST, "{}", rows.len());
    let names: std::collections::BTreeSet<&str> = rows.iter().map(|row| row.name.as_str()).collect();
    assert_eq!(names.len(), rows.len(), "each has a name of its own");
    let mut before = [&stage.a, &stage.b].map(everything);
    let mut faults = Vec::new();
    for Row { name, to, request, refusal, notes } in rows {
        let response = stage.world.run(to.handle(request));
        stage.world.settle();
        let (status, body) = (response.status().as_u16(), response.body());
        let answer: Value = serde_json::from_slice(body).unwrap_or(Value::Null);
        let is_json = response.headers().get("content-type").is_some_and(|kind| kind == "application/json");
        let has_sentence = answer["error"].as_str().is_some_and(is_sentence);
        let got = (status, answer["errcode"].as_str().unwrap_or_default());
        if got != refusal || !is_json || !has_sentence {
            faults.push(format!("{name}: expected {refusal:?}, got {status} {answer}"));
        }
        let after = [&stage.a, &stage.b].map(everything);
        let mut differ: Vec<_> = before.iter().zip(&after).flat_map(|(before, after)| changed(before, after)).collect();
        differ.retain(|table| !notes.contains(&table.as_str()));
        if !differ.is_empty() {
            faults.push(format!("{name}: changed {differ:?}"));
        }
        before = after;
    }
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

/// Whether it can be read by a person.
fn is_sentence(text: &str) -> bool {
    text.contains(' ') && text.ends_with(['.', '!', '?'])
}

/// Whoever asks so often is told when to come back.
#[test]
fn who_asks_too_often_is_told_so_and_changes_nothing() {
    let world = World::new();
    let database = crate::common::sqlite::Sqlite::in_memory();
    let a = world.server_over("a.example", database, &[("FEDERATION_RATE", "1/3600")]);
    let peer = Peer::new(&world, "peer.example");
    let target = "/_matrix/federation/v1/query/profile?user_id=%40nobody%3Aa.example";
    assert_eq!(peer.get(&a, target).0, 404);
    world.settle();
    let before = everything(&a);
    let asked = || a.handle(peer.request(&a, Method::GET, target, None));
    let begun = Clock::now_ms(&world);
    let answers = world.run(futures_util::future::join_all((0..3).map(|_| asked())));
    let refused = answers.iter().filter(|answer| answer.status() == 429).collect::<Vec<_>>();
    assert!(!refused.is_empty());
    for answer in refused {
        let body: Value = serde_json::from_slice(answer.body()).unwrap();
        assert_eq!(body["errcode"], "M_LIMIT_EXCEEDED");
        assert!(body["retry_after_ms"].as_i64().unwrap() > 0 && answer.headers().contains_key("retry-after"));
    }
    assert!(Clock::now_ms(&world) >= begun);
    assert_eq!(changed(&before, &everything(&a)), [] as [&str; 0]);
}
