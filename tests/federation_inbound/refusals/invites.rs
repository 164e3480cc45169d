//! Invites that are none, and third-party invites that nobody offered.

use http::Method;
use serde_json::{Value, json};

use super::{BAD_JSON, FORBIDDEN, INCOMPATIBLE, INVALID, NOT_FOUND, Refusal, Row, Stage, TOO_LARGE};
use crate::common::peer::{Peer, encode, event_id};

/// What is wrong, how it is refused, and what makes it wrong.
type Change<'c> = (&'c str, Refusal, &'c dyn Fn(&mut Value));

const BLOCKED: Refusal = (403, "M_INVITE_BLOCKED");

pub(super) fn rows(stage: &Stage) -> Vec<Row> {
    let mut rows = of_invites(stage);
    rows.extend(of_invites_in_rooms_that_we_are_in(stage));
    rows.extend(of_old_invites(stage));
    rows.extend(of_exchanges(stage));
    rows.extend(of_bindings(stage));
    rows
}

/// A room of the peer, by its create event, and an invite of Dora to it.
struct Theirs {
    room_id: String,
    create: Value,
    invite: Value,
}

impl Theirs {
    fn new(stage: &Stage) -> Self {
        let now = stage.world.now_ms();
        let create = json!({
            "type": "m.room.create", "state_key": "", "sender": stage.bob, "origin_server_ts": now, "depth": 1,
            "auth_events": [], "prev_events": [], "content": { "room_version": "12" },
        });
        let (id, create) = stage.peer.sign("12", create);
        let room_id = id.replace('$', "!");
        let invite = json!({
            "type": "m.room.member", "state_key": stage.dora, "sender": stage.bob, "room_id": room_id,
            "origin_server_ts": now, "depth": 5, "auth_events": ["$auth"], "prev_events": ["$previous"],
            "content": { "membership": "invite" },
        });
        Self { room_id, create, invite }
    }

    /// The request's path and body.
    fn request(&self, event: &Value, state: &Value) -> (String, Value) {
        let rest = format!("v2/invite/{}/{}", encode(&self.room_id), encode(&event_id("12", event)));
        (rest, json!({ "room_version": "12", "event": event, "invite_room_state": state }))
    }
}

fn members(value: &mut Value) -> &mut serde_json::Map<String, Value> {
    value.as_object_mut().unwrap()
}

fn of_invites(stage: &Stage) -> Vec<Row> {
    let mut rows = Vec::new();
    let theirs = Theirs::new(stage);
    let state = json!([theirs.create]);
    let signed = |change: &dyn Fn(&mut Value)| {
        let mut invite = theirs.invite.clone();
        change(&mut invite);
        stage.peer.sign("12", invite).1
    };
    let good = signed(&|_| {});

    let changes: &[Change<'_>] = &[
        ("of another type", INVALID, &|event| event["type"] = json!("m.room.topic")),
        ("of another membership", INVALID, &|event| event["content"]["membership"] = json!("join")),
        ("of no membership", INVALID, &|event| event["content"] = json!({})),
        ("by another server's user", INVALID, &|event| event["sender"] = json!("@x:stranger.example")),
        ("by nobody", INVALID, &|event| event["sender"] = json!("bob")),
        ("of another server's user", INVALID, &|event| event["state_key"] = json!("@dora:b.example")),
        ("of who is no user", INVALID, &|event| event["state_key"] = json!("dora")),
        ("of a user that there is not", NOT_FOUND, &|event| event["state_key"] = json!("@nobody:a.example")),
        ("of who wants no invites", BLOCKED, &|event| event["state_key"] = json!(stage.shy)),
        ("to another room", INVALID, &|event| event["room_id"] = json!("!other")),
        ("to no room", INVALID, &|event| event["room_id"] = json!("room")),
        ("with a depth that is a text", INVALID, &|event| event["depth"] = json!("5")),
        ("with 21 previous events", INVALID, &|event| event["prev_events"] = json!(vec!["$e"; 21])),
    ];
    for (name, refusal, change) in changes {
        let (rest, body) = theirs.request(&signed(change), &state);
        rows.push(stage.put(name, &stage.peer, &rest, &body, *refusal));
    }

    let mut forged = theirs.create.clone();
    forged["depth"] = json!(2);
    let mut fraction = theirs.create.clone();
    fraction["content"]["org.example.number"] = json!(1.5);
    let stripped = json!({ "type": "m.room.create", "state_key": "", "sender": stage.bob, "content": {} });
    let other = json!({
        "type": "m.room.name", "state_key": "", "sender": stage.bob, "room_id": "!other", "depth": 2, "auth_events": [],
        "origin_server_ts": 1, "prev_events": [], "content": { "name": "x" },
    });
    let other = stage.peer.sign("12", other).1;
    for (n, (name, state)) in [
        ("with no state of the room", json!([])),
        ("with a state that is stripped", json!([stripped])),
        ("with a forged beginning", json!([forged])),
        ("with a fraction in a state", json!([fraction])),
        ("with the state of another room", json!([theirs.create, other])),
        ("with a number for a state", json!([theirs.create, 7])),
        ("with 101 events of a state", json!(vec![theirs.create.clone(); 101])),
    ]
    .into_iter()
    .enumerate()
    {
        let invite = signed(&|event| event["depth"] = json!(10 + n));
        let (rest, body) = theirs.request(&invite, &state);
        rows.push(stage.put(name, &stage.peer, &rest, &body, INVALID));
    }

    let (rest, body) = theirs.request(&good, &state);
    let bodies: &[Change<'_>] = &[
        ("without a room version", BAD_JSON, &|body| drop(members(body).remove("room_version"))),
        ("with a room version that is a number", BAD_JSON, &|body| body["room_version"] = json!(12)),
        ("of a version that nobody knows", INCOMPATIBLE, &|body| body["room_version"] = json!("99")),
        ("of another version than its room's", INVALID, &|body| body["room_version"] = json!("2")),
        ("without an event", BAD_JSON, &|body| drop(members(body).remove("event"))),
        ("with a list for an event", BAD_JSON, &|body| body["event"] = json!([])),
        ("altered after it was signed", INVALID, &|body| body["event"]["depth"] = json!(6)),
        ("of more than 65536 bytes", TOO_LARGE, &|body| {
            body["event"]["content"]["reason"] = json!("x".repeat(65_537));
        }),
        ("with a fraction", BAD_JSON, &|body| body["event"]["content"]["org.example.number"] = json!(1.5)),
        ("with a number out of range", BAD_JSON, &|body| body["event"]["depth"] = json!(1_u64 << 53)),
        ("with an event without content", BAD_JSON, &|body| drop(members(&mut body["event"]).remove("content"))),
        ("with an event without a sender", INVALID, &|body| drop(members(&mut body["event"]).remove("sender"))),
        ("with an event without a state key", INVALID, &|body| drop(members(&mut body["event"]).remove("state_key"))),
        ("with an event without hashes", INVALID, &|body| drop(members(&mut body["event"]).remove("hashes"))),
        ("without signatures", INVALID, &|body| body["event"]["signatures"] = json!({})),
    ];
    for (name, refusal, change) in bodies {
        let mut body = body.clone();
        change(&mut body);
        rows.push(stage.put(name, &stage.peer, &rest, &body, *refusal));
    }
    let under = |name: &str, room: &str, id: &str| {
        let rest = format!("v2/invite/{}/{}", encode(room), encode(id));
        stage.put(name, &stage.peer, &rest, &body, INVALID)
    };
    rows.push(under("under another ID", &theirs.room_id, "$other"));
    rows.push(under("under another room's ID", "!other", &event_id("12", &good)));
    rows.push(under("under no room's ID", "room", &event_id("12", &good)));
    rows.push(stage.put("passed on by another server", &stage.stranger, &rest, &body, INVALID));
    rows
}

fn of_invites_in_rooms_that_we_are_in(stage: &Stage) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut push = |name: &str, peer: &Peer, theirs: &crate::common::peer::PeerRoom, sender: &str, target: &str| {
        let fields = json!({ "type": "m.room.member", "state_key": target, "content": { "membership": "invite" } });
        let (id, event) = peer.sign("12", theirs.draft(stage.world.now_ms(), sender, fields));
        let create = theirs.state[&("m.room.create".to_owned(), String::new())].clone();
        let body = json!({ "room_version": "12", "event": event, "invite_room_state": [create] });
        let room = encode(&theirs.room_id);
        let row = stage.put(name, peer, &format!("v2/invite/{room}/{}", encode(&id)), &body, FORBIDDEN);
        // What the rules forbid is an event of the room all the same, and others may cite it.
        rows.push(Row { notes: &["rejected_events"], ..row });
        rows.push(stage.put(name, peer, &format!("v1/invite/{room}/{}", encode(&id)), &event, INCOMPATIBLE));
    };
    push("of who is in the room", &stage.peer, &stage.theirs, &stage.bob, stage.alice.as_str());
    push("by who is banned", &stage.peer, &stage.theirs, &stage.mallory, stage.dora.as_str());
    push("by who is not in the room", &stage.peer, &stage.theirs, &stage.peer.user("nobody"), stage.dora.as_str());
    let carol = stage.denied.user("carol");
    push("of a server that the ACL denies", &stage.denied, &stage.shut_to, &carol, stage.dora.as_str());
    rows
}

fn of_old_invites(stage: &Stage) -> Vec<Row> {
    let mut rows = Vec::new();
    let (room, id) = ("!old:peer.example", "$invite:peer.example");
    let invite = json!({
        "type": "m.room.member", "state_key": stage.dora, "sender": stage.bob, "room_id": room, "origin_server_ts": 1,
        "depth": 5, "event_id": id, "content": { "membership": "invite" },
        "auth_events": [["$auth:peer.example", { "sha256": "abc" }]],
        "prev_events": [["$previous:peer.example", { "sha256": "abc" }]],
    });
    let changes: &[Change<'_>] = &[
        ("of another type", INVALID, &|event| event["type"] = json!("m.room.topic")),
        ("of another membership", INVALID, &|event| event["content"]["membership"] = json!("join")),
        ("by another server's user", INVALID, &|event| event["sender"] = json!("@x:stranger.example")),
        ("of another server's user", INVALID, &|event| event["state_key"] = json!("@dora:b.example")),
        ("of a user that there is not", NOT_FOUND, &|event| event["state_key"] = json!("@nobody:a.example")),
        ("of who wants no invites", BLOCKED, &|event| event["state_key"] = json!(stage.shy)),
        ("to another room", INVALID, &|event| event["room_id"] = json!("!other:peer.example")),
        ("of another ID", INVALID, &|event| event["event_id"] = json!("$other:peer.example")),
        ("citing as newer rooms do", INVALID, &|event| event["auth_events"] = json!(["$auth"])),
    ];
    let rest = format!("v1/invite/{}/{}", encode(room), encode(id));
    for (name, refusal, change) in changes {
        let mut event = invite.clone();
        change(&mut event);
        rows.push(stage.put(name, &stage.peer, &rest, &stage.peer.sign("2", event).1, *refusal));
    }
    let mut forged = stage.peer.sign("2", invite).1;
    forged["depth"] = json!(6);
    rows.push(stage.put("altered after it was signed", &stage.peer, &rest, &forged, INVALID));
    members(&mut forged).remove("content");
    rows.push(stage.put("without content", &stage.peer, &rest, &forged, BAD_JSON));
    rows
}

fn of_exchanges(stage: &Stage) -> Vec<Row> {
    let mut rows = Vec::new();
    let carol = stage.peer.user("carol");
    let signed = json!({ "mxid": carol, "token": "tok", "signatures": { "id.example": { "ed25519:0": "x" } } });
    let good = json!({
        "type": "m.room.member", "room_id": stage.room, "sender": stage.alice, "state_key": carol,
        "content": { "membership": "invite", "third_party_invite": { "display_name": "x", "signed": signed } },
    });
    let rest = format!("v1/exchange_third_party_invite/{}", encode(stage.room.as_str()));
    for name in ["type", "room_id", "sender", "state_key", "content"] {
        let mut body = good.clone();
        body.as_object_mut().unwrap().remove(name);
        rows.push(stage.put(&format!("without {name}"), &stage.peer, &rest, &body, BAD_JSON));
        body[name] = json!(7);
        rows.push(stage.put(&format!("with a number for {name}"), &stage.peer, &rest, &body, BAD_JSON));
    }
    let changes: &[Change<'_>] = &[
        ("of another type", INVALID, &|body| body["type"] = json!("m.room.topic")),
        ("of another room", INVALID, &|body| body["room_id"] = json!(stage.other.as_str())),
        ("of another membership", INVALID, &|body| body["content"]["membership"] = json!("join")),
        ("without an invite", BAD_JSON, &|body| {
            drop(body["content"].as_object_mut().unwrap().remove("third_party_invite"))
        }),
        ("without what was signed", BAD_JSON, &|body| body["content"]["third_party_invite"] = json!({})),
        ("without a token", INVALID, &|body| body["content"]["third_party_invite"]["signed"]["token"] = json!(1)),
        ("about another user", INVALID, &|body| body["state_key"] = json!(stage.peer.user("other"))),
        ("about another server's user", FORBIDDEN, &|body| body["state_key"] = json!("@carol:stranger.example")),
        ("of what was never offered", FORBIDDEN, &|_| {}),
    ];
    for (name, refusal, change) in changes {
        let mut body = good.clone();
        change(&mut body);
        rows.push(stage.put(name, &stage.peer, &rest, &body, *refusal));
    }
    for (name, room, refusal) in [
        ("in a room that there is not", "!nowhere:a.example", NOT_FOUND),
        ("in a room that we have left", stage.left.as_str(), NOT_FOUND),
        ("in no room", "room", INVALID),
    ] {
        let rest = format!("v1/exchange_third_party_invite/{}", encode(room));
        rows.push(stage.put(name, &stage.peer, &rest, &good, refusal));
    }
    let rest = format!("v1/exchange_third_party_invite/{}", encode(stage.shut.as_str()));
    rows.push(stage.put("of a server that the ACL denies", &stage.denied, &rest, &good, FORBIDDEN));
    rows
}

/// Anybody may tell of a binding; so often from one address.
fn of_bindings(stage: &Stage) -> Vec<Row> {
    let invite = json!({
        "medium": "email", "address": "d@e.example", "mxid": stage.dora, "room_id": stage.room, "sender": stage.alice,
        "signed": { "mxid": stage.dora, "token": "tok", "signatures": {} },
    });
    let good = json!({ "medium": "email", "address": "d@e.example", "mxid": stage.dora, "invites": [invite] });
    let changes: &[Change<'_>] = &[
        ("without a user", BAD_JSON, &|body| drop(members(body).remove("mxid"))),
        ("to no user", BAD_JSON, &|body| body["mxid"] = json!("dora")),
        ("to another server's user", INVALID, &|body| *body = json!({ "mxid": "@x:b.example", "invites": [] })),
        ("to a user that there is not", NOT_FOUND, &|body| *body = json!({ "mxid": "@x:a.example", "invites": [] })),
        ("without invites", BAD_JSON, &|body| drop(members(body).remove("invites"))),
        ("with invites that are no list", BAD_JSON, &|body| body["invites"] = json!({})),
        ("with a number for an invite", BAD_JSON, &|body| body["invites"] = json!([7])),
        ("with 21 invites", INVALID, &|body| body["invites"] = json!(vec![invite.clone(); 21])),
        ("with an invite of another user", INVALID, &|body| body["invites"][0]["mxid"] = json!("@x:a.example")),
        ("with an invite to no room", INVALID, &|body| body["invites"][0]["room_id"] = json!("room")),
        ("with an invite by nobody", BAD_JSON, &|body| body["invites"][0]["sender"] = json!("alice")),
        ("with nothing signed", BAD_JSON, &|body| body["invites"][0]["signed"] = json!([])),
        ("with what is signed about another", INVALID, &|body| body["invites"][0]["signed"]["mxid"] = json!("@x:y.z")),
        ("of what was never offered", FORBIDDEN, &|_| {}),
    ];
    let row = |(name, refusal, change): &Change<'_>| {
        let mut body = good.clone();
        change(&mut body);
        stage.unsigned(name, Method::PUT, "/_matrix/federation/v1/3pid/onbind", &body, *refusal)
    };
    changes.iter().map(row).collect()
}
