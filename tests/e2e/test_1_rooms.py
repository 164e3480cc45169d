"""Acceptance 1: a room made here, joined from Synapse, both talking at once; in the end both hold the same."""

import time
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from client import facts
from net import PATIENCE, wait_for

MESSAGES = 100


@pytest.mark.parametrize("version", ["10", "11", "12"])
def test_both_sides_hold_the_same_events_and_state(worker, synapse, version):
    alice, bob = worker.user(f"alice{version}"), synapse.user(f"bob{version}")
    alias = f"room{version}"
    room = alice.create_room(preset="public_chat", room_version=version, room_alias_name=alias, name="Both")
    assert alice.get_state(room, "m.room.create")["room_version"] == version
    assert bob.join(f"#{alias}:{worker.name}") == room
    alice.wait_for_members(room, {alice.user_id, bob.user_id})

    barrier = Barrier(2)
    with ThreadPoolExecutor(2) as pool:
        talks = list(pool.map(lambda client: Talk(client, room, barrier), (alice, bob)))
    assert max(talk.began for talk in talks) < min(talk.ended for talk in talks), "they talked at the same time"
    sent = [event_id for talk in talks for event_id in talk.sent]
    assert len(set(sent)) == 2 * MESSAGES

    for talk in talks:
        wait_for(lambda: talk.hears(sent), f"all messages at {talk.client.user_id}")
        assert sorted(talk.heard) == sorted(sent), f"{talk.client.user_id} hears each once"

    histories = []
    whole = {event["event_id"] for event in alice.history(room)}
    for client in (alice, bob):
        history = client.wait_for_history(room, whole)
        ids = [event["event_id"] for event in history]
        assert len(ids) == len(set(ids)), f"none twice at {client.user_id}"
        assert history[0]["type"] == "m.room.create"
        # Each side's own messages stand in the order in which they were sent.
        for talk in talks:
            assert [event_id for event_id in ids if event_id in talk.sent] == talk.sent, f"at {client.user_id}"
        histories.append({event["event_id"]: facts(event) for event in history})
    here, there = histories
    assert here.keys() == there.keys()
    for event_id in here:
        assert here[event_id] == there[event_id]

    wait_for(lambda: alice.state(room) == bob.state(room), "equal states")
    here, there = ({(e["type"], e["state_key"]): facts(e) for e in client.state_events(room)} for client in (alice, bob))
    assert here == there
    assert {event["event_id"] for event in here.values()} <= histories[0].keys()
    assert {key for kind, key in here if kind == "m.room.member"} == {alice.user_id, bob.user_id}


class Talk:
    """One side of the conversation: what it has sent, and what its syncs have brought."""

    def __init__(self, client, room, barrier):
        self.client, self.room = client, room
        self.sent, self.heard = [], []
        client.sync()
        barrier.wait(PATIENCE)
        self.began = time.monotonic()
        for number in range(MESSAGES):
            if number % 25 == 0:
                # Neither gets so far ahead that one sync of the other does not hold it.
                barrier.wait(PATIENCE)
            self.sent.append(client.say(room, f"{client.user_id} {number}"))
            if number % 10 == 0:
                self._listen()
        self.ended = time.monotonic()

    def hears(self, event_ids):
        """Whether it has heard all of these by now."""
        self._listen()
        return set(event_ids) <= set(self.heard)

    def _listen(self):
        self.heard += [event["event_id"] for event in self.client.news(self.room)]
