//! Tags of rooms.

use serde_json::{Value, json};

use crate::{
    home::{Home, User, next, quote, refused},
    typing::together,
};

fn path(user: &User, room: &str, tag: &str) -> String {
    let tag = if tag.is_empty() { String::new() } else { format!("/{}", quote(tag)) };
    format!("/user/{}/rooms/{}/tags{tag}", quote(&user.id), quote(room))
}

fn delete(home: &Home, user: &User, path: &str) -> (u16, Value) {
    home.call(Some(&user.token), "DELETE", path, None)
}

#[test]
fn tags_are_set_listed_told_and_taken_away() {
    let (home, alice, bob, room) = together();
    let since = next(&home.sync(&alice, ""));
    assert_eq!(home.get(&alice, &path(&alice, &room, "")), (200, json!({ "tags": {} })));
    assert_eq!(home.put(&alice, &path(&alice, &room, "m.favourite"), json!({ "order": 0.25 })), (200, json!({})));
    assert_eq!(home.put(&alice, &path(&alice, &room, "u.Work & play/1"), json!({ "x": [1] })), (200, json!({})));
    let tags = json!({ "tags": { "m.favourite": { "order": 0.25 }, "u.Work & play/1": { "x": [1] } } });
    assert_eq!(home.get(&alice, &path(&alice, &room, "")), (200, tags.clone()));
    let answer = home.sync(&alice, &since);
    let event = json!([{ "type": "m.tag", "content": tags }]);
    assert_eq!(answer["rooms"]["join"][&room]["account_data"]["events"], event);
    // Each user has their own.
    assert_eq!(home.get(&bob, &path(&bob, &room, "")), (200, json!({ "tags": {} })));
    assert_eq!(home.sync(&bob, "")["rooms"]["join"][&room]["account_data"]["events"], json!([]));
    assert_eq!(home.put(&alice, &path(&alice, &room, "m.favourite"), json!({ "order": 1 })).0, 200);
    assert_eq!(delete(&home, &alice, &path(&alice, &room, "u.Work & play/1")), (200, json!({})));
    let since = next(&home.sync(&alice, ""));
    assert_eq!(delete(&home, &alice, &path(&alice, &room, "u.none")), (200, json!({})));
    assert_eq!(home.sync(&alice, &since)["rooms"]["join"], json!({}), "nothing has changed");
    assert_eq!(home.get(&alice, &path(&alice, &room, "")).1, json!({ "tags": { "m.favourite": { "order": 1 } } }));
}

#[test]
fn what_is_wrong_is_refused() {
    let (home, alice, bob, room) = together();
    let tag = path(&alice, &room, "u.x");
    refused(&home.call(None, "GET", &path(&alice, &room, ""), None), 401, "M_MISSING_TOKEN");
    refused(&home.get(&bob, &path(&alice, &room, "")), 403, "M_FORBIDDEN");
    refused(&home.put(&bob, &tag, json!({})), 403, "M_FORBIDDEN");
    refused(&delete(&home, &bob, &tag), 403, "M_FORBIDDEN");
    refused(&home.get(&alice, &path(&alice, "room", "")), 400, "M_INVALID_PARAM");
    refused(&home.put(&alice, &path(&alice, "room", "u.x"), json!({})), 400, "M_INVALID_PARAM");
    refused(&delete(&home, &alice, &path(&alice, "room", "u.x")), 400, "M_INVALID_PARAM");
    refused(&home.put(&alice, &tag, json!([])), 400, "M_BAD_JSON");
    for order in [json!("0.5"), json!(1.5), json!(-0.1), json!(2), json!(null)] {
        refused(&home.put(&alice, &tag, json!({ "order": order })), 400, "M_INVALID_PARAM");
    }
    refused(&home.put(&alice, &path(&alice, &room, &"x".repeat(256)), json!({})), 400, "M_INVALID_PARAM");
    assert_eq!(home.put(&alice, &path(&alice, &room, &"x".repeat(255)), json!({})).0, 200);
    let large = json!({ "x": "x".repeat(40_000) });
    assert_eq!(home.put(&alice, &tag, large.clone()).0, 200);
    refused(&home.put(&alice, &path(&alice, &room, "u.y"), large), 413, "M_TOO_LARGE");
    // Whatever a client has put there by itself.
    let own = format!("/user/{}/rooms/{}/account_data/m.tag", quote(&alice.id), quote(&room));
    assert_eq!(home.put(&alice, &own, json!({ "tags": [1], "more": 2 })).0, 200);
    assert_eq!(home.get(&alice, &path(&alice, &room, "")), (200, json!({ "tags": {} })));
    assert_eq!(home.put(&alice, &tag, json!({})).0, 200);
    assert_eq!(home.get(&alice, &own).1, json!({ "tags": { "u.x": {} }, "more": 2 }));
}

#[test]
fn a_tag_that_could_not_be_read_again_is_refused() {
    let (home, alice, _, room) = together();
    assert_eq!(home.put(&alice, &path(&alice, &room, "u.x"), json!({ "order": 1 })).0, 200);
    // It is as deep as a request may be, and stands deeper in what is kept.
    let deep = (0..499).fold(json!(1), |inner, _| json!([inner]));
    refused(&home.put(&alice, &path(&alice, &room, "u.y"), json!({ "x": deep })), 400, "M_BAD_JSON");
    assert_eq!(home.get(&alice, &path(&alice, &room, "")).1, json!({ "tags": { "u.x": { "order": 1 } } }));
}
