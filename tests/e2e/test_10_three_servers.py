"""Three servers, two of ours and a Synapse: what one cannot be told by another it hears through the third, and a fork between all three
ends in one state."""

from contextlib import contextmanager

import pytest

from client import ApiError
from net import wait_for
from synapse_peer import Synapse
from test_3_forks import assert_same_state, memberships, promote
from worker import Worker



@pytest.fixture(scope="module")
def servers(start):
    """Two of ours and a Synapse, each reached through a line that can be cut."""
    return start(Worker, with_line=True), start(Worker, with_line=True), start(Synapse, with_line=True)


@contextmanager
def away(server):
    """Nobody reaches the server, and it reaches nobody."""
    if isinstance(server, Worker):
        # One that ends in the middle of a transaction leaves the destination alone for 90 s.
        wait_for(lambda: not server.rows("SELECT 1 FROM destinations WHERE lease_owner IS NOT NULL"), "an idle queue")
    server.line.cut()
    server.stop()
    yield
    server.start()
    server.line.restore()


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (2, 0, 1)], ids=["ours to ours", "ours to Synapse", "Synapse to ours"])
def test_what_one_cannot_be_told_arrives_through_the_third(servers, order):
    speaking, deaf, between = (servers[index] for index in order)
    suffix = "".join(map(str, order))
    alice, bob, carol = (server.user(f"{name}{suffix}") for server, name in ((speaking, "alice"), (deaf, "bob"), (between, "carol")))
    room = alice.create_room(preset="public_chat", room_alias_name=f"third{suffix}")
    for client in (bob, carol):
        client.join(f"#third{suffix}:{speaking.name}")
    for client in (alice, bob, carol):
        client.wait_for_members(room, {alice.user_id, bob.user_id, carol.user_id})

    deaf.line.cut()
    # One that its reader must be shown, and one that changes the state.
    said = alice.say(room, "heard by one of two")
    named = alice.set_state(room, "m.room.name", {"name": "heard by one of two"})
    for event_id in (said, named):
        carol.wait_for_event(room, event_id)
        assert bob.event(room, event_id) is None
    with away(speaking):
        deaf.line.restore()
        after = carol.say(room, "what was before this, only I can tell")
        for event_id in (after, said, named):
            bob.wait_for_event(room, event_id)
        wait_for(lambda: bob.get_state(room, "m.room.name") == {"name": "heard by one of two"}, "the room's name")
        assert bob.event(room, said)["content"]["body"] == "heard by one of two"
        answer = bob.say(room, "so I have heard")
        carol.wait_for_event(room, answer)
    # Whoever was away hears of it, and all agree.
    alice.wait_for_event(room, answer)
    assert_same_state(room, alice, bob)
    assert_same_state(room, bob, carol)


@pytest.mark.parametrize("version", ["10", "12"])
def test_a_fork_of_three_ends_in_one_state(servers, version):
    one, two, three = servers
    alice, alan, anna = (one.user(f"{name}{version}") for name in ("alice", "alan", "anna"))
    bob, ben, bert = (two.user(f"{name}{version}") for name in ("bob", "ben", "bert"))
    carol, cleo, chris = (three.user(f"{name}{version}") for name in ("carol", "cleo", "chris"))
    everyone = [alice, alan, bob, ben, carol, cleo]
    leaders = [alice, bob, carol]
    room = alice.create_room(
        preset="public_chat",
        room_version=version,
        room_alias_name=f"three{version}",
        # From version 12 on the creator outranks all levels, and must not be listed.
        power_level_content_override={"users": {} if version == "12" else {alice.user_id: 100}},
    )
    for client in everyone[1:]:
        client.join(f"#three{version}:{one.name}")
    for client in everyone:
        client.wait_for_members(room, {other.user_id for other in everyone})
    levels = alice.get_state(room, "m.room.power_levels")
    levels["users"] |= {bob.user_id: 100, carol.user_id: 100}
    promoted = alice.set_state(room, "m.room.power_levels", levels)
    for client in leaders:
        client.wait_for_event(room, promoted)

    for server in servers:
        server.line.cut()
    # Each bans somebody of the next one, promotes one of its own, names the room, shuts out a server, and lets somebody in.
    sides = [(alice, alan, ben, anna), (bob, ben, cleo, bert), (carol, cleo, alan, chris)]
    for leader, own, other, new in sides:
        promote(leader, room, own, 50)
        leader.set_state(room, "m.room.name", {"name": f"{leader.user_id}'s"})
        own.set_state(room, "m.room.topic", {"topic": f"{own.user_id}'s"})
        acl = {"allow": ["*"], "deny": [f"{leader.user_id[1:4]}.example"], "allow_ip_literals": True}
        leader.set_state(room, "m.room.server_acl", acl)
        leader.membership(room, "ban", other.user_id)
        new.join(room)
    last = [leader.say(room, "on this side") for leader in leaders]
    for leader, own, other, new in sides:
        strangers = [person for _, _, _, person in sides if person is not new]
        assert memberships(leader, room, [own, other, new, *strangers]) == ["join", "ban", "join", None, None]
        assert [bool(leader.event(room, event_id)) for event_id in last] == [leader is person for person in leaders]

    for server in servers:
        server.line.restore()
    # A message from each side makes the others fetch what they have missed.
    last += [leader.say(room, "together again") for leader in leaders]
    for leader in leaders:
        for event_id in last:
            leader.wait_for_event(room, event_id)
    # One more event after all tips are known leaves each with one forward extremity and one state.
    merged = alice.say(room, "merged")
    for leader in leaders:
        leader.wait_for_event(room, merged)
    assert_same_state(room, alice, bob)
    assert_same_state(room, bob, carol)
    for leader in leaders:
        # All bans were in the power of who made them, and nothing stands in the way of the joins.
        assert memberships(leader, room, [alan, ben, cleo, anna, bert, chris]) == ["ban"] * 3 + ["join"] * 3
        assert leader.get_state(room, "m.room.name")["name"] in [f"{person.user_id}'s" for person in leaders]
        assert leader.get_state(room, "m.room.server_acl")["deny"][0] in [f"{person.user_id[1:4]}.example" for person in leaders]
    for banned in (alan, ben, cleo):
        with pytest.raises(ApiError) as refused:
            banned.say(room, "still here")
        assert (refused.value.status, refused.value.errcode) == (403, "M_FORBIDDEN")

    # What the state lets each do, it lets the others see.
    for leader in leaders:
        renamed = leader.set_state(room, "m.room.name", {"name": f"renamed by {leader.user_id}"})
        for other in leaders:
            other.wait_for_event(room, renamed)
        assert_same_state(room, alice, bob)
        assert_same_state(room, bob, carol)
