"""What rooms can do besides being joined, both ways between our server and Synapse: restricted joins, knocks, the published room
directory, spaces, server ACLs, upgrades, events by their time, and keys through a notary."""

import json

import pytest
import requests
from signedjson.key import decode_verify_key_bytes
from signedjson.sign import verify_signed_json
from unpaddedbase64 import decode_base64

from client import ApiError, segment
from fake_origin import FakeOrigin
from net import wait_for
from synapse_peer import Synapse
from worker import Worker

# One of the two has a name of its own for server ACLs, which do not look at ports.
SYNAPSE_HOST, WORKER_HOST = "127.0.0.1", "localhost"

BOTH_WAYS = pytest.mark.parametrize("ours_hosts", [True, False], ids=["ours hosts", "Synapse hosts"])


@pytest.fixture(scope="module")
def synapse(start):
    return start(Synapse, host=SYNAPSE_HOST, settings={"room_list_publication_rules": [{"action": "allow"}]})


@pytest.fixture(scope="module")
def worker(start, synapse):
    return start(Worker, options=["--trusted-key-servers", json.dumps([synapse.name])])


class Sides:
    """The server that has the rooms, with Alice, and the one whose users come."""

    def __init__(self, worker, synapse, ours_hosts):
        self.host, self.guest = (worker, synapse) if ours_hosts else (synapse, worker)
        self.host_name, self.guest_name = (
            (WORKER_HOST, SYNAPSE_HOST) if ours_hosts else (SYNAPSE_HOST, WORKER_HOST)
        )
        self.suffix = "ours" if ours_hosts else "theirs"

    def user(self, name):
        return self.host.user(f"{name}{self.suffix}")

    def visitor(self, name):
        return self.guest.user(f"{name}{self.suffix}")


@pytest.fixture
def sides(worker, synapse, ours_hosts):
    return Sides(worker, synapse, ours_hosts)


def both_hear(room, *clients):
    """Each says something that all hear."""
    for speaker in clients:
        said = speaker.say(room, f"says {speaker.user_id}")
        for client in clients:
            client.wait_for_event(room, said)


def assert_refused(action, status, *errcodes):
    with pytest.raises(ApiError) as refused:
        action()
    assert refused.value.status == status and refused.value.errcode in errcodes, refused.value


def with_rules(rules, **more):
    return {"initial_state": [{"type": "m.room.join_rules", "state_key": "", "content": rules}], **more}


@BOTH_WAYS
def test_members_of_a_room_join_the_one_that_is_restricted_to_them(sides):
    alice, carol, dave = sides.user("alice1"), sides.visitor("carol1"), sides.visitor("dave1")
    club = alice.create_room(preset="public_chat")
    allow = [{"type": "m.room_membership", "room_id": club}]
    room = alice.create_room(**with_rules({"join_rule": "restricted", "allow": allow}, preset="private_chat"))
    assert_refused(lambda: carol.join(room, via=sides.host.name), 403, "M_FORBIDDEN")
    carol.join(club, via=sides.host.name)
    alice.wait_for_membership(club, carol.user_id, "join")
    assert carol.join(room, via=sides.host.name) == room
    alice.wait_for_membership(room, carol.user_id, "join")
    for client in (alice, carol):
        member = client.get_state(room, "m.room.member", carol.user_id)
        assert member["join_authorised_via_users_server"] == alice.user_id
    # Being on the same server does not help.
    assert_refused(lambda: dave.join(room, via=sides.host.name), 403, "M_FORBIDDEN")
    both_hear(room, alice, carol)


@BOTH_WAYS
def test_a_knock_is_accepted_and_another_rejected(sides):
    alice, carol, dave = sides.user("alice2"), sides.visitor("carol2"), sides.visitor("dave2")
    room = alice.create_room(**with_rules({"join_rule": "knock"}, preset="private_chat", name="The club"))
    assert_refused(lambda: carol.join(room, via=sides.host.name), 403, "M_FORBIDDEN")
    for client in (carol, dave):
        answer = client.post(f"/knock/{segment(room)}", {"reason": "let me in"}, via=sides.host.name, server_name=sides.host.name)
        assert answer == {"room_id": room}
        alice.wait_for_membership(room, client.user_id, "knock")
        assert alice.get_state(room, "m.room.member", client.user_id)["reason"] == "let me in"
        wait_for(lambda: is_knocking(client, room), "a knock in sync")
        state = client.get("/sync", timeout=0)["rooms"]["knock"][room]["knock_state"]["events"]
        assert {"name": "The club"} in [event["content"] for event in state]

    alice.invite(room, carol.user_id)
    carol.wait_for_invite(room)
    carol.join(room, via=sides.host.name)
    alice.wait_for_membership(room, carol.user_id, "join")
    both_hear(room, alice, carol)

    alice.membership(room, "kick", dave.user_id, reason="not you")
    for client in (alice, carol):
        client.wait_for_membership(room, dave.user_id, "leave")
    wait_for(lambda: not is_knocking(dave, room), "the end of a knock in sync")
    assert_refused(lambda: dave.join(room, via=sides.host.name), 403, "M_FORBIDDEN")


def is_knocking(client, room):
    return room in client.get("/sync", timeout=0).get("rooms", {}).get("knock", {})


@BOTH_WAYS
def test_published_rooms_are_listed_and_found(sides):
    alice, carol = sides.user("alice3"), sides.visitor("carol3")
    word = f"unmistakable{sides.suffix}"
    about = {"name": f"The {word} room", "topic": "Everything", "room_alias_name": word}
    room = alice.create_room(preset="public_chat", visibility="public", **about)
    hidden = alice.create_room(preset="public_chat", name=f"Another {word} room")
    space = alice.create_room(preset="public_chat", visibility="public", name=f"{word} space", creation_content={"type": "m.space"})
    elsewhere = {"server": sides.host.name}

    def listing():
        listed = {entry["room_id"]: entry for entry in carol.get("/publicRooms", **elsewhere)["chunk"]}
        return listed if {room, space} <= listed.keys() else None

    # A Synapse lists a room once it has counted it, a moment after it has made it.
    listed = wait_for(listing, "both published rooms in the list")
    assert hidden not in listed
    entry = listed[room]
    assert (entry["name"], entry["topic"], entry["num_joined_members"]) == (about["name"], "Everything", 1)
    assert (entry["canonical_alias"], entry["join_rule"]) == (f"#{word}:{sides.host.name}", "public")

    search = lambda **wanted: carol.post("/publicRooms", {"filter": {"generic_search_term": word, **wanted}}, **elsewhere)
    found = lambda **wanted: {entry["room_id"] for entry in search(**wanted)["chunk"]}
    assert found() == {room, space}
    assert found(room_types=["m.space"]) == {space} and found(room_types=[None]) == {room}
    first = carol.post("/publicRooms", {"limit": 1, "filter": {"generic_search_term": word}}, **elsewhere)
    second = carol.post("/publicRooms", {"limit": 1, "since": first["next_batch"], "filter": {"generic_search_term": word}}, **elsewhere)
    assert {page["chunk"][0]["room_id"] for page in (first, second)} == {room, space}

    alice.put(f"/directory/list/room/{segment(room)}", {"visibility": "private"})
    # A Synapse remembers the list that it was told, or has made, for a while; what it makes of a search it does not.
    wait_for(lambda: found() == {space}, "a room that is listed no more")
    assert carol.join(f"#{word}:{sides.host.name}") == room


@BOTH_WAYS
def test_a_space_is_walked_three_deep_and_a_private_child_is_not_shown(sides):
    alice, carol = sides.user("alice4"), sides.visitor("carol4")
    space = {"creation_content": {"type": "m.space"}, "preset": "public_chat"}
    root, inner = (alice.create_room(name=name, **space) for name in ("Root", "Inner"))
    room = alice.create_room(preset="public_chat", name="The room")
    private = alice.create_room(preset="private_chat", name="The secret")
    for parent, child in ((root, inner), (inner, room), (inner, private)):
        alice.set_state(parent, "m.space.child", {"via": [sides.host.name]}, child)
    carol.join(root, via=sides.host.name)
    wait_for(lambda: carol.get_state(root, "m.space.child", inner), "the space's child")

    walk = lambda **query: carol.get(f"/_matrix/client/v1/rooms/{segment(root)}/hierarchy", **query)["rooms"]
    names = lambda: {entry["room_id"]: entry.get("name") for entry in walk()}
    # A Synapse tells of a room what it has counted of it, a moment after it has made it.
    wait_for(lambda: names() == {root: "Root", inner: "Inner", room: "The room"}, "the space and what is in it")
    rooms = {entry["room_id"]: entry for entry in walk()}
    assert "The secret" not in json.dumps(rooms)
    children = lambda parent: {event["state_key"] for event in rooms[parent]["children_state"]}
    assert children(root) == {inner} and children(inner) == {room, private} and children(room) == set()
    assert {entry["room_id"] for entry in walk(max_depth=1)} == {root, inner}
    assert_refused(lambda: carol.join(private, via=sides.host.name), 403, "M_FORBIDDEN")


@BOTH_WAYS
def test_an_acl_shuts_the_other_server_out_and_lets_it_in_again(sides):
    alice, carol = sides.user("alice5"), sides.visitor("carol5")
    room, open_room = (alice.create_room(preset="public_chat") for _ in range(2))
    for joined in (room, open_room):
        carol.join(joined, via=sides.host.name)
        alice.wait_for_membership(joined, carol.user_id, "join")
    both_hear(room, alice, carol)

    def set_acl(deny):
        acl = {"allow": ["*"], "deny": deny, "allow_ip_literals": True}
        alice.set_state(room, "m.room.server_acl", acl)
        wait_for(lambda: carol.get_state(room, "m.room.server_acl") == acl, "the ACL on the other side")

    set_acl([sides.guest_name])
    lost = carol.say(room, "nobody hears me")
    # What comes after it on the same way has come.
    alice.wait_for_event(open_room, carol.say(open_room, "here they do"))
    assert alice.event(room, lost) is None
    # Nor may the server bring anybody else in.
    late = sides.visitor("late5")
    carol.leave(open_room)
    alice.wait_for_membership(open_room, carol.user_id, "leave")
    alice.set_state(open_room, "m.room.server_acl", {"allow": ["*"], "deny": [sides.guest_name], "allow_ip_literals": True})
    assert_refused(lambda: late.join(open_room, via=sides.host.name), 403, "M_FORBIDDEN")

    set_acl([])
    back = carol.say(room, "they hear me again")
    alice.wait_for_event(room, back)
    alice.wait_for_event(room, lost)
    both_hear(room, alice, carol)
    wait_for(lambda: alice.state(room) == carol.state(room), "the same state on both sides")


@BOTH_WAYS
def test_an_upgraded_room_is_followed_by_the_other_side(sides):
    alice, carol, mallory = sides.user("alice6"), sides.visitor("carol6"), sides.visitor("mallory6")
    alias = f"upgraded{sides.suffix}"
    room = alice.create_room(preset="public_chat", room_version="10", room_alias_name=alias, name="Upgraded")
    for client in (carol, mallory):
        client.join(room, via=sides.host.name)
        alice.wait_for_membership(room, client.user_id, "join")
    levels = alice.get_state(room, "m.room.power_levels")
    alice.set_state(room, "m.room.power_levels", {**levels, "users": {**levels["users"], carol.user_id: 50}})
    alice.membership(room, "ban", mallory.user_id)
    carol.wait_for_membership(room, mallory.user_id, "ban")

    new = alice.post(f"/rooms/{segment(room)}/upgrade", {"new_version": "11"}, patience=120)["replacement_room"]
    tombstone = wait_for(lambda: carol.get_state(room, "m.room.tombstone"), "the tombstone")
    assert tombstone["replacement_room"] == new
    assert carol.join(new, via=sides.host.name) == new
    create = carol.get_state(new, "m.room.create")
    assert (create["room_version"], create["predecessor"]["room_id"]) == ("11", room)
    assert carol.get_state(new, "m.room.name") == {"name": "Upgraded"}
    assert carol.get_state(new, "m.room.power_levels")["users"][carol.user_id] == 50
    assert carol.membership_of(new, mallory.user_id) == "ban"
    assert_refused(lambda: mallory.join(new, via=sides.host.name), 403, "M_FORBIDDEN", "M_BAD_STATE")
    assert carol.get(f"/directory/room/{segment(f'#{alias}:{sides.host.name}')}")["room_id"] == new
    both_hear(new, alice, carol)


@BOTH_WAYS
def test_an_event_is_found_by_its_time_in_history_that_is_not_here(sides):
    alice, carol = sides.user("alice7"), sides.visitor("carol7")
    room = alice.create_room(preset="public_chat")
    said = []
    for number in range(5):
        said.append(alice.wait_for_event(room, alice.say(room, f"message {number}")))
        sent = said[-1]["origin_server_ts"]
        # No two of them are of one time.
        wait_for(lambda: alice.wait_for_event(room, alice.say(room, "later"))["origin_server_ts"] > sent + 1, "time to pass")
    carol.join(room, via=sides.host.name)
    path = f"/_matrix/client/v1/rooms/{segment(room)}/timestamp_to_event"
    for event in (said[2], said[0], said[4]):
        sent = event["origin_server_ts"]
        expected = {"event_id": event["event_id"], "origin_server_ts": sent}
        for asked, direction in ((sent, "f"), (sent, "b"), (sent + 1, "b")):
            assert carol.get(path, ts=asked, dir=direction) == expected, (asked, direction)
        # It can be read, and what is around it.
        around = carol.get(f"/rooms/{segment(room)}/context/{segment(event['event_id'])}", limit=2)
        assert around["event"]["content"] == event["content"]
    assert_refused(lambda: carol.get(path, ts=1, dir="b"), 404, "M_NOT_FOUND")


# Notaries


def notary_query(authority, notary, server_name, key_id):
    """What the notary says of a key of the server: a Synapse asks the server for a key that is named, and then has all of them."""
    url = f"https://{notary.name}/_matrix/key/v2/query"
    ca = str(authority.certificate)
    # A Synapse refuses a query without the time, which the specification makes optional.
    query = {"server_keys": {server_name: {key_id: {"minimum_valid_until_ts": 0}}}}
    by_post = requests.post(url, json=query, verify=ca, timeout=60)
    by_get = requests.get(f"{url}/{server_name}", verify=ca, timeout=60)
    assert by_post.status_code == by_get.status_code == 200, (by_post.text, by_get.text)
    (keys,) = by_post.json()["server_keys"]
    assert [other["verify_keys"] for other in by_get.json()["server_keys"]] == [keys["verify_keys"]]
    return keys


def key_id_of(origin):
    return f"ed25519:{origin.key.version}"


def own_keys(authority, server):
    url = f"https://{server.name}/_matrix/key/v2/server"
    return requests.get(url, verify=str(authority.certificate), timeout=60).json()


def assert_signed(signed, server_name, keys):
    for key_id, key in keys["verify_keys"].items():
        if key_id in signed["signatures"][server_name]:
            verify_signed_json(signed, server_name, decode_verify_key_bytes(key_id, decode_base64(key["key"])))
            return
    raise AssertionError(f"no key of {server_name} has signed {signed}")


@BOTH_WAYS
def test_a_notary_gives_the_other_servers_keys_with_both_signatures(sides, authority):
    published = own_keys(authority, sides.guest)
    (key_id,) = published["verify_keys"]
    keys = notary_query(authority, sides.host, sides.guest.name, key_id)
    assert (keys["server_name"], keys["verify_keys"]) == (sides.guest.name, published["verify_keys"])
    assert_signed(keys, sides.guest.name, published)
    assert_signed(keys, sides.host.name, own_keys(authority, sides.host))


PROFILE = "/_matrix/federation/v1/query/profile?user_id={}"


def test_our_server_takes_the_keys_of_a_server_that_is_gone_from_synapse(worker, synapse, start, authority):
    origin = start(FakeOrigin)
    assert notary_query(authority, synapse, origin.name, key_id_of(origin))["verify_keys"]
    origin.close()
    carol = worker.user("carol8")
    answer = origin.request(worker, "GET", PROFILE.format(segment(carol.user_id)))
    assert answer.status_code == 200, answer.text


def test_synapse_takes_the_keys_of_a_server_that_is_gone_from_ours(worker, start, authority):
    trusting = start(Synapse, settings={"trusted_key_servers": [{"server_name": worker.name}]})
    origin = start(FakeOrigin)
    assert notary_query(authority, worker, origin.name, key_id_of(origin))["verify_keys"]
    origin.close()
    carol = trusting.user("carol9")
    answer = origin.request(trusting, "GET", PROFILE.format(segment(carol.user_id)))
    assert answer.status_code == 200, answer.text
