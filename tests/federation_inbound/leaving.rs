//! Leaving without having joined, with us as the resident server.

use serde_json::{Value, json};
use verge::{matrix::state_content::Membership, room::Draft};

use crate::{
    Scene, accepted,
    common::{homeserver::object, peer::encode},
    scene,
};

/// The event that would end Dave's membership, signed.
fn signed_leave(scene: &Scene, user: &str) -> Result<(String, Value), (u16, Value)> {
    let target = format!("/_matrix/federation/v1/make_leave/{}/{}", encode(scene.room.as_str()), encode(user));
    match scene.peer.get(&scene.a, &target) {
        (200, template) => {
            assert_eq!(template["room_version"], "12");
            Ok(scene.peer.sign("12", template["event"].clone()))
        }
        refused => Err(refused),
    }
}

fn send_leave(scene: &Scene, prefix: &str, id: &str, event: &Value) -> (u16, Value) {
    let target = format!("/_matrix/federation/{prefix}/send_leave/{}/{}", encode(scene.room.as_str()), encode(id));
    scene.peer.put(&scene.a, &target, event)
}

#[test]
fn an_invite_is_rejected() {
    for (prefix, expected) in [("v2", json!({})), ("v1", json!([200, {}]))] {
        let scene = scene("12");
        let dave = scene.peer.user("dave");
        let invite = Draft::membership(&dave, Membership::Invite, object(json!({})));
        scene.a.send(&scene.world, &scene.room, &scene.alice, invite);
        let (id, leave) = signed_leave(&scene, &dave).unwrap();
        assert_eq!(send_leave(&scene, prefix, &id, &leave), (200, expected));
        assert_eq!(scene.a.membership(&scene.world, &scene.room, &dave).as_deref(), Some("leave"));
    }
}

#[test]
fn only_who_could_leave_is_let_go() {
    let scene = scene("12");
    let refused = signed_leave(&scene, &scene.peer.user("nobody")).unwrap_err();
    assert_eq!((refused.0, refused.1["errcode"].as_str()), (403, Some("M_FORBIDDEN")));
    let refused = signed_leave(&scene, "@carol:other.example").unwrap_err();
    assert_eq!((refused.0, refused.1["errcode"].as_str()), (403, Some("M_FORBIDDEN")));
    let (id, leave) = signed_leave(&scene, &scene.bob).unwrap();
    let before = accepted(&scene.a);
    assert_eq!(send_leave(&scene, "v2", "$other", &leave).0, 400);
    let mut join = leave.clone();
    join["content"]["membership"] = json!("join");
    assert_eq!(send_leave(&scene, "v2", &id, &join).0, 400);
    assert_eq!(accepted(&scene.a), before);
    assert_eq!(send_leave(&scene, "v2", &id, &leave).0, 200);
    assert_eq!(scene.a.membership(&scene.world, &scene.room, &scene.bob).as_deref(), Some("leave"));
}
