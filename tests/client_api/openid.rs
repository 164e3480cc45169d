//! How users show other services who they are.

use http::Method;
use serde_json::{Value, json};

use crate::home::{Answer, Home, quote, refused};

#[test]
fn a_token_shows_who_one_is_to_whoever_is_given_it() {
    let home = Home::new();
    let (alice, bob) = (home.register("alice"), home.register("bob"));
    let path = format!("/user/{}/openid/request_token", quote(&alice.id));
    let (status, token) = home.post(&alice, &path, json!({}));
    assert_eq!((status, &token["token_type"], &token["expires_in"]), (200, &json!("Bearer"), &json!(3600)));
    assert_eq!(token["matrix_server_name"], "hs.test");
    let exchange = |token: &str| -> Answer {
        let target = format!("/_matrix/federation/v1/openid/userinfo?access_token={token}");
        let response = home.raw(Method::GET.as_str(), &target, None, "");
        (response.status().as_u16(), serde_json::from_slice::<Value>(response.body()).unwrap())
    };
    let access_token = token["access_token"].as_str().unwrap();
    assert_eq!(exchange(access_token), (200, json!({ "sub": alice.id })));
    // It is good for nothing else, and an access token is none.
    refused(&home.call(Some(access_token), "GET", "/sync", None), 401, "M_UNKNOWN_TOKEN");
    refused(&exchange(&alice.token), 401, "M_UNKNOWN_TOKEN");
    refused(&exchange("junk"), 401, "M_UNKNOWN_TOKEN");
    let response = home.raw("GET", "/_matrix/federation/v1/openid/userinfo", None, "");
    assert_eq!(response.status(), 401);
    refused(&home.post(&bob, &path, json!({})), 403, "M_FORBIDDEN");
    refused(&home.call(None, "POST", &path, Some(json!({}))), 401, "M_MISSING_TOKEN");
    home.world.advance(3_600_000);
    refused(&exchange(access_token), 401, "M_UNKNOWN_TOKEN");
}
