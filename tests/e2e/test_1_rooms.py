"""Acceptance 1: a room made here, joined from Synapse, both talking at once; in the end both hold the same."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from net import wait_for

MESSAGES = 100


@pytest.mark.parametrize("version", ["10", "11", "12"])
def test_both_sides_hold_the_same_events_and_state(worker, synapse, version):
    alice, bob = worker.user(f"alice{version}"), synapse.user(f"bob{version}")
    alias = f"room{version}"
    room = alice.create_room(preset="public_chat", room_version=version, room_alias_name=alias, name="Both")
    assert alice.get_state(room, "m.room.create")["room_version"] == version
    assert bob.join(f"#{alias}:{worker.name}") == room
    alice.wait_for_members(room, {alice.user_id, bob.user_id})

    def talk(client):
        return [client.say(room, f"{client.user_id} {number}") for number in range(MESSAGES)]

    with ThreadPoolExecutor(2) as pool:
        sent = [event_id for events in pool.map(talk, (alice, bob)) for event_id in events]
    assert len(set(sent)) == 2 * MESSAGES

    for client in (alice, bob):
        for event_id in sent:
            client.wait_for_event(room, event_id, 60)
        ids = [event["event_id"] for event in client.history(room) if event["type"] == "m.room.message"]
        assert sorted(ids) == sorted(sent), f"at {client.user_id}"
        # Each side's own messages stand in the order in which they were sent.
        for own in (sent[:MESSAGES], sent[MESSAGES:]):
            assert [event_id for event_id in reversed(ids) if event_id in own] == own

    state = wait_for(lambda: alice.state(room) if alice.state(room) == bob.state(room) else None, "equal states")
    for event_type, state_key in state:
        here, there = alice.get_state(room, event_type, state_key), bob.get_state(room, event_type, state_key)
        assert here == there, (event_type, state_key)
    for event_id in [*sent, *state.values()]:
        here, there = alice.event(room, event_id), bob.event(room, event_id)
        for member in ("type", "sender", "content", "origin_server_ts", "state_key"):
            assert here.get(member) == there.get(member), (event_id, member)
