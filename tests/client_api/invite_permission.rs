//! Users who do not want to be invited.

use serde_json::{Value, json};

use crate::{
    home::{Home, User, next, quote, refused},
    typing::apart,
};

fn permit(home: &Home, user: &User, content: Value) {
    let path = format!("/user/{}/account_data/m.invite_permission_config", quote(&user.id));
    assert_eq!(home.put(user, &path, content).0, 200);
}

fn invites(home: &Home, user: &User, query: &str) -> Vec<String> {
    let answer = home.sync(user, query);
    answer["rooms"]["invite"].as_object().map(|rooms| rooms.keys().cloned().collect()).unwrap_or_default()
}

#[test]
fn who_blocks_invites_cannot_be_invited_from_here_or_elsewhere() {
    let (one, alice, two, bob, _) = apart();
    let carol = two.register("carol");
    permit(&two, &bob, json!({ "default_action": "block" }));
    for (home, inviter) in [(&one, &alice), (&two, &carol)] {
        let room = home.room(inviter, json!({}));
        let path = format!("/rooms/{}", quote(&room));
        let invite = json!({ "user_id": bob.id });
        refused(&home.post(inviter, &format!("{path}/invite"), invite.clone()), 403, "M_INVITE_BLOCKED");
        let state = format!("{path}/state/m.room.member/{}", quote(&bob.id));
        refused(&home.put(inviter, &state, json!({ "membership": "invite" })), 403, "M_INVITE_BLOCKED");
        assert_eq!(home.get(inviter, &state).0, 404, "nothing is left of it");
        // The room is made all the same.
        let with_bob = home.room(inviter, json!({ "invite": [bob.id] }));
        let state = format!("/rooms/{}/state/m.room.member/{}", quote(&with_bob), quote(&bob.id));
        assert_eq!(home.get(inviter, &state).0, 404);
        one.world.settle();
        assert!(invites(&two, &bob, "").is_empty());
        // What nobody knows blocks nothing.
        for content in [json!({ "default_action": "allow" }), json!({ "default_action": ["block"] }), json!({})] {
            permit(&two, &bob, content);
            let room = home.room(inviter, json!({}));
            assert_eq!(home.post(inviter, &format!("/rooms/{}/invite", quote(&room)), invite.clone()).0, 200);
            one.world.settle();
            assert!(invites(&two, &bob, "").contains(&room));
            assert_eq!(two.post(&bob, &format!("/rooms/{}/leave", quote(&room)), json!({})).0, 200);
        }
        permit(&two, &bob, json!({ "default_action": "block" }));
    }
}

#[test]
fn invites_that_are_there_already_are_not_shown_while_they_are_blocked() {
    let (one, alice, two, bob, _) = apart();
    let since = next(&two.sync(&bob, ""));
    let room = one.room(&alice, json!({ "invite": [bob.id] }));
    one.world.settle();
    assert_eq!(invites(&two, &bob, &since), std::slice::from_ref(&room));
    permit(&two, &bob, json!({ "default_action": "block" }));
    assert!(invites(&two, &bob, &since).is_empty() && invites(&two, &bob, "").is_empty());
    permit(&two, &bob, json!({}));
    assert_eq!(invites(&two, &bob, ""), [room]);
}
