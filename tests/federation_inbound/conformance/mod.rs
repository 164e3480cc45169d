//! Every endpoint of the Server-Server API, asked by one of our servers and answered by another, or asked as somebody else asks it:
//! each request and each good answer is what ruma takes it for.

mod shapes;

use std::{collections::BTreeMap, rc::Rc};

use bytes::Bytes;
use http::Method;
use serde_json::{Value, json};
use verge::{
    federation::peers::endpoints::KeyQuery,
    matrix::{
        identifiers::{EventId, RoomAlias, RoomId, ServerName, UserId},
        json::Object,
    },
    store::one_time_keys::Wanted,
};

use self::shapes::Watch;
use crate::{
    common::{
        devices::{CrossSigning, Device},
        network::{Homeserver, World},
        peer::{Peer, encode, request},
    },
    policy::policy_server,
    third_party_invites::{Identity, binding, offer},
};

const V3: &str = "/_matrix/client/v3";

/// A user with a client.
struct Person {
    world: World,
    home: Homeserver,
    id: String,
    device_id: String,
    token: String,
}

impl Person {
    fn new(world: &World, home: &Homeserver, name: &str) -> Self {
        let body = json!({ "username": name, "password": "secret", "auth": { "type": "m.login.dummy" } });
        let request = request(Method::POST, &format!("{V3}/register"), &[], body.to_string());
        let answer: Value = serde_json::from_slice(world.run(home.handle(request)).body()).unwrap();
        let text = |name: &str| answer[name].as_str().unwrap().to_owned();
        let (id, device_id, token) = (text("user_id"), text("device_id"), text("access_token"));
        Self { world: world.clone(), home: home.clone(), id, device_id, token }
    }

    /// Sends a request, which is answered well, and lets everybody do what follows from it.
    fn ask(&self, method: Method, target: &str, body: impl Into<Bytes>) -> Value {
        let authorization = format!("Bearer {}", self.token);
        let mut request = request(method, target, &[&authorization], body);
        request.headers_mut().insert("content-type", "image/png".parse().unwrap());
        let response = self.world.run(self.home.handle(request));
        let answer = serde_json::from_slice(response.body()).unwrap_or_default();
        assert_eq!(response.status(), 200, "{target}: {answer}");
        self.world.settle();
        answer
    }

    fn get(&self, path: &str) -> Value {
        self.ask(Method::GET, &format!("{V3}{path}"), "")
    }

    fn put(&self, path: &str, body: Value) -> Value {
        self.ask(Method::PUT, &format!("{V3}{path}"), body.to_string())
    }

    fn post(&self, path: &str, body: Value) -> Value {
        self.ask(Method::POST, &format!("{V3}{path}"), body.to_string())
    }

    fn room(&self, body: Value) -> String {
        self.post("/createRoom", body)["room_id"].as_str().unwrap().to_owned()
    }

    fn say(&self, room: &str, txn_id: &str) -> String {
        let content = json!({ "msgtype": "m.text", "body": txn_id });
        let answer = self.put(&format!("/rooms/{}/send/m.room.message/{}", encode(room), encode(txn_id)), content);
        answer["event_id"].as_str().unwrap().to_owned()
    }

    /// Joins or knocks through this server.
    fn enter(&self, how: &str, room: &str, via: &str) {
        self.post(&format!("/{how}/{}?via={via}", encode(room)), json!({}));
    }

    fn leave(&self, room: &str) {
        self.post(&format!("/rooms/{}/leave", encode(room)), json!({}));
    }
}

/// Two of our servers, of which `a` is a policy server too, with people and a room that both are in.
struct Two {
    world: World,
    watch: Rc<Watch>,
    a: Homeserver,
    b: Homeserver,
    ann: Person,
    bob: Person,
    room: String,
    said: Vec<String>,
    /// Of the room of `a` as a policy server.
    guarded: RoomId,
}

impl Two {
    fn new() -> Self {
        let world = World::new();
        let watch = Watch::over(&world);
        let (a, _, guarded) = policy_server(&world);
        let b = world.server("b.example");
        let (ann, bob) = (Person::new(&world, &a, "ann"), Person::new(&world, &b, "bob"));
        let about =
            json!({ "preset": "public_chat", "room_alias_name": "hall", "visibility": "public", "name": "Hall" });
        let room = ann.room(about);
        let said = (0..30).map(|n| ann.say(&room, &format!("m{n}"))).collect();
        bob.enter("join", "#hall:a.example", "a.example");
        Self { world, watch, a, b, ann, bob, room, said, guarded }
    }
}

fn name(text: &str) -> ServerName {
    ServerName::parse(text).unwrap()
}

#[test]
fn requests_and_answers_of_every_endpoint_are_what_ruma_reads() {
    let two = Two::new();
    reads_of_a_room(&two);
    memberships(&two);
    memberships_by_version_1(&two);
    third_party_invite(&two);
    people(&two);
    what_goes_with_transactions(&two);
    keys_of_servers(&two);
    media(&two);
    two.bob.enter("join", two.guarded.as_str(), "a.example");
    two.bob.say(two.guarded.as_str(), "guarded");
    assert_eq!(two.watch.faults(), [] as [&str; 0]);
    assert_eq!(two.watch.unseen(), [] as [&str; 0]);
    let kinds =
        ["m.device_list_update", "m.direct_to_device", "m.presence", "m.receipt", "m.signing_key_update", "m.typing"];
    assert_eq!(two.watch.edus(), kinds);
}

fn reads_of_a_room(two: &Two) {
    let Two { world, b, bob, room, said, .. } = two;
    // What was said before the join is history of which this server has nothing.
    let page = bob.get(&format!("/rooms/{}/messages?dir=b&limit=50", encode(room)));
    assert_eq!(page["chunk"].as_array().unwrap().iter().filter(|event| event["type"] == "m.room.message").count(), 30);
    let (a, room_id) = (name("a.example"), RoomId::parse(room).unwrap());
    let [first, last] = [&said[0], &said[29]].map(|id| EventId::parse(id).unwrap());
    let federation = &b.federation;
    world.run(async {
        federation.version(&a).await.unwrap();
        federation.event(&a, &first).await.unwrap();
        federation.state(&a, &room_id, &last).await.unwrap();
        federation.state_ids(&a, &room_id, &last).await.unwrap();
        federation.event_auth(&a, &room_id, &last).await.unwrap();
        federation.backfill(&a, &room_id, std::slice::from_ref(&last), 10).await.unwrap();
        let (earliest, latest) = (std::slice::from_ref(&first), std::slice::from_ref(&last));
        let missing = federation.get_missing_events(&a, &room_id, earliest, latest, 10, 0).await.unwrap();
        assert_eq!(missing.len(), 10);
        federation.timestamp_to_event(&a, &room_id, 1, true).await.unwrap();
        federation.hierarchy(&a, &room_id).await.unwrap();
        let query: Object = Object::from_iter([("limit", 10_i64)]);
        assert!(federation.public_rooms(&a, &query).await.unwrap().contains_key("chunk"));
        let filter = Object::from_iter([("generic_search_term", "hall")]);
        let query = Object::from_iter([("filter", filter)]);
        assert!(federation.public_rooms(&a, &query).await.unwrap().contains_key("chunk"));
        let alias = RoomAlias::parse("#hall:a.example").unwrap();
        assert_eq!(federation.query_directory(&a, &alias).await.unwrap().room_id, room_id);
    });
}

fn memberships(two: &Two) {
    let Two { ann, bob, .. } = two;
    let private = ann.room(json!({ "invite": [bob.id] }));
    bob.leave(&private);
    let rules = json!([{ "type": "m.room.join_rules", "state_key": "", "content": { "join_rule": "knock" } }]);
    let club = ann.room(json!({ "initial_state": rules }));
    bob.enter("knock", &club, "a.example");
    let member = format!("/rooms/{}/state/m.room.member/{}", encode(&club), encode(&bob.id));
    assert_eq!(ann.get(&member)["membership"], "knock");
    // A knock that is taken back is left as an invite is.
    bob.leave(&club);
    assert_eq!(ann.get(&member)["membership"], "leave");
}

fn memberships_by_version_1(two: &Two) {
    let Two { world, b, ann, watch, .. } = two;
    watch.only_v1.set(true);
    let dan = Person::new(world, b, "dan");
    dan.enter("join", &ann.room(json!({ "preset": "public_chat" })), "a.example");
    let old = ann.room(json!({ "room_version": "2", "invite": [dan.id] }));
    let member = format!("/rooms/{}/state/m.room.member/{}", encode(&old), encode(&dan.id));
    assert_eq!(ann.get(&member)["membership"], "invite");
    dan.leave(&old);
    assert_eq!(ann.get(&member)["membership"], "leave");
    watch.only_v1.set(false);
}

fn third_party_invite(two: &Two) {
    let Two { world, a, b, ann, watch, .. } = two;
    let identity = Identity::new(world);
    let dora = Person::new(world, b, "dora");
    let room = ann.room(json!({ "preset": "public_chat" }));
    let sender = UserId::parse(&ann.id).unwrap();
    offer(world, a, &RoomId::parse(&room).unwrap(), &sender, "tok", identity.offer());
    let body = binding(&dora.id, &room, &ann.id, &identity.signed(&dora.id, "tok"));
    let asked = request(Method::PUT, "/_matrix/federation/v1/3pid/onbind", &[], body.to_string());
    let answer = world.run(b.handle(asked.clone()));
    assert_eq!(answer.status(), 200, "{answer:?}");
    watch.see(&asked, &answer);
    world.settle();
    assert!(dora.get("/sync")["rooms"]["invite"][&room].is_object());
}

fn people(two: &Two) {
    let Two { world, b, ann, bob, watch, .. } = two;
    let device = Device::new(&ann.id, &ann.device_id);
    let (fallback_id, fallback) = device.fallback_key("F");
    ann.post("/keys/upload", json!({
        "device_keys": device.keys(), "one_time_keys": device.one_time_keys(2), "fallback_keys": { fallback_id: fallback },
    }));
    let keys = ["master", "self_signing", "user_signing"].map(|usage| CrossSigning::new(&ann.id, usage));
    ann.post(
        "/keys/device_signing/upload",
        json!({
            "master_key": keys[0].unsigned(),
            "self_signing_key": keys[1].signed_by(&keys[0]),
            "user_signing_key": keys[2].signed_by(&keys[0]),
        }),
    );
    ann.put(&format!("/profile/{}/displayname", encode(&ann.id)), json!({ "displayname": "Ann" }));
    let (server, user) = (name("a.example"), UserId::parse(&ann.id).unwrap());
    let wanted = Wanted {
        user_id: ann.id.clone(),
        device_id: ann.device_id.clone(),
        algorithm: "signed_curve25519".to_owned(),
        only_fallback: false,
    };
    world.run(async {
        let federation = &b.federation;
        assert!(federation.query_profile(&server, &user, None).await.unwrap().contains_key("displayname"));
        let devices = federation.user_devices(&server, &user, 10_000).await.unwrap();
        assert_eq!((devices.keys.devices.len(), devices.keys.cross_signing.len()), (1, 2));
        let found = federation.query_user_keys(&server, std::slice::from_ref(&ann.id), 10_000).await.unwrap();
        assert_eq!(found[&ann.id].devices.len(), 1);
        let claimed = federation.claim_user_keys(&server, std::slice::from_ref(&wanted), 10_000).await.unwrap();
        assert!(claimed.contains_key(&ann.id));
    });
    let token = bob.post(&format!("/user/{}/openid/request_token", encode(&bob.id)), json!({}));
    let token = token["access_token"].as_str().unwrap();
    let target = format!("/_matrix/federation/v1/openid/userinfo?access_token={}", encode(token));
    let asked = request(Method::GET, &target, &[], "");
    let answer = world.run(b.handle(asked.clone()));
    watch.see(&asked, &answer);
}

fn what_goes_with_transactions(two: &Two) {
    let Two { ann, bob, room, .. } = two;
    let last = ann.say(room, "to be read");
    let room = encode(room);
    ann.put(&format!("/rooms/{room}/typing/{}", encode(&ann.id)), json!({ "typing": true, "timeout": 10_000 }));
    bob.post(&format!("/rooms/{room}/receipt/m.read/{}", encode(&last)), json!({}));
    bob.post(&format!("/rooms/{room}/receipt/m.read/{}", encode(&last)), json!({ "thread_id": "main" }));
    ann.put(&format!("/presence/{}/status", encode(&ann.id)), json!({ "presence": "online", "status_msg": "here" }));
    let messages: BTreeMap<&str, Value> = BTreeMap::from([(bob.id.as_str(), json!({ "*": { "note": "hello" } }))]);
    ann.put("/sendToDevice/m.new_device/1", json!({ "messages": messages }));
    // Everybody hears of new keys with whom a room is shared.
    let device = Device::new(&bob.id, &bob.device_id);
    bob.post("/keys/upload", json!({ "device_keys": device.keys() }));
}

fn keys_of_servers(two: &Two) {
    let Two { world, a, b, watch, .. } = two;
    let query = KeyQuery {
        server: name("b.example"),
        key_id: "ed25519:auto".to_owned(),
        minimum_valid_until_ts: world.now_ms(),
    };
    world.run(async {
        let notary = name("a.example");
        assert!(
            b.federation.query_keys(&notary, std::slice::from_ref(&query)).await.unwrap().contains_key("server_keys")
        );
        b.federation.server_keys(&notary).await.unwrap();
    });
    let asked = request(Method::GET, "/_matrix/key/v2/query/b.example", &[], "");
    let answer = world.run(a.handle(asked.clone()));
    watch.see(&asked, &answer);
}

fn media(two: &Two) {
    let Two { world, a, ann, bob, watch, .. } = two;
    let mut picture = std::io::Cursor::new(Vec::new());
    let pixels = image::RgbImage::from_pixel(300, 200, image::Rgb([9, 99, 199]));
    pixels.write_to(&mut picture, image::ImageFormat::Png).unwrap();
    let uploaded = ann.ask(Method::POST, "/_matrix/media/v3/upload?filename=a.png", picture.into_inner());
    let path = uploaded["content_uri"].as_str().unwrap().strip_prefix("mxc://").unwrap().to_owned();
    bob.ask(Method::GET, &format!("/_matrix/client/v1/media/download/{path}"), "");
    // We make thumbnails of other servers' media ourselves.
    let peer = Peer::new(world, "peer.example");
    let media_id = path.rsplit('/').next().unwrap();
    let target = format!("/_matrix/federation/v1/media/thumbnail/{media_id}?width=32&height=32");
    let asked = peer.request(a, Method::GET, &target, None);
    let answer = world.run(a.handle(asked.clone()));
    watch.see(&asked, &answer);
}
