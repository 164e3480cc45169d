//! A database that was restored to an earlier state, as the README has it done.

use serde_json::json;

use crate::{
    common::{devices::CrossSigning, network::World},
    home::{Home, quote},
};

/// The statement that the README gives.
fn statement() -> &'static str {
    let readme = include_str!("../../README.md");
    let from = readme.find("UPDATE streams").expect("the README says what to do");
    readme[from..].split('"').next().unwrap()
}

/// Clients know of what came after the state that was restored, and ask for what comes after that.
#[test]
fn clients_miss_nothing_that_comes_after_it_was_restored() {
    let world = World::new();
    let open = [("REGISTRATION", "open")];
    let home = Home::with(&world, "hs.test", &open);
    let (alice, bob) = (home.register("alice"), home.register("bob"));
    let room = home.room(&alice, json!({ "preset": "public_chat", "invite": [bob.id] }));
    assert_eq!(home.post(&bob, &format!("/join/{}", quote(&room)), json!({})).0, 200);
    let goes_on = |home: &Home, what: &str| {
        let said = home.say(&alice, &room, what, what);
        let message = json!({ "messages": { &bob.id: { &bob.device_id: { "n": what } } } });
        assert_eq!(home.put(&alice, &format!("/sendToDevice/m.test/{what}"), message).0, 200);
        let tag = format!("/user/{}/account_data/m.test", quote(&bob.id));
        assert_eq!(home.put(&bob, &tag, json!({ "x": what })).0, 200);
        let receipt = format!("/rooms/{}/receipt/m.read/{}", quote(&room), quote(&said));
        assert_eq!(home.post(&alice, &receipt, json!({})).0, 200);
        let master = CrossSigning::other(&alice.id, "master", what);
        let password = json!({
            "type": "m.login.password", "identifier": { "type": "m.id.user", "user": "alice" }, "password": "alice's",
        });
        let keys = json!({ "master_key": master.unsigned(), "auth": password });
        assert_eq!(home.post(&alice, "/keys/device_signing/upload", keys).0, 200);
        let presence = format!("/presence/{}/status", quote(&alice.id));
        let status = json!({ "presence": "online", "status_msg": what });
        assert_eq!(home.put(&alice, &presence, status).0, 200);
        said
    };
    goes_on(&home, "before");
    let kept = home.database.copy();
    for n in 0..5 {
        goes_on(&home, &format!("lost{n}"));
    }
    let since = home.sync(&bob, "")["next_batch"].as_str().unwrap().to_owned();

    world.end();
    let home = Home::on(&world, "hs.test", &open, kept);
    home.database.rows(statement());
    let said = goes_on(&home, "after");
    let synced = home.sync(&bob, &format!("since={since}"));
    let of_room = &synced["rooms"]["join"][&room];
    let events = of_room["timeline"]["events"].as_array().unwrap();
    assert_eq!(events.last().unwrap()["event_id"], json!(said), "{synced}");
    assert_eq!(synced["to_device"]["events"].as_array().unwrap().last().unwrap()["content"]["n"], "after", "{synced}");
    assert_eq!(synced["account_data"]["events"][0]["content"]["x"], "after", "{synced}");
    let receipts = &of_room["ephemeral"]["events"][0];
    assert_eq!((&receipts["type"], receipts["content"][&said].is_object()), (&json!("m.receipt"), true), "{synced}");
    assert_eq!(synced["presence"]["events"][0]["content"]["status_msg"], "after", "{synced}");
    assert_eq!(synced["device_lists"]["changed"], json!([alice.id]), "{synced}");
    let again = home.sync(&bob, &format!("since={}", synced["next_batch"].as_str().unwrap()));
    assert_eq!(again["to_device"]["events"], json!([]));
}
