//! Server ACLs against ruma's, on generated lists and names.

use ruma_common::ServerName as RumaName;
use ruma_events::room::server_acl::RoomServerAclEventContent;
use serde_json::{Value as Json, json};
use verge::matrix::{identifiers::ServerName, json::Value, server_acl::ServerAcl};

use crate::generate::Random;

const NAMES: [&str; 16] = [
    "evil.example",
    "EVIL.Example:8448",
    "a.evil.example",
    "b.a.evil.example:1",
    "good.example",
    "xn--80ak6aa92e.example",
    "localhost",
    "a",
    "1.2.3.4",
    "1.2.3.4:8448",
    "10.0.0.1",
    "[::1]",
    "[2001:DB8::1]:8448",
    "1.2.3.example",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab.example",
    "matrix.org",
];

fn acl(content: Json) -> ServerAcl {
    match Value::from(content) {
        Value::Object(content) => ServerAcl::from_content(&content),
        other => panic!("{other:?}"),
    }
}

fn name(text: &str) -> ServerName {
    ServerName::parse(text).unwrap()
}

/// A pattern made from a name: some of its characters are replaced, doubled or left out.
fn pattern(random: &mut Random) -> String {
    let host = name(random.pick(&NAMES)).host().to_owned();
    let mut pattern = String::new();
    for character in host.chars() {
        match random.below(24) {
            0 => pattern.push('*'),
            1 => pattern.push('?'),
            2 => pattern.push_str("*?"),
            3 => pattern.extend([character, '*']),
            4 => {}
            5 => pattern.extend(character.to_uppercase()),
            6 => return pattern + "*",
            _ => pattern.push(character),
        }
    }
    pattern
}

#[test]
fn generated_lists_say_what_they_say_to_ruma() {
    let (mut random, mut allowed) = (Random(11), 0);
    for _ in 0..4_000 {
        let list = |random: &mut Random, least: usize| -> Vec<String> {
            (0..random.below(4) + least).map(|_| pattern(random)).collect()
        };
        let (mut allow, deny) = (list(&mut random, 1), list(&mut random, 0));
        if random.chance(60) {
            allow.push("*".to_owned());
        }
        let ip_literals = random.chance(50);
        let content = json!({ "allow": allow, "deny": deny, "allow_ip_literals": ip_literals });
        let ruma: RoomServerAclEventContent = serde_json::from_value(content.clone()).unwrap();
        let ours = acl(content.clone());
        for text in NAMES {
            let expected = ruma.is_allowed(<&RumaName>::try_from(text).unwrap());
            assert_eq!(ours.allows(&name(text)), expected, "{text} by {content}");
            allowed += usize::from(expected);
        }
    }
    assert!((10_000..50_000).contains(&allowed), "{allowed} were allowed");
}

#[test]
fn what_is_malformed_counts_as_missing() {
    for (content, allowed) in [
        (json!({}), false),
        (json!({ "allow": "*" }), false),
        (json!({ "allow": { "0": "*" } }), false),
        (json!({ "allow": [["*"], { "a": "*" }, 1, null] }), false),
        (json!({ "allow": [1, "*"], "deny": [7, { "deny": "*" }, ["*"]] }), true),
        (json!({ "allow": ["*"], "deny": "*" }), true),
        (json!({ "allow": ["*"], "deny": [""] }), true),
        (json!({ "allow": ["*"], "allow_ip_literals": "false" }), true),
        (json!({ "allow": ["*"], "allow_ip_literals": 0 }), true),
        (json!({ "allow": ["*"], "allow_ip_literals": false }), false),
    ] {
        assert_eq!(acl(content.clone()).allows(&name("1.2.3.4:8448")), allowed, "{content}");
    }
    assert!(ServerAcl::of(None).allows(&name("1.2.3.4")));
}

#[test]
fn a_hostile_pattern_costs_what_its_length_costs() {
    let server = name(&format!("{}.example", "a".repeat(240)));
    // As many as an event has room for; a matcher that tries all ways would not end.
    let patterns: Vec<String> = ["*?", "*a", "a*a?", "*a*?*a*b"]
        .iter()
        .map(|piece| format!("{}b", piece.repeat(15_000 / piece.len())))
        .collect();
    let acl = acl(json!({ "allow": ["*"], "deny": patterns }));
    assert!(acl.allows(&server));
}
