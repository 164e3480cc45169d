//! Searching one's own rooms.

use serde_json::{Value, json};

use crate::{
    home::{Answer, Home, User, quote, refused},
    relating::Room,
};

fn search_with(home: &Home, user: &User, next: Option<&str>, criteria: Value) -> Answer {
    let query = next.map(|next| format!("?next_batch={next}")).unwrap_or_default();
    home.post(user, &format!("/search{query}"), json!({ "search_categories": { "room_events": criteria } }))
}

fn search(home: &Home, user: &User, criteria: Value) -> Value {
    let (status, answer) = search_with(home, user, None, criteria);
    assert_eq!(status, 200, "{answer}");
    answer["search_categories"]["room_events"].clone()
}

fn bodies(answer: &Value) -> Vec<String> {
    let results = answer["results"].as_array().unwrap().iter();
    results.map(|result| result["result"]["content"]["body"].as_str().unwrap_or_default().to_owned()).collect()
}

#[test]
fn words_are_found_whatever_their_case() {
    let room = Room::new();
    for text in ["Martians and men", "men alone", "the MARTIAN", "martinis", "Über Öl", "火星人和人"] {
        room.says(&room.alice, text);
    }
    let find =
        |term: &str| bodies(&search(&room.home, &room.bob, json!({ "search_term": term, "order_by": "recent" })));
    assert_eq!(find("martian"), ["the MARTIAN", "Martians and men"]);
    assert_eq!(find("MEN, martian!"), ["Martians and men"]);
    assert_eq!(find("artian"), Vec::<String>::new(), "words are found by their beginning");
    assert_eq!((find("über"), find("ÖL")), (vec!["Über Öl".to_owned()], vec!["Über Öl".to_owned()]));
    assert_eq!(find("人和"), ["火星人和人"]);
    assert_eq!((find(""), find("?!")), (Vec::<String>::new(), Vec::<String>::new()));
    // The best first, where nothing else is asked for.
    let ranked = search(&room.home, &room.bob, json!({ "search_term": "men" }));
    assert_eq!(bodies(&ranked), ["men alone", "Martians and men"]);
    let rank = |n: usize| ranked["results"][n]["rank"].as_f64().unwrap();
    assert!(rank(0) > rank(1) && rank(1) > 0.0);
    assert_eq!((&ranked["count"], &ranked["highlights"]), (&json!(2), &json!(["men"])));
    assert!(ranked.get("next_batch").is_none() && ranked.get("groups").is_none() && ranked.get("state").is_none());
    for result in ranked["results"].as_array().unwrap() {
        serde_json::from_value::<ruma_events::AnyTimelineEvent>(result["result"].clone()).unwrap();
    }
}

#[test]
fn names_and_topics_are_searched_and_what_is_encrypted_or_redacted_is_not() {
    let room = Room::new();
    let state = |kind: &str, content: Value| {
        assert_eq!(room.home.put(&room.alice, &format!("/rooms/{}/state/{kind}", quote(&room.id)), content).0, 200);
    };
    state("m.room.name", json!({ "name": "Gazebo" }));
    state(
        "m.room.topic",
        json!({ "topic": "x", "m.topic": { "m.text": [{ "mimetype": "text/html", "body": "none" }, { "body": "gazebo plans" }] } }),
    );
    room.says(&room.alice, "a gazebo");
    room.send(&room.alice, "m.room.encrypted", json!({ "body": "gazebo", "ciphertext": "gazebo" }));
    let redacted = room.says(&room.alice, "gazebo gone");
    room.redact(&room.alice, &redacted);
    let types = |criteria: Value| -> Vec<String> {
        let answer = search(&room.home, &room.bob, criteria);
        answer["results"].as_array().unwrap().iter().map(|r| r["result"]["type"].as_str().unwrap().to_owned()).collect()
    };
    let by = |keys: Value| types(json!({ "search_term": "gazebo", "order_by": "recent", "keys": keys }));
    assert_eq!(
        types(json!({ "search_term": "gazebo", "order_by": "recent" })),
        ["m.room.message", "m.room.topic", "m.room.name"]
    );
    assert_eq!(by(json!(["content.body"])), ["m.room.message"]);
    assert_eq!(by(json!(["content.name", "content.topic"])), ["m.room.topic", "m.room.name"]);
    assert!(by(json!([])).is_empty());
    assert!(types(json!({ "search_term": "none" })).is_empty(), "only plain text");
    let filtered = json!({ "search_term": "gazebo", "filter": { "types": ["m.room.name"] } });
    assert_eq!(types(filtered), ["m.room.name"]);
    let filtered = json!({ "search_term": "gazebo", "filter": { "not_senders": [room.alice.id] } });
    assert!(types(filtered).is_empty());
    let filtered = json!({ "search_term": "gazebo", "filter": { "rooms": ["!other"] } });
    assert!(types(filtered).is_empty());
}

#[test]
fn only_what_one_may_see_is_found() {
    let room = Room::with(json!({ "preset": "public_chat", "initial_state": [
        { "type": "m.room.history_visibility", "content": { "history_visibility": "joined" } }] }));
    let carol = room.home.register("carol");
    room.says(&room.alice, "needle one");
    room.join(&carol);
    room.says(&room.alice, "needle two");
    assert_eq!(room.home.post(&carol, &format!("/rooms/{}/leave", quote(&room.id)), json!({})).0, 200);
    room.says(&room.alice, "needle three");
    let find =
        |user: &User| bodies(&search(&room.home, user, json!({ "search_term": "needle", "order_by": "recent" })));
    assert_eq!(find(&room.alice), ["needle three", "needle two", "needle one"]);
    assert_eq!(find(&carol), ["needle two"], "what they saw before they left");
    let dave = room.home.register("dave");
    assert!(find(&dave).is_empty());
    assert_eq!(room.home.post(&carol, &format!("/rooms/{}/forget", quote(&room.id)), json!({})).0, 200);
    assert!(find(&carol).is_empty());
    let ignored = json!({ "ignored_users": { room.alice.id.clone(): {} } });
    let path = format!("/user/{}/account_data/m.ignored_user_list", quote(&room.bob.id));
    assert_eq!(room.home.put(&room.bob, &path, ignored).0, 200);
    assert!(find(&room.bob).is_empty());
}

#[test]
fn pages_lead_to_all_that_there_is() {
    let room = Room::new();
    let other = room.home.room(&room.alice, json!({ "preset": "public_chat" }));
    room.home.post(&room.bob, &format!("/join/{}", quote(&other)), json!({}));
    let mut sent = Vec::new();
    for n in 0..35 {
        let text = format!("needle number{n}");
        match n % 3 {
            0 => drop(room.home.say(&room.alice, &other, &text, &format!("s{n}"))),
            _ => drop(room.says(&room.alice, &text)),
        }
        sent.push(text);
        room.says(&room.alice, "hay");
    }
    for order in ["recent", "rank"] {
        let criteria = json!({ "search_term": "needle", "order_by": order, "filter": { "limit": 8 } });
        let (mut found, mut next) = (Vec::new(), None::<String>);
        loop {
            let (status, answer) = search_with(&room.home, &room.bob, next.as_deref(), criteria.clone());
            assert_eq!(status, 200, "{answer}");
            let page = &answer["search_categories"]["room_events"];
            found.extend(bodies(page));
            assert!(page["results"].as_array().unwrap().len() <= 8);
            let Some(token) = page["next_batch"].as_str() else { break };
            next = Some(token.to_owned());
        }
        found.iter().zip(sent.iter().rev()).for_each(|(found, sent)| assert!(order == "rank" || found == sent));
        found.sort();
        let mut all = sent.clone();
        all.sort();
        assert_eq!(found, all, "{order}");
    }
}

/// Clients page on until no page follows: a page that is full may be the last with results in it.
#[test]
fn a_full_page_leads_on() {
    let room = Room::new();
    let sent: Vec<String> = (0..20).map(|n| format!("needle number{n}")).collect();
    sent.iter().for_each(|text| drop(room.says(&room.alice, text)));
    let criteria = json!({ "search_term": "needle", "order_by": "recent", "filter": { "limit": 10 } });
    let page = |next: Option<&str>| {
        let (status, answer) = search_with(&room.home, &room.bob, next, criteria.clone());
        assert_eq!(status, 200, "{answer}");
        let page = &answer["search_categories"]["room_events"];
        let next = page.get("next_batch").map(|next| next.as_str().unwrap().to_owned());
        (bodies(page), page["count"].clone(), next)
    };
    let newest: Vec<String> = sent.into_iter().rev().collect();
    let (first, count, next) = page(None);
    assert_eq!((first.as_slice(), count), (&newest[..10], json!(20)));
    let (second, _, next) = page(next.as_deref());
    assert_eq!(second, &newest[10..]);
    assert!(next.is_some());
    let (third, _, next) = page(next.as_deref());
    assert_eq!((third, next), (Vec::new(), None));
}

#[test]
fn results_come_with_what_was_around_them() {
    let room = Room::new();
    room.home.put(
        &room.alice,
        &format!("/profile/{}/displayname", quote(&room.alice.id)),
        json!({ "displayname": "Alice" }),
    );
    for n in 0..4 {
        room.says(&room.alice, &format!("before{n}"));
    }
    let needle = room.says(&room.bob, "needle");
    for n in 0..4 {
        room.says(&room.alice, &format!("after{n}"));
    }
    let edit = room.edits(&room.bob, "pin", &needle);
    let answer = search(
        &room.home,
        &room.bob,
        json!({
            "search_term": "needle", "include_state": true,
            "event_context": { "before_limit": 2, "after_limit": 3, "include_profile": true },
            "groupings": { "group_by": [{ "key": "room_id" }, { "key": "sender" }] },
        }),
    );
    let result = &answer["results"][0];
    let context = &result["context"];
    let told = |name: &str| -> Vec<Value> {
        context[name].as_array().unwrap().iter().map(|event| event["content"]["body"].clone()).collect()
    };
    assert_eq!(told("events_before"), [json!("before3"), json!("before2")]);
    assert_eq!(told("events_after"), [json!("after0"), json!("after1"), json!("after2")]);
    assert_eq!(context["profile_info"][&room.alice.id], json!({ "displayname": "Alice" }));
    assert!(context["profile_info"][&room.bob.id].is_object());
    assert_eq!(result["result"]["unsigned"]["m.relations"]["m.replace"]["event_id"], json!(edit));
    let page = |from: &Value, dir: &str| {
        let path = format!("/rooms/{}/messages?dir={dir}&limit=1&from={}", quote(&room.id), from.as_str().unwrap());
        room.home.get(&room.bob, &path).1["chunk"][0]["content"]["body"].clone()
    };
    assert_eq!((page(&context["start"], "b"), page(&context["end"], "f")), (json!("before1"), json!("after3")));
    let groups = &answer["groups"];
    assert_eq!(groups["room_id"][&room.id], json!({ "order": 1, "results": [needle] }));
    assert_eq!(groups["sender"][&room.bob.id]["results"], json!([needle]));
    let state = answer["state"][&room.id].as_array().unwrap();
    assert!(state.iter().any(|event| event["type"] == "m.room.create"));
    // As many as there are where the client does not say.
    let answer = search(&room.home, &room.bob, json!({ "search_term": "needle", "event_context": {} }));
    assert_eq!(answer["results"][0]["context"]["events_before"].as_array().unwrap().len(), 5);
}

#[test]
fn searches_are_refused_as_documented() {
    let room = Room::new();
    let post = |criteria: Value| search_with(&room.home, &room.bob, None, criteria);
    refused(&post(json!({})), 400, "M_MISSING_PARAM");
    refused(&post(json!({ "search_term": 1 })), 400, "M_BAD_JSON");
    refused(&post(json!({ "search_term": "x".repeat(1_001) })), 400, "M_INVALID_PARAM");
    refused(&post(json!({ "search_term": "x", "keys": ["content.url"] })), 400, "M_INVALID_PARAM");
    refused(&post(json!({ "search_term": "x", "order_by": "age" })), 400, "M_INVALID_PARAM");
    refused(
        &post(json!({ "search_term": "x", "groupings": { "group_by": [{ "key": "type" }] } })),
        400,
        "M_INVALID_PARAM",
    );
    refused(&post(json!({ "search_term": "x", "filter": [] })), 400, "M_BAD_JSON");
    for token in ["x", "s1_e1", "s1_e1.x", "s1_e1.-1"] {
        refused(
            &search_with(&room.home, &room.bob, Some(token), json!({ "search_term": "x" })),
            400,
            "M_INVALID_PARAM",
        );
    }
    refused(&room.home.post(&room.bob, "/search", json!({})), 400, "M_MISSING_PARAM");
    assert_eq!(
        room.home.post(&room.bob, "/search", json!({ "search_categories": {} })),
        (200, json!({ "search_categories": {} }))
    );
    refused(&room.home.call(None, "POST", "/search", Some(json!({}))), 401, "M_MISSING_TOKEN");
}
