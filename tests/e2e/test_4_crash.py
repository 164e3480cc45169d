"""Acceptance 4: the runtime is killed while messages arrive, and Synapse is away while messages leave."""

import os
import random
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Semaphore

from fake_origin import now_ms
from load import loading
from net import wait_for
from synapse_peer import Synapse
from worker import Worker

MESSAGES = 200
KILLS = 10
WAITING = 20
# The moments of the kills are others in each run; with this variable they are those of an earlier one.
SEED = "VERGE_E2E_SEED"
# With this variable the runtime is killed this often while transactions arrive.
TRANSACTION_KILLS = "VERGE_E2E_KILLS"


def chance():
    """What is random in a test, and how to have it again."""
    seed = int(os.environ.get(SEED) or random.SystemRandom().randrange(2**32))
    print(f"{SEED}={seed}")
    return random.Random(seed)


def test_nothing_is_lost_or_doubled_when_the_runtime_is_killed(start):
    moments = chance()
    worker, synapse = start(Worker), start(Synapse)
    alice, bob = worker.user("alice"), synapse.user("bob")
    room = alice.create_room(preset="public_chat", room_alias_name="crash")
    bob.join(f"#crash:{worker.name}")
    alice.wait_for_members(room, {alice.user_id, bob.user_id})
    alice.sync()
    sent, heard = [], []
    # Bob speaks in bursts, one for each life of the runtime.
    allowed = Semaphore(0)

    def talk():
        for number in range(MESSAGES):
            allowed.acquire()
            sent.append(bob.say(room, f"message {number}"))

    def more_is_heard():
        news = [event["event_id"] for event in alice.news(room)]
        heard.extend(news)
        return news

    with ThreadPoolExecutor(1) as pool:
        talking = pool.submit(talk)
        try:
            for _ in range(KILLS):
                allowed.release(MESSAGES // (KILLS + 1))
                # Messages are arriving now, and more are to come.
                wait_for(more_is_heard, "a message after a restart", step=0.02)
                time.sleep(moments.uniform(0, 0.3))
                worker.crash()
                assert len(sent) < MESSAGES
                worker.start()
        finally:
            allowed.release(MESSAGES)
        talking.result(120)

    history = alice.wait_for_history(room, sent)
    ids = [event["event_id"] for event in history if event["type"] == "m.room.message"]
    assert sorted(ids) == sorted(sent), "all of them, none twice"
    # Alice's syncs, too, have brought all of them, none twice.
    wait_for(lambda: (more_is_heard(), set(heard) >= set(sent))[1], "all messages by sync")
    assert sorted(heard) == sorted(sent)


def test_nothing_that_was_acknowledged_is_lost_or_doubled(start, authority, tmp_path):
    """Three origins send transactions of five PDUs, and each again until it is acknowledged."""
    moments = chance()
    worker = start(Worker)
    alice = worker.user("alice")
    room_id = alice.create_room(preset="public_chat", room_version="12")
    with loading(worker, room_id, authority, tmp_path) as load:
        with load.running():
            for _ in range(int(os.environ.get(TRANSACTION_KILLS) or 5)):
                before = len(load.acknowledged)
                wait_for(lambda: len(load.acknowledged) > before, "an acknowledged transaction", step=0.01)
                time.sleep(moments.uniform(0, 0.3))
                worker.crash()
                worker.start()
    print(f"{len(load.acknowledged)} events are acknowledged")
    assert load.is_complete(alice.wait_for_history(room_id, load.acknowledged))


def test_messages_wait_for_a_server_that_is_down(start):
    # The scheduled trigger fires when this test says so.
    worker = start(Worker, cron_seconds=3600)
    synapse = start(Synapse, settings={"presence": {"enabled": False}})
    alice, bob = worker.user("alice"), synapse.user("bob")
    room = alice.create_room(preset="public_chat", room_alias_name="waiting")
    bob.join(f"#waiting:{worker.name}")
    alice.wait_for_members(room, {alice.user_id, bob.user_id})
    bob.sync()

    synapse.stop()
    sent = [alice.say(room, f"message {number}") for number in range(WAITING)]
    queue = "SELECT failures, retry_at FROM destinations WHERE destination = ? AND lease_owner IS NULL"

    def may_be_tried():
        return [failures for failures, retry_at in worker.rows(queue, synapse.name) if failures and retry_at < now_ms()]

    synapse.start()
    wait_for(may_be_tried, "a failure, and the time to try again")
    # The server is back and its pause is over; yet it hears nothing, until the trigger fires.
    assert bob.news(room) == []
    assert may_be_tried()
    worker.fire_scheduled()
    heard = []

    def all_heard():
        heard.extend(event["event_id"] for event in bob.news(room))
        return len(heard) >= WAITING

    wait_for(all_heard, "the messages at Synapse")
    assert heard == sent, "all of them, in order"
