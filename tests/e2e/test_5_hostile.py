"""Acceptance 5: hostile input gets the specified answer, and changes nothing that counts."""

import http.client
import json
import ssl

import pytest
from canonicaljson import encode_canonical_json
from signedjson.key import generate_signing_key

from client import segment
from fake_origin import FakeOrigin, json_of, now_ms
from net import wait_for

# Everything that an accepted event, a membership or the queue would change. What may change is not looked at:
# rejected events (which move a room's version), answers to transactions, key caches, how often a destination was tried.
STATE_OF_AFFAIRS = [
    "SELECT event_id, json, redacted_by FROM events WHERE rejected IS NULL AND soft_failed = 0 ORDER BY event_id",
    "SELECT room_id, extremities, state FROM rooms ORDER BY room_id",
    "SELECT * FROM timeline ORDER BY room_id, pos",
    "SELECT * FROM room_servers ORDER BY room_id, server, from_pos",
    "SELECT * FROM local_memberships ORDER BY user_id, room_id",
    "SELECT * FROM outbox ORDER BY pos",
    "SELECT destination, cursor, txn_id FROM destinations ORDER BY destination",
    "SELECT * FROM staged_pdus ORDER BY room_id, event_id",
    "SELECT * FROM redactions ORDER BY redacts, redaction_id",
]


class Scene:
    """A room of our user that a user of the fake origin has joined."""

    def __init__(self, worker, origin):
        self.worker, self.origin = worker, origin
        self.alice = worker.user("alice")
        self.room_id = self.alice.create_room(preset="public_chat", room_alias_name="hostile")
        self.mallory = origin.user("mallory")
        self.room = origin.join(worker, self.room_id, self.mallory)
        first = self.message("hello")
        assert self.results([first]) == {first.event_id: {}}
        assert self.alice.wait_for_event(self.room_id, first.event_id)

    def message(self, body, **other):
        return self.room.message(self.mallory, body, **other)

    def results(self, pdus):
        answer = self.origin.send(self.worker, pdus)
        assert answer.status_code == 200, answer.text
        return answer.json()["pdus"]

    def affairs(self):
        affairs = {sql: self.worker.rows(sql) for sql in STATE_OF_AFFAIRS}
        affairs["state"] = self.alice.state(self.room_id)
        affairs["history"] = [event["event_id"] for event in self.alice.history(self.room_id)]
        return affairs


@pytest.fixture(scope="module")
def scene(worker, start):
    scene = Scene(worker, start(FakeOrigin))
    # The queue has told the fake origin everything that it will.
    cursor = "SELECT 1 FROM destinations WHERE txn_id IS NOT NULL"
    wait_for(lambda: not worker.rows(cursor), "an idle queue")
    return scene


@pytest.fixture
def nothing_changes(scene):
    """Fails the test where the state of affairs is another one after it; afterwards the room still works."""
    before = scene.affairs()
    yield
    assert_unchanged(scene, before)
    alive = scene.message("still here")
    assert scene.results([alive]) == {alive.event_id: {}}
    scene.alice.wait_for_event(scene.room_id, alive.event_id)


def assert_unchanged(scene, before):
    after = scene.affairs()
    changed = {what: (before[what], after[what]) for what in before if before[what] != after[what]}
    assert not changed


def refusal(answer):
    return answer.status_code, answer.json()["errcode"]


SEND = "/_matrix/federation/v1/send"


def test_a_wrong_request_signature(scene, nothing_changes):
    content = {"origin": scene.origin.name, "origin_server_ts": now_ms(), "pdus": []}
    signed_otherwise = scene.origin.authorization("PUT", f"{SEND}/other", scene.worker.name, content)
    answer = scene.origin.request(scene.worker, "PUT", f"{SEND}/this", content, signed_otherwise)
    assert refusal(answer) == (401, "M_UNAUTHORIZED")


def test_a_request_signed_with_an_unpublished_key(scene, nothing_changes):
    content = {"origin": scene.origin.name, "origin_server_ts": now_ms(), "pdus": []}
    for version in ("a_fake", "a_other"):
        unknown = generate_signing_key(version)
        header = scene.origin.authorization("PUT", f"{SEND}/1", scene.worker.name, content, unknown)
        answer = scene.origin.request(scene.worker, "PUT", f"{SEND}/1", content, header)
        assert refusal(answer) == (401, "M_UNAUTHORIZED")


def test_a_wrong_destination(scene, nothing_changes):
    content = {"origin": scene.origin.name, "origin_server_ts": now_ms(), "pdus": []}
    header = scene.origin.authorization("PUT", f"{SEND}/2", "other.example.org", content)
    assert refusal(scene.origin.request(scene.worker, "PUT", f"{SEND}/2", content, header)) == (401, "M_UNAUTHORIZED")


def test_no_signature_at_all(scene, nothing_changes):
    answer = scene.origin.request(scene.worker, "PUT", f"{SEND}/3", {"pdus": []}, authorization=False)
    assert refusal(answer) == (401, "M_UNAUTHORIZED")


def test_a_malformed_signature(scene, nothing_changes):
    for authorization in ("X-Matrix", "X-Matrix origin=a,key=b"):
        answer = scene.origin.request(scene.worker, "PUT", f"{SEND}/3", {"pdus": []}, authorization)
        assert refusal(answer) == (400, "M_UNAUTHORIZED")


def test_an_expired_key(scene, start, nothing_changes):
    expired = start(FakeOrigin)
    expired.valid_for_ms = -1000
    answer = expired.send(scene.worker, [])
    assert refusal(answer) == (401, "M_UNAUTHORIZED")


def test_a_replayed_transaction_is_answered_alike_and_done_once(scene):
    good, bad = scene.message("once"), json_of(scene.message("forged", advance=False))
    bad["signatures"][scene.origin.name] = {"ed25519:a_fake": "A" * 86}
    first = scene.origin.send(scene.worker, [good, bad], transaction="replayed")
    scene.alice.wait_for_event(scene.room_id, good.event_id)
    before = scene.affairs()
    second = scene.origin.send(scene.worker, [good, bad], transaction="replayed")
    assert (first.status_code, first.json()) == (second.status_code, second.json())
    assert first.json()["pdus"][good.event_id] == {} and len(first.json()["pdus"]) == 2
    assert_unchanged(scene, before)


def test_51_pdus(scene, nothing_changes):
    pdus = [scene.message(f"number {number}", advance=False) for number in range(51)]
    answer = scene.origin.send(scene.worker, pdus)
    assert answer.status_code == 400, answer.text
    assert answer.json()["errcode"].startswith("M_")


def test_a_forged_event_signature(scene, nothing_changes):
    event = scene.message("forged", advance=False, key=generate_signing_key("a_fake"))
    assert scene.results([event])[event.event_id]["error"]


def test_a_wrong_content_hash_means_redacted(scene):
    event = scene.message("the original", advance=False)
    altered = json_of(event)
    altered["content"] = {"msgtype": "m.text", "body": "altered"}
    assert scene.results([altered]) == {event.event_id: {}}
    stored = scene.alice.wait_for_event(scene.room_id, event.event_id)
    assert stored["content"] == {}
    scene.room.tips, scene.room.depth = [event.event_id], event.depth


def test_an_event_that_breaks_an_auth_rule(scene, nothing_changes):
    event = scene.room.event(scene.mallory, "m.room.name", {"name": "Mallory's"}, state_key="", advance=False)
    answer = scene.results([event])
    assert set(answer) == {event.event_id}
    assert scene.alice.event(scene.room_id, event.event_id) is None
    assert scene.alice.get_state(scene.room_id, "m.room.name") is None


def test_an_event_of_a_user_whose_server_did_not_sign(scene, nothing_changes):
    event = scene.room.message(scene.alice.user_id, "in Alice's name", advance=False)
    assert scene.results([event])[event.event_id]["error"]


def message_of(scene, size, **other):
    """A message of exactly so many bytes of canonical JSON."""

    def length(event):
        return len(encode_canonical_json(json_of(event)))

    # Signatures and hashes have the same length whatever they cover.
    event = scene.message("x" * (size - length(scene.message("", advance=False))), **other)
    assert length(event) == size
    return event


def test_an_event_of_65537_bytes(scene, nothing_changes):
    event = message_of(scene, 65_537, advance=False)
    answer = scene.origin.send(scene.worker, [event])
    assert answer.status_code == 200
    assert answer.json()["pdus"].get(event.event_id) != {}
    assert scene.alice.event(scene.room_id, event.event_id) is None


def test_an_event_of_65536_bytes_is_fine(scene):
    event = message_of(scene, 65_536)
    assert scene.results([event]) == {event.event_id: {}}
    scene.alice.wait_for_event(scene.room_id, event.event_id)


def test_a_body_that_is_not_json(scene, nothing_changes):
    # The signature is that of a request without content: the body is read before it could be checked.
    header = scene.origin.authorization("PUT", f"{SEND}/4", scene.worker.name)
    assert put(scene, f"{SEND}/4", b"{not json", header) == (400, "M_NOT_JSON")


def test_a_body_nested_10000_deep(scene, nothing_changes):
    header = scene.origin.authorization("PUT", f"{SEND}/5", scene.worker.name)
    deep = b'{"pdus":' + b"[" * 10_000 + b"]" * 10_000 + b"}"
    assert put(scene, f"{SEND}/5", deep, header) == (400, "M_NOT_JSON")


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_of_50_megabytes(scene, nothing_changes, chunked):
    header = scene.origin.authorization("PUT", f"{SEND}/6", scene.worker.name)
    body = b'{"pdus":[],"x":"' + b"x" * 50_000_000 + b'"}'
    assert put(scene, f"{SEND}/6", iter([body]) if chunked else body, header) == (413, "M_TOO_LARGE")


def put(scene, uri, body, authorization):
    """Sends a body exactly as it is; status and errcode of the answer."""
    context = ssl.create_default_context(cafile=str(scene.worker.authority.certificate))
    connection = http.client.HTTPSConnection("localhost", scene.worker.port, context=context, timeout=120)
    headers = {"Authorization": authorization, "Content-Type": "application/json"}
    connection.request("PUT", uri, body, headers, encode_chunked=not isinstance(body, bytes))
    answer = connection.getresponse()
    decoded = json.loads(answer.read())
    connection.close()
    return answer.status, decoded["errcode"]


def test_a_room_we_are_not_in_is_not_shown(scene, start, nothing_changes):
    stranger = start(FakeOrigin)
    room = segment(scene.room_id)
    event = segment(scene.room.tips[0])
    for path in (f"state/{room}?event_id={event}", f"state_ids/{room}?event_id={event}", f"event/{event}"):
        answer = stranger.request(scene.worker, "GET", f"/_matrix/federation/v1/{path}")
        assert refusal(answer) == (403, "M_FORBIDDEN"), path
