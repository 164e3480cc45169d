"""The part of the bench that measures what other servers read, in a room of some 4,600 messages."""

import json
import time
from statistics import median

from client import segment
from fake_origin import json_of

# How often each is asked, in turns between the servers.
TIMES = 30
V1 = "/_matrix/federation/v1"


def measure(contestants):
    """By what is asked for, the median milliseconds of each contestant, in their order."""
    asked = [_requests(contestant) for contestant in contestants]
    times = {name: [[] for _ in contestants] for name in asked[0]}
    for turn in range(TIMES + 1):
        for index, (contestant, requests) in enumerate(zip(contestants, asked)):
            contestant.connect()
            for name, make in requests.items():
                method, uri, content = make()
                seconds, answer = _timed(contestant, method, uri, content)
                assert answer.get("errcode") is None, (contestant.name, name, answer)
                # The first one warms what is remembered.
                if turn > 0:
                    times[name][index].append(seconds * 1000)
    return {name: [median(values) for values in each] for name, each in times.items()}


def line_of(name, times, versions):
    """A line of the report: reached where ours takes no longer than theirs and our `version`, on each engine."""
    theirs, *ours = times
    limits = [theirs + version for version in versions[1:]]
    reached = all(mine <= limit for mine, limit in zip(ours, limits))
    return (f"  {name}", [f"{time:.1f} ms" for time in times], " | ".join(f"{limit:.1f}" for limit in limits) + " ms", reached)


def _requests(contestant):
    """What makes each request anew: method, path and query, body."""
    origin, room = contestant.origin, segment(contestant.room_id)
    events = contestant.event_ids
    last = segment(events[-1])
    missing = {"earliest_events": [events[-60]], "latest_events": [events[-1]], "limit": 20}
    alias = segment(contestant.alias)
    newcomers = iter(range(10_000))
    versions = "&".join(f"ver={version}" for version in ("10", "11", "12"))

    def make_join():
        newcomer = origin.user(f"newcomer{next(newcomers)}")
        return "GET", f"{V1}/make_join/{room}/{segment(newcomer)}?{versions}", None

    def send_join():
        # The template is asked for before the clock starts.
        _, answer = _timed(contestant, *make_join())
        join = origin.signed(contestant.room.version, answer["event"])
        return "PUT", f"/_matrix/federation/v2/send_join/{room}/{segment(join.event_id)}", json_of(join)

    def get(path):
        return lambda: ("GET", f"{V1}/{path}", None)

    return {
        "version": get("version"),
        "key": lambda: ("GET", "/_matrix/key/v2/server", None),
        "event": get(f"event/{last}"),
        "state_ids": get(f"state_ids/{room}?event_id={last}"),
        "state": get(f"state/{room}?event_id={last}"),
        "event_auth": get(f"event_auth/{room}/{last}"),
        "backfill of 100": get(f"backfill/{room}?v={last}&limit=100"),
        "get_missing_events of 20": lambda: ("POST", f"{V1}/get_missing_events/{room}", missing),
        "make_join": make_join,
        "send_join": send_join,
        "query/directory": get(f"query/directory?room_alias={alias}"),
    }


def _timed(contestant, method, uri, content):
    """How long the answer takes, in seconds, and the answer."""
    headers = {"Authorization": contestant.origin.authorization(method, uri, contestant.server.name, content)}
    body = None
    if content is not None:
        headers["Content-Type"] = "application/json"
        body = json.dumps(content).encode()
    start = time.perf_counter()
    contestant.connection.request(method, uri, body, headers)
    answer = contestant.connection.getresponse()
    text = answer.read()
    seconds = time.perf_counter() - start
    assert answer.status == 200, (contestant.name, method, uri, text)
    return seconds, json.loads(text)
