"""Typing, receipts and presence between our server and Synapse: each side sees the other's."""

import pytest

from client import segment
from net import wait_for


@pytest.fixture(scope="module")
def pair(worker, synapse):
    """Alice here and Bob there, in one room."""
    alice, bob = worker.user("alice"), synapse.user("bob")
    room = alice.create_room(preset="public_chat")
    bob.join(room, via=worker.name)
    alice.wait_for_members(room, {alice.user_id, bob.user_id})
    return alice, bob, room


@pytest.mark.parametrize("speaker, hearer", [(0, 1), (1, 0)])
def test_each_side_sees_the_other_type_read_and_be_there(pair, speaker, hearer):
    room, speaker, hearer = pair[2], pair[speaker], pair[hearer]
    said = hearer.say(room, f"read this, {speaker.user_id}")
    speaker.wait_for_event(room, said)
    seen = Seen(hearer, room)
    in_room = f"/rooms/{segment(room)}"

    typing = f"{in_room}/typing/{segment(speaker.user_id)}"
    speaker.put(typing, {"typing": True, "timeout": 60_000})
    wait_for(lambda: seen.now().typists == [speaker.user_id], f"{speaker.user_id} types, says {hearer.user_id}")
    speaker.put(typing, {"typing": False})
    wait_for(lambda: seen.now().typists == [], f"{speaker.user_id} has ceased, says {hearer.user_id}")

    speaker.post(f"{in_room}/receipt/m.read/{segment(said)}")
    wait_for(lambda: seen.now().read.get(speaker.user_id) == said, f"{speaker.user_id} has read, says {hearer.user_id}")

    status = {"presence": "unavailable", "status_msg": f"seen by {hearer.user_id}"}
    speaker.put(f"/presence/{segment(speaker.user_id)}/status", status)
    wait_for(lambda: seen.now().status.get(speaker.user_id) == status["status_msg"], f"the status, at {hearer.user_id}")


class Seen:
    """What a client's syncs have said of the others in a room."""

    def __init__(self, client, room):
        self.client, self.room = client, room
        self.typists, self.read, self.status = None, {}, {}
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
                    self.read.update({user: event_id for user in types.get("m.read", {})})
        for event in answer.get("presence", {}).get("events", []):
            self.status[event["sender"]] = event["content"].get("status_msg")
        return self
