//! Events, states and history that are not for who asks, or that there are none of.

use http::Method;
use serde_json::{Value, json};

use super::{BAD_JSON, FORBIDDEN, INVALID, MISSING, NOT_FOUND, Row, Stage};
use crate::common::peer::encode;

const NOWHERE: &str = "%21nowhere%3Aa.example";

pub(super) fn rows(stage: &Stage) -> Vec<Row> {
    let mut rows = of_those_outside(stage);
    rows.extend(of_unknown_events(stage));
    rows.extend(of_wrong_parameters(stage));
    rows.extend(of_wrong_bodies(stage));
    rows
}

/// Requests for a room and an event, by endpoint, as far as they are `GET`s.
fn reads(room: &str, event: &str) -> [String; 5] {
    [
        format!("v1/event_auth/{room}/{event}"),
        format!("v1/backfill/{room}?v={event}&limit=10"),
        format!("v1/state/{room}?event_id={event}"),
        format!("v1/state_ids/{room}?event_id={event}"),
        format!("v1/timestamp_to_event/{room}?ts=1&dir=f"),
    ]
}

fn of_those_outside(stage: &Stage) -> Vec<Row> {
    let mut rows = Vec::new();
    let (room, event) = (encode(stage.room.as_str()), encode(&stage.theirs.last));
    let (shut, shut_event) = (encode(stage.shut.as_str()), encode(&stage.shut_to.last));
    let missing = json!({ "earliest_events": [], "latest_events": ["$any"] });
    for (name, peer, room, event) in [
        ("of a server that is in no room", &stage.stranger, &room, &event),
        ("of a server that has left", &stage.gone, &room, &event),
        ("of a server that the ACL denies", &stage.denied, &shut, &shut_event),
        ("in a room that nobody knows", &stage.peer, &NOWHERE.to_owned(), &event),
    ] {
        rows.extend(reads(room, event).iter().map(|rest| stage.get(name, peer, rest, FORBIDDEN)));
        rows.push(stage.post(name, peer, &format!("v1/get_missing_events/{room}"), &missing, FORBIDDEN));
    }
    for (name, peer) in [("of a server that is in no room", &stage.stranger), ("of a server that left", &stage.gone)] {
        rows.push(stage.get(name, peer, &format!("v1/event/{event}"), FORBIDDEN));
    }
    let closed = encode(stage.closed.as_str());
    let name = "of a room that nobody of them is in";
    rows.extend(reads(&closed, &event).iter().map(|rest| stage.get(name, &stage.peer, rest, FORBIDDEN)));
    // Whether a space is there is nobody's business who could not enter it.
    for (name, room) in [
        ("one may not enter it", &stage.closed),
        ("of members of unknown rooms", &stage.unknown_condition),
        ("we have left it", &stage.left),
        ("it is of our server alone", &stage.own),
    ] {
        rows.push(stage.get(name, &stage.peer, &format!("v1/hierarchy/{}", encode(room.as_str())), NOT_FOUND));
    }
    rows
}

fn of_unknown_events(stage: &Stage) -> Vec<Row> {
    let mut rows = Vec::new();
    let room = encode(stage.room.as_str());
    let elsewhere = encode(&stage.elsewhere.last);
    for (name, event) in
        [("an event that there is not", "%24unknown"), ("an event of another room", elsewhere.as_str())]
    {
        // Of a time there always is an event.
        rows.extend(reads(&room, event)[..4].iter().map(|rest| stage.get(name, &stage.peer, rest, NOT_FOUND)));
    }
    rows.push(stage.get("an event that there is not", &stage.peer, "v1/event/%24unknown", NOT_FOUND));
    rows.push(stage.get("no room", &stage.peer, &format!("v1/hierarchy/{NOWHERE}"), NOT_FOUND));
    let later = format!("v1/timestamp_to_event/{room}?ts={}&dir=f", stage.world.now_ms() + 3_600_000);
    rows.push(stage.get("nothing later", &stage.peer, &later, NOT_FOUND));
    rows.push(stage.get(
        "nothing earlier",
        &stage.peer,
        &format!("v1/timestamp_to_event/{room}?ts=0&dir=b"),
        NOT_FOUND,
    ));
    // What a server holds of the time before it joined has no state that it knows.
    let create = encode(&stage.state_id(&stage.room, "m.room.create", ""));
    for endpoint in ["state", "state_ids"] {
        let target = format!("/_matrix/federation/v1/{endpoint}/{room}?event_id={create}");
        let request = stage.peer.request(&stage.b, Method::GET, &target, None);
        rows.push(stage.row("an event whose state is not known", &stage.b, request, NOT_FOUND));
    }
    rows
}

fn of_wrong_parameters(stage: &Stage) -> Vec<Row> {
    let (room, event) = (encode(stage.room.as_str()), encode(&stage.theirs.last));
    let long = "x".repeat(300);
    let cases = [
        ("no room ID", "v1/state/room?event_id=%24e".to_owned(), INVALID),
        ("no room ID", "v1/state_ids/room?event_id=%24e".to_owned(), INVALID),
        ("no room ID", "v1/backfill/room?v=%24e&limit=1".to_owned(), INVALID),
        ("no room ID", format!("v1/event_auth/room/{event}"), INVALID),
        ("no room ID", "v1/timestamp_to_event/room?ts=1&dir=f".to_owned(), INVALID),
        ("no room ID", "v1/hierarchy/room".to_owned(), INVALID),
        ("a room ID that is too long", format!("v1/state/%21{long}?event_id=%24e"), INVALID),
        ("no event ID", "v1/event/event".to_owned(), INVALID),
        ("an event ID that is too long", format!("v1/event/%24{long}"), INVALID),
        ("no event ID", format!("v1/event_auth/{room}/event"), INVALID),
        ("no event ID", format!("v1/state/{room}?event_id=event"), INVALID),
        ("no event ID", format!("v1/state_ids/{room}?event_id=event"), INVALID),
        ("no event ID", format!("v1/backfill/{room}?v=event&limit=1"), INVALID),
        ("no event", format!("v1/state/{room}"), MISSING),
        ("no event", format!("v1/state_ids/{room}"), MISSING),
        ("no event", format!("v1/backfill/{room}?limit=1"), MISSING),
        ("no limit", format!("v1/backfill/{room}?v={event}"), MISSING),
        ("a limit that is no number", format!("v1/backfill/{room}?v={event}&limit=ten"), INVALID),
        ("no time", format!("v1/timestamp_to_event/{room}?dir=f"), MISSING),
        ("no direction", format!("v1/timestamp_to_event/{room}?ts=1"), MISSING),
        ("a time that is no number", format!("v1/timestamp_to_event/{room}?ts=now&dir=f"), INVALID),
        ("a direction that is none", format!("v1/timestamp_to_event/{room}?ts=1&dir=x"), INVALID),
        ("neither true nor false", format!("v1/hierarchy/{room}?suggested_only=yes"), INVALID),
        ("a limit that is no number", "v1/publicRooms?limit=ten".to_owned(), INVALID),
        ("a limit below 0", "v1/publicRooms?limit=-1".to_owned(), INVALID),
        ("neither true nor false", "v1/publicRooms?include_all_networks=yes".to_owned(), INVALID),
        ("a network that there is not", "v1/publicRooms?third_party_instance_id=irc".to_owned(), INVALID),
        ("a page that there is not", "v1/publicRooms?since=nowhere".to_owned(), INVALID),
    ];
    cases.iter().map(|(name, rest, refusal)| stage.get(name, &stage.peer, rest, *refusal)).collect()
}

fn of_wrong_bodies(stage: &Stage) -> Vec<Row> {
    let mut rows = Vec::new();
    let missing = format!("v1/get_missing_events/{}", encode(stage.room.as_str()));
    let last = &stage.theirs.last;
    let cases: [(&str, Value, _); 9] = [
        ("no latest events", json!({ "earliest_events": [] }), BAD_JSON),
        ("no earliest events", json!({ "latest_events": [last] }), BAD_JSON),
        ("latest events that are no list", json!({ "earliest_events": [], "latest_events": last }), BAD_JSON),
        ("an event ID that is a number", json!({ "earliest_events": [1], "latest_events": [last] }), BAD_JSON),
        ("an event ID that is none", json!({ "earliest_events": [], "latest_events": ["event"] }), INVALID),
        ("a limit that is a text", json!({ "earliest_events": [], "latest_events": [last], "limit": "10" }), BAD_JSON),
        ("a limit that is null", json!({ "earliest_events": [], "latest_events": [last], "limit": null }), BAD_JSON),
        (
            "a depth that is a list",
            json!({ "earliest_events": [], "latest_events": [last], "min_depth": [] }),
            BAD_JSON,
        ),
        (
            "a depth that is a text",
            json!({ "earliest_events": [], "latest_events": [last], "min_depth": "" }),
            BAD_JSON,
        ),
    ];
    rows.extend(cases.iter().map(|(name, body, refusal)| stage.post(name, &stage.peer, &missing, body, *refusal)));
    let cases = [
        ("a limit that is a text", json!({ "limit": "10" })),
        ("a limit below 0", json!({ "limit": -1 })),
        ("a page that is a number", json!({ "since": 1 })),
        ("a page that there is not", json!({ "since": "nowhere" })),
        ("a filter that is a list", json!({ "filter": [] })),
        ("a search term that is a number", json!({ "filter": { "generic_search_term": 1 } })),
        ("a search term that is too long", json!({ "filter": { "generic_search_term": "x".repeat(2_000) } })),
        ("room types that are a text", json!({ "filter": { "room_types": "m.space" } })),
        ("a room type that is a number", json!({ "filter": { "room_types": [1] } })),
        ("more room types than there are", json!({ "filter": { "room_types": vec!["x"; 51] } })),
        ("all networks, if a text says so", json!({ "include_all_networks": "true" })),
        ("a network that there is not", json!({ "third_party_instance_id": "irc" })),
    ];
    rows.extend(cases.iter().map(|(name, body)| stage.post(name, &stage.peer, "v1/publicRooms", body, INVALID)));
    rows
}
