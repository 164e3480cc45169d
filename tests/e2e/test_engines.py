"""What an engine itself must do, below the narrow waist: the same tests for both, but for what only the object does."""

import http.client
import json
import re
import sqlite3
import ssl
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from client import segment
from fake_origin import FakeOrigin, HostedRoom
from net import wait_for
from worker import ROOT, Worker, _BINARIES

MIGRATIONS = sorted(path.name for path in (ROOT / "migrations").iterdir())
# The longest body of a log-in, and some more.
TOO_LONG = 64 * 1024 + 1
SYNC = "GET /_matrix/client/v3/sync"
SEND = "PUT /_matrix/federation/v1/send/"


@pytest.fixture(scope="module")
def costing(start):
    """A server that logs what each request costs."""
    return start(Worker, cron_seconds=3600, options=["--log-costs"])


def only_object(worker):
    if worker.engine != "object":
        pytest.skip("the Worker itself is the server over D1")


def exchange(worker, method, path, body=b"", headers=(), chunked=False):
    """The status and the JSON of an answer. Sends what a well-behaved client would not."""
    context = ssl.create_default_context(cafile=str(worker.authority.certificate))
    connection = http.client.HTTPSConnection("localhost", worker.port, context=context, timeout=60)
    try:
        sent = iter([body[:1000], body[1000:]]) if chunked else body
        connection.request(method, path, sent, dict(headers), encode_chunked=chunked)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


# Where the step of `npm test` has not built that Worker, this does.
@pytest.mark.timeout(900)
def test_the_databases_of_both_engines_keep_the_contract_of_the_narrow_waist():
    """The cases of `tests/common/contract.rs`, which the database of the native tests keeps too, in a Worker of their own."""
    package = ROOT / "tests" / "waist"
    run = {"cwd": ROOT, "capture_output": True, "text": True}
    built = subprocess.run([_BINARIES / "node", ROOT / "scripts" / "waist.mjs"], timeout=900, **run)
    assert built.returncode == 0, built.stdout + built.stderr
    answer = subprocess.run([_BINARIES / "node", package / "run.mjs", package / "build"], timeout=120, **run)
    assert answer.returncode == 0, answer.stderr
    for engine, found in json.loads(answer.stdout).items():
        assert (found["cases"], found["broken"]) == (14, []), engine


def test_the_migrations_are_noted_in_one_table_whoever_applies_them(worker):
    worker.user("migrated")
    assert worker.rows("SELECT name FROM d1_migrations ORDER BY id") == [(name,) for name in MIGRATIONS]


def test_the_way_of_the_scheduled_trigger_leads_nobody_in_from_outside(worker):
    for method in ("GET", "POST"):
        status, answer = exchange(worker, method, "/scheduled")
        assert (status, answer["errcode"]) == (404, "M_UNRECOGNIZED")


def test_the_scheduled_trigger_reaches_the_server_and_costs_little(costing):
    costing.fire_scheduled()
    line = r'"what":"scheduled".*"calls":(\d+),"rows_read":(\d+),"rows_written":(\d+)'
    wait_for(lambda: re.search(line, costing.log()), "the line of the trigger")
    calls, read, written = map(int, re.search(line, costing.log()).groups())
    print(f"the trigger: {calls} calls, {read} rows read, {written} written")
    # Once an hour it forgets what is old, too.
    assert 0 < calls <= 80


@pytest.mark.parametrize("chunked", [False, True], ids=["announced", "chunked"])
def test_a_body_that_is_too_long_is_refused_however_it_is_framed(worker, chunked):
    headers = {"Transfer-Encoding": "chunked"} if chunked else {}
    body = b'{"user":"' + b"x" * TOO_LONG + b'"}'
    status, answer = exchange(worker, "POST", "/_matrix/client/v3/login", body, headers, chunked)
    assert (status, answer["errcode"]) == (413, "M_TOO_LARGE")
    # One that is not is read, whole.
    status, answer = exchange(worker, "POST", "/_matrix/client/v3/login", body[:2000] + b'"}', headers, chunked)
    assert (status, answer["errcode"]) == (400, "M_MISSING_PARAM"), answer


def test_what_needs_no_data_never_reaches_the_object(costing):
    only_object(costing)
    before = len(_costs(costing))
    for path, status in {
        "/_matrix/federation/v1/version": 200,
        "/_matrix/key/v2/server": 200,
        "/.well-known/matrix/server": 200,
        "/_matrix/client/versions": 200,
        "/_matrix/client/v3/sync": 401,
        "/_matrix/federation/v1/event/$nothing": 401,
        "/_matrix/federation/v1/nothing": 404,
        "/": 404,
    }.items():
        assert exchange(costing, "GET", path)[0] == status, path
    status, _ = exchange(costing, "PUT", "/_matrix/federation/v1/send/1", b"x" * (14 << 20))
    assert status in (401, 413)
    # A request that does reach it is logged, and after all those before it.
    costing.user("logged")
    assert len(_costs(costing, count=before + 1)) == before + 1


def test_a_waiting_sync_is_answered_with_the_news(worker):
    alice = worker.user("waiting")
    room = alice.create_room()
    since = alice.get("/sync")["next_batch"]
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(alice.get, "/sync", since=since, timeout=30_000)
        other = worker.client()
        other.token, other.user_id = alice.token, alice.user_id
        event_id = other.say(room, "news")
        events = waiting.result(60)["rooms"]["join"][room]["timeline"]["events"]
    assert [event["event_id"] for event in events] == [event_id]


def test_an_idle_sync_looks_twice_however_long_it_waits(costing):
    only_object(costing)
    alice = costing.user("idle")
    since = alice.get("/sync")["next_batch"]
    before = len(_costs(costing, SYNC))
    alice.get("/sync", since=since, timeout=3_000)
    # Who asks, a look, which rooms to listen to, a last look.
    assert _costs(costing, SYNC, before + 1)[before:] == [4]


@contextmanager
def origins(folder, authority, count):
    made = []
    try:
        for number in range(count):
            made.append(FakeOrigin(folder / f"origin{number}", authority).start())
        yield made
    finally:
        for origin in made:
            origin.close()


def test_work_on_one_room_queues_up_and_loses_no_races(costing, authority, tmp_path):
    """Four origins send to one room at once: over D1 some of them lose and try again, in the object none takes more calls than
    it does alone."""
    only_object(costing)
    alice = costing.user("host")
    room_id = alice.create_room(preset="public_chat", room_version="12")
    with origins(tmp_path, authority, 4) as senders:
        rooms = [origin.join(costing, room_id, origin.user("guest")) for origin in senders]

        def send(origin, room, times):
            for number in range(times):
                pdus = [room.message(origin.user("guest"), f"{number}.{index}") for index in range(10)]
                answer = origin.send(costing, pdus)
                assert answer.json()["pdus"] == {pdu.event_id: {} for pdu in pdus}, answer.text

        # One after the other; the first transactions fetch keys. Each speaks on a fork of its own, whose state is resolved.
        for turn in range(3):
            for origin, room in zip(senders, rooms):
                send(origin, room, 1)
        alone = _costs(costing, SEND, 12)[4:]
        with ThreadPoolExecutor(4) as pool:
            for done in [pool.submit(send, origin, room, 10) for origin, room in zip(senders, rooms)]:
                done.result(120)
    at_once = _costs(costing, SEND, 52)[12:]
    assert len(at_once) == 40 and max(at_once) <= max(alone), (alone, at_once)


# The members of a large room.
MEMBERS = 5_000


@pytest.mark.timeout(300)
def test_others_are_served_while_a_large_room_is_joined(worker, authority, tmp_path):
    alice, bob = worker.user("speaker"), worker.user("newcomer")
    room = alice.create_room()
    with origins(tmp_path, authority, 1) as (origin,):
        hosted = HostedRoom(origin, MEMBERS)

        def say():
            begun = time.monotonic()
            alice.say(room, "hello")
            return begun, time.monotonic()

        alone = sorted(end - begun for begun, end in [say() for _ in range(30)])
        with ThreadPoolExecutor(1) as pool:
            joining = pool.submit(bob.post, f"/join/{segment(hosted.room.room_id)}?via={segment(origin.name)}")
            said = []
            while not joining.done():
                said.append(say())
            joined = time.monotonic()
            joining.result(120)
    (answered,) = hosted.joins_answered
    meanwhile = sorted(end - begun for begun, end in said if end > answered)
    print(f"an event takes {alone[15] * 1000:.0f} ms, {alone[-1] * 1000:.0f} at most; {len(meanwhile)} were sent in the "
          f"{joined - answered:.1f} s of the join, in {meanwhile[-1] * 1000:.0f} ms at most: {[round(t * 1000) for t in meanwhile]}")
    assert len(bob.members(hosted.room.room_id)) == MEMBERS + 2
    # Were the answer checked in one piece, it would be two or three.
    assert len(meanwhile) >= 10


def test_a_database_that_is_newer_is_refused_with_a_sentence(start):
    worker = start(Worker, cron_seconds=3600)
    only_object(worker)
    alice = worker.user("alice")
    room = alice.create_room(name="kept")
    worker.stop()
    path = worker.database()
    with sqlite3.connect(path) as database:
        database.execute("INSERT INTO d1_migrations (name) VALUES ('9999_future.sql')")
    with pytest.raises(AssertionError, match="9999_future.sql"):
        worker.start()
    worker.stop()
    with sqlite3.connect(path) as database:
        database.execute("DELETE FROM d1_migrations WHERE name = '9999_future.sql'")
    worker.start()
    assert alice.get(f"/rooms/{segment(room)}/state/m.room.name") == {"name": "kept"}


def _costs(worker, request="", count=0):
    """How many calls to the database each such request took, in the order of the log, which is written a moment after the
    answers: as soon as it has this many."""
    method, _, endpoint = request.partition(" ")
    asked = rf'"method":"{method}","endpoint":"{endpoint}.*' if request else ""
    # What the front answers itself takes none.
    line = re.compile(rf'"what":"request".*{asked}"calls":([1-9]\d*)')
    deadline = time.monotonic() + 10
    while len(found := line.findall(worker.log())) < count and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(found) >= count, worker.log()[-2000:]
    return [int(calls) for calls in found]
