//! Push rules: the endpoints, and what the rules mean, beside ruma's.

use futures_util::future::join_all;
use ruma_common::{
    OwnedUserId, RoomId, RoomVersionId, UserId,
    push::{
        ConditionalPushRule, NewConditionalPushRule, NewPushRule, PushConditionPowerLevelsCtx, PushConditionRoomCtx,
        Ruleset,
    },
    room_version_rules::RoomPowerLevelsRules,
    serde::Raw,
};
use serde_json::{Value, json};
use verge::matrix::{
    json::{self, Object},
    push::{self, Surroundings},
};

use crate::home::{Home, User, next, quote, refused};

fn path(kind: &str, rule_id: &str) -> String {
    format!("/pushrules/global/{kind}/{}", quote(rule_id))
}

fn put(home: &Home, user: &User, kind: &str, rule_id: &str, body: Value) -> (u16, Value) {
    home.put(user, &path(kind, rule_id), body)
}

fn quiet() -> Value {
    json!({ "actions": [] })
}

/// The IDs of the rules of a kind, in order.
fn ids(home: &Home, user: &User, kind: &str) -> Vec<String> {
    let (status, answer) = home.get(user, "/pushrules/global/");
    assert_eq!(status, 200, "{answer}");
    let rules = answer[kind].as_array().unwrap();
    rules.iter().map(|rule| rule["rule_id"].as_str().unwrap().to_owned()).collect()
}

fn own(home: &Home, user: &User, kind: &str) -> Vec<String> {
    ids(home, user, kind).into_iter().filter(|id| !id.starts_with('.')).collect()
}

fn user() -> (Home, User) {
    let home = Home::new();
    let alice = home.register("alice");
    (home, alice)
}

/// Besides those of today, as ruma has them, there are the ones that v1.17 has dropped: we promise v1.11.
#[test]
fn everybody_has_the_predefined_rules() {
    let (home, alice) = user();
    let id: OwnedUserId = UserId::parse(alice.id.as_str()).unwrap();
    let mut expected = serde_json::to_value(Ruleset::server_default(&id)).unwrap();
    let highlights = json!(["notify", { "set_tweak": "highlight" }]);
    let sounds = json!(["notify", { "set_tweak": "sound", "value": "default" }, { "set_tweak": "highlight" }]);
    let rule = |id: &str, actions: &Value, name: &str, more: Value| {
        let mut rule = json!({ "rule_id": id, "default": true, "enabled": true, "actions": actions });
        rule[name] = more;
        rule
    };
    let display_name = json!([{ "kind": "contains_display_name" }]);
    let room = json!([{ "kind": "event_match", "key": "content.body", "pattern": "@room" },
        { "kind": "sender_notification_permission", "key": "room" }]);
    let overrides = expected["override"].as_array_mut().unwrap();
    for (behind, rule) in [
        (".m.rule.is_user_mention", rule(".m.rule.contains_display_name", &sounds, "conditions", display_name)),
        (".m.rule.is_room_mention", rule(".m.rule.roomnotif", &highlights, "conditions", room)),
    ] {
        let at = overrides.iter().position(|rule| rule["rule_id"] == behind).unwrap();
        overrides.insert(at + 1, rule);
    }
    expected["content"] = json!([rule(".m.rule.contains_user_name", &sounds, "pattern", json!("alice"))]);
    let (status, all) = home.get(&alice, "/pushrules/");
    assert_eq!(status, 200, "{all}");
    let read: Ruleset = serde_json::from_value(all["global"].clone()).unwrap();
    assert_eq!(serde_json::to_value(read).unwrap(), expected);
    for (kind, id) in [
        ("override", ".m.rule.contains_display_name"),
        ("override", ".m.rule.roomnotif"),
        ("content", ".m.rule.contains_user_name"),
    ] {
        let rule = path(kind, id);
        let (_, all) = home.get(&alice, "/pushrules/global/");
        let told = all[kind].as_array().unwrap().iter().find(|rule| rule["rule_id"] == id).cloned();
        assert_eq!(Some(home.get(&alice, &rule).1), told);
    }
    for path in ["/pushrules/global/", "/pushrules/global"] {
        assert_eq!(home.get(&alice, path), (200, all["global"].clone()));
    }
    assert_eq!(home.get(&alice, "/pushrules"), (200, all));
}

#[test]
fn a_rule_is_made_read_changed_and_deleted() {
    let (home, alice) = user();
    let bob = home.register("bob");
    let body = json!({ "pattern": "cake*lie", "actions": ["notify", "dont_notify", { "set_tweak": "sound", "value": "x" }], "more": 1 });
    assert_eq!(put(&home, &alice, "content", "nocake", body), (200, json!({})));
    let actions = json!(["notify", { "set_tweak": "sound", "value": "x" }]);
    let rule =
        json!({ "rule_id": "nocake", "default": false, "enabled": true, "pattern": "cake*lie", "actions": actions });
    assert_eq!(home.get(&alice, &path("content", "nocake")), (200, rule));
    assert_eq!(
        home.get(&alice, &path("content", "nocake/enabled").replace("%2F", "/")),
        (200, json!({ "enabled": true }))
    );
    let enabled = format!("{}/enabled", path("content", "nocake"));
    assert_eq!(home.put(&alice, &enabled, json!({ "enabled": false })), (200, json!({})));
    assert_eq!(home.get(&alice, &enabled), (200, json!({ "enabled": false })));
    // A rule that is put again stays disabled.
    assert_eq!(put(&home, &alice, "content", "nocake", json!({ "pattern": "cake", "actions": [] })).0, 200);
    let rule = json!({ "rule_id": "nocake", "default": false, "enabled": false, "pattern": "cake", "actions": [] });
    assert_eq!(home.get(&alice, &path("content", "nocake")), (200, rule));
    let actions = format!("{}/actions", path("content", "nocake"));
    assert_eq!(home.put(&alice, &actions, json!({ "actions": ["notify", "coalesce"] })), (200, json!({})));
    assert_eq!(home.get(&alice, &actions), (200, json!({ "actions": ["notify"] })));
    // Nobody else has it.
    refused(&home.get(&bob, &path("content", "nocake")), 404, "M_NOT_FOUND");
    let delete = |user: &User, kind: &str, id: &str| home.call(Some(&user.token), "DELETE", &path(kind, id), None);
    refused(&delete(&bob, "content", "nocake"), 404, "M_NOT_FOUND");
    assert_eq!(delete(&alice, "content", "nocake"), (200, json!({})));
    refused(&delete(&alice, "content", "nocake"), 404, "M_NOT_FOUND");
    // A predefined rule can be disabled and act otherwise, but it stays.
    let call = path("underride", ".m.rule.call");
    assert_eq!(home.put(&alice, &format!("{call}/enabled"), json!({ "enabled": false })).0, 200);
    assert_eq!(home.put(&alice, &format!("{call}/actions"), json!({ "actions": ["notify"] })).0, 200);
    let (_, rule) = home.get(&alice, &call);
    assert_eq!(
        (&rule["enabled"], &rule["actions"], &rule["default"]),
        (&json!(false), &json!(["notify"]), &json!(true))
    );
    assert_eq!(home.get(&bob, &call).1["enabled"], true);
    refused(&delete(&alice, "underride", ".m.rule.call"), 404, "M_NOT_FOUND");
}

#[test]
fn rules_stand_where_they_are_put() {
    let (home, alice) = user();
    for id in ["c", "b", "a"] {
        assert_eq!(put(&home, &alice, "override", id, quiet()).0, 200);
    }
    assert_eq!(own(&home, &alice, "override"), ["a", "b", "c"]);
    assert_eq!(ids(&home, &alice, "override")[..2], [".m.rule.master", "a"]);
    let at = |id: &str, query: &str| home.put(&alice, &format!("{}?{query}", path("override", id)), quiet());
    assert_eq!(at("a", "after=c").0, 200);
    assert_eq!(own(&home, &alice, "override"), ["b", "c", "a"]);
    assert_eq!(at("d", "before=c").0, 200);
    assert_eq!(own(&home, &alice, "override"), ["b", "d", "c", "a"]);
    assert_eq!(at("d", "").0, 200, "a rule that is there stays where it is");
    assert_eq!(at("e", "after=b&before=a").0, 200);
    assert_eq!(own(&home, &alice, "override"), ["b", "d", "c", "e", "a"]);
    assert_eq!(at("b", "after=a").0, 200);
    assert_eq!(own(&home, &alice, "override"), ["d", "c", "e", "a", "b"]);
    for query in
        ["before=x", "after=x", "before=.m.rule.call", "after=.m.rule.master", "after=a&before=d", "before=c&after=x"]
    {
        refused(&at("f", query), 400, "M_UNKNOWN");
    }
    refused(&at("d", "before=d"), 400, "M_UNKNOWN");
    assert_eq!(own(&home, &alice, "override"), ["d", "c", "e", "a", "b"]);
    // As ruma puts new ones.
    let mut theirs = Ruleset::new();
    let mut seed = 7_u32;
    let mut dice = |sides: usize| {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (seed >> 8) as usize % sides
    };
    for number in 0..40 {
        let id = format!("r{number}");
        let named = own(&home, &alice, "underride");
        let mut neighbour = |name: &str| match named.len() {
            0 => None,
            count => (dice(3) > 0).then(|| format!("{name}={}", named[dice(count)])),
        };
        let query: Vec<String> = [neighbour("before"), neighbour("after")].into_iter().flatten().collect();
        let of = |name: &str| query.iter().find_map(|part| part.strip_prefix(name)?.strip_prefix('='));
        let rule = NewPushRule::Underride(NewConditionalPushRule::new(id.clone(), vec![], vec![]));
        let expected = theirs.insert(rule, of("after"), of("before")).is_ok();
        let (status, answer) = home.put(&alice, &format!("{}?{}", path("underride", &id), query.join("&")), quiet());
        assert_eq!(status == 200, expected, "{query:?} {answer}");
        if !expected {
            theirs.underride.shift_remove(id.as_str());
        }
        let expected: Vec<&str> =
            theirs.underride.iter().map(|rule: &ConditionalPushRule| rule.rule_id.as_str()).collect();
        assert_eq!(own(&home, &alice, "underride"), expected, "{query:?}");
    }
}

#[test]
fn what_is_wrong_is_refused() {
    let (home, alice) = user();
    refused(&home.call(None, "GET", "/pushrules/", None), 401, "M_MISSING_TOKEN");
    refused(&home.call(None, "PUT", &path("content", "x"), Some(quiet())), 401, "M_MISSING_TOKEN");
    refused(&home.get(&alice, &path("override", "none")), 404, "M_NOT_FOUND");
    refused(&home.get(&alice, "/pushrules/device/override/x"), 404, "M_UNRECOGNIZED");
    refused(&home.get(&alice, &path("overrides", "none")), 404, "M_NOT_FOUND");
    refused(&home.call(Some(&alice.token), "DELETE", &path("overrides", "none"), None), 404, "M_NOT_FOUND");
    for part in ["enabled", "actions"] {
        for kind in ["override", "overrides"] {
            let missing = format!("{}/{part}", path(kind, "none"));
            refused(&home.get(&alice, &missing), 404, "M_NOT_FOUND");
            refused(&home.put(&alice, &missing, json!({ "enabled": true, "actions": [] })), 404, "M_NOT_FOUND");
        }
        let there = format!("{}/{part}", path("override", ".m.rule.master"));
        refused(&home.put(&alice, &there, json!({})), 400, "M_MISSING_PARAM");
    }
    let enabled = format!("{}/enabled", path("override", ".m.rule.master"));
    refused(&home.put(&alice, &enabled, json!({ "enabled": "yes" })), 400, "M_BAD_JSON");
    for (kind, id) in [
        ("overrides", "x"),
        ("override", ".x"),
        ("override", "a/b"),
        ("override", "a\\b"),
        ("override", ""),
        ("room", "x"),
        ("sender", "!room:x"),
        ("override", &"x".repeat(513)),
    ] {
        refused(&put(&home, &alice, kind, id, quiet()), 400, "M_INVALID_PARAM");
    }
    for (kind, body, errcode) in [
        ("override", json!({}), "M_MISSING_PARAM"),
        ("override", json!({ "actions": {} }), "M_INVALID_PARAM"),
        ("override", json!({ "actions": [1] }), "M_INVALID_PARAM"),
        ("override", json!({ "actions": [{ "tweak": 1 }] }), "M_INVALID_PARAM"),
        ("override", json!({ "actions": [], "conditions": {} }), "M_INVALID_PARAM"),
        ("override", json!({ "actions": [], "conditions": [1] }), "M_INVALID_PARAM"),
        ("override", json!({ "actions": [], "conditions": [{}] }), "M_INVALID_PARAM"),
        (
            "override",
            json!({ "actions": [], "conditions": [{ "kind": "event_match", "key": "type" }] }),
            "M_INVALID_PARAM",
        ),
        (
            "override",
            json!({ "actions": [], "conditions": [{ "kind": "room_member_count", "is": "~2" }] }),
            "M_INVALID_PARAM",
        ),
        (
            "override",
            json!({ "actions": [], "conditions": [{ "kind": "event_property_is", "key": "type", "value": [] }] }),
            "M_INVALID_PARAM",
        ),
        ("content", json!({ "actions": [] }), "M_MISSING_PARAM"),
        ("content", json!({ "actions": [], "pattern": 1 }), "M_INVALID_PARAM"),
        ("content", json!({ "actions": [], "pattern": "x".repeat(513) }), "M_INVALID_PARAM"),
    ] {
        refused(&put(&home, &alice, kind, "x", body), 400, errcode);
    }
    assert_eq!(home.database.rows("SELECT count(*) FROM account_data"), [["0"]]);
    // A condition of the future is kept, and never holds.
    let body = json!({ "actions": [], "conditions": [{ "kind": "moon_phase", "is": { "full": true } }] });
    assert_eq!(put(&home, &alice, "override", "x", body.clone()).0, 200);
    assert_eq!(home.get(&alice, &path("override", "x")).1["conditions"], body["conditions"]);
}

#[test]
fn a_sync_tells_of_them_first_and_when_they_change() {
    let (home, alice) = user();
    let rules = |answer: &Value| -> Vec<Value> {
        let events = answer["account_data"]["events"].as_array().unwrap();
        events.iter().filter(|event| event["type"] == "m.push_rules").map(|event| event["content"].clone()).collect()
    };
    let first = home.sync(&alice, "");
    let all = home.get(&alice, "/pushrules/").1;
    assert_eq!(rules(&first), std::slice::from_ref(&all));
    let own = format!("/user/{}/account_data/m.push_rules", quote(&alice.id));
    assert_eq!(home.get(&alice, &own), (200, all));
    assert_eq!(rules(&home.sync(&alice, &next(&first))), [Value::Null; 0]);
    assert_eq!(put(&home, &alice, "room", "!room:x", quiet()).0, 200);
    let changed = home.sync(&alice, &next(&first));
    let all = home.get(&alice, "/pushrules/").1;
    assert_eq!(all["global"]["room"][0]["rule_id"], "!room:x");
    assert_eq!(rules(&changed), std::slice::from_ref(&all));
    assert_eq!(rules(&home.sync(&alice, &next(&changed))), [Value::Null; 0]);
    assert_eq!(rules(&home.sync(&alice, "")), std::slice::from_ref(&all));
    assert_eq!(home.get(&alice, &own), (200, all));
    refused(&home.put(&alice, &own, json!({ "global": {} })), 405, "M_BAD_JSON");
    let filter = quote(&json!({ "account_data": { "not_types": ["m.push_rules"] } }).to_string());
    assert_eq!(rules(&home.sync(&alice, &format!("filter={filter}"))), [Value::Null; 0]);
}

/// A rule that a later version of this server predefines, or no longer, changes nothing of the user's own.
#[test]
fn stored_rules_are_read_with_the_predefined_ones_of_today() {
    let (home, alice) = user();
    let rule = |id: &str, default: bool| json!({ "rule_id": id, "default": default, "enabled": false, "actions": [] });
    let stored = json!({ "global": { "override": [rule("mine", false), rule(".m.rule.old", true), rule(".m.rule.reaction", true)] } });
    let statement =
        "INSERT INTO account_data (user_id, room_id, event_type, content, pos) VALUES (?1, '', 'm.push_rules', ?2, 1)";
    let statement = verge::platform::Statement::new(statement, [alice.id.as_str().into(), stored.to_string().into()]);
    home.world.run(home.server.store.query(statement)).unwrap();
    let overrides = ids(&home, &alice, "override");
    assert_eq!(overrides[..3], [".m.rule.master", "mine", ".m.rule.suppress_notices"]);
    assert!(!overrides.contains(&".m.rule.old".to_owned()));
    assert_eq!(home.get(&alice, &path("override", ".m.rule.reaction")).1["enabled"], false);
    assert_eq!(ids(&home, &alice, "underride").len(), 5);
}

#[test]
fn changes_at_the_same_time_all_count() {
    let (home, alice) = user();
    let requests = (0..8).map(|number| {
        let request = http::Request::builder()
            .method("PUT")
            .uri(format!("/_matrix/client/v3/pushrules/global/override/r{number}"));
        let request = request.header("Authorization", format!("Bearer {}", alice.token));
        home.server.handle(request.body(bytes::Bytes::from(quiet().to_string())).unwrap())
    });
    let answers = home.world.run(join_all(requests));
    assert!(answers.iter().all(|answer| answer.status() == 200));
    assert_eq!(own(&home, &alice, "override").len(), 8);
}

#[test]
fn rules_are_bounded() {
    let (home, alice) = user();
    let rules: Vec<Value> = (0..1_000)
        .map(|n| json!({ "rule_id": format!("!{n}:x"), "default": false, "enabled": true, "actions": [] }))
        .collect();
    let stored = json!({ "global": { "room": rules } });
    let statement =
        "INSERT INTO account_data (user_id, room_id, event_type, content, pos) VALUES (?1, '', 'm.push_rules', ?2, 1)";
    let statement = verge::platform::Statement::new(statement, [alice.id.as_str().into(), stored.to_string().into()]);
    home.world.run(home.server.store.query(statement)).unwrap();
    refused(&put(&home, &alice, "room", "!more:x", quiet()), 413, "M_TOO_LARGE");
    assert_eq!(
        put(&home, &alice, "room", "!5:x", json!({ "actions": ["notify"] })).0,
        200,
        "one that is there may change"
    );
    // By size, in rules and in actions.
    let bob = home.register("bob");
    let large = json!({ "actions": [{ "set_tweak": "sound", "value": "x".repeat(50_000) }] });
    assert_eq!(put(&home, &bob, "override", "1", large.clone()).0, 200);
    assert_eq!(put(&home, &bob, "override", "2", large.clone()).0, 200);
    refused(&put(&home, &bob, "override", "3", large.clone()), 413, "M_TOO_LARGE");
    refused(&home.put(&bob, &format!("{}/actions", path("override", ".m.rule.master")), large), 413, "M_TOO_LARGE");
    assert_eq!(own(&home, &bob, "override").len(), 2);
    // By what patterns cost.
    let carol = home.register("carol");
    let body = |conditions: usize| {
        let condition = json!({ "kind": "event_match", "key": "content.body", "pattern": "*a?".repeat(170) });
        json!({ "actions": [], "conditions": vec![condition; conditions] })
    };
    assert_eq!(put(&home, &carol, "override", "x", body(25)).0, 200);
    refused(&put(&home, &carol, "override", "y", body(10)), 413, "M_TOO_LARGE");
    // Nested as deep as it may be, and deeper.
    let nested = |depth: usize| {
        let value = format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        let target = "/_matrix/client/v3/pushrules/global/override/deep";
        let body = format!("{{\"actions\":[],\"conditions\":[{{\"kind\":\"x\",\"value\":{value}}}]}}");
        home.raw("PUT", target, Some(&carol.token), body).status().as_u16()
    };
    assert_eq!(nested(20), 200);
    assert_eq!(home.get(&carol, "/pushrules/").0, 200);
    assert_eq!(nested(100_000), 400);
}

/// Everybody has a rule that looks for their display name, which they choose.
#[test]
fn display_names_that_are_too_long_are_not_looked_for() {
    for (length, matches) in [(512, true), (513, false)] {
        let name = "x".repeat(length);
        let rules = push::Ruleset::of("@alice:x", None);
        let event =
            json!({ "type": "m.room.message", "sender": "@bob:x", "content": { "body": format!("hi {name}!") } });
        let event = json::parse(event.to_string().as_bytes()).unwrap().into_object().unwrap();
        let around = Surroundings {
            user_id: "@alice:x",
            member_count: 3,
            display_name: &|| Some(name.clone()),
            may_notify: &|_, _| false,
        };
        assert_eq!(push::highlights(rules.prepared().actions(&event, &around)), matches, "{length}");
    }
}

/// What rules mean: the same as for ruma, on generated rules and events.
#[test]
fn rules_match_what_ruma_has_them_match() {
    let mut seed = 11_u32;
    let mut dice = move |sides: usize| {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (seed >> 8) as usize % sides
    };
    let values = [
        json!("a"),
        json!("m.image"),
        json!(1),
        json!(-5),
        json!(true),
        json!(null),
        json!({ "x": "a" }),
        json!(["a", 1, null]),
    ];
    let texts = [
        "tea",
        "Tea time",
        "teatime",
        "it's tea, now",
        "a_tea",
        "TEA-TIME",
        "",
        "thé à la tea",
        "Alice",
        "hi alice!",
        "m.image",
        "a",
        "look, @room",
    ];
    let patterns = ["tea", "t?a", "te*", "*tea*", "Alice", "*", "t?a*now", "a", "m.*", "é", "tea-*", "?ea", "-", "now"];
    let keys = [
        "content.body",
        "type",
        "content.msgtype",
        "content.m\\.x.y",
        "content.a\\\\b",
        "sender",
        "state_key",
        "content.list",
        "content.x",
        "room_id",
        "content",
    ];
    let counts = ["2", "==3", "<3", ">2", ">=2", "<=1"];
    let mut matched = 0;
    for round in 0..4_000 {
        let mut pick = |items: &[Value]| items[dice(items.len())].clone();
        let (value, x, list) = (pick(&values), pick(&values), json!([pick(&values), pick(&values)]));
        let mut text = |items: &[&str]| items[dice(items.len())].to_owned();
        let conditions: Vec<Value> = (0..2)
            .map(|_| (text(&keys), text(&patterns)))
            .collect::<Vec<_>>()
            .into_iter()
            .map(|(key, pattern)| json!([key, pattern]))
            .collect();
        let mut event = json!({
            "type": text(&["m.room.message", "m.room.encrypted", "m.room.tombstone", "m.reaction", "tea", "m.call.invite"]),
            "sender": text(&["@bob:x", "@alice:x", "@carol:x"]), "room_id": text(&["!a:x", "!b:x"]), "event_id": "$e",
            "origin_server_ts": 1, "state_key": text(&["", "tea"]),
            "content": { "body": text(&texts), "msgtype": text(&["m.text", "m.notice", "m.image"]), "m.x": { "y": text(&texts) },
                "a\\b": text(&texts), "x": x, "list": list,
                "m.mentions": { "room": round % 3 == 0, "user_ids": [text(&["@alice:x", "@bob:x"])] } },
        });
        if round % 2 == 0 {
            event["content"].as_object_mut().unwrap().remove("m.mentions");
        }
        let made: Vec<Value> = conditions
            .iter()
            .map(|pair| match dice(8) {
                0 => json!({ "kind": "event_property_is", "key": pair[0], "value": value }),
                1 => json!({ "kind": "event_property_contains", "key": pair[0], "value": value }),
                2 => json!({ "kind": "contains_display_name" }),
                3 => json!({ "kind": "room_member_count", "is": counts[dice(6)] }),
                4 => json!({ "kind": "sender_notification_permission", "key": "room" }),
                5 => json!({ "kind": "unknown" }),
                _ => json!({ "kind": "event_match", "key": pair[0], "pattern": pair[1] }),
            })
            .filter(|condition| !condition["value"].is_object() && !condition["value"].is_array())
            .collect();
        let rule = |id: &str, more: Value| {
            let mut rule = json!({ "rule_id": id, "default": false, "enabled": true, "actions": ["notify", { "set_tweak": "sound", "value": id }] });
            rule.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            rule
        };
        let stored = json!({ "global": {
            "override": [rule("o", json!({ "conditions": made }))],
            "content": [rule("c", json!({ "pattern": patterns[dice(patterns.len())], "enabled": dice(2) == 0 }))],
            "room": [rule("!a:x", json!({ "enabled": dice(3) == 0 }))], "sender": [rule("@carol:x", json!({ "enabled": dice(3) == 0 }))],
        } });
        let object =
            |value: &Value| -> Object { json::parse(value.to_string().as_bytes()).unwrap().into_object().unwrap() };
        let ours = push::Ruleset::of("@alice:x", Some(&object(&stored)));
        let name = || Some("Alice".to_owned());
        let members = dice(3) as u64 + 1;
        let around = Surroundings {
            user_id: "@alice:x",
            member_count: members,
            display_name: &name,
            may_notify: &|sender, _| sender == "@bob:x",
        };
        let rules = ours.prepared();
        let actions = rules.actions(&object(&event), &around);
        let theirs: Ruleset = serde_json::from_value(serde_json::to_value(ours.global()).unwrap()).unwrap();
        let user_id: OwnedUserId = UserId::parse("@alice:x").unwrap();
        let room_id = RoomId::parse(event["room_id"].as_str().unwrap()).unwrap();
        let levels = PushConditionPowerLevelsCtx::new(
            [(UserId::parse("@bob:x").unwrap(), 50.into())].into(),
            0.into(),
            Default::default(),
            RoomPowerLevelsRules::new(&RoomVersionId::V11.rules().unwrap().authorization, []),
        );
        let context =
            PushConditionRoomCtx::new(room_id, u32::try_from(members).unwrap().into(), user_id, "Alice".to_owned());
        let context = context.with_power_levels(levels);
        let raw: Raw<Value> = Raw::from_json(serde_json::value::to_raw_value(&event).unwrap());
        let expected = futures_executor::block_on(theirs.get_actions(&raw, &context));
        let ours = serde_json::to_value(actions).unwrap();
        assert_eq!(ours, serde_json::to_value(expected).unwrap(), "{event}\n{stored}");
        matched += usize::from(!actions.is_empty());
    }
    assert!((400..3_600).contains(&matched), "{matched} of 4,000 matched: the inputs are poor");
}
