"""Acceptance 6: a server whose name has no port is found through SRV, and everything works with it.

The table of cases is tested natively, in tests/discovery.rs.
"""

from fake_origin import FakeOrigin
from fake_resolver import FakeResolver
from net import wait_for
from worker import Worker


def test_a_name_without_a_port(start):
    resolver = start(FakeResolver)
    worker = start(Worker, options=["--doh", resolver.url])
    # Nothing answers at port 443 or 8448 of this host; only the SRV record leads to the server.
    origin = start(FakeOrigin, name="localhost")
    resolver.records["_matrix-fed._tcp.localhost"] = f"10 0 {origin.port} localhost."

    alice, mallory = worker.user("alice"), origin.user("mallory")
    room_id = alice.create_room(preset="public_chat")
    # Its requests are signed, so its keys had to be found.
    room = origin.join(worker, room_id, mallory)
    message = room.message(mallory, "hello")
    assert origin.send(worker, [message]).json()["pdus"] == {message.event_id: {}}
    alice.wait_for_event(room_id, message.event_id)
    assert "_matrix-fed._tcp.localhost" in resolver.asked

    # And the other way: what Alice says arrives there.
    said = alice.say(room_id, "hello to you")

    def arrived():
        return any(pdu["content"].get("body") == "hello to you" for _, txn in origin.received for pdu in txn["pdus"])

    wait_for(arrived, f"{said} at the server without a port")
