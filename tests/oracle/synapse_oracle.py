"""What Synapse's own code says about a room: one JSON request a line on stdin, one answer a line on stdout.

A request is {"version", "events": [{"json", "rejected", "state"}], "resolve": [[set, ...], ...]}. `json` is the event
as text, `state` the positions of the state events that it is judged by (null: it is not judged), a `set` the positions of
the events of one state.

An answer is {"events": [{"id", "hash", "redacted", "keys", "independent", "dependent"}], "resolved": [...]}: the event ID,
the content hash, the redacted event as canonical JSON, the (type, state_key) pairs that auth events selection selects, and
why the state-independent and the state-dependent authorisation rules refuse the event (null: they do not); for each entry of
`resolve` the resolved state as [type, state_key, event ID] in order. What raises an exception is {"error": ...} or refused.
"""

import hashlib
import json
import sys

import synapse.server  # noqa: F401  (first: event_auth and state import each other)
from canonicaljson import encode_canonical_json
from synapse import event_auth
from synapse.api.room_versions import KNOWN_ROOM_VERSIONS, StateResolutionVersions
from synapse.crypto.event_signing import compute_content_hash
from synapse.events import make_event_from_json
from synapse.events.utils import prune_event
from synapse.state import v1, v2
from synapse.storage.databases.main.event_federation import StateDifference
from unpaddedbase64 import encode_base64


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


def reason_of(check):
    """Why a check refuses, or None."""
    try:
        check()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def judge(event, state, store, version):
    pdu = event.get_pdu_json()
    pdu.pop("unsigned", None)
    redacted = prune_event(event).get_pdu_json()
    redacted.pop("unsigned", None)
    try:
        keys = sorted(event_auth.auth_types_for_event(version, event))
    except Exception:
        keys = None
    return {
        "id": event.event_id,
        "hash": encode_base64(compute_content_hash(pdu, hashlib.sha256)[1]),
        "redacted": encode_canonical_json(redacted).decode(),
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
    return {"events": verdicts, "resolved": resolved}


def main():
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


main()
