//! Other servers' users' keys, where these servers do not give them, or give more than is held.

use std::rc::Rc;

use http::StatusCode;
use serde_json::{Value, json};
use verge::{platform::Clock, router::json_response};

use crate::{
    common::network::World,
    holes::alter,
    home::{Home, User},
    keys::{asked, join, leave, two},
};

/// Bob's keys and the failures, as `by` is told them, and how many milliseconds that takes.
fn query(world: &World, home: &Home, by: &User, bob: &User) -> (Value, Value, i64) {
    let before = world.now_ms();
    let (status, answer) = home.post(by, "/keys/query", json!({ "device_keys": { &bob.id: [] } }));
    assert_eq!(status, 200, "{answer}");
    (answer["device_keys"][&bob.id].clone(), answer["failures"].clone(), world.now_ms() - before)
}

#[test]
fn who_asks_again_hears_at_once_that_a_server_is_down() {
    let (world, [one, two], [alice, bob], phone, room) = two();
    let carol = one.register("carol");
    join(&one, &carol, &room);
    let ask = |by| query(&world, &one, by, &bob);
    assert_eq!(ask(&alice).0[&phone.id], phone.keys());
    // What is held is not current any more.
    leave(&two, &bob, &room);
    join(&two, &bob, &room);
    world.settle();
    world.cut("one.test", "two.test");
    ask(&alice);
    let calls = one.database.calls.get();
    let (held, failures, took) = ask(&carol);
    assert!(failures["two.test"].is_object(), "{failures}");
    assert_eq!(held[&phone.id], phone.keys(), "what is held is given all the same");
    assert_eq!(took, 0);
    assert!(one.database.calls.get() - calls <= 2, "{}", one.database.calls.get() - calls);
    world.mend("one.test", "two.test");
    world.advance(5_000);
    let (held, failures, _) = ask(&carol);
    assert_eq!((&held[&phone.id], &failures), (&phone.keys(), &json!({})));
}

#[test]
fn who_waits_for_what_another_fetches_hears_at_once_that_it_fails() {
    let (world, [one, two], [alice, bob], _, room) = two();
    let carol = one.register("carol");
    join(&one, &carol, &room);
    let clock = world.clone();
    world.connect(
        "two.test",
        Rc::new(move |_| {
            let clock = clock.clone();
            Box::pin(async move {
                clock.sleep(1_000).await;
                json_response(StatusCode::BAD_GATEWAY, &json!({}))
            })
        }),
    );
    drop(two);
    let body = json!({ "device_keys": { &bob.id: [] } });
    let before = world.now_ms();
    let asking = [&alice, &carol].map(|user| one.posting(user, "/keys/query", &body));
    assert_eq!(world.run(futures_util::future::join_all(asking)), [200, 200]);
    assert!(world.now_ms() - before < 2_000, "{} ms", world.now_ms() - before);
    assert_eq!(asked(&world), 1);
}

#[test]
fn a_list_too_long_to_be_held_is_had_by_each_who_asks() {
    let (world, [one, two], [alice, bob], phone, room) = two();
    let carol = one.register("carol");
    join(&one, &carol, &room);
    alter(&two, "/user/devices/", |answer| {
        answer["devices"][0]["keys"]["unsigned"] = json!({ "padding": "x".repeat(1_100_000) });
    });
    for by in [&alice, &carol] {
        let (devices, failures, took) = query(&world, &one, by, &bob);
        assert_eq!((devices[&phone.id]["user_id"].as_str(), failures, took), (Some(&*bob.id), json!({}), 0));
    }
    assert_eq!(one.database.rows("SELECT devices FROM remote_device_lists"), [["{}"]], "it is not held");
}
