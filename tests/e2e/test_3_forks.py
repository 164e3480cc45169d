"""Acceptance 3: both servers change a room while they cannot reach each other, and agree once they can."""

import pytest

from client import ApiError, facts
from net import wait_for
from synapse_peer import Synapse
from worker import Worker


@pytest.fixture(scope="module")
def servers(start):
    """Our server and a Synapse, each reached through a line that can be cut."""
    return start(Worker, with_line=True), start(Synapse, with_line=True)


@pytest.mark.parametrize("version", ["10", "11", "12"])
def test_a_fork_heals_to_one_state(servers, version):
    worker, synapse = servers
    alice, alan, carol = (worker.user(f"{name}{version}") for name in ("alice", "alan", "carol"))
    bob, bert, dora = (synapse.user(f"{name}{version}") for name in ("bob", "bert", "dora"))
    everyone = [alice, alan, bob, bert]
    room = alice.create_room(
        preset="public_chat",
        room_version=version,
        room_alias_name=f"fork{version}",
        # More state than one node of a snapshot holds.
        initial_state=[{"type": "x.setting", "state_key": str(number), "content": {}} for number in range(100)],
        # From version 12 on the creator outranks all levels, and must not be listed.
        power_level_content_override={"users": {} if version == "12" else {alice.user_id: 100}},
    )
    for client in (alan, bob, bert):
        client.join(f"#fork{version}:{worker.name}")
    for client in everyone:
        client.wait_for_members(room, {other.user_id for other in everyone})
    levels = alice.get_state(room, "m.room.power_levels")
    levels["users"] |= {bob.user_id: 100, alan.user_id: 50}
    promoted = alice.set_state(room, "m.room.power_levels", levels)
    bob.wait_for_event(room, promoted)

    for server in servers:
        server.line.cut()
    # Here: a new name, the second local user promoted, Synapse's second user banned; a third user comes.
    alice.set_state(room, "m.room.name", {"name": "Alice's"})
    promote(alice, room, alan, 75)
    alice.membership(room, "ban", bert.user_id)
    carol.join(room)
    # There: another name, the banned one promoted, the promoted one banned; a third user comes.
    bob.set_state(room, "m.room.name", {"name": "Bob's"})
    promote(bob, room, bert, 60)
    bert.set_state(room, "m.room.topic", {"topic": "Bert's"})
    bob.membership(room, "ban", alan.user_id)
    dora.join(room)
    last = [alice.say(room, "on this side"), bob.say(room, "on that side")]

    # Neither has heard anything of it, though ours has tried to tell.
    failed = "SELECT 1 FROM destinations WHERE destination = ? AND failures > 0"
    wait_for(lambda: worker.rows(failed, synapse.name), "a transaction that failed")
    people = (alan, bert, carol, dora)
    assert memberships(alice, room, people) == ["join", "ban", "join", None]
    assert memberships(bob, room, people) == ["ban", "join", None, "join"]
    assert alice.event(room, last[1]) is None and bob.event(room, last[0]) is None

    for server in servers:
        server.line.restore()
    # A message from each side makes the other fetch what it has missed.
    for client in (alice, bob):
        last.append(client.say(room, "together again"))
    for client in (alice, bob):
        for event_id in last:
            client.wait_for_event(room, event_id)
    # One more event after all tips are known leaves each side with one forward extremity and one state.
    merged = alice.say(room, "merged")
    bob.wait_for_event(room, merged)
    assert_same_state(room, alice, bob)
    # Both bans were in the power of who made them, and no ban stands in the way of the joins.
    for client in (alice, bob):
        assert memberships(client, room, people) == ["ban", "ban", "join", "join"]
        assert client.get_state(room, "m.room.name")["name"] in ("Alice's", "Bob's")
    for client in (alan, bert):
        with pytest.raises(ApiError) as refused:
            client.say(room, "still here")
        assert (refused.value.status, refused.value.errcode) == (403, "M_FORBIDDEN")

    # What the state lets each side do, it lets the other see.
    for client, other in ((alice, bob), (bob, alice)):
        renamed = client.set_state(room, "m.room.name", {"name": f"{client.user_id}'s"})
        other.wait_for_event(room, renamed)
        assert_same_state(room, alice, bob)
        assert other.get_state(room, "m.room.name")["name"] == f"{client.user_id}'s"


def promote(client, room, user, level):
    """Gives a user another power level."""
    levels = client.get_state(room, "m.room.power_levels")
    levels["users"][user.user_id] = level
    client.set_state(room, "m.room.power_levels", levels)


def memberships(client, room, users):
    """What one side says of these users."""
    return [client.membership_of(room, user.user_id) for user in users]


def assert_same_state(room, *sides):
    """Both sides hold the same events as the room's state, by now or soon."""

    def difference():
        here, there = ({(e["type"], e["state_key"]): facts(e) for e in side.state_events(room)} for side in sides)
        return [(here.get(key), there.get(key)) for key in here.keys() | there.keys() if here.get(key) != there.get(key)]

    try:
        wait_for(lambda: not difference(), "the same state at both servers", step=0.5)
    except AssertionError:
        raise AssertionError(f"the states differ in {difference()}") from None
