//! Cross-signing keys, and signatures on keys.

use ruma_common::encryption::CrossSigningKey;
use serde_json::{Value, json};

use crate::{
    common::devices::{CrossSigning, Device},
    home::{Home, User, refused},
};

/// A user's three keys.
pub struct Keys {
    pub master: CrossSigning,
    self_signing: CrossSigning,
    pub user_signing: CrossSigning,
}

impl Keys {
    pub fn new(user: &User) -> Self {
        Self::other(user, "")
    }

    fn other(user: &User, salt: &str) -> Self {
        let [master, self_signing, user_signing] =
            ["master", "self_signing", "user_signing"].map(|usage| CrossSigning::other(&user.id, usage, salt));
        Self { master, self_signing, user_signing }
    }

    pub fn body(&self) -> Value {
        json!({
            "master_key": self.master.unsigned(),
            "self_signing_key": self.self_signing.signed_by(&self.master),
            "user_signing_key": self.user_signing.signed_by(&self.master),
        })
    }
}

pub const UPLOAD: &str = "/keys/device_signing/upload";

fn query(home: &Home, by: &User, of: &User) -> Value {
    let (status, answer) = home.post(by, "/keys/query", json!({ "device_keys": { &of.id: [] } }));
    assert_eq!(status, 200, "{answer}");
    answer
}

fn device_keys(home: &Home, user: &User) -> Value {
    let keys = Device::new(&user.id, &user.device_id).keys();
    assert_eq!(home.post(user, "/keys/upload", json!({ "device_keys": keys })).0, 200);
    keys
}

#[test]
fn cross_signing_keys_come_back_and_the_user_signing_key_to_its_user_only() {
    let home = Home::new();
    let (alice, bob) = (home.register("alice"), home.register("bob"));
    let keys = Keys::new(&alice);
    assert_eq!(home.post(&alice, UPLOAD, keys.body()), (200, json!({})), "the first ones want no password");
    let mine = query(&home, &alice, &alice);
    let theirs = query(&home, &bob, &alice);
    for (member, of) in [
        ("master_keys", keys.master.unsigned()),
        ("self_signing_keys", keys.self_signing.signed_by(&keys.master)),
        ("user_signing_keys", keys.user_signing.signed_by(&keys.master)),
    ] {
        assert_eq!(mine[member], json!({ &alice.id: of }));
        let expected = if member == "user_signing_keys" { json!({}) } else { json!({ &alice.id: of }) };
        assert_eq!(theirs[member], expected);
        serde_json::from_value::<CrossSigningKey>(mine[member][&alice.id].clone()).unwrap();
    }
}

#[test]
fn other_keys_than_the_first_want_the_password() {
    let home = Home::new();
    let alice = home.register("alice");
    let (keys, others) = (Keys::new(&alice), Keys::other(&alice, "other"));
    assert_eq!(home.post(&alice, UPLOAD, keys.body()).0, 200);
    assert_eq!(home.post(&alice, UPLOAD, keys.body()), (200, json!({})), "the same again");
    let (status, asked) = home.post(&alice, UPLOAD, others.body());
    assert_eq!((status, &asked["flows"]), (401, &json!([{ "stages": ["m.login.password"] }])));
    assert_eq!(query(&home, &alice, &alice)["master_keys"][&alice.id], keys.master.unsigned());
    let with = |password: &str| {
        let mut body = others.body();
        let identifier = json!({ "type": "m.id.user", "user": "alice" });
        body["auth"] = json!({ "type": "m.login.password", "identifier": identifier, "password": password });
        home.post(&alice, UPLOAD, body)
    };
    assert_eq!(with("wrong").0, 401);
    assert_eq!(with("alice's"), (200, json!({})));
    assert_eq!(query(&home, &alice, &alice)["master_keys"][&alice.id], others.master.unsigned());
}

/// Two clients of a new account each upload the first keys: those of one would be of no use, and its user not know.
#[test]
fn of_two_first_master_keys_at_once_one_wants_the_password() {
    let home = Home::new();
    home.world.interleave();
    for n in 0..20 {
        let alice = home.register(&format!("alice{n}"));
        let bodies = ["one", "other"].map(|salt| Keys::other(&alice, salt).body());
        let uploads = bodies.each_ref().map(|body| home.posting(&alice, UPLOAD, body));
        let mut statuses = home.world.run(futures_util::future::join_all(uploads));
        let taken = statuses.iter().position(|status| *status == 200).unwrap();
        statuses.sort_unstable();
        assert_eq!(statuses, [200, 401]);
        let mine = query(&home, &alice, &alice);
        for (member, key) in [("master_keys", "master_key"), ("self_signing_keys", "self_signing_key")] {
            assert_eq!(mine[member][&alice.id], bodies[taken][key]);
        }
    }
}

#[test]
fn no_key_has_the_name_of_a_device() {
    let home = Home::new();
    let alice = home.register("alice");
    let keys = Keys::new(&alice);
    let named = json!({
        "type": "m.login.password", "identifier": { "type": "m.id.user", "user": "alice" }, "password": "alice's",
        "device_id": keys.self_signing.public,
    });
    assert_eq!(home.call(None, "POST", "/login", Some(named)).0, 200);
    refused(&home.post(&alice, UPLOAD, keys.body()), 403, "M_FORBIDDEN");
    assert_eq!(query(&home, &alice, &alice)["master_keys"], json!({}));
}

#[test]
fn a_new_master_key_may_sign_the_other_keys_anew() {
    let home = Home::new();
    let alice = home.register("alice");
    let keys = Keys::new(&alice);
    assert_eq!(home.post(&alice, UPLOAD, keys.body()).0, 200);
    let renewed = Keys { master: Keys::other(&alice, "other").master, ..keys };
    let mut body = renewed.body();
    let identifier = json!({ "type": "m.id.user", "user": "alice" });
    body["auth"] = json!({ "type": "m.login.password", "identifier": identifier, "password": "alice's" });
    assert_eq!(home.post(&alice, UPLOAD, body), (200, json!({})));
    let mine = query(&home, &alice, &alice);
    for (member, of) in [
        ("master_keys", renewed.master.unsigned()),
        ("self_signing_keys", renewed.self_signing.signed_by(&renewed.master)),
        ("user_signing_keys", renewed.user_signing.signed_by(&renewed.master)),
    ] {
        assert_eq!(mine[member], json!({ &alice.id: of }));
    }
}

#[test]
fn only_keys_of_the_right_form_and_signature_are_taken() {
    let home = Home::new();
    let (alice, bob) = (home.register("alice"), home.register("bob"));
    let keys = Keys::new(&alice);
    let self_signing = || keys.self_signing.signed_by(&keys.master);
    refused(&home.post(&alice, UPLOAD, json!({ "self_signing_key": self_signing() })), 400, "M_MISSING_PARAM");
    let mut two = keys.master.unsigned();
    two["keys"]["ed25519:x"] = json!("x");
    let mut misnamed = keys.master.unsigned();
    misnamed["keys"] = json!({ "ed25519:x": keys.master.public });
    let mut weak = keys.master.unsigned();
    weak["keys"] =
        json!({ "ed25519:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA" });
    for (body, errcode) in [
        (json!({ "master_key": Keys::new(&bob).master.unsigned() }), "M_INVALID_PARAM"),
        (json!({ "master_key": keys.self_signing.unsigned() }), "M_INVALID_PARAM"),
        (json!({ "master_key": two }), "M_INVALID_PARAM"),
        (json!({ "master_key": misnamed }), "M_INVALID_PARAM"),
        (json!({ "master_key": weak }), "M_INVALID_PARAM"),
        (json!({ "master_key": [] }), "M_BAD_JSON"),
        (
            json!({ "master_key": keys.master.unsigned(), "self_signing_key": keys.self_signing.unsigned() }),
            "M_INVALID_SIGNATURE",
        ),
        (
            json!({ "master_key": Keys::other(&alice, "other").master.unsigned(), "self_signing_key": self_signing() }),
            "M_INVALID_SIGNATURE",
        ),
    ] {
        refused(&home.post(&alice, UPLOAD, body), 400, errcode);
    }
    refused(&home.call(None, "POST", UPLOAD, Some(json!({}))), 401, "M_MISSING_TOKEN");
    assert!(home.database.rows("SELECT * FROM cross_signing_keys").is_empty());
}

#[test]
fn signatures_are_added_to_the_keys_they_sign() {
    let home = Home::new();
    let (alice, bob) = (home.register("alice"), home.register("bob"));
    let (hers, his) = (Keys::new(&alice), Keys::new(&bob));
    let phone = device_keys(&home, &alice);
    for (user, keys) in [(&alice, &hers), (&bob, &his)] {
        assert_eq!(home.post(user, UPLOAD, keys.body()).0, 200);
    }
    let since = [&alice, &bob].map(|user| home.sync(user, "")["next_batch"].as_str().unwrap().to_owned());
    // Her device, her master key by her device, and his master key.
    let device = Device::new(&alice.id, &alice.device_id);
    let body = json!({
        &alice.id: {
            &alice.device_id: hers.self_signing.sign(phone),
            &hers.master.public: device.sign(hers.master.unsigned()),
        },
        &bob.id: { &his.master.public: hers.user_signing.sign(his.master.unsigned()) },
    });
    assert_eq!(home.post(&alice, "/keys/signatures/upload", body), (200, json!({ "failures": {} })));
    let signers = |by: &User, path: &[&str]| -> Vec<String> {
        let mut key = query(&home, by, if path[1] == alice.id { &alice } else { &bob });
        for name in path {
            key = key[*name].take();
        }
        let of = key["signatures"].as_object().cloned().unwrap_or_default();
        let ids = |(user, ids): (&String, &Value)| {
            ids.as_object().unwrap().keys().map(|id| format!("{user} {id}")).collect::<Vec<_>>()
        };
        of.iter().flat_map(ids).collect()
    };
    let by = |user: &User, key: &str| format!("{} ed25519:{key}", user.id);
    for reader in [&alice, &bob] {
        let mut of_device = signers(reader, &["device_keys", &alice.id, &alice.device_id]);
        of_device.sort();
        let mut expected = vec![by(&alice, &alice.device_id), by(&alice, &hers.self_signing.public)];
        expected.sort();
        assert_eq!(of_device, expected);
        assert_eq!(signers(reader, &["master_keys", &alice.id]), [by(&alice, &alice.device_id)]);
    }
    // Whom she trusts is nobody else's business, not even his.
    assert_eq!(signers(&alice, &["master_keys", &bob.id]), [by(&alice, &hers.user_signing.public)]);
    assert!(signers(&bob, &["master_keys", &bob.id]).is_empty());
    // Her other devices hear of both, he of nothing: they share no room.
    let told = |user: &User, since: &str| home.sync(user, &format!("since={since}"))["device_lists"]["changed"].clone();
    assert_eq!(told(&alice, &since[0]), json!([alice.id, bob.id]));
    assert_eq!(told(&bob, &since[1]), json!([]));
}

#[test]
fn a_signature_that_is_none_is_a_failure_of_its_own() {
    let home = Home::new();
    let (alice, bob) = (home.register("alice"), home.register("bob"));
    let (hers, his) = (Keys::new(&alice), Keys::new(&bob));
    let (phone, his_phone) = (device_keys(&home, &alice), device_keys(&home, &bob));
    for (user, keys) in [(&alice, &hers), (&bob, &his)] {
        assert_eq!(home.post(user, UPLOAD, keys.body()).0, 200);
    }
    let mut changed = phone.clone();
    changed["algorithms"] = json!([]);
    let body = |of: &User, name: &str, key: Value| json!({ &of.id: { name: key } });
    for (of, name, key, errcode) in [
        (&alice, &*alice.device_id, phone.clone(), "M_INVALID_SIGNATURE"),
        (&alice, &*alice.device_id, hers.user_signing.sign(phone.clone()), "M_INVALID_SIGNATURE"),
        (&alice, &*alice.device_id, hers.self_signing.sign(changed), "M_INVALID_PARAM"),
        (&alice, "NONE", hers.self_signing.sign(phone.clone()), "M_NOT_FOUND"),
        (&bob, &*bob.device_id, hers.user_signing.sign(his_phone), "M_NOT_FOUND"),
        (&bob, &*his.master.public, hers.self_signing.sign(his.master.unsigned()), "M_INVALID_SIGNATURE"),
        (&bob, &*his.master.public, hers.user_signing.sign(hers.master.unsigned()), "M_INVALID_PARAM"),
        (&alice, &*hers.master.public, Device::new(&alice.id, "OTHER").sign(hers.master.unsigned()), "M_NOT_FOUND"),
    ] {
        let (status, answer) = home.post(&alice, "/keys/signatures/upload", body(of, name, key));
        assert_eq!((status, answer["failures"][&of.id][name]["errcode"].as_str()), (200, Some(errcode)), "{answer}");
    }
    assert!(home.database.rows("SELECT * FROM key_signatures").is_empty());
    // What is right beside it is taken.
    let both = json!({ &alice.id: { &alice.device_id: hers.self_signing.sign(phone), "NONE": {} } });
    let (_, answer) = home.post(&alice, "/keys/signatures/upload", both);
    assert_eq!(answer["failures"][&alice.id].as_object().unwrap().len(), 1, "{answer}");
    assert_eq!(home.database.rows("SELECT key_name FROM key_signatures"), [[alice.device_id.clone()]]);
    refused(&home.call(None, "POST", "/keys/signatures/upload", Some(json!({}))), 401, "M_MISSING_TOKEN");
    refused(&home.post(&alice, "/keys/signatures/upload", json!({ "alice": {} })), 400, "M_INVALID_PARAM");
    refused(&home.post(&alice, "/keys/signatures/upload", json!({ &alice.id: [] })), 400, "M_BAD_JSON");
}
