//! Each rule, by the numbers of version 12 (those of versions 1 to 5 where it has none): what it allows and what it
//! refuses, in every version that has it.

use ed25519_dalek::{Signer, SigningKey};
use serde_json::{Value as Json, json};
use verge::matrix::{
    auth_rules::{self, AuthError},
    base64,
    event::Event,
    json::{self, Value},
    power_levels::PowerLevel,
};

use crate::scene::{ALICE, BOB, CAROL, DAVE, SERVER_A, Scene, versions};

fn too_low(power: i64, required: i64) -> Result<(), AuthError> {
    Err(AuthError::PowerTooLow { power: PowerLevel::from(power), required: PowerLevel::from(required) })
}

#[test]
fn rule_1_create() {
    for version in versions(1..=12) {
        let scene = Scene::new(version);
        let own = scene.get("m.room.create", "").unwrap().clone();
        assert_eq!(scene.judge(&own), Ok(()));

        let create = |content: Json, members: Json| {
            let mut base = json!({ "room_id": "!room:a.example" });
            for (name, value) in members.as_object().unwrap() {
                base[name] = value.clone();
            }
            let event = scene.event_with("m.room.create", ALICE, Some(""), content, base);
            let mut object = event.object().clone();
            if version.room_id_is_create_hash {
                object.remove("room_id");
            }
            object.remove("hashes");
            crate::common::rooms::event_of(object, version)
        };
        let content = json!({ "creator": ALICE });
        assert_eq!(scene.judge(&create(content.clone(), json!({}))), Ok(()));
        let prev_events = json!({ "prev_events": scene.references(&["$a:a.example"]) });
        assert_eq!(scene.judge(&create(content, prev_events)), Err(AuthError::CreateHasPrevEvents));
        // ruma leaves the version to its caller.
        let differs = scene.clone().where_ruma_differs();
        for unknown in [json!("13a"), json!(1), json!(null)] {
            let event = create(json!({ "creator": ALICE, "room_version": unknown }), json!({}));
            assert_eq!(differs.judge(&event), Err(AuthError::UnknownRoomVersion));
        }
    }
    for version in versions(1..=11) {
        let scene = Scene::new(version);
        let content = json!({ "creator": ALICE });
        let event =
            scene.event_with("m.room.create", ALICE, Some(""), content, json!({ "room_id": "!room:b.example" }));
        assert_eq!(scene.judge(&event), Err(AuthError::CreateForAnotherServer));
        let without_creator = scene.event("m.room.create", ALICE, Some(""), json!({}));
        let expected = if version.creator_is_sender { Ok(()) } else { Err(AuthError::NoCreator) };
        assert_eq!(scene.judge(&without_creator), expected);
    }
    for version in versions(12..=12) {
        let scene = Scene::new(version);
        for (creators, allowed) in [
            (json!([]), true),
            (json!([BOB, CAROL]), true),
            (json!(BOB), false),
            (json!(null), false),
            (json!([BOB, 5]), false),
            (json!(["bob"]), false),
        ] {
            let create = || Scene::created_with(version, json!({ "additional_creators": creators }));
            let event = create().get("m.room.create", "").unwrap().clone();
            let expected = if allowed { Ok(()) } else { Err(AuthError::AdditionalCreators) };
            assert_eq!(scene.judge(&event), expected, "{creators}");
        }
    }
}

#[test]
fn rules_2_and_3_auth_event_list() {
    for version in versions(1..=12) {
        let scene = Scene::new(version);
        let id = |event_type: &str, key: &str| scene.get(event_type, key).unwrap().event_id().to_string();
        let (create, levels, bob) = (id("m.room.create", ""), id("m.room.power_levels", ""), id("m.room.member", BOB));
        let (carol, rules) = (id("m.room.member", CAROL), id("m.room.join_rules", ""));
        let message = |ids: &[&str], members: Json| {
            let mut members = members;
            let mut ids = ids.to_vec();
            ids.retain(|id| !(version.room_id_is_create_hash && *id == create));
            members["auth_events"] = scene.references(&ids);
            scene.event_with("m.room.message", BOB, None, json!({}), members)
        };
        assert_eq!(scene.judge_list(&message(&[&create, &levels, &bob], json!({})), &[]), Ok(()));

        let twice = message(&[&create, &levels, &levels], json!({}));
        assert!(matches!(scene.judge_list(&twice, &[]), Err(AuthError::DuplicateAuthEvent(_))));
        let two_members = scene.event_with(
            "m.room.member",
            BOB,
            Some(BOB),
            json!({ "membership": "join", "other": 1 }),
            json!({ "event_id": "$other:a.example" }),
        );
        let same_key = message(&[&create, &bob, two_members.event_id().as_str()], json!({}));
        let verdict = scene.judge_list(&same_key, &[(two_members, false)]);
        assert!(matches!(verdict, Err(AuthError::DuplicateAuthEvent(_))));
        for unexpected in [&carol, &rules] {
            let event = message(&[&create, unexpected], json!({}));
            assert!(matches!(scene.judge_list(&event, &[]), Err(AuthError::UnexpectedAuthEvent(_))));
        }
        let rejected = [(scene.get("m.room.member", BOB).unwrap().clone(), true)];
        let event = message(&[&create, &bob], json!({}));
        assert!(matches!(scene.judge_list(&event, &rejected), Err(AuthError::RejectedAuthEvent(_))));
        let unknown = message(&[&create, "$unknown:a.example"], json!({}));
        assert!(matches!(scene.judge_list(&unknown, &[]), Err(AuthError::MissingAuthEvent(_))));

        let mut elsewhere = scene.get("m.room.member", BOB).unwrap().object().clone();
        elsewhere.insert("room_id", "!other:a.example");
        let elsewhere = crate::common::rooms::event_of(elsewhere, version);
        let event = message(&[&create, elsewhere.event_id().as_str()], json!({}));
        let verdict = scene.judge_list(&event, &[(elsewhere, false)]);
        assert!(matches!(verdict, Err(AuthError::AuthEventOfAnotherRoom(_))));
    }
    for version in versions(1..=11) {
        let scene = Scene::new(version);
        let event = scene.event("m.room.message", BOB, None, json!({}));
        assert_eq!(scene.judge_list(&event, &[]), Err(AuthError::NoCreateEvent));
    }
    for version in versions(12..=12) {
        let scene = Scene::new(version);
        let of_unknown = json!({ "room_id": "!unknown" });
        let event = scene.event_with("m.room.message", BOB, None, json!({}), of_unknown);
        assert_eq!(scene.judge_list(&event, &[]), Err(AuthError::RoomIdOfNoCreateEvent));
        let event = scene.event("m.room.message", BOB, None, json!({}));
        let rejected = [(scene.get("m.room.create", "").unwrap().clone(), true)];
        assert_eq!(scene.judge_list(&event, &rejected), Err(AuthError::RoomIdOfNoCreateEvent));
        let with_create = json!({ "auth_events": [scene.create_id()] });
        let event = scene.event_with("m.room.message", BOB, None, json!({}), with_create);
        assert!(matches!(scene.judge_list(&event, &[]), Err(AuthError::UnexpectedAuthEvent(_))));
    }
}

/// A room ID that is the hash of an event of another type names no room.
#[test]
fn rule_2_room_id_of_another_event() {
    for version in versions(12..=12) {
        let scene = Scene::new(version);
        let member = scene.get("m.room.member", BOB).unwrap().clone();
        let room_id = json!({ "room_id": member.event_id().as_str().replace('$', "!") });
        let event = scene.event_with("m.room.message", BOB, None, json!({}), room_id);
        let find = |_: &_| Some(auth_rules::AuthEvent { event: &member, rejected: false });
        let verdict = auth_rules::check_auth_event_list(&event, find);
        assert_eq!(verdict, Err(AuthError::RoomIdOfNoCreateEvent));
    }
}

#[test]
fn rule_4_federation() {
    for version in versions(1..=12) {
        let create = |federate: Json| {
            Scene::created_with(version, json!({ "creator": ALICE, "m.federate": federate })).level("invite", json!(0))
        };
        assert_eq!(create(json!(true)).message("m.room.message", CAROL), Ok(()));
        assert_eq!(create(json!(false)).message("m.room.message", CAROL), Err(AuthError::NotFederated));
        assert_eq!(create(json!(false)).message("m.room.message", BOB), Ok(()));
        // Only `false` forbids. ruma refuses every event where it is no boolean, Synapse every remote one.
        assert_eq!(
            create(json!("no")).where_ruma_differs().where_synapse_differs().message("m.room.message", CAROL),
            Ok(())
        );
        // The rule is about the sender. Synapse refuses this for its target.
        assert_eq!(create(json!(false)).where_synapse_differs().membership(ALICE, DAVE, "invite"), Ok(()));
    }
}

#[test]
fn a_state_without_create_event_allows_nothing() {
    for version in versions(1..=12) {
        let scene = Scene::new(version);
        let event = scene.event("m.room.message", ALICE, None, json!({}));
        assert_eq!(scene.without("m.room.create", "").judge(&event), Err(AuthError::NoCreateEvent));
    }
}

#[test]
fn rule_4_of_versions_1_to_5_aliases() {
    for version in versions(1..=12) {
        let scene = Scene::new(version).member(CAROL, "leave");
        let aliases = |sender: &str, key: Option<&str>| {
            scene.judge(&scene.event("m.room.aliases", sender, key, json!({ "aliases": [] })))
        };
        if version.aliases_auth_rule {
            assert_eq!(aliases(CAROL, Some("b.example")), Ok(()));
            assert_eq!(aliases(CAROL, Some(SERVER_A)), Err(AuthError::AliasesOfAnotherServer));
            assert_eq!(aliases(ALICE, None), Err(AuthError::AliasesOfAnotherServer));
        } else {
            assert_eq!(aliases(CAROL, Some("b.example")), Err(AuthError::SenderNotJoined));
            assert_eq!(aliases(ALICE, Some("b.example")), Ok(()));
        }
    }
}

#[test]
fn rule_5_malformed_memberships() {
    for version in versions(1..=12) {
        let scene = Scene::new(version);
        let event = scene.event("m.room.member", ALICE, None, json!({ "membership": "join" }));
        assert_eq!(scene.judge(&event), Err(AuthError::MemberWithoutTarget));
        for content in [json!({}), json!({ "membership": 1 }), json!({ "membership": "owner" })] {
            assert_eq!(scene.state("m.room.member", ALICE, ALICE, content), Err(AuthError::UnknownMembership));
        }
        assert_eq!(scene.membership(ALICE, "dave", "invite"), Err(AuthError::MemberWithoutTarget));
        // No server could have such a user; Synapse lets moderators ban them.
        let scene = scene.where_ruma_differs();
        assert_eq!(scene.membership(ALICE, "@spam:bad_host", "ban"), Ok(()));
    }
}

#[test]
fn rule_5_3_1_first_join() {
    for version in versions(1..=12) {
        let content = json!({ "creator": ALICE, "additional_creators": [BOB] });
        let scene = Scene::created_with(version, content).without("m.room.member", ALICE).without("m.room.member", BOB);
        let join = |user: &str, prev_events: &[&str]| {
            let members = json!({ "prev_events": scene.references(prev_events) });
            scene.judge(&scene.event_with("m.room.member", user, Some(user), json!({ "membership": "join" }), members))
        };
        assert_eq!(join(ALICE, &[scene.create_id()]), Ok(()));
        assert_eq!(join(BOB, &[scene.create_id()]), Err(AuthError::NotInvited));
        assert_eq!(join(ALICE, &["$prev:a.example"]), Err(AuthError::NotInvited));
        assert_eq!(join(ALICE, &[scene.create_id(), "$prev:a.example"]), Err(AuthError::NotInvited));
    }
    // Up to version 10 the creator is who the content says.
    for version in versions(1..=11) {
        let scene = Scene::created_with(version, json!({ "creator": BOB })).without("m.room.member", BOB);
        let members = json!({ "prev_events": scene.references(&[scene.create_id()]) });
        let join = scene.event_with("m.room.member", BOB, Some(BOB), json!({ "membership": "join" }), members);
        let expected = if version.creator_is_sender { Err(AuthError::NotInvited) } else { Ok(()) };
        assert_eq!(scene.judge(&join), expected);
    }
}

#[test]
fn rule_5_3_join() {
    for version in versions(1..=12) {
        let scene = Scene::new(version);
        assert_eq!(scene.membership(ALICE, DAVE, "join"), Err(AuthError::SenderIsNotTarget));
        let joins = |rule: &str, membership: &str| {
            scene.clone().join_rule(rule).member(DAVE, membership).membership(DAVE, DAVE, "join")
        };
        for rule in ["public", "invite", "knock", "restricted", "knock_restricted", "private"] {
            assert_eq!(joins(rule, "ban"), Err(AuthError::TargetBanned), "{rule}");
            let uninvited = if rule == "public" { Ok(()) } else { Err(AuthError::NotInvited) };
            assert_eq!(joins(rule, "leave"), uninvited, "{rule}");
            let known = match rule {
                "public" | "invite" => true,
                "knock" => version.knock,
                "restricted" => version.restricted,
                "knock_restricted" => version.knock_restricted,
                _ => false,
            };
            let invited = if known { Ok(()) } else { Err(AuthError::NotInvited) };
            assert_eq!(joins(rule, "invite"), invited, "{rule}");
            assert_eq!(joins(rule, "join"), invited, "{rule}");
        }
        // A room without join rules is invite-only, as in Synapse. ruma lets nobody in.
        let scene = scene.without("m.room.join_rules", "").where_ruma_differs();
        assert_eq!(scene.member(DAVE, "invite").membership(DAVE, DAVE, "join"), Ok(()));
    }
}

#[test]
fn rule_5_3_5_restricted_join() {
    for version in versions(1..=12) {
        let scene = Scene::new(version).join_rule("restricted").level("invite", json!(50));
        let join = |scene: &Scene, via: &str| {
            let content = json!({ "membership": "join", "join_authorised_via_users_server": via });
            scene.state("m.room.member", DAVE, DAVE, content)
        };
        if !version.restricted {
            assert_eq!(join(&scene, BOB), Err(AuthError::NotInvited));
            continue;
        }
        assert_eq!(join(&scene, BOB), Ok(()));
        assert_eq!(join(&scene, CAROL), too_low(10, 50));
        assert_eq!(join(&scene, DAVE), Err(AuthError::AuthorisingUserNotJoined));
        assert_eq!(join(&scene.clone().member(BOB, "leave"), BOB), Err(AuthError::AuthorisingUserNotJoined));
        let expected = if version.knock_restricted { Ok(()) } else { Err(AuthError::NotInvited) };
        assert_eq!(join(&scene.join_rule("knock_restricted"), BOB), expected);
    }
}

#[test]
fn rule_5_4_invite() {
    for version in versions(1..=12) {
        let scene = Scene::new(version);
        assert_eq!(scene.membership(CAROL, DAVE, "invite"), Ok(()));
        assert_eq!(scene.membership(DAVE, "@erin:b.example", "invite"), Err(AuthError::SenderNotJoined));
        assert_eq!(scene.membership(ALICE, CAROL, "invite"), Err(AuthError::TargetJoined));
        assert_eq!(scene.clone().member(DAVE, "ban").membership(ALICE, DAVE, "invite"), Err(AuthError::TargetBanned));
        assert_eq!(scene.level("invite", json!(50)).membership(CAROL, DAVE, "invite"), too_low(10, 50));
    }
}

#[test]
fn rule_5_4_1_third_party_invite() {
    let trusted = SigningKey::from_bytes(&[1; 32]);
    let other = SigningKey::from_bytes(&[2; 32]);
    let public = |key: &SigningKey| base64::encode(key.verifying_key().as_bytes());
    let signed = |key: &SigningKey, mxid: &str, token: &str| {
        let mut signed = json!({ "mxid": mxid, "token": token });
        let signature = key.sign(Value::from(signed.clone()).to_text().as_bytes()).to_bytes();
        signed["signatures"] = json!({ "id.example": { "ed25519:0": base64::encode(&signature) } });
        signed
    };
    for version in versions(1..=12) {
        let offer = json!({ "public_key": public(&trusted) });
        let scene = Scene::new(version).with("m.room.third_party_invite", "token", CAROL, offer);
        // Once the offer is made, its sender needs neither membership nor power.
        let scene = scene.member(CAROL, "leave");
        let invite = |scene: &Scene, sender: &str, signed: Json| {
            let content =
                json!({ "membership": "invite", "third_party_invite": { "display_name": "d", "signed": signed } });
            scene.state("m.room.member", sender, DAVE, content)
        };
        let good = signed(&trusted, DAVE, "token");
        assert_eq!(invite(&scene, CAROL, good.clone()), Ok(()));
        let banned = scene.clone().member(DAVE, "ban");
        assert_eq!(invite(&banned, CAROL, good.clone()), Err(AuthError::TargetBanned));
        let content = json!({ "membership": "invite", "third_party_invite": {} });
        let verdict = scene.state("m.room.member", CAROL, DAVE, content);
        assert_eq!(verdict, Err(AuthError::ThirdPartyInviteMalformed));
        for missing in ["mxid", "token"] {
            let mut signed = good.clone();
            signed.as_object_mut().unwrap().remove(missing);
            assert_eq!(invite(&scene, CAROL, signed), Err(AuthError::ThirdPartyInviteMalformed));
        }
        let for_bob = invite(&scene, CAROL, signed(&trusted, BOB, "token"));
        assert_eq!(for_bob, Err(AuthError::ThirdPartyInviteOfAnotherUser));
        let unknown = invite(&scene, CAROL, signed(&trusted, DAVE, "unknown"));
        assert_eq!(unknown, Err(AuthError::ThirdPartyInviteUnknown));
        assert_eq!(invite(&scene, BOB, good.clone()), Err(AuthError::ThirdPartyInviteUnknown));
        let by_other = signed(&other, DAVE, "token");
        assert_eq!(invite(&scene, CAROL, by_other.clone()), Err(AuthError::ThirdPartyInviteUnsigned));

        let offer = json!({ "public_key": public(&trusted), "public_keys": [{ "public_key": public(&other) }] });
        let scene = scene.with("m.room.third_party_invite", "token", CAROL, offer);
        assert_eq!(invite(&scene, CAROL, by_other.clone()), Ok(()));
        assert_eq!(invite(&scene, CAROL, good.clone()), Ok(()));
        // Any signature may match. Synapse gives up on a key at the first signature that is not by it.
        let mut both = good;
        both["signatures"]["bad.example"] = json!({ "ed25519:0": base64::encode(&[0; 64]) });
        assert_eq!(invite(&scene.clone().where_synapse_differs(), CAROL, both), Ok(()));

        // A key may be written in the other alphabet.
        let with_stroke = (1..).map(|seed| SigningKey::from_bytes(&[seed; 32])).find(|key| public(key).contains('/'));
        let with_stroke = with_stroke.unwrap();
        let url_safe = public(&with_stroke).replace('+', "-").replace('/', "_");
        let in_it = scene.clone().with("m.room.third_party_invite", "token", CAROL, json!({ "public_key": url_safe }));
        assert_eq!(invite(&in_it, CAROL, signed(&with_stroke, DAVE, "token")), Ok(()));

        // At most 20 keys are tried, or an event could keep this server busy for long. No identity server lists so many, and
        // both oracles try them all.
        let after = |others: usize| {
            let mut keys = vec![json!({ "public_key": public(&other) }); others];
            keys.push(json!({ "public_key": public(&trusted) }));
            scene.clone().with("m.room.third_party_invite", "token", CAROL, json!({ "public_keys": keys }))
        };
        let by_trusted = signed(&trusted, DAVE, "token");
        assert_eq!(invite(&after(19), CAROL, by_trusted.clone()), Ok(()));
        let one_more = after(20).where_synapse_differs().where_ruma_differs();
        assert_eq!(invite(&one_more, CAROL, by_trusted), Err(AuthError::ThirdPartyInviteUnsigned));
    }
}

#[test]
fn rule_5_5_leave() {
    for version in versions(1..=12) {
        let scene = Scene::new(version);
        for (membership, allowed) in
            [("join", true), ("invite", true), ("knock", version.knock), ("leave", false), ("ban", false)]
        {
            let verdict = scene.clone().member(DAVE, membership).membership(DAVE, DAVE, "leave");
            assert_eq!(verdict, if allowed { Ok(()) } else { Err(AuthError::SenderNotJoined) }, "{membership}");
        }
        assert_eq!(scene.membership(DAVE, CAROL, "leave"), Err(AuthError::SenderNotJoined));
        assert_eq!(scene.membership(BOB, CAROL, "leave"), Ok(()));
        assert_eq!(scene.membership(CAROL, DAVE, "leave"), too_low(10, 50));
        assert_eq!(scene.membership(BOB, ALICE, "leave"), Err(AuthError::TargetNotOutranked));
        let equal = scene.clone().level("users", json!({ BOB: 50, CAROL: 50 }));
        assert_eq!(equal.membership(BOB, CAROL, "leave"), Err(AuthError::TargetNotOutranked));
        // To lift a ban takes the ban level, and the kick level.
        let banned = scene.clone().member(DAVE, "ban").level("ban", json!(60));
        assert_eq!(banned.membership(BOB, DAVE, "leave"), too_low(50, 60));
        assert_eq!(banned.level("ban", json!(50)).membership(BOB, DAVE, "leave"), Ok(()));
        assert_eq!(scene.level("kick", json!(51)).membership(BOB, CAROL, "leave"), too_low(50, 51));
    }
}

#[test]
fn rule_5_6_ban() {
    for version in versions(1..=12) {
        let scene = Scene::new(version);
        assert_eq!(scene.membership(BOB, CAROL, "ban"), Ok(()));
        assert_eq!(scene.membership(BOB, DAVE, "ban"), Ok(()));
        assert_eq!(scene.membership(CAROL, DAVE, "ban"), too_low(10, 50));
        assert_eq!(scene.membership(BOB, ALICE, "ban"), Err(AuthError::TargetNotOutranked));
        assert_eq!(scene.membership(BOB, BOB, "ban"), Err(AuthError::TargetNotOutranked));
        assert_eq!(scene.member(BOB, "leave").membership(BOB, CAROL, "ban"), Err(AuthError::SenderNotJoined));
    }
}

#[test]
fn rule_5_7_knock() {
    for version in versions(1..=12) {
        for rule in ["knock", "knock_restricted", "invite", "public"] {
            let scene = Scene::new(version).join_rule(rule);
            let verdict = scene.membership(DAVE, DAVE, "knock");
            match rule {
                _ if !version.knock => assert_eq!(verdict, Err(AuthError::UnknownMembership)),
                "knock" => assert_eq!(verdict, Ok(())),
                "knock_restricted" if version.knock_restricted => assert_eq!(verdict, Ok(())),
                _ => assert_eq!(verdict, Err(AuthError::KnockingNotAllowed)),
            }
        }
    }
    for version in versions(7..=12) {
        let scene = Scene::new(version).join_rule("knock");
        assert_eq!(scene.membership(BOB, DAVE, "knock"), Err(AuthError::SenderIsNotTarget));
        assert_eq!(scene.membership(CAROL, CAROL, "knock"), Err(AuthError::TargetJoined));
        for (membership, expected) in [
            ("ban", Err(AuthError::TargetBanned)),
            ("invite", Err(AuthError::TargetJoined)),
            ("knock", Ok(())),
            ("leave", Ok(())),
        ] {
            assert_eq!(scene.clone().member(DAVE, membership).membership(DAVE, DAVE, "knock"), expected);
        }
    }
}

#[test]
fn rules_6_to_9_any_event() {
    for version in versions(1..=12) {
        let scene = Scene::new(version);
        assert_eq!(scene.message("m.room.message", CAROL), Ok(()));
        assert_eq!(scene.message("m.room.message", DAVE), Err(AuthError::SenderNotJoined));
        assert_eq!(scene.clone().member(DAVE, "invite").message("x", DAVE), Err(AuthError::SenderNotJoined));

        let offer = |scene: &Scene| scene.state("m.room.third_party_invite", CAROL, "token", json!({}));
        assert_eq!(offer(&scene), Ok(()), "though it is a state event");
        assert_eq!(offer(&scene.clone().level("invite", json!(11))), too_low(10, 11));

        assert_eq!(scene.state("m.room.name", BOB, "", json!({})), Ok(()));
        assert_eq!(scene.state("m.room.name", CAROL, "", json!({})), too_low(10, 50));
        let listed = scene.clone().level("events", json!({ "m.room.name": 5, "m.room.message": 20 }));
        assert_eq!(listed.state("m.room.name", CAROL, "", json!({})), Ok(()));
        assert_eq!(listed.message("m.room.message", CAROL), too_low(10, 20));
        assert_eq!(listed.level("events_default", json!(11)).message("other", CAROL), too_low(10, 11));
        let lower = scene.clone().level("state_default", json!(10));
        assert_eq!(lower.state("m.room.name", CAROL, "", json!({})), Ok(()));

        assert_eq!(lower.state("x", CAROL, CAROL, json!({})), Ok(()));
        assert_eq!(lower.state("x", CAROL, BOB, json!({})), Err(AuthError::StateKeyOfAnotherUser));
        assert_eq!(lower.state("x", ALICE, "@", json!({})), Err(AuthError::StateKeyOfAnotherUser));
    }
}

#[test]
fn without_power_levels_the_creator_alone_has_power() {
    for version in versions(1..=12) {
        let scene = Scene::new(version).without("m.room.power_levels", "");
        assert_eq!(scene.state("m.room.name", ALICE, "", json!({})), Ok(()));
        assert_eq!(scene.state("m.room.name", BOB, "", json!({})), too_low(0, 50));
        assert_eq!(scene.message("m.room.message", BOB), Ok(()));
        assert_eq!(scene.membership(ALICE, BOB, "ban"), Ok(()));
        assert_eq!(scene.membership(BOB, CAROL, "ban"), too_low(0, 50));
    }
}

#[test]
fn rule_10_malformed_power_levels() {
    let whole = |content: Json| Value::from(content).into_object().unwrap();
    for version in versions(1..=12) {
        let scene = Scene::new(version);
        let first = scene.clone().without("m.room.power_levels", "");
        for content in [
            json!({ "users": [] }),
            json!({ "users": null }),
            json!({ "users": { "dave": 5 } }),
            json!({ "users": { DAVE: "five" } }),
            json!({ "users": { DAVE: null } }),
            json!({ "users": { DAVE: true } }),
        ] {
            // Python counts true as 1, so Synapse lets it in before version 10; it is no integer.
            let differs = !version.integer_power_levels && content["users"].get(DAVE) == Some(&json!(true));
            for scene in [&scene, &first] {
                let scene = if differs { scene.clone().where_synapse_differs() } else { scene.clone() };
                let verdict = scene.change_levels(ALICE, whole(content.clone()));
                let refused = matches!(verdict, Err(AuthError::MalformedPowerLevels | AuthError::UsersNotUserIds));
                assert!(refused, "{version} {content}: {verdict:?}");
            }
        }
        for content in [
            json!({ "ban": "fifty" }),
            json!({ "ban": null }),
            json!({ "events": { "x": {} } }),
            json!({ "events": "x" }),
            json!({ "notifications": { "room": [] } }),
        ] {
            // Before version 6 nothing is said of notifications. ruma requires them to be levels all the same.
            let unsaid = !version.notifications_auth_rule && content.get("notifications").is_some();
            let expected = if unsaid { Ok(()) } else { Err(AuthError::MalformedPowerLevels) };
            let scene = if unsaid { scene.clone().where_ruma_differs() } else { scene.clone() };
            assert_eq!(scene.change_levels(ALICE, whole(content.clone())), expected, "{version} {content}");
            // Before version 10 the rules ask only `users` of a room's first power levels. ruma asks for all.
            let expected = if version.integer_power_levels { Err(AuthError::MalformedPowerLevels) } else { Ok(()) };
            let first = if version.integer_power_levels { first.clone() } else { first.clone().where_ruma_differs() };
            assert_eq!(first.change_levels(ALICE, whole(content.clone())), expected, "{version} {content}");
        }
    }
}

#[test]
fn rule_10_users_of_any_domain() {
    // No server can have such users. Synapse looks for the sigil and a colon; ruma also at the domain and the length.
    let long = format!("@{}:dave.example", "d".repeat(255));
    for version in versions(1..=12) {
        let scene = Scene::new(version);
        let first = scene.clone().without("m.room.power_levels", "");
        let with = |user: &str| {
            let mut content = scene.power_levels();
            content.object_at("users").insert(user, 5);
            content
        };
        for user in ["@bot:my_server", "@bot:", "@:", "@dave:dave.example:port", "@dave:da ve", &long] {
            for scene in [&scene, &first] {
                let scene = scene.clone().where_ruma_differs();
                assert_eq!(scene.change_levels(ALICE, with(user)), Ok(()), "{version} {user}");
            }
        }
        for user in ["", "@", "dave", "dave:dave.example", "@dave", "!dave:dave.example", " @dave:dave.example"] {
            let verdict = scene.change_levels(ALICE, with(user));
            assert_eq!(verdict, Err(AuthError::UsersNotUserIds), "{version} {user}");
        }
    }
}

#[test]
fn levels_as_strings_and_floats() {
    for version in versions(1..=12) {
        let scene = Scene::new(version);
        let bob = |level: &str| {
            let mut content = scene.power_levels();
            let mut users = content.get("users").and_then(Value::as_object).unwrap().clone();
            users.insert(BOB, json::parse(level.as_bytes()).unwrap());
            content.insert("users", users);
            content
        };
        for text in ["100", "000100", "+100", "-100", " 100 ", " 00100 ", " +100 ", " -100 ", "\\t+5\\n", "\\u00a07"] {
            let expected = if version.integer_power_levels { Err(AuthError::MalformedPowerLevels) } else { Ok(()) };
            assert_eq!(scene.change_levels(ALICE, bob(&format!("\"{text}\""))), expected, "{version} {text:?}");
        }
        for text in ["", " ", "+", "-", "1.0", "1e2", "+-1", "- 1", "1 0", "0x10", "ten"] {
            let verdict = scene.change_levels(ALICE, bob(&format!("\"{text}\"")));
            assert_eq!(verdict, Err(AuthError::MalformedPowerLevels), "{version} {text:?}");
        }
        // Python takes underscores between digits and digits of every script; the spec's format has neither.
        let differs = !version.integer_power_levels;
        let scene = if differs { scene.clone().where_synapse_differs() } else { scene.clone() };
        for text in ["1_0", "１"] {
            let verdict = scene.change_levels(ALICE, bob(&format!("\"{text}\"")));
            assert_eq!(verdict, Err(AuthError::MalformedPowerLevels), "{version} {text:?}");
        }
    }
    for version in versions(1..=5) {
        let scene = Scene::new(version).without_ruma();
        for (level, allowed) in [
            ("50.57", true),
            ("100.99", true),
            ("1.0099e2", true),
            ("101.0", false),
            ("-1e300", true),
            ("1e300", false),
            ("-123456789012345678901234567890", true),
            ("123456789012345678901234567890", false),
        ] {
            let mut content = scene.power_levels();
            let mut users = content.get("users").and_then(Value::as_object).unwrap().clone();
            users.insert(BOB, json::parse(level.as_bytes()).unwrap());
            content.insert("users", users);
            let verdict = scene.change_levels(ALICE, content);
            assert_eq!(verdict, if allowed { Ok(()) } else { Err(AuthError::LevelTooHigh) }, "{level}");
        }
    }
}

#[test]
fn rule_10_4_creators_in_users() {
    for version in versions(12..=12) {
        let scene = Scene::created_with(version, json!({ "additional_creators": [CAROL] }));
        assert_eq!(scene.change_level(ALICE, "users", json!({ ALICE: 100 })), Err(AuthError::CreatorInUsers));
        assert_eq!(scene.change_level(ALICE, "users", json!({ CAROL: 1 })), Err(AuthError::CreatorInUsers));
        assert_eq!(scene.change_level(ALICE, "users", json!({ BOB: 1 })), Ok(()));
        // Creators have power over everyone but each other.
        assert_eq!(scene.membership(CAROL, BOB, "ban"), Ok(()));
        assert_eq!(scene.membership(CAROL, ALICE, "ban"), Err(AuthError::TargetNotOutranked));
        let high = scene.level("events", json!({ "m.room.name": 9_007_199_254_740_991_i64 }));
        assert_eq!(high.state("m.room.name", CAROL, "", json!({})), Ok(()));
        assert!(high.state("m.room.name", BOB, "", json!({})).is_err());
    }
}

#[test]
fn rule_10_6_properties() {
    for version in versions(1..=12) {
        let scene = Scene::new(version).level("ban", json!(60)).level("kick", json!(40));
        for (property, value, allowed) in [
            ("kick", 50, true),
            ("kick", 51, false),
            ("ban", 50, false),
            ("ban", 60, true),
            ("redact", 50, true),
            ("redact", 51, false),
            ("users_default", 51, false),
            ("events_default", 50, true),
            ("state_default", 51, false),
            ("invite", 51, false),
        ] {
            let verdict = scene.change_level(BOB, property, json!(value));
            assert_eq!(verdict, if allowed { Ok(()) } else { Err(AuthError::LevelTooHigh) }, "{property} {value}");
        }
        let mut without = scene.power_levels();
        without.remove("ban");
        assert_eq!(scene.change_levels(BOB, without), Err(AuthError::LevelTooHigh));
        let mut without = scene.power_levels();
        without.remove("kick");
        assert_eq!(scene.change_levels(BOB, without), Ok(()));
        // What is absent has no value to judge, as in Synapse; ruma judges its default, 50.
        let lower = scene.level("events", json!({ "m.room.power_levels": 0 })).where_ruma_differs();
        assert_eq!(lower.change_level(CAROL, "redact", json!(5)), Ok(()));
    }
}

#[test]
fn rules_10_7_and_10_8_events_and_notifications() {
    for property in ["events", "notifications"] {
        for version in versions(1..=12) {
            let scene = Scene::new(version).level(property, json!({ "high": 60, "equal": 50 }));
            for (levels, allowed) in [
                (json!({ "high": 60, "equal": 50 }), true),
                (json!({ "high": 50, "equal": 50 }), false),
                (json!({ "equal": 50 }), false),
                (json!({ "high": 60 }), true),
                (json!({ "high": 60, "equal": 51 }), false),
                (json!({ "high": 60, "equal": 50, "new": 50 }), true),
                (json!({ "high": 60, "equal": 50, "new": 51 }), false),
            ] {
                let verdict = scene.change_level(BOB, property, levels.clone());
                let allowed = allowed || property == "notifications" && !version.notifications_auth_rule;
                assert_eq!(verdict, if allowed { Ok(()) } else { Err(AuthError::LevelTooHigh) }, "{version} {levels}");
            }
        }
    }
}

#[test]
fn rules_10_9_and_10_10_users() {
    for version in versions(1..=12) {
        let scene = Scene::new(version).level("users", json!({ BOB: 50, CAROL: 50, DAVE: 40 }));
        for (levels, allowed) in [
            (json!({ BOB: 50, CAROL: 50, DAVE: 40 }), true),
            (json!({ BOB: 40, CAROL: 50, DAVE: 40 }), true),
            (json!({ CAROL: 50, DAVE: 40 }), true),
            (json!({ BOB: 51, CAROL: 50, DAVE: 40 }), false),
            (json!({ BOB: 50, CAROL: 49, DAVE: 40 }), false),
            (json!({ BOB: 50, DAVE: 40 }), false),
            (json!({ BOB: 50, CAROL: 50 }), true),
            (json!({ BOB: 50, CAROL: 50, DAVE: 50 }), true),
            (json!({ BOB: 50, CAROL: 50, DAVE: 51 }), false),
            (json!({ BOB: 50, CAROL: 50, DAVE: 40, "@new:b.example": 50 }), true),
            (json!({ BOB: 50, CAROL: 50, DAVE: 40, "@new:b.example": 51 }), false),
        ] {
            let verdict = scene.change_level(BOB, "users", levels.clone());
            assert_eq!(verdict, if allowed { Ok(()) } else { Err(AuthError::LevelTooHigh) }, "{version} {levels}");
        }
    }
}

/// The rule names the room's power levels, whatever state key the event has. Synapse compares an event of another state
/// key with the one that it replaces, so with none.
#[test]
fn rule_10_of_another_state_key() {
    for version in versions(1..=12) {
        let scene = Scene::new(version).where_synapse_differs();
        let content = json!({ "users": { CAROL: 100 } });
        assert_eq!(scene.state("m.room.power_levels", BOB, "other", content), Err(AuthError::LevelTooHigh));
    }
}

#[test]
fn rule_11_of_versions_1_and_2_redaction() {
    for version in versions(1..=12) {
        let scene = Scene::new(version);
        let redact = |scene: &Scene, sender: &str, members: Json| {
            scene.judge(&scene.event_with("m.room.redaction", sender, None, json!({}), members))
        };
        let of_a = json!({ "redacts": "$event:a.example" });
        let of_b = json!({ "redacts": "$event:b.example" });
        assert_eq!(redact(&scene, BOB, of_b.clone()), Ok(()));
        assert_eq!(redact(&scene, CAROL, of_b.clone()), Ok(()));
        let refused = if version.redaction_auth_rule { too_low(10, 50) } else { Ok(()) };
        assert_eq!(redact(&scene, CAROL, of_a.clone()), refused);
        // Synapse allows a redaction of nothing.
        let nothing = if version.redaction_auth_rule { scene.clone().where_synapse_differs() } else { scene.clone() };
        assert_eq!(redact(&nothing, CAROL, json!({})), refused);
        let listed = scene.level("events", json!({ "m.room.redaction": 20 }));
        assert_eq!(redact(&listed, CAROL, of_b), too_low(10, 20));
    }
    // No id of these versions lacks its domain. If two did, they would not be of the same server for that.
    for version in versions(1..=2) {
        let scene = Scene::new(version);
        let members = json!({ "redacts": "$event" });
        let redaction = scene.event_with("m.room.redaction", CAROL, None, json!({}), members);
        let redaction = Event::from_store("$redaction", redaction.json(), version).unwrap();
        assert_eq!(auth_rules::check(&redaction, scene.events()), too_low(10, 50));
    }
}
