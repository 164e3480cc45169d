"""EDUs between our server and Synapse: each side sees the other's typing, receipts and presence, and what devices tell each other
arrives although servers go away in between."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from client import ApiError, segment
from device import CrossSigning, Device
from net import PATIENCE, insist, wait_for
from synapse_peer import Synapse
from worker import Worker

MESSAGES = 1_000
RESTARTS = 3
KIND = "org.example.numbered"


@pytest.fixture(scope="module")
def sides(start):
    """Alice here and Bob there, in one room, with a line that can be cut before each server."""
    worker, synapse = start(Worker, with_line=True), start(Synapse, with_line=True)
    alice, bob = worker.user("alice"), synapse.user("bob")
    room = alice.create_room(preset="public_chat")
    bob.join(room, via=worker.name)
    alice.wait_for_members(room, {alice.user_id, bob.user_id})
    return (worker, alice), (synapse, bob), room


@pytest.mark.parametrize("speaker, hearer", [(0, 1), (1, 0)])
def test_each_side_sees_the_other_type_read_and_be_there(sides, speaker, hearer):
    room, (_, speaker), (_, hearer) = sides[2], sides[speaker], sides[hearer]
    seen = Seen(hearer, room)
    in_room = f"/rooms/{segment(room)}"
    typing = f"{in_room}/typing/{segment(speaker.user_id)}"
    types = lambda: speaker.put(typing, {"typing": True, "timeout": 60_000})
    ceases = lambda: speaker.put(typing, {"typing": False})
    # Who goes on as before is not told of again.
    insist(lambda: (ceases(), types()), lambda: seen.now().typists == [speaker.user_id], f"{speaker.user_id} types, says {hearer.user_id}")
    insist(lambda: (types(), ceases()), lambda: seen.now().typists == [], f"{speaker.user_id} has ceased, says {hearer.user_id}")

    root, read, statuses = hearer.say(room, "the root of a thread"), [], []

    def reads(content, **receipt):
        read.append(hearer.send(room, {"msgtype": "m.text", "body": f"read this, {speaker.user_id}", **content}))
        speaker.wait_for_event(room, read[-1])
        speaker.post(f"{in_room}/receipt/m.read/{segment(read[-1])}", receipt)

    insist(lambda: reads({}), lambda: seen.now().read.get(speaker.user_id) in read, f"{speaker.user_id} has read, says {hearer.user_id}")
    read.clear()
    relation = {"m.relates_to": {"rel_type": "m.thread", "event_id": root}}
    in_thread = lambda: seen.now().threads.get((speaker.user_id, root)) in read
    insist(lambda: reads(relation, thread_id=root), in_thread, f"the thread is read, says {hearer.user_id}")

    def shows_a_status():
        statuses.append(f"seen by {hearer.user_id}, number {len(statuses)}")
        status = {"presence": "unavailable", "status_msg": statuses[-1]}
        speaker.put(f"/presence/{segment(speaker.user_id)}/status", status)

    insist(shows_a_status, lambda: seen.now().status.get(speaker.user_id) in statuses, f"the status, at {hearer.user_id}")


class Seen:
    """What a client's syncs have said of the others in a room."""

    def __init__(self, client, room):
        self.client, self.room = client, room
        self.typists, self.read, self.threads, self.status = None, {}, {}, {}
        self.now()

    def now(self):
        """As it is by the next sync."""
        answer = self.client.sync(500)
        joined = answer.get("rooms", {}).get("join", {}).get(self.room, {})
        for event in joined.get("ephemeral", {}).get("events", []):
            if event["type"] == "m.typing":
                self.typists = event["content"]["user_ids"]
            elif event["type"] == "m.receipt":
                for event_id, types in event["content"].items():
                    for user, receipt in types.get("m.read", {}).items():
                        if thread := receipt.get("thread_id"):
                            self.threads[user, thread] = event_id
                        else:
                            self.read[user] = event_id
        for event in answer.get("presence", {}).get("events", []):
            self.status[event["sender"]] = event["content"].get("status_msg")
        return self


def keys_of(client, user_id):
    """What a key query says of a user: the IDs of the devices, and the master key."""
    answer = client.post("/keys/query", {"device_keys": {user_id: []}})
    return set(answer["device_keys"].get(user_id, {})), answer.get("master_keys", {}).get(user_id)


def test_lists_of_devices_that_changed_in_an_outage_are_caught_up_with(sides):
    (worker, alice), (synapse, bob), _ = sides
    pair = sides[:2]
    first = [Device.log_in(server, client.user_id, "FIRST") for server, client in pair]

    def wait_until_known(devices, masters=(None, None)):
        """To each side what the other has, told first by its sync."""
        for number, (client, other) in enumerate(((bob, alice), (alice, bob))):

            def is_known():
                seen, master = keys_of(client, other.user_id)
                public = master and list(master["keys"])
                expected = masters[number] and list(masters[number]["keys"])
                return devices <= seen and seen <= {*devices, own[other.user_id]} and public == expected

            wait_for(is_known, f"{devices} of {other.user_id} known to {client.user_id}")

    # The device of the registration has uploaded no keys.
    own = {client.user_id: client.get("/account/whoami")["device_id"] for _, client in pair}
    wait_until_known({"FIRST"})
    for client in (alice, bob):
        client.sync()
    worker.line.cut()
    synapse.line.cut()
    new = [Device.log_in(server, client.user_id, name) for server, client in pair for name in ("SECOND", "THIRD")]
    for device in first:
        device.log_out()
    masters = []
    for _, client in pair:
        keys = CrossSigning(client.user_id)
        upload_cross_signing(client, keys)
        masters.append(keys.master)
    # What Synapse knew is gone where it was fetching it anew as the line was cut.
    seen, master = keys_of(bob, alice.user_id)
    assert seen <= {"FIRST"} and master is None, "nothing has come through"
    worker.line.restore()
    synapse.line.restore()
    for client, other in ((alice, bob), (bob, alice)):
        changed = []

        def is_told():
            changed.extend(client.sync(500).get("device_lists", {}).get("changed", []))
            return other.user_id in changed

        wait_for(is_told, f"{client.user_id} hears that the devices of {other.user_id} have changed")
    wait_until_known({"SECOND", "THIRD"}, masters)
    for device in new:
        device.log_out()


def upload_cross_signing(client, keys):
    """With the password, where the server wants to see it."""
    try:
        client.post("/keys/device_signing/upload", keys.body())
    except ApiError as error:
        if error.status != 401:
            raise
        identifier = {"type": "m.id.user", "user": client.user_id}
        auth = {"type": "m.login.password", "identifier": identifier, "password": "password", "session": error.body["session"]}
        client.post("/keys/device_signing/upload", {**keys.body(), "auth": auth})


class Numbered:
    """Sends numbered messages to one device, one after the other, and collects what comes to another."""

    def __init__(self, client, to, device_id):
        self.client, self.to, self.device_id = client, to, device_id
        self.sent, self.heard = 0, []
        self.tried, self.repeated = set(), set()

    def send_all(self, count):
        for number in range(count):
            again(lambda: self.send(number))
            self.sent = number + 1

    def send(self, number):
        if number in self.tried:
            self.repeated.add(number)
        self.tried.add(number)
        body = {"messages": {self.to: {self.device_id: {"number": number}}}}
        self.client.put(f"/sendToDevice/{KIND}/t{number}", body)

    def heard_once(self):
        """What was heard, without what comes twice because its sender's server forgot a request that was repeated: a Synapse
        keeps the ids of requests in memory."""
        pairs = zip(self.heard, [None, *self.heard], strict=False)
        return [number for number, before in pairs if number != before or number not in self.repeated]

    def hear_all(self, count, client):
        """Each sync acknowledges what the one before it has told."""
        while count - 1 not in self.heard:
            answer = again(lambda: client.sync(1000))
            events = answer.get("to_device", {}).get("events", [])
            self.heard += [event["content"]["number"] for event in events if event["type"] == KIND]


def again(request, timeout=PATIENCE):
    """Asks until there is an answer, as clients do while their server is away."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            return request()
        except (requests.RequestException, ApiError) as error:
            if isinstance(error, ApiError) and error.status < 500 or time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def test_messages_to_devices_come_once_and_in_order_through_restarts_of_both_sides(sides):
    (worker, alice), (synapse, bob), _ = sides
    hers, his = Device.log_in(worker, alice.user_id, "HERS"), Device.log_in(synapse, bob.user_id, "HIS")
    there, back = Numbered(alice, bob.user_id, his.id), Numbered(bob, alice.user_id, hers.id)
    half = MESSAGES // 2
    with ThreadPoolExecutor(6) as pool:
        work = [pool.submit(there.send_all, half), pool.submit(back.send_all, half)]
        work += [pool.submit(there.hear_all, half, his.client), pool.submit(back.hear_all, half, hers.client)]
        for restart in range(RESTARTS):
            # While messages are on their way both ways.
            due = (restart + 1) * half // (RESTARTS + 1)
            wait_for(lambda: min(there.sent, back.sent) >= due or any(of.done() for of in work[2:]), "messages are sent")
            worker.crash()
            synapse.stop()
            starts = [pool.submit(server.start) for server in (worker, synapse)]
            [of.result() for of in starts]
        for of in work:
            of.result(300)
    assert there.heard == list(range(half))
    assert back.heard_once() == list(range(half))
    # Nothing comes a second time.
    for client, forgotten in ((his.client, set()), (hers.client, back.repeated)):
        events = client.sync(1000).get("to_device", {}).get("events", [])
        assert {event["content"]["number"] for event in events} <= forgotten
