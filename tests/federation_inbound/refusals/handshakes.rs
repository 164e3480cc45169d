//! Joins, knocks and leaves: templates that nobody could use, and events that are not what they should be, come too early or
//! too late.

use serde_json::{Value, json};
use verge::matrix::identifiers::RoomId;

use super::{BAD_JSON, FORBIDDEN, INCOMPATIBLE, INVALID, NOT_FOUND, Refusal, Row, Stage, TOO_LARGE};
use crate::common::peer::{Peer, encode, event_id};

/// Events that cite what we do not hold.
const BAD_STATE: Refusal = (400, "M_BAD_STATE");

pub(super) fn rows(stage: &Stage) -> Vec<Row> {
    let mut rows = of_templates(stage);
    for (endpoint, membership, room) in [
        ("v1/send_join", "join", &stage.room),
        ("v2/send_join", "join", &stage.room),
        ("v1/send_knock", "knock", &stage.knockable),
        ("v1/send_leave", "leave", &stage.room),
        ("v2/send_leave", "leave", &stage.room),
    ] {
        rows.extend(of_events(stage, endpoint, membership, room));
    }
    rows.extend(of_events_that_the_rules_forbid(stage));
    rows
}

fn of_templates(stage: &Stage) -> Vec<Row> {
    let dave = stage.peer.user("dave");
    let ours = "!nowhere:a.example";
    let cases: &[(&str, &str, &str, &str, &str, Refusal)] = &[
        ("join", "of another version", stage.room.as_str(), &dave, "?ver=10&ver=11", INCOMPATIBLE),
        ("join", "of version 1, as who names none", stage.room.as_str(), &dave, "", INCOMPATIBLE),
        ("join", "of a room that there is not", ours, &dave, "?ver=12", NOT_FOUND),
        ("join", "of a room that we have left", stage.left.as_str(), &dave, "?ver=12", NOT_FOUND),
        ("join", "of no room", "room", &dave, "?ver=12", INVALID),
        ("join", "for nobody", stage.room.as_str(), "dave", "?ver=12", INVALID),
        ("join", "for another server's user", stage.room.as_str(), "@x:stranger.example", "?ver=12", FORBIDDEN),
        ("join", "for our user", stage.room.as_str(), stage.dora.as_str(), "?ver=12", FORBIDDEN),
        ("join", "for who is banned", stage.room.as_str(), &stage.mallory, "?ver=12", FORBIDDEN),
        ("join", "for who is not invited", stage.closed.as_str(), &dave, "?ver=12", FORBIDDEN),
        ("join", "for who may knock", stage.knockable.as_str(), &dave, "?ver=12", FORBIDDEN),
        ("join", "of a room of one server", stage.own.as_str(), &dave, "?ver=12", FORBIDDEN),
        (
            "join",
            "by a condition that we cannot judge",
            stage.unknown_condition.as_str(),
            &stage.bob,
            "?ver=10",
            (400, "M_UNABLE_TO_AUTHORISE_JOIN"),
        ),
        (
            "join",
            "where nobody here may invite",
            stage.ungranted.as_str(),
            &stage.bob,
            "?ver=10",
            (400, "M_UNABLE_TO_GRANT_JOIN"),
        ),
        ("join", "without meeting the condition", stage.ungranted.as_str(), &dave, "?ver=10", FORBIDDEN),
        ("knock", "of another version", stage.knockable.as_str(), &dave, "?ver=10", INCOMPATIBLE),
        ("knock", "of no version", stage.knockable.as_str(), &dave, "", INCOMPATIBLE),
        ("knock", "of a room that there is not", ours, &dave, "?ver=12", NOT_FOUND),
        ("knock", "of a room that we have left", stage.left.as_str(), &dave, "?ver=12", NOT_FOUND),
        ("knock", "of no room", "room", &dave, "?ver=12", INVALID),
        ("knock", "for nobody", stage.knockable.as_str(), "dave", "?ver=12", INVALID),
        ("knock", "for another server's user", stage.knockable.as_str(), "@x:stranger.example", "?ver=12", FORBIDDEN),
        ("knock", "for who is banned", stage.knockable.as_str(), &stage.mallory, "?ver=12", FORBIDDEN),
        ("knock", "on an open door", stage.room.as_str(), &dave, "?ver=12", FORBIDDEN),
        ("knock", "on a wall", stage.closed.as_str(), &dave, "?ver=12", FORBIDDEN),
        ("leave", "of a room that there is not", ours, &stage.bob, "", NOT_FOUND),
        ("leave", "of a room that we have left", stage.left.as_str(), &stage.bob, "", NOT_FOUND),
        ("leave", "of no room", "room", &stage.bob, "", INVALID),
        ("leave", "for nobody", stage.room.as_str(), "bob", "", INVALID),
        ("leave", "for another server's user", stage.room.as_str(), "@x:stranger.example", "", FORBIDDEN),
        ("leave", "for who was never there", stage.room.as_str(), &dave, "", FORBIDDEN),
        ("leave", "for who is banned", stage.room.as_str(), &stage.mallory, "", FORBIDDEN),
    ];
    let target = |kind: &str, room: &str, user: &str, query: &str| {
        format!("v1/make_{kind}/{}/{}{query}", encode(room), encode(user))
    };
    let mut rows: Vec<Row> = cases
        .iter()
        .map(|(kind, name, room, user, query, refusal)| {
            stage.get(name, &stage.peer, &target(kind, room, user, query), *refusal)
        })
        .collect();
    for (kind, user) in [("join", "dan"), ("knock", "dan"), ("leave", "carol")] {
        let target = target(kind, stage.shut.as_str(), &stage.denied.user(user), "?ver=12");
        rows.push(stage.get("of a server that the ACL denies", &stage.denied, &target, FORBIDDEN));
    }
    rows
}

/// A membership event of a user of the peer, as a template of ours would have it.
fn draft(stage: &Stage, room: &RoomId, user: &str, membership: &str) -> Value {
    let mut auth = vec![stage.state_id(room, "m.room.power_levels", "")];
    if membership != "leave" {
        auth.push(stage.state_id(room, "m.room.join_rules", ""));
    }
    let state = stage.a.state(&stage.world, room);
    auth.extend(state.into_iter().find(|(kind, key, _)| kind == "m.room.member" && key == user).map(|(_, _, id)| id));
    let held = stage.world.run(stage.a.rooms.room(room)).unwrap().unwrap();
    let newest: Vec<&str> = held.extremities.iter().map(|extremity| extremity.event_id.as_str()).collect();
    json!({
        "type": "m.room.member", "state_key": user, "sender": user, "room_id": room.as_str(), "depth": 30,
        "origin_server_ts": stage.world.now_ms(), "auth_events": auth, "prev_events": newest,
        "content": { "membership": membership },
    })
}

fn send(
    stage: &Stage,
    name: &str,
    peer: &Peer,
    endpoint: &str,
    room: &str,
    (id, event): &(String, Value),
    refusal: Refusal,
) -> Row {
    stage.put(name, peer, &format!("{endpoint}/{}/{}", encode(room), encode(id)), event, refusal)
}

fn of_events(stage: &Stage, endpoint: &str, membership: &str, room: &RoomId) -> Vec<Row> {
    let mut rows = Vec::new();
    // Bob may leave, and Dave enter.
    let user = if membership == "leave" { stage.bob.clone() } else { stage.peer.user("dave") };
    let good = draft(stage, room, &user, membership);
    let mut changed = |name: &str, refusal: Refusal, change: &dyn Fn(&mut Value)| {
        let mut event = good.clone();
        change(&mut event);
        // An event of its own for each.
        event["origin_server_ts"] = json!(stage.world.now_ms() + i64::try_from(rows.len()).unwrap());
        let signed = stage.peer.sign("12", event);
        rows.push(send(stage, name, &stage.peer, endpoint, room.as_str(), &signed, refusal));
    };
    let other_membership = if membership == "join" { "leave" } else { "join" };
    changed("of another type", INVALID, &|event| event["type"] = json!("m.room.topic"));
    changed("of another membership", INVALID, &|event| event["content"]["membership"] = json!(other_membership));
    changed("of no membership", INVALID, &|event| event["content"] = json!({}));
    changed("a membership that is a number", INVALID, &|event| event["content"]["membership"] = json!(1));
    changed("about another user", INVALID, &|event| event["state_key"] = json!(stage.peer.user("other")));
    changed("of another server's user", INVALID, &|event| event["sender"] = json!("@x:stranger.example"));
    changed("of our user", INVALID, &|event| event["sender"] = json!(stage.alice));
    changed("of another room", INVALID, &|event| event["room_id"] = json!(stage.other.as_str()));
    changed("a sender that is none", BAD_JSON, &|event| event["sender"] = json!("dave"));
    changed("a content that is a list", BAD_JSON, &|event| event["content"] = json!([]));
    changed("a depth that is a text", INVALID, &|event| event["depth"] = json!("30"));
    changed("a depth below 0", INVALID, &|event| event["depth"] = json!(-1));
    changed("cited events that are no list", INVALID, &|event| event["prev_events"] = json!("$e"));
    changed("21 previous events", INVALID, &|event| event["prev_events"] = json!(vec!["$e"; 21]));
    changed("11 auth events", INVALID, &|event| event["auth_events"] = json!(vec!["$e"; 11]));
    changed("without auth events", FORBIDDEN, &|event| event["auth_events"] = json!([]));
    changed("made without our template", BAD_STATE, &|event| event["prev_events"] = json!(["$unknown"]));
    let signed = stage.peer.sign("12", good.clone());
    let mut push = |name: &str, peer: &Peer, room: &str, (id, event): (&str, &Value), refusal: Refusal| {
        rows.push(send(stage, name, peer, endpoint, room, &(id.to_owned(), event.clone()), refusal));
    };
    let id = signed.0.as_str();
    for (refusal, names) in [
        (BAD_JSON, ["type", "content", "sender", "state_key", "room_id"].as_slice()),
        (INVALID, &["depth", "auth_events", "prev_events", "origin_server_ts", "hashes", "signatures"]),
    ] {
        for name in names {
            let mut lacking = signed.1.clone();
            lacking.as_object_mut().unwrap().remove(*name);
            push(&format!("without {name}"), &stage.peer, room.as_str(), (id, &lacking), refusal);
        }
    }
    push("under another ID", &stage.peer, room.as_str(), ("$other", &signed.1), INVALID);
    push("in a room that there is not", &stage.peer, "!nowhere:a.example", (id, &signed.1), NOT_FOUND);
    push("in a room that we have left", &stage.peer, stage.left.as_str(), (id, &signed.1), NOT_FOUND);
    push("in another room", &stage.peer, stage.other.as_str(), (id, &signed.1), INVALID);
    push("in no room", &stage.peer, "room", (id, &signed.1), INVALID);
    push("of a user whose server did not send it", &stage.stranger, room.as_str(), (id, &signed.1), INVALID);
    push("nothing", &stage.peer, room.as_str(), (id, &json!({})), BAD_JSON);
    // ruma signs nothing so long.
    let mut long = signed.1.clone();
    long["content"]["reason"] = json!("x".repeat(65_537));
    push("of more than 65536 bytes", &stage.peer, room.as_str(), (id, &long), TOO_LARGE);
    // Nor what no JSON of these room versions holds.
    for number in [json!(1.5), json!(1_u64 << 53), json!(-(1_i64 << 53))] {
        let mut odd = signed.1.clone();
        odd["content"]["org.example.number"] = number;
        let name = format!("with the number {}", odd["content"]["org.example.number"]);
        push(&name, &stage.peer, room.as_str(), (id, &odd), BAD_JSON);
    }
    let mut unsigned = signed.1.clone();
    unsigned["signatures"] = json!({});
    push("without a signature", &stage.peer, room.as_str(), (id, &unsigned), INVALID);
    let mut of_another = signed.1.clone();
    of_another["signatures"] =
        json!({ "stranger.example": { "ed25519:peer": signed.1["signatures"]["peer.example"]["ed25519:peer"] } });
    push("signed by another server", &stage.peer, room.as_str(), (id, &of_another), INVALID);
    let mut altered = signed.1.clone();
    altered["depth"] = json!(31);
    let altered_id = event_id("12", &altered);
    push("altered after it was signed", &stage.peer, room.as_str(), (&altered_id, &altered), INVALID);
    rows
}

fn of_events_that_the_rules_forbid(stage: &Stage) -> Vec<Row> {
    let mut rows = Vec::new();
    let known = |kind: &'static str, room: &RoomId| &stage.signed[&(kind, room.clone())];
    for endpoint in ["v1/send_join", "v2/send_join"] {
        let join = |name: &str, peer: &Peer, room: &RoomId, signed: &(String, Value)| {
            send(stage, name, peer, endpoint, room.as_str(), signed, FORBIDDEN)
        };
        rows.push(join("of who was banned meanwhile", &stage.peer, &stage.room, known("join", &stage.room)));
        rows.push(join("of a server that the ACL denies", &stage.denied, &stage.shut, known("join", &stage.shut)));
        for (name, room) in [
            ("of who is not invited", &stage.closed),
            ("of who may knock", &stage.knockable),
            ("in a room of one server", &stage.own),
        ] {
            let mut event = draft_if_any(stage, room, &stage.peer.user("dave"));
            event["origin_server_ts"] = json!(stage.world.now_ms() + 100);
            rows.push(join(name, &stage.peer, room, &stage.peer.sign("12", event)));
        }
        let knock = stage.peer.sign("12", draft(stage, &stage.knockable, &stage.peer.user("dave"), "knock"));
        rows.push(send(stage, "a knock", &stage.peer, endpoint, stage.knockable.as_str(), &knock, INVALID));
    }
    let knocks = "v1/send_knock";
    let banned = known("knock", &stage.knockable);
    rows.push(send(stage, "of who was banned", &stage.peer, knocks, stage.knockable.as_str(), banned, FORBIDDEN));
    for (name, room) in [("on an open door", &stage.room), ("on a wall", &stage.closed)] {
        let knock = stage.peer.sign("12", draft(stage, room, &stage.peer.user("dave"), "knock"));
        rows.push(send(stage, name, &stage.peer, knocks, room.as_str(), &knock, FORBIDDEN));
    }
    for endpoint in ["v1/send_leave", "v2/send_leave"] {
        let leave = known("leave", &stage.shut);
        let name = "of a server that the ACL denies";
        rows.push(send(stage, name, &stage.denied, endpoint, stage.shut.as_str(), leave, FORBIDDEN));
        for (name, user) in
            [("of who was never there", stage.peer.user("nobody")), ("of who is banned", stage.mallory.clone())]
        {
            let leave = stage.peer.sign("12", draft(stage, &stage.room, &user, "leave"));
            rows.push(send(stage, name, &stage.peer, endpoint, stage.room.as_str(), &leave, FORBIDDEN));
        }
    }
    rows
}

/// A join by all of the state that there is; a room of one server has no power levels.
fn draft_if_any(stage: &Stage, room: &RoomId, user: &str) -> Value {
    let state = stage.a.state(&stage.world, room);
    match state.iter().any(|(kind, _, _)| kind == "m.room.power_levels") {
        true => draft(stage, room, user, "join"),
        false => {
            let mut event = draft(stage, &stage.closed, user, "join");
            let held = stage.world.run(stage.a.rooms.room(room)).unwrap().unwrap();
            let newest: Vec<&str> = held.extremities.iter().map(|extremity| extremity.event_id.as_str()).collect();
            event["room_id"] = json!(room.as_str());
            event["prev_events"] = json!(newest);
            event["auth_events"] = json!([stage.state_id(room, "m.room.join_rules", "")]);
            event
        }
    }
}
