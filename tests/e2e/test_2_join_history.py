"""Acceptance 2: joining a large Synapse room, its whole history, invites both ways, and three servers in one room."""

import pytest

from client import ApiError, facts
from net import wait_for
from worker import Worker

HISTORY = 300
MEMBERS = 50
PAGE = 50


def test_a_joined_room_can_be_read_back_to_its_creation(worker, synapse):
    alice, bob = worker.user("alice"), synapse.user("bob")
    room = bob.create_room(preset="public_chat", room_alias_name="large", name="Large")
    members = [synapse.user(f"member{number}") for number in range(MEMBERS - 1)]
    for member in members:
        member.join(room)
    sent = [bob.say(room, f"message {number}") for number in range(HISTORY)]

    assert alice.join(f"#large:{synapse.name}") == room
    joined = {bob.user_id, alice.user_id, *(member.user_id for member in members)}
    assert len(joined) == MEMBERS + 1
    for client in (alice, bob):
        client.wait_for_members(room, joined)
    held = "SELECT count(*) FROM events WHERE room_id = ? AND event_type = 'm.room.message'"
    assert worker.rows(held, room) == [(0,)], "what was said before came not with the join"

    pages = list(alice.pages(room, PAGE))
    assert len(pages) > HISTORY / PAGE
    history = [event for page in pages for event in page]
    ids = [event["event_id"] for event in history]
    assert len(ids) == len(set(ids)), "no event twice"
    messages = [event for event in reversed(history) if event["type"] == "m.room.message"]
    assert [event["event_id"] for event in messages] == sent
    assert [event["content"]["body"] for event in messages] == [f"message {number}" for number in range(HISTORY)]
    assert history[-1]["type"] == "m.room.create"
    there = {event["event_id"]: facts(event) for event in bob.history(room)}
    assert {event["event_id"]: facts(event) for event in history} == there
    assert alice.state(room) == bob.state(room)

    alice.leave(room)
    bob.wait_for_membership(room, alice.user_id, "leave")
    assert bob.members(room) == joined - {alice.user_id}
    assert room not in alice.get("/joined_rooms")["joined_rooms"]
    with pytest.raises(ApiError) as refused:
        alice.say(room, "still here")
    assert (refused.value.status, refused.value.errcode) == (403, "M_FORBIDDEN")


@pytest.mark.parametrize("from_synapse", [True, False])
def test_invites_are_accepted_and_rejected(worker, synapse, from_synapse):
    inviter_server, invited_server = (synapse, worker) if from_synapse else (worker, synapse)
    names = [f"{name}{from_synapse}".lower() for name in ("host", "guest", "other")]
    host = inviter_server.user(names[0])
    guest, other = (invited_server.user(name) for name in names[1:])
    room = host.create_room(preset="private_chat", name="Private", invite=[guest.user_id, other.user_id])
    for client in (guest, other):
        client.wait_for_invite(room)
    assert guest.join(room, via=inviter_server.name) == room
    other.leave(room)
    # Both servers know of both.
    for client in (host, guest):
        client.wait_for_membership(room, guest.user_id, "join")
        client.wait_for_membership(room, other.user_id, "leave")
    for client in (guest, other):
        client.wait_for_no_invite(room)
    with pytest.raises(ApiError) as refused:
        other.join(room, via=inviter_server.name)
    assert refused.value.status == 403
    for speaker, listener in ((guest, host), (host, guest)):
        said = speaker.say(room, f"says {speaker.user_id}")
        assert listener.wait_for_event(room, said)["content"]["body"] == f"says {speaker.user_id}"
    wait_for(lambda: host.state(room) == guest.state(room), "the same state on both sides")


def test_three_servers_hear_of_each_other(worker, synapse, start):
    second = start(Worker)
    servers = [worker, synapse, second]
    alice, bob, erin = residents = [server.user(f"resident{index}") for index, server in enumerate(servers)]
    visitors = [server.user(f"visitor{index}") for index, server in enumerate(servers)]
    room = alice.create_room(preset="public_chat", room_alias_name="three")
    alias = f"#three:{worker.name}"
    said = [alice.say(room, "nobody hears me")]
    # The first two come by way of our server, the third by way of Synapse: each time who was there hears of it.
    bob.join(alias)
    erin.join(room, via=synapse.name)
    for client in residents:
        client.wait_for_members(room, {resident.user_id for resident in residents})

    # On each server somebody comes, speaks and goes.
    for visitor in visitors:
        visitor.join(room, via=worker.name)
        for client in residents:
            client.wait_for_membership(room, visitor.user_id, "join")
        said.append(visitor.say(room, f"hello from {visitor.user_id}"))
        for client in residents:
            client.wait_for_event(room, said[-1])
        visitor.leave(room)
        for client in residents:
            client.wait_for_membership(room, visitor.user_id, "leave")
    # All have heard the same, each thing once.
    wait_for(lambda: alice.state(room) == bob.state(room) == erin.state(room), "the same state on three sides")
    whole = {event["event_id"] for event in alice.history(room)}
    assert whole >= {*said, *alice.state(room).values()}
    for client in residents:
        history = [event["event_id"] for event in client.wait_for_history(room, whole)]
        assert len(history) == len(set(history)), f"none twice at {client.user_id}"
        assert set(history) == whole, f"at {client.user_id}"

    # The servers leave, one after the other, and one comes back.
    erin.leave(room)
    for client in (alice, bob):
        client.wait_for_membership(room, erin.user_id, "leave")
    erin.join(alias)
    for client in residents:
        client.wait_for_membership(room, erin.user_id, "join")
    said.append(erin.say(room, "I am back"))
    for client in (alice, bob):
        client.wait_for_event(room, said[-1])
    alice.leave(room)
    for client in (bob, erin):
        client.wait_for_membership(room, alice.user_id, "leave")
    bob.leave(room)
    erin.wait_for_membership(room, bob.user_id, "leave")
    assert erin.members(room) == {erin.user_id}
