"""Acceptance 5: hostile input gets the specified answer, and changes nothing that counts.

A Synapse gets the same input. Where the specification names no status or errcode, ours are Synapse's.
"""

import contextlib
import http.client
import json
import ssl

import pytest
from canonicaljson import encode_canonical_json
from signedjson.key import generate_signing_key

from client import segment
from fake_origin import FakeOrigin, json_of, now_ms
from net import wait_for
from synapse_peer import Synapse

SEND = "/_matrix/federation/v1/send"

# Everything that an accepted event, a membership or the queue would change. What may change is not looked at:
# rejected events (which move a room's version), answers to transactions, key caches. Of the outbox it is how far it has
# been written: what everybody has had is deleted from it once an hour.
STATE_OF_AFFAIRS = {
    "events": "SELECT event_id, json, redacted_by FROM events WHERE soft_failed = 0 ORDER BY 1",
    "soft-failed events": "SELECT event_id FROM events WHERE soft_failed = 1 ORDER BY 1",
    "extremities": "SELECT room_id, extremities FROM rooms ORDER BY 1",
    "states": "SELECT room_id, state FROM rooms ORDER BY 1",
    "timeline": "SELECT * FROM timeline ORDER BY room_id, pos",
    "state changes": "SELECT * FROM room_states ORDER BY room_id, pos",
    "servers": "SELECT * FROM room_servers ORDER BY room_id, server, from_pos",
    "memberships": "SELECT * FROM local_memberships ORDER BY user_id, room_id",
    "outbox": "SELECT position FROM streams WHERE name = 'outbox'",
    "destinations": "SELECT * FROM destinations ORDER BY destination",
    "staged PDUs": "SELECT * FROM staged_pdus ORDER BY room_id, event_id",
    "redactions": "SELECT * FROM redactions ORDER BY redacts, redaction_id",
}
# What one more message changes.
BY_A_MESSAGE = {"events", "extremities", "timeline", "history"}


class Scene:
    """A room of a server's user that a user of the fake origin has joined, and one of a second origin."""

    def __init__(self, server, start):
        self.server, self.start = server, start
        self.origin, self.guest_origin = start(FakeOrigin), start(FakeOrigin)
        self.alice = server.user("alice")
        self.room_id = self.alice.create_room(preset="public_chat", room_alias_name="hostile")
        self.guest_room = self.guest_origin.join(server, self.room_id, self.guest_origin.user("guest"))
        self.mallory = self.origin.user("mallory")
        self.room = self.origin.join(server, self.room_id, self.mallory)
        self.speak("hello")

    def message(self, body, **other):
        return self.room.message(self.mallory, body, **other)

    def speak(self, body):
        """A message with which nothing is wrong; it arrives."""
        event = self.message(body)
        assert self.results([event]) == {event.event_id: {}}
        self.alice.wait_for_event(self.room_id, event.event_id)
        return event.event_id

    def results(self, pdus):
        answer = self.origin.send(self.server, pdus)
        assert answer.status_code == 200, answer.text
        return answer.json()["pdus"]

    def affairs(self):
        affairs = {what: self.server.rows(sql) for what, sql in STATE_OF_AFFAIRS.items()}
        affairs["state"] = self.alice.state(self.room_id)
        affairs["history"] = [event["event_id"] for event in self.alice.history(self.room_id)]
        return affairs


def changed(before, after):
    """What differs between two states of affairs: what is there no more, and what is new."""
    different = [what for what in before if before[what] != after[what]]
    rows = lambda affairs, what: list(affairs[what].items() if isinstance(affairs[what], dict) else affairs[what])
    less = lambda one, other: [row for row in one if row not in other]
    pairs = {what: (rows(before, what), rows(after, what)) for what in different}
    return {what: (less(was, now), less(now, was)) for what, (was, now) in pairs.items()}


def new_events(before, after):
    return {row[0] for row in after["events"]} - {row[0] for row in before["events"]}


@pytest.fixture(scope="module")
def scene(worker, start):
    scene = Scene(worker, start)
    # The queue has told the fake origins everything that it will.
    busy = "SELECT 1 FROM destinations WHERE txn_id IS NOT NULL OR lease_owner IS NOT NULL"
    wait_for(lambda: worker.rows("SELECT 1 FROM destinations") and not worker.rows(busy), "an idle queue")
    return scene


@pytest.fixture(scope="module")
def peer(start):
    """The same with a Synapse in our place. Without media it reads no longer bodies than a transaction may have."""
    return Scene(start(Synapse, settings={"enable_media_repo": False}), start)


@pytest.fixture
def nothing_changes(scene):
    """Fails the test where the state of affairs is another one after it, or where the room does not work any more."""
    before = scene.affairs()
    yield
    assert changed(before, scene.affairs()) == {}
    alive = scene.speak("still here")
    after = scene.affairs()
    assert changed(before, after).keys() == BY_A_MESSAGE
    assert new_events(before, after) == {alive}


# Requests


def wrong_signature(scene):
    content = empty_transaction(scene.origin)
    of_another = scene.origin.authorization("PUT", f"{SEND}/other", scene.server.name, content)
    return refusal(scene.origin.request(scene.server, "PUT", f"{SEND}/this", content, of_another))


def unpublished_key(scene):
    return signed_with(scene, generate_signing_key("a_other"))


def other_key_of_the_same_name(scene):
    return signed_with(scene, generate_signing_key(scene.origin.key.version))


def old_key(scene):
    return signed_with(scene, scene.origin.old_key)


def signed_with(scene, key):
    content = empty_transaction(scene.origin)
    header = scene.origin.authorization("PUT", f"{SEND}/1", scene.server.name, content, key)
    return refusal(scene.origin.request(scene.server, "PUT", f"{SEND}/1", content, header))


def expired_key(scene):
    origin = scene.start(FakeOrigin)
    origin.valid_for_ms = -1000
    return refusal(origin.send(scene.server, []))


def wrong_destination(scene):
    content = empty_transaction(scene.origin)
    header = scene.origin.authorization("PUT", f"{SEND}/2", "other.example.org", content)
    return refusal(scene.origin.request(scene.server, "PUT", f"{SEND}/2", content, header))


def no_signature(scene):
    return refusal(scene.origin.request(scene.server, "PUT", f"{SEND}/3", {"pdus": []}, authorization=False))


def header_without_parameters(scene):
    return refusal(scene.origin.request(scene.server, "PUT", f"{SEND}/3", {"pdus": []}, "X-Matrix"))


def header_without_signature(scene):
    return refusal(scene.origin.request(scene.server, "PUT", f"{SEND}/3", {"pdus": []}, "X-Matrix origin=a,key=b"))


def of_51_pdus(scene):
    pdus = [scene.message(f"number {number}", advance=False) for number in range(51)]
    return refusal(scene.origin.send(scene.server, pdus))


def of_101_edus(scene):
    return refusal(scene.origin.send(scene.server, [], edus=[{"edu_type": "m.other", "content": {}}] * 101))


def no_json(scene):
    return put(scene, b"{not json")


def no_object(scene):
    return refusal(scene.origin.request(scene.server, "PUT", f"{SEND}/4", [1]))


def nested_10000_deep(scene):
    return put(scene, b'{"pdus":' + b"[" * 10_000 + b"]" * 10_000 + b"}")


def of_50_megabytes(scene):
    return put(scene, LARGE)


def of_50_megabytes_of_unknown_length(scene):
    return put(scene, iter([LARGE]))


LARGE = b'{"pdus":[],"x":"' + b"x" * 50_000_000 + b'"}'

REQUESTS = [
    (wrong_signature, (401, "M_UNAUTHORIZED")),
    (unpublished_key, (401, "M_UNAUTHORIZED")),
    (other_key_of_the_same_name, (401, "M_UNAUTHORIZED")),
    (old_key, (401, "M_UNAUTHORIZED")),
    (expired_key, (401, "M_UNAUTHORIZED")),
    (wrong_destination, (401, "M_UNAUTHORIZED")),
    (no_signature, (401, "M_UNAUTHORIZED")),
    (header_without_parameters, (400, "M_UNAUTHORIZED")),
    (header_without_signature, (400, "M_UNAUTHORIZED")),
    (of_51_pdus, (400, "M_INVALID_PARAM")),
    (of_101_edus, (400, "M_INVALID_PARAM")),
    (no_json, (400, "M_NOT_JSON")),
    (no_object, (400, "M_BAD_JSON")),
    (nested_10000_deep, (401, "M_UNAUTHORIZED")),
    (of_50_megabytes, (413, "M_TOO_LARGE")),
    (of_50_megabytes_of_unknown_length, (413, "M_TOO_LARGE")),
]

REQUEST_NAMES = [ask.__name__ for ask, _ in REQUESTS]


@pytest.mark.parametrize("ask, answer", REQUESTS, ids=REQUEST_NAMES)
def test_a_hostile_request_is_refused(scene, nothing_changes, ask, answer):
    assert ask(scene) == answer


# Where Synapse answers otherwise: it does not read what is nested so deep, names no errcode, or hangs up without an answer.
SYNAPSE_DIFFERS = {
    nested_10000_deep: (400, "M_NOT_JSON"),
    of_51_pdus: (400, None),
    of_101_edus: (400, None),
    of_50_megabytes: None,
    of_50_megabytes_of_unknown_length: None,
}


@pytest.mark.parametrize("ask, answer", REQUESTS, ids=REQUEST_NAMES)
def test_a_synapse_refuses_it_alike(peer, ask, answer):
    assert ask(peer) == SYNAPSE_DIFFERS.get(ask, answer)


def test_a_replayed_transaction_is_answered_alike_and_done_once(scene):
    good, bad = scene.message("once"), forged_signature(scene)
    before = scene.affairs()
    first = scene.origin.send(scene.server, [good, bad], transaction="replayed")
    scene.alice.wait_for_event(scene.room_id, good.event_id)
    once = scene.affairs()
    assert changed(before, once).keys() == BY_A_MESSAGE and new_events(before, once) == {good.event_id}
    results = first.json()["pdus"]
    assert results.keys() == {good.event_id, bad.event_id} and results[good.event_id] == {}
    assert results[bad.event_id]["error"]

    # The sender's copy of what it has sent, and another content under the same name.
    for pdus in ([good, bad], [scene.message("instead", advance=False)]):
        again = scene.origin.send(scene.server, pdus, transaction="replayed")
        assert (again.status_code, again.json()) == (first.status_code, first.json())
        assert changed(once, scene.affairs()) == {}


# PDUs


def forged_signature(scene):
    return scene.message("forged", advance=False, key=generate_signing_key(scene.origin.key.version))


def of_a_user_whose_server_did_not_sign(scene):
    return scene.room.message(scene.guest_origin.user("guest"), "in the guest's name", advance=False)


def of_our_user(scene):
    return scene.room.message(scene.alice.user_id, "in Alice's name", advance=False)


def signed_after_its_key_expired(scene):
    return scene.message("late", advance=False, key=scene.origin.old_key)


def dated_after_what_its_key_is_valid_for(scene):
    later = now_ms() + scene.guest_origin.valid_for_ms + 3600 * 1000
    room = scene.guest_room
    room.tips, room.depth = scene.room.tips, scene.room.depth
    return room.message(scene.guest_origin.user("guest"), "late", advance=False, origin_server_ts=later)


def breaking_an_auth_rule(scene):
    return scene.room.event(scene.mallory, "m.room.name", {"name": "Mallory's"}, state_key="", advance=False)


def of_65537_bytes(scene):
    return message_of(scene, 65_537, advance=False)


# Each with whether a Synapse reports an error. It answers before it applies auth rules and looks at sizes; the
# specification's example of an error is an event that its sender was not allowed to send.
EVENTS = [
    (forged_signature, True),
    (of_a_user_whose_server_did_not_sign, True),
    (of_our_user, True),
    (signed_after_its_key_expired, True),
    (dated_after_what_its_key_is_valid_for, True),
    (breaking_an_auth_rule, False),
    (of_65537_bytes, False),
]
EVENT_NAMES = [make.__name__ for make, _ in EVENTS]


@pytest.mark.parametrize("make, _", EVENTS, ids=EVENT_NAMES)
def test_a_hostile_event_is_answered_with_an_error(scene, nothing_changes, make, _):
    event = make(scene)
    results = scene.results([event])
    assert results == {event.event_id: {"error": results[event.event_id]["error"]}}
    assert results[event.event_id]["error"]
    assert scene.alice.event(scene.room_id, event.event_id) is None


@pytest.mark.parametrize("make, reports", EVENTS, ids=EVENT_NAMES)
def test_a_synapse_does_not_take_it_either(peer, make, reports):
    event = make(peer)
    results = peer.results([event])
    assert results.keys() == {event.event_id}
    assert bool(results[event.event_id].get("error")) == reports
    peer.speak("still here")
    assert peer.alice.event(peer.room_id, event.event_id) is None


def test_a_good_event_beside_a_bad_one_is_taken(scene):
    before = scene.affairs()
    bad, good = breaking_an_auth_rule(scene), scene.message("beside")
    results = scene.results([bad, good])
    assert results[good.event_id] == {} and results[bad.event_id]["error"]
    scene.alice.wait_for_event(scene.room_id, good.event_id)
    after = scene.affairs()
    assert changed(before, after).keys() == BY_A_MESSAGE and new_events(before, after) == {good.event_id}


def test_a_wrong_content_hash_means_redacted_until_the_true_copy_comes(scene):
    event = scene.message("the original", advance=False)
    true_copy = scene.origin.events.pop(event.event_id)
    altered = json_of(event)
    altered["content"] = {"msgtype": "m.text", "body": "altered"}
    before = scene.affairs()
    assert scene.results([altered]) == {event.event_id: {}}
    stored = scene.alice.wait_for_event(scene.room_id, event.event_id)
    assert stored["content"] == {}
    after = scene.affairs()
    assert changed(before, after).keys() == BY_A_MESSAGE and new_events(before, after) == {event.event_id}
    copy = lambda: scene.server.rows("SELECT json FROM events WHERE event_id = ?", event.event_id)[0][0]
    assert "original" not in copy() and "altered" not in copy()
    scene.origin.events[event.event_id] = true_copy
    wait_for(lambda: "the original" in copy(), "the true copy")
    assert scene.alice.event(scene.room_id, event.event_id)["content"]["body"] == "the original"
    scene.room.tips, scene.room.depth = [event.event_id], event.depth


def test_an_event_from_before_its_key_expired_is_fine(scene):
    event = scene.message("in time", key=scene.origin.old_key, origin_server_ts=scene.origin.old_key_expired_ts - 1000)
    assert scene.results([event]) == {event.event_id: {}}
    scene.alice.wait_for_event(scene.room_id, event.event_id)


def test_an_event_of_65536_bytes_is_fine(scene):
    event = message_of(scene, 65_536)
    assert scene.results([event]) == {event.event_id: {}}
    scene.alice.wait_for_event(scene.room_id, event.event_id)


def test_a_room_we_are_not_in_is_not_shown(scene, start, nothing_changes):
    stranger = start(FakeOrigin)
    room = segment(scene.room_id)
    event = segment(scene.room.tips[0])
    for path in (f"state/{room}?event_id={event}", f"state_ids/{room}?event_id={event}", f"event/{event}"):
        answer = stranger.request(scene.server, "GET", f"/_matrix/federation/v1/{path}")
        assert refusal(answer) == (403, "M_FORBIDDEN"), path


def empty_transaction(origin):
    return {"origin": origin.name, "origin_server_ts": now_ms(), "pdus": []}


def refusal(answer):
    return answer.status_code, answer.json().get("errcode")


def put(scene, body):
    """Sends a body exactly as it is; status and errcode of the answer, `None` where there is none. It is signed as if
    it were empty: most of these are refused before their signature could be checked."""
    uri = f"{SEND}/5"
    headers = {
        "Authorization": scene.origin.authorization("PUT", uri, scene.server.name),
        "Content-Type": "application/json",
    }
    context = ssl.create_default_context(cafile=str(scene.server.authority.certificate))
    connection = http.client.HTTPSConnection("localhost", scene.server.port, context=context, timeout=120)
    try:
        connection.request("PUT", uri, body, headers, encode_chunked=not isinstance(body, bytes))
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read()).get("errcode")
    except (ConnectionError, ssl.SSLError):
        return None
    finally:
        connection.close()


def message_of(scene, size, **other):
    """A message of exactly so many bytes of canonical JSON."""

    def length(event):
        return len(encode_canonical_json(json_of(event)))

    # Signatures and hashes have the same length whatever they cover.
    event = scene.message("x" * (size - length(scene.message("", advance=False))), **other)
    assert length(event) == size
    return event


def test_bodies_that_are_cut_off_leave_their_room_to_others(scene):
    """What a body takes while it is read comes back when its sender hangs up, long before it would be forgotten: beside some of these
    there is no room for a whole one."""
    context = ssl.create_default_context(cafile=str(scene.server.authority.certificate))
    length = 12_000_000

    def announced(uri):
        connection = http.client.HTTPSConnection("localhost", scene.server.port, context=context, timeout=30)
        connection.putrequest("PUT", uri)
        connection.putheader("Authorization", scene.origin.authorization("PUT", uri, scene.server.name, {}))
        connection.putheader("Content-Length", str(length))
        connection.endheaders()
        return connection

    def whole():
        with contextlib.closing(announced(f"{SEND}/whole")) as connection:
            try:
                connection.send(b"[" + b" " * (length - 1))
                return connection.getresponse().status
            except (OSError, http.client.HTTPException):
                # It was refused before all of it was sent.
                return None

    for number in range(3):
        with contextlib.closing(announced(f"{SEND}/cut-off-{number}")) as connection:
            connection.send(b"[" + b" " * (length - 1_000_000))
        wait_for(lambda: whole() == 400, "room for a whole body", 20)
