"""Acceptance 2: joining a large Synapse room, its whole history, invites both ways, and three servers in one room."""

import pytest

from client import ApiError
from net import wait_for
from worker import Worker

HISTORY = 300
MEMBERS = 50


def test_a_joined_room_can_be_read_back_to_its_creation(worker, synapse):
    alice, bob = worker.user("alice"), synapse.user("bob")
    room = bob.create_room(preset="public_chat", room_alias_name="large", name="Large")
    members = [synapse.user(f"member{number}") for number in range(MEMBERS - 1)]
    for member in members:
        member.join(room)
    sent = [bob.say(room, f"message {number}") for number in range(HISTORY)]

    assert alice.join(f"#large:{synapse.name}") == room
    joined = {bob.user_id, alice.user_id, *(member.user_id for member in members)}
    alice.wait_for_members(room, joined)
    bob.wait_for_members(room, joined)

    history = alice.history(room, limit=50)
    ids = [event["event_id"] for event in history]
    assert len(ids) == len(set(ids)), "no event twice"
    messages = [event for event in reversed(history) if event["type"] == "m.room.message"]
    assert [event["event_id"] for event in messages] == sent
    assert [event["content"]["body"] for event in messages] == [f"message {number}" for number in range(HISTORY)]
    assert history[-1]["type"] == "m.room.create"
    assert set(ids) == {event["event_id"] for event in bob.history(room)}

    alice.leave(room)
    bob.wait_for_members(room, joined - {alice.user_id})
    with pytest.raises(ApiError) as refused:
        alice.say(room, "still here")
    assert refused.value.status == 403


def test_invites_from_synapse_are_accepted_and_rejected(worker, synapse):
    alice, carol, bob = worker.user("alice2"), worker.user("carol2"), synapse.user("bob2")
    room = bob.create_room(preset="private_chat", name="Private", invite=[alice.user_id, carol.user_id])
    for client in (alice, carol):
        client.wait_for_invite(room)
    assert alice.join(room, via=synapse.name) == room
    carol.leave(room)
    bob.wait_for_members(room, {alice.user_id, bob.user_id})
    wait_for(lambda: carol.user_id in bob.members(room, "leave"), "the rejection at Synapse")
    event_id = alice.say(room, "thanks")
    assert bob.wait_for_event(room, event_id)["content"]["body"] == "thanks"


def test_invites_to_synapse_are_accepted_and_rejected(worker, synapse):
    alice, bob, dave = worker.user("alice3"), synapse.user("bob3"), synapse.user("dave3")
    room = alice.create_room(preset="private_chat", name="Private", invite=[bob.user_id, dave.user_id])
    for client in (bob, dave):
        client.wait_for_invite(room)
    assert bob.join(room, via=worker.name) == room
    dave.leave(room)
    alice.wait_for_members(room, {alice.user_id, bob.user_id})
    wait_for(lambda: dave.user_id in alice.members(room, "leave"), "the rejection here")
    event_id = bob.say(room, "thanks")
    assert alice.wait_for_event(room, event_id)["content"]["body"] == "thanks"


def test_three_servers_hear_of_each_other(worker, synapse, start):
    second = start(Worker)
    alice, erin, bob = worker.user("alice4"), second.user("erin4"), synapse.user("bob4")
    room = alice.create_room(preset="public_chat", room_alias_name="three")
    alias = f"#three:{worker.name}"
    bob.join(alias)
    erin.join(alias)
    everyone = [alice, erin, bob]
    for client in everyone:
        client.wait_for_members(room, {other.user_id for other in everyone})

    sent = {client.user_id: client.say(room, f"hello from {client.user_id}") for client in everyone}
    for client in everyone:
        for event_id in sent.values():
            client.wait_for_event(room, event_id)

    erin.leave(room)
    for client in (alice, bob):
        client.wait_for_members(room, {alice.user_id, bob.user_id})
    bob.leave(room)
    alice.wait_for_members(room, {alice.user_id})
