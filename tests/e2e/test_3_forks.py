"""Acceptance 3: both servers change a room while they cannot reach each other, and agree once they can."""

import pytest

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
    alice, alan = worker.user(f"alice{version}"), worker.user(f"alan{version}")
    bob, bert = synapse.user(f"bob{version}"), synapse.user(f"bert{version}")
    everyone = [alice, alan, bob, bert]
    room = alice.create_room(
        preset="public_chat",
        room_version=version,
        room_alias_name=f"fork{version}",
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
    # Here: a new name, the second local user promoted, Synapse's second user banned.
    alice.set_state(room, "m.room.name", {"name": "Alice's"})
    here = alice.get_state(room, "m.room.power_levels")
    here["users"][alan.user_id] = 75
    alice.set_state(room, "m.room.power_levels", here)
    alice.membership(room, "ban", bert.user_id)
    # There: another name, the banned one promoted, the promoted one banned.
    bob.set_state(room, "m.room.name", {"name": "Bob's"})
    there = bob.get_state(room, "m.room.power_levels")
    there["users"][bert.user_id] = 60
    bob.set_state(room, "m.room.power_levels", there)
    bob.membership(room, "ban", alan.user_id)
    bert.set_state(room, "m.room.topic", {"topic": "Bert's"})
    last = [alice.say(room, "on this side"), bob.say(room, "on that side")]
    assert alice.state(room) != bob.state(room)

    for server in servers:
        server.line.restore()
    # A message from each side makes the other fetch what it has missed.
    for client in (alice, bob):
        last.append(client.say(room, "together again"))
    for client in (alice, bob):
        for event_id in last:
            client.wait_for_event(room, event_id, 120)
    # One more event after all tips are known leaves each side with one forward extremity and one state.
    merged = alice.say(room, "merged")
    bob.wait_for_event(room, merged, 60)

    def difference():
        here, there = alice.state(room), bob.state(room)
        keys = [key for key in here.keys() | there.keys() if here.get(key) != there.get(key)]
        return {key: (here.get(key), there.get(key)) for key in keys}

    def described():
        return [
            (key, here and alice.event(room, here), there and bob.event(room, there))
            for key, (here, there) in difference().items()
        ]

    try:
        wait_for(lambda: not difference(), "the same state at both servers", 60, 0.5)
    except AssertionError:
        raise AssertionError(f"the states differ in {described()}") from None
    state = alice.state(room)
    assert ("m.room.name", "") in state
    for event_type, state_key in state:
        assert alice.get_state(room, event_type, state_key) == bob.get_state(room, event_type, state_key)
