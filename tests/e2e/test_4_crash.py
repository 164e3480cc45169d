"""Acceptance 4: the runtime is killed while messages arrive, and Synapse is away while messages leave."""

import random
import threading
import time

from synapse_peer import Synapse
from worker import Worker

MESSAGES = 200
KILLS = 10
WAITING = 20
SEED = 20


def test_nothing_is_lost_or_doubled_when_the_runtime_is_killed(start):
    worker, synapse = start(Worker), start(Synapse)
    alice, bob = worker.user("alice"), synapse.user("bob")
    room = alice.create_room(preset="public_chat", room_alias_name="crash")
    bob.join(f"#crash:{worker.name}")
    alice.wait_for_members(room, {alice.user_id, bob.user_id})

    moments = random.Random(SEED)
    sent = []
    done = threading.Event()

    def talk():
        for number in range(MESSAGES):
            sent.append(bob.say(room, f"message {number}"))
            # Spread over all kills and restarts, whatever this machine's speed is.
            while not done.is_set() and number > MESSAGES * (kills + 1) / (KILLS + 1):
                time.sleep(0.01)

    kills = 0
    talking = threading.Thread(target=talk, daemon=True)
    talking.start()
    try:
        for _ in range(KILLS):
            time.sleep(moments.uniform(0.05, 0.8))
            worker.crash()
            kills += 1
            worker.start()
    finally:
        done.set()
    talking.join(120)
    assert len(sent) == MESSAGES

    for event_id in sent:
        alice.wait_for_event(room, event_id, 120)
    ids = [event["event_id"] for event in alice.history(room) if event["type"] == "m.room.message"]
    assert sorted(ids) == sorted(sent), "all of them, none twice"


def test_messages_wait_for_a_server_that_is_down(start):
    worker, synapse = start(Worker), start(Synapse)
    alice, bob = worker.user("alice"), synapse.user("bob")
    room = alice.create_room(preset="public_chat", room_alias_name="waiting")
    bob.join(f"#waiting:{worker.name}")
    alice.wait_for_members(room, {alice.user_id, bob.user_id})

    synapse.stop()
    sent = [alice.say(room, f"message {number}") for number in range(WAITING)]
    synapse.start()
    # Nothing is sent from here on: only the scheduled trigger can bring the messages over.
    for event_id in sent:
        bob.wait_for_event(room, event_id, 120)
    ids = [event["event_id"] for event in reversed(bob.history(room)) if event["type"] == "m.room.message"]
    assert ids == sent, "all of them, in order"
