//! What users report.

use serde_json::json;

use crate::home::{Home, quote, refused};

#[test]
fn reports_are_kept_and_said_in_the_log() {
    let home = Home::new();
    let (alice, bob, carol) = (home.register("alice"), home.register("bob"), home.register("carol"));
    let room = home.room(&alice, json!({ "preset": "public_chat" }));
    assert_eq!(home.post(&bob, &format!("/join/{}", quote(&room)), json!({})).0, 200);
    let event = home.say(&alice, &room, "spam", "t");
    let of_room = format!("/rooms/{}/report", quote(&room));
    let of_event = format!("{of_room}/{}", quote(&event));
    let of_user = format!("/users/{}/report", quote(&alice.id));
    let reason = json!({ "reason": "spam" });
    for path in [&of_event, &of_room, &of_user] {
        assert_eq!(home.post(&bob, path, reason.clone()), (200, json!({})));
    }
    assert_eq!(home.post(&bob, &of_event, json!({ "score": -100 })).0, 200);
    let rows = home.database.rows("SELECT reporter, room_id, event_id, user_id, reason FROM reports ORDER BY number");
    let (room_id, alice_id) = (room.as_str(), alice.id.as_str());
    assert_eq!(rows[0], [bob.id.as_str(), room_id, event.as_str(), alice_id, "spam"]);
    assert_eq!((rows.len(), rows[3][4].as_str()), (4, ""));
    let logged = home.world.logs().iter().filter(|line| line.contains("has reported")).count();
    assert_eq!(logged, 4);
    refused(&home.post(&carol, &of_event, reason.clone()), 404, "M_NOT_FOUND");
    refused(&home.post(&bob, &format!("{of_room}/%24nothing"), reason.clone()), 404, "M_NOT_FOUND");
    let elsewhere = home.room(&bob, json!({}));
    refused(
        &home.post(&bob, &format!("/rooms/{}/report/{}", quote(&elsewhere), quote(&event)), reason.clone()),
        404,
        "M_NOT_FOUND",
    );
    refused(&home.post(&bob, "/rooms/!nowhere/report", reason.clone()), 404, "M_NOT_FOUND");
    refused(&home.post(&bob, "/users/%40nobody%3Ahs.test/report", reason.clone()), 404, "M_NOT_FOUND");
    assert_eq!(home.post(&bob, "/users/%40eve%3Aelsewhere.test/report", reason.clone()).0, 200);
    refused(&home.post(&bob, "/users/nobody/report", reason.clone()), 400, "M_INVALID_PARAM");
    refused(&home.post(&bob, &of_event, json!({ "reason": "x".repeat(5_000) })), 413, "M_TOO_LARGE");
    refused(&home.post(&bob, &of_event, json!({ "reason": 1 })), 400, "M_BAD_JSON");
    refused(&home.call(None, "POST", &of_event, Some(reason.clone())), 401, "M_MISSING_TOKEN");
    // However many there are, a thousand are kept.
    for _ in 0..1_010 {
        assert_eq!(home.post(&bob, &of_room, reason.clone()).0, 200);
    }
    assert_eq!(home.database.rows("SELECT number FROM reports").len(), 1_000);
}
