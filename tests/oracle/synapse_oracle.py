"""What Synapse's own code says about a room: one JSON request a line on stdin, one answer a line on stdout.

A request is {"version", "events": [{"json", "rejected", "state"}], "resolve": [[set, ...], ...], "pdus": [{"json", "keys"}]}.
`json` is an event as text, `state` the positions of the state events that it is judged by (null: it is not judged), a `set`
the positions of the events of one state. The room is that of the first event; events of other rooms may be among them, as
what others cite. `pdus` stand by themselves, and may be malformed; `keys` are {server: {key ID: [base64, valid until]}}.

An answer is {"events": [{"id", "hash", "redacted", "size", "keys", "independent", "dependent"}], "resolved": [...],
"pdus": [...]}: the event ID, the content hash, the redacted event as canonical JSON, why its size has it rejected, the
(type, state_key) pairs that auth events selection selects, and why the state-independent and the state-dependent
authorisation rules refuse the event (null: they do not); for each entry of `resolve` the resolved state as
[type, state_key, event ID] in order. What raises an exception is {"error": ...} or refused. For each of `pdus` it is
{"dropped": why} or {"id", "rejected": why or null, "unsigned": why or null, "checked"}: `checked` is the event as canonical
JSON after the check of its content hash, redacted where that is wrong, or null where the check fails otherwise.
"""

import hashlib
import json
import logging
import sys

import synapse.server  # noqa: F401  (first: event_auth and state import each other)
from canonicaljson import encode_canonical_json
from signedjson.key import decode_verify_key_bytes
from synapse import event_auth
from synapse.api.room_versions import KNOWN_ROOM_VERSIONS, StateResolutionVersions
from synapse.crypto.event_signing import check_event_content_hash, compute_content_hash
from synapse.crypto.keyring import Keyring
from synapse.events import make_event_from_json
from synapse.events.utils import prune_event
from synapse.federation.federation_base import _check_sigs_on_pdu, event_from_pdu_json
from synapse.handlers.federation_event import FederationEventHandler
from synapse.state import v1, v2
from synapse.storage.databases.main.event_federation import StateDifference
from synapse.storage.keys import FetchKeyResult
from unpaddedbase64 import decode_base64, encode_base64


def run(coroutine):
    """The result of a coroutine that never has to wait."""
    try:
        coroutine.send(None)
    except StopIteration as result:
        return result.value
    raise RuntimeError("the coroutine waits for something")


class Store:
    """Events, and the walks over them that Synapse's database would make."""

    def __init__(self, events):
        self.events = events

    async def get_events(self, event_ids, *_args, **_kwargs):
        return {i: self.events[i] for i in event_ids if i in self.events}

    def chain(self, event_ids):
        """The events and all that they stand on, as far as it is known."""
        seen, stack = set(), list(event_ids)
        while stack:
            event_id = stack.pop()
            if event_id in self.events and event_id not in seen:
                seen.add(event_id)
                stack.extend(self.events[event_id].auth_event_ids())
        return seen

    async def get_auth_chain_difference(self, _room_id, state_sets, conflicted_state, backwards_too):
        """Of events that are not in Synapse's `event_map`."""
        chains = [self.chain(state_set) for state_set in state_sets]
        difference = set.union(*chains) - set.intersection(*chains)
        subgraph = None
        if conflicted_state is not None:
            backwards = self.chain(conflicted_state | backwards_too)
            subgraph = {i for i in backwards if not self.chain([i]).isdisjoint(conflicted_state)}
        return StateDifference(auth_difference=difference, conflicted_subgraph=subgraph)


class Clock:
    async def sleep(self, _duration):
        pass


class Keys(Keyring):
    """A key ring that has fetched its keys, and belongs to no server."""

    def __init__(self, keys):
        self.found = {
            server: {
                key_id: FetchKeyResult(decode_verify_key_bytes(key_id, decode_base64(key)), valid_until_ts)
                for key_id, (key, valid_until_ts) in keys.items()
            }
            for server, keys in keys.items()
        }
        self._fetch_keys_queue = self

    def _is_mine_server_name(self, _server):
        return False

    async def add_to_queue(self, _request, key):
        return self.found


def reason_of(check):
    """Why a check refuses, or None."""
    try:
        check()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def canonical(event):
    pdu = event.get_pdu_json()
    pdu.pop("unsigned", None)
    return encode_canonical_json(pdu).decode()


def judge(event, state, store, version):
    try:
        keys = sorted(event_auth.auth_types_for_event(version, event))
    except Exception:
        keys = None
    return {
        "id": event.event_id,
        "hash": encode_base64(compute_content_hash(event.get_pdu_json(), hashlib.sha256)[1]),
        "redacted": canonical(prune_event(event)),
        "size": reason_of(lambda: event_auth._check_size_limits(event)),
        "keys": keys,
        "independent": reason_of(lambda: run(event_auth.check_state_independent_auth_rules(store, event))),
        "dependent": reason_of(lambda: event_auth.check_state_dependent_auth_rules(event, state)),
    }


def resolve(sets, events, version, room_id):
    try:
        # They are all as it were in flight, so that Synapse's own walk finds the auth difference.
        event_map, store = dict(events), Store(events)
        if version.state_res == StateResolutionVersions.V1:
            answer = run(v1.resolve_events_with_store(room_id, version, sets, event_map, store.get_events))
        else:
            answer = run(v2.resolve_events_with_store(Clock(), room_id, version, sets, event_map, store))
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return sorted([event_type, state_key, event_id] for (event_type, state_key), event_id in answer.items())


def check(pdu, version):
    """The checks of a PDU that need no other event."""
    try:
        event = event_from_pdu_json(json.loads(pdu["json"]), version)
        FederationEventHandler._sanity_check_event(None, event)
    except Exception as error:
        return {"dropped": f"{type(error).__name__}: {error}"}
    rejected = None
    try:
        event_auth._check_size_limits(event)
    except Exception as error:
        if getattr(error, "unpersistable", True):
            return {"dropped": f"{type(error).__name__}: {error}"}
        rejected = str(error)
    answer = {"id": event.event_id, "rejected": rejected}
    if pdu["keys"] is not None:
        answer["unsigned"] = reason_of(lambda: run(_check_sigs_on_pdu(Keys(pdu["keys"]), version, event)))
        try:
            answer["checked"] = canonical(event if check_event_content_hash(event) else prune_event(event))
        except Exception:
            answer["checked"] = None
    return answer


def answer(request):
    version = KNOWN_ROOM_VERSIONS[request["version"]]
    events = [
        make_event_from_json(e["json"], version, rejected_reason="rejected" if e["rejected"] else None)
        for e in request["events"]
    ]
    store = Store({event.event_id: event for event in events})
    verdicts = [
        e["state"] is not None and judge(event, [events[i] for i in e["state"]], store, version)
        for event, e in zip(events, request["events"])
    ]
    resolved = []
    if request["resolve"]:
        room_id = events[0].room_id
        # Synapse stores no event of version 12 that cites the create event, and cannot walk through one.
        readable = (event for event in events if reason_of(event.auth_event_ids) is None)
        own = {event.event_id: event for event in readable if event.room_id == room_id}
        for state_sets in request["resolve"]:
            sets = [{(events[i].type, events[i].state_key): events[i].event_id for i in s} for s in state_sets]
            resolved.append(resolve(sets, own, version, room_id))
    return {"events": verdicts, "resolved": resolved, "pdus": [check(pdu, version) for pdu in request["pdus"]]}


def main():
    logging.disable()
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


main()
