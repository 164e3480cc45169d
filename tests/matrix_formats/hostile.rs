//! No input panics, and what passes is consistent. More of the same is in `tests/properties`.

use verge::matrix::{
    identifiers::UserId,
    json,
    server_keys::{KeyRing, ServerKeys, check_notary_response, own_server_keys},
};

use crate::generate::{Random, SERVER, mutated, signing_key};

#[test]
fn keys() {
    let keys = own_server_keys(SERVER, &signing_key(), &[], i64::MAX).to_text();
    let mut parsed = 0;
    for seed in 0..6000 {
        let text = mutated(&mut Random(seed), keys.as_bytes());
        if let Ok(json::Value::Object(object)) = json::parse(&text) {
            parsed += usize::from(ServerKeys::parse_and_check(object.clone(), SERVER, 0).is_ok());
            let _ = check_notary_response(object, SERVER, &KeyRing::new(), 0);
        }
    }
    assert!(parsed > 10, "the generator has to hit something: {parsed}");
}

#[test]
fn user_ids() {
    let mut parsed = 0;
    for seed in 0..20_000 {
        let text = mutated(&mut Random(seed), b"@a:[2001:db8::1]:8448");
        let name = String::from_utf8_lossy(&text);
        if let Ok(user) = UserId::parse(&name) {
            parsed += 1;
            assert_eq!(format!("@{}:{}", user.localpart(), user.server_name()), name);
        }
    }
    assert!(parsed > 500, "the generator has to hit something: {parsed}");
}
