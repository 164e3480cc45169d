"""What an engine itself must do, below the narrow waist: the same tests for both, but for what only the object does."""

import http.client
import json
import os
import re
import secrets
import sqlite3
import ssl
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event

import pytest
import requests

from client import ApiError, segment
from fake_origin import FakeOrigin, HostedRoom
from load import loading
from net import PATIENCE, wait_for
from worker import ROOT, Worker, _BINARIES

MIGRATIONS = sorted(path.name for path in (ROOT / "migrations").iterdir())
# The longest body of a log-in, and some more.
TOO_LONG = 64 * 1024 + 1
# As long as the body of a client's request may be; it is too long with anything around it.
LONGEST = 1 << 20
SYNC = "GET /_matrix/client/v3/sync"
SEND = "PUT /_matrix/federation/v1/send/"


@pytest.fixture(scope="module")
def costing(start):
    """A server that logs what each request costs."""
    return start(Worker, cron_seconds=3600, options=["--log-costs"])


@pytest.fixture(scope="module")
def watched(start):
    """A server that says what has reached its object."""
    return start(Worker, cron_seconds=3600, options=RESETTABLE)


def only_object(worker):
    if worker.engine != "object":
        pytest.skip("the Worker itself is the server over D1")


def exchange(worker, method, path, body=b"", headers=(), chunked=False, parse=True):
    """The status and the JSON of an answer, or its text. Sends what a well-behaved client would not."""
    context = ssl.create_default_context(cafile=str(worker.authority.certificate))
    connection = http.client.HTTPSConnection("localhost", worker.port, context=context, timeout=60)
    try:
        sent = iter([body[:1000], body[1000:]]) if chunked else body
        connection.request(method, path, sent, dict(headers), encode_chunked=chunked)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read()) if parse else answer.read().decode()
    finally:
        connection.close()


# Where the step of `npm test` has not built that Worker, this does.
def test_the_databases_of_both_engines_keep_the_contract_of_the_narrow_waist():
    """The cases of `tests/common/contract.rs`, which the database of the native tests keeps too, in a Worker of their own."""
    package = ROOT / "tests" / "waist"
    run = {"cwd": ROOT, "capture_output": True, "text": True}
    built = subprocess.run([_BINARIES / "node", ROOT / "scripts" / "waist.mjs"], timeout=800, **run)
    assert built.returncode == 0, built.stdout + built.stderr
    answer = subprocess.run([_BINARIES / "node", package / "run.mjs", package / "build"], timeout=120, **run)
    assert answer.returncode == 0, answer.stderr
    for engine, found in json.loads(answer.stdout).items():
        assert (found["cases"], found["broken"]) == (15, []), engine


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


@pytest.mark.parametrize("chunked", [False, True], ids=["announced", "chunked"])
def test_a_body_of_a_user_reaches_the_object_whole_or_not_at_all(watched, chunked):
    only_object(watched)
    alice = watched.user(f"writer{chunked:d}")
    path = f"/_matrix/client/v3/user/{segment(alice.user_id)}/account_data/m.long"
    headers = {"Authorization": f"Bearer {alice.token}"}
    framed = {**headers, "Transfer-Encoding": "chunked"} if chunked else headers
    content = {"text": "word \u00e9 " * 5_000}
    body = json.dumps(content, ensure_ascii=False).encode()
    assert exchange(watched, "PUT", path, body, framed, chunked) == (200, {})
    assert exchange(watched, "GET", path, headers=headers) == (200, content)
    before = exchange(watched, "GET", "/__reached")
    status, answer = exchange(watched, "PUT", path, json.dumps({"text": "x" * LONGEST}).encode(), framed, chunked)
    assert (status, answer["errcode"]) == (413, "M_TOO_LARGE")
    assert exchange(watched, "GET", "/__reached") == before


def test_a_web_page_may_read_what_is_refused(worker):
    alice = worker.user("browsing")
    path = f"/_matrix/client/v3/user/{segment(alice.user_id)}/account_data/m.long"
    status, headers, answer = _ask(worker, "PUT", path, {"text": "x" * LONGEST}, Authorization=f"Bearer {alice.token}")
    assert (status, answer["errcode"], headers.get("Access-Control-Allow-Origin")) == (413, "M_TOO_LARGE", "*")


def test_only_what_writes_begins_a_transaction(watched):
    only_object(watched)
    alice = watched.user("reader")
    room = alice.create_room()
    alice.say(room, "hello")

    def transactions():
        return exchange(watched, "GET", "/__transactions")[1]

    before = transactions()
    alice.get(f"/rooms/{segment(room)}/messages", dir="b")
    alice.get(f"/rooms/{segment(room)}/state")
    alice.get("/joined_rooms")
    assert transactions() == before
    alice.say(room, "again")
    assert transactions() > before


def test_what_the_worker_in_front_does_itself_is_counted(costing):
    costing.user("counted")
    line = r'"endpoint":"/_matrix/client/v3/register".*"calls":(\d+),"rows_read":(\d+),"rows_written":(\d+)'
    wait_for(lambda: re.search(line, costing.log()), "the line of the registration")
    calls, read, written = map(int, re.search(line, costing.log()).groups())
    print(f"a registration: {calls} calls, {read} rows read, {written} written")
    assert calls > 0 and read > 0 and written > 0


def test_what_needs_no_data_never_reaches_the_object(costing):
    only_object(costing)
    before = _written(costing)
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
    # The request that marks the log's end does reach it, and none before it.
    assert _written(costing) == before + 1


def test_a_waiting_sync_is_answered_with_the_news(worker):
    alice = worker.user("waiting")
    room = alice.create_room()
    since = alice.get("/sync")["next_batch"]
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(alice.get, "/sync", since=since, timeout=30_000)
        other = worker.client()
        other.token, other.user_id = alice.token, alice.user_id
        # The sync waits by now. One that nothing wakes finds the news, too, but at its end.
        time.sleep(1)
        event_id = other.say(room, "news")
        events = waiting.result(20)["rooms"]["join"][room]["timeline"]["events"]
    assert [event["event_id"] for event in events] == [event_id]


def test_a_request_runs_to_its_end_though_its_client_hangs_up():
    """The platform cuts off what nothing waits for; the local runtime does not, so this reads what the Worker hands to it."""
    built = (ROOT / "build" / "index.js").read_text()
    assert re.search(r"\.prototype\.fetch=async function\b[^}]*\.ctx\.waitUntil\(", built)


def test_an_idle_sync_looks_twice_however_long_it_waits(costing):
    only_object(costing)
    alice = costing.user("idle")
    before = len(_costs(costing, SYNC)) + 1
    since = alice.get("/sync")["next_batch"]
    _costs(costing, SYNC, before)
    alice.get("/sync", since=since, timeout=3_000)
    # Who asks, a look, which rooms to listen to, a last look, how many one-time keys are left by then.
    assert _costs(costing, SYNC, before + 1)[before:] == [5]


def test_passwords_are_hashed_outside_the_object(start):
    """Each way to show a password is answered by the Worker in front, which asks the object for rows alone."""
    worker = start(Worker, cron_seconds=3600, options=RESETTABLE)
    only_object(worker)
    alice, bob = worker.user("alice", "first"), worker.user("bob")
    room = alice.create_room(invite=[bob.user_id])
    bob.join(room)
    shown = {"type": "m.login.password", "identifier": {"type": "m.id.user", "user": "alice"}}

    def log_in(password):
        return alice.post("/login", {**shown, "password": password})

    for wrong in ("second", ""):
        with pytest.raises(ApiError) as refused:
            log_in(wrong)
        assert refused.value.status == 403
    device = log_in("first")["device_id"]
    alice.post("/account/password", {"new_password": "second", "logout_devices": False, "auth": {**shown, "password": "first"}})
    assert log_in("second")["user_id"] == alice.user_id
    since = bob.get("/sync")["next_batch"]
    alice.post("/delete_devices", {"devices": [device], "auth": {**shown, "password": "second"}})
    alice.call("DELETE", f"/_matrix/client/v3/devices/{device}", {"auth": {**shown, "password": "second"}})
    with ThreadPoolExecutor(1) as pool:
        # Who waits in the object hears of what the Worker in front has done.
        waiting = pool.submit(bob.get, "/sync", since=since, timeout=60_000)
        alice.post("/account/deactivate", {"auth": {**shown, "password": "second"}})
        told = waiting.result(25)["rooms"]["join"][room]["timeline"]["events"]
    assert [(event["state_key"], event["content"]["membership"]) for event in told] == [(alice.user_id, "leave")]
    reached = requests.get(f"{worker.base}/__reached", verify=str(worker.authority.certificate), timeout=60).json()
    taking = re.compile("POST .*/(login|register|account/password|account/deactivate|delete_devices)|DELETE .*/devices/")
    assert [request for request in reached if taking.match(request)] == []
    assert "POST /batch" in reached and "GET /_matrix/client/v3/sync" in reached


def test_batches_from_the_front_count_as_work_of_the_object(start):
    """What reaches the object by way of the Worker in front is bounded together, however many isolates send it."""
    worker = start(Worker, cron_seconds=3600, options=RESETTABLE)
    only_object(worker)
    worker.user("alice", "secret")
    shown = {"type": "m.login.password", "identifier": {"type": "m.id.user", "user": "alice"}, "password": "secret"}
    asked = {"path": "/_matrix/client/v3/login", "body": shown}
    _, answered = exchange(worker, "POST", "/__crowded", json.dumps(asked).encode())
    meanwhile, afterwards = answered["meanwhile"], answered["afterwards"]
    assert (meanwhile["status"], meanwhile["body"]["errcode"]) == (503, "M_UNKNOWN"), answered
    assert int(meanwhile["retryAfter"]) >= 1
    assert answered["outcome"]["rows"] == []
    assert (afterwards["status"], afterwards["body"]["user_id"]) == (200, f"@alice:{worker.name}"), answered


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


RESETS = 30
RESETTABLE = ["--entry", ROOT / "tests" / "e2e" / "resettable.mjs"]


@contextmanager
def ending(event):
    """Sets an event at the end, however that comes."""
    try:
        yield
    finally:
        event.set()


def test_nothing_is_lost_or_doubled_when_the_object_is_reset(start, authority, tmp_path):
    """In the middle of commits, of syncs that wait, and of joins."""
    worker = start(Worker, options=RESETTABLE)
    only_object(worker)
    alice, bob = worker.user("alice"), worker.user("bob")
    room_id = alice.create_room(preset="public_chat", room_version="12")
    hosting = FakeOrigin(tmp_path / "hosting", authority).start()
    hosted = HostedRoom(hosting, 300)
    heard, gaps, tries, stop = [], [], [0, 0], Event()
    alice.sync()

    def until_answered(work, number):
        while True:
            tries[number] += 1
            try:
                return work()
            except (ApiError, requests.RequestException) as error:
                assert not isinstance(error, ApiError) or error.status == 503, error
                time.sleep(0.02)

    def hear(timeout_ms):
        joined = until_answered(lambda: alice.sync(timeout_ms), 0).get("rooms", {}).get("join", {})
        timeline = joined.get(room_id, {}).get("timeline", {"events": []})
        if timeline.get("limited"):
            gaps.append((timeline["prev_batch"], {event["event_id"] for event in heard}))
        heard.extend(event for event in timeline["events"] if event["sender"] != alice.user_id)

    def left_out(token, known):
        """What a client pages back to from a limited timeline, up to what it has heard before."""
        while token:
            page = alice.get(f"/rooms/{segment(room_id)}/messages", **{"from": token}, dir="b", limit=100)
            for event in page["chunk"]:
                if event["event_id"] in known:
                    return
                if event["sender"] != alice.user_id:
                    yield event
            token = page.get("end")

    def listen():
        while not stop.is_set():
            hear(30_000)

    with loading(worker, room_id, authority, tmp_path) as load, ThreadPoolExecutor(2) as pool:
        listening = pool.submit(listen)
        with ending(stop), load.running():
            path = f"/join/{segment(hosted.room.room_id)}?via={segment(hosting.name)}"
            joining = pool.submit(until_answered, lambda: bob.post(path, patience=PATIENCE), 1)
            for _ in range(RESETS):
                before = len(load.acknowledged)
                status, answer = exchange(worker, "POST", "/__reset", parse=False)
                assert status == 200, answer
                wait_for(lambda: len(load.acknowledged) > before, "an acknowledged transaction", step=0.01)
            joining.result(PATIENCE)
        alice.wait_for_history(room_id, load.acknowledged)
        alice_again = worker.client()
        alice_again.token, alice_again.user_id = alice.token, alice.user_id
        alice_again.say(room_id, "the end")
        listening.result(60)
    hear(0)
    hosting.close()
    print(f"{len(load.acknowledged)} events, {tries[0]} syncs, {len(gaps)} of them limited, {tries[1]} joins")
    history = [event for event in alice.history(room_id) if event["sender"] != alice.user_id]
    assert load.is_complete(history)
    told = [event["event_id"] for event in heard if event["type"] == "m.room.message"]
    assert len(told) == len(set(told)) and set(told) <= set(load.acknowledged)
    assert load.is_complete([*heard, *(event for gap in gaps for event in left_out(*gap))]), "by sync, too"
    assert len(bob.members(hosted.room.room_id)) == 300 + 2


# So many members are more than is held in memory while they are judged.
STAGED_MEMBERS = 3_500
# How far the join of such a room is, as its tables say: its answer is read, judged, kept.
STAGES = {
    "staged": "SELECT 1 FROM claimed_events LIMIT 1",
    "judged": "SELECT 1 FROM claimed_events WHERE verdict > 0 LIMIT 1",
    "kept": "SELECT 1 FROM large_joins WHERE kept_to <> ''",
}


def test_a_large_join_survives_resets_at_each_of_its_stages(start, authority, tmp_path):
    worker = start(Worker, options=RESETTABLE)
    only_object(worker)
    bob = worker.user("bob")
    with origins(tmp_path, authority, 1) as (origin,):
        hosted = HostedRoom(origin, STAGED_MEMBERS)
        path = f"/join/{segment(hosted.room.room_id)}?via={segment(origin.name)}"

        def join():
            while True:
                try:
                    return bob.post(path, patience=120)
                except (ApiError, requests.RequestException) as error:
                    # Nothing else may come of a reset; 504 says that it goes on without its client.
                    assert not isinstance(error, ApiError) or error.status in (503, 504), error
                    time.sleep(0.2)

        passed = []
        with ThreadPoolExecutor(1) as pool:
            joining = pool.submit(join)
            for stage, sql in STAGES.items():
                # On a fast machine it may have come further already.
                wait_for(lambda: joining.done() or worker.rows(sql), stage, step=0.01)
                if not joining.done():
                    assert exchange(worker, "POST", "/__reset", parse=False)[0] == 200
                    passed.append(stage)
            joining.result(240)
    print(f"reset when it was {', '.join(passed)}")
    assert "staged" in passed, "with more members it would be reset at that stage"
    assert len(bob.members(hosted.room.room_id)) == STAGED_MEMBERS + 2


# After so many seconds without a request the local runtime ends an object.
IDLE = 11


def test_what_an_object_was_at_goes_on_after_it_was_idle_and_ended(start, authority, tmp_path):
    """With a join half done, a client's token, and the keys of another server known."""
    worker = start(Worker, cron_seconds=3600, options=[*RESETTABLE, "--log-costs"])
    only_object(worker)
    alice, bob = worker.user("alice"), worker.user("bob")
    room_id = alice.create_room(preset="public_chat", room_version="12")
    with origins(tmp_path, authority, 2) as (sender, resident):
        guest = sender.join(worker, room_id, sender.user("guest"))

        def send(text):
            pdu = guest.message(sender.user("guest"), text)
            assert sender.send(worker, [pdu]).json()["pdus"] == {pdu.event_id: {}}
            return pdu.event_id

        send("the first has the keys fetched")
        send("before")
        before = _costs(worker, SEND, 2)[-1]
        since = alice.sync()["next_batch"]
        hosted = HostedRoom(resident, STAGED_MEMBERS)
        path = f"/join/{segment(hosted.room.room_id)}?via={segment(resident.name)}"
        with ThreadPoolExecutor(1) as pool:
            joining = pool.submit(bob.post, path, patience=120)
            wait_for(lambda: joining.done() or worker.rows(STAGES["staged"]), "staged events", step=0.01)
            assert exchange(worker, "POST", "/__reset", parse=False)[0] == 200
            assert joining.exception(60) is not None
        exchange(worker, "GET", "/_matrix/client/v3/capabilities", headers={"Authorization": f"Bearer {alice.token}"})
        assert exchange(worker, "GET", "/__reached")[1] != []

        def is_ended():
            time.sleep(IDLE)
            return exchange(worker, "GET", "/__reached")[1] == []

        wait_for(is_ended, "the end of the idle object", 8 * IDLE)
        asked = len(sender.asked)
        said = send("after")
        # It reads the keys that its predecessor has kept, and nobody is asked for them again.
        assert _costs(worker, SEND, 3)[-1] <= before + 1
        assert "GET /_matrix/key/v2/server" not in sender.asked[asked:]
        timeline = alice.get("/sync", since=since)["rooms"]["join"][room_id]["timeline"]
        assert [event["event_id"] for event in timeline["events"]] == [said]

        def joined():
            try:
                return bob.post(path, patience=120)
            except (ApiError, requests.RequestException) as error:
                assert not isinstance(error, ApiError) or error.status in (503, 504), error
                return None

        wait_for(joined, "the join")
    assert len(bob.members(hosted.room.room_id)) == STAGED_MEMBERS + 2


# The members of a large room.
MEMBERS = 5_000


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
            path = f"/join/{segment(hosted.room.room_id)}?via={segment(origin.name)}"
            joining = pool.submit(bob.post, path, patience=PATIENCE)
            said = []
            while not joining.done():
                said.append(say())
            joined = time.monotonic()
            joining.result(PATIENCE)
    (answered,) = hosted.joins_answered
    meanwhile = sorted(end - begun for begun, end in said if end > answered)
    print(f"an event takes {alone[15] * 1000:.0f} ms, {alone[-1] * 1000:.0f} at most; {len(meanwhile)} were sent in the "
          f"{joined - answered:.1f} s of the join, in {meanwhile[-1] * 1000:.0f} ms at most: {[round(t * 1000) for t in meanwhile]}")
    assert len(bob.members(hosted.room.room_id)) == MEMBERS + 2
    # Were the answer checked in one piece, it would be two or three.
    assert len(meanwhile) >= 5


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


# Of each kind of request one, and some that need no data.
REQUESTS = [
    ("GET", "/_matrix/federation/v1/version"),
    ("GET", "/_matrix/key/v2/server"),
    ("GET", "/_matrix/client/versions"),
    ("GET", "/.well-known/matrix/server"),
    ("GET", "/_matrix/client/v3/sync"),
    ("POST", "/_matrix/client/v3/login"),
    ("PUT", "/_matrix/federation/v1/send/1"),
    ("GET", "/nothing"),
]


def test_the_data_moves_to_the_other_engine_and_back(start):
    secret = secrets.token_urlsafe(32)
    worker = start(Worker, cron_seconds=3600, options=[f"--move-secret={secret}", "--log-costs"])
    here = worker.engine
    (there,) = set(Worker.DATABASES) - {here}
    alice = worker.user("alice")
    room = alice.create_room(name="moving", room_alias_name="moving")
    said = [f"message {number}" for number in range(30)]
    for text in said:
        alice.say(room, text)
    alice.sync()
    for wrong in ("", "x" * len(secret), secret[:-1], secret + "x"):
        status, _, answer = _step(worker, wrong, here, there)
        assert (status, answer["errcode"]) == (403, "M_FORBIDDEN")
    status, _, answer = _step(worker, secret, there, here)
    assert status == 409 and "has nothing to move" in answer["error"], answer

    # Some steps, and then the runtime is gone.
    steps = []
    while not any(step["phase"] == "copying" and step["rows"] for step in steps):
        status, _, answer = _step(worker, secret, here, there)
        assert status == 200, answer
        steps += answer["steps"]
    for restart in (False, True):
        if restart:
            worker.crash()
            worker.start()
        for request in REQUESTS:
            status, headers, _ = _ask(worker, *request)
            assert status == 503 and int(headers["Retry-After"]) > 0, request
            # Which web pages may read, having asked whether they may send it.
            assert headers.get("Access-Control-Allow-Origin") == ("*" if "/client/" in request[1] else None), request
        for _, path in REQUESTS:
            status, _, _ = _ask(worker, "OPTIONS", path)
            assert status == (200 if "/client/" in path else 503), path
        worker.fire_scheduled()
    before = _dump(worker, here)
    assert any(_dump(worker, there).values()) and _dump(worker, there) != before
    printed = _move(worker, secret, here, there)
    compared = dict(re.findall(r"^alike +(\w+), (\d+) rows", printed, re.MULTILINE))
    assert compared == {table: str(len(rows)) for table, rows in before.items()}
    assert _dump(worker, there) == before == _dump(worker, here)
    # The engine that is still set refuses, and what it says is in the log; the other goes on where this one was.
    assert {_ask(worker, *request)[0] for request in REQUESTS} == {503}
    wait_for(lambda: f"ENGINE must be `{there}`" in worker.log(), "why it refuses")
    worker.stop()
    worker.engine = there
    worker.start()
    later = alice.say(room, "on the other side")
    assert [event["event_id"] for event in alice.news(room)] == [later]
    worker.user("newcomer")

    assert "Everything is in" in _move(worker, secret, there, here)
    assert _dump(worker, here) == _dump(worker, there)
    worker.stop()
    # Without the secret, too, the wrong engine answers nothing of what it has.
    worker.options = []
    with pytest.raises(AssertionError, match="ENGINE must"):
        worker.start()
    worker.stop()
    worker.engine = here
    worker.start()
    assert alice.bodies(room) == [*said, "on the other side"]
    alice.say(room, "back again")
    assert _step(worker, secret, here, there)[0] == 404
    assert secret not in worker.log()


def test_a_move_that_is_given_up_leaves_the_server_where_it_was(start):
    secret = secrets.token_urlsafe(32)
    worker = start(Worker, cron_seconds=3600, options=[f"--move-secret={secret}"])
    (there,) = set(Worker.DATABASES) - {worker.engine}
    alice = worker.user("alice")
    room = alice.create_room(name="staying")
    assert _step(worker, secret, worker.engine, there)[0] == 200
    assert _ask(worker, "GET", "/_matrix/client/versions")[0] == 503
    _move(worker, secret, worker.engine, there, "--cancel")
    alice.say(room, "still here")
    assert _ask(worker, "GET", "/_matrix/client/versions")[0] == 200


def _ask(worker, method, path, content=None, **headers):
    """Status, headers and JSON of an answer."""
    context = ssl.create_default_context(cafile=str(worker.authority.certificate))
    connection = http.client.HTTPSConnection("localhost", worker.port, context=context, timeout=120)
    try:
        connection.request(method, path, json.dumps(content) if content is not None else None, headers)
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), json.loads(answer.read())
    finally:
        connection.close()


def _step(worker, secret, source, target):
    """A request that makes some steps of a move."""
    return _ask(worker, "POST", "/_verge/move", {"from": source, "to": target}, Authorization=f"Bearer {secret}")


def _move(worker, secret, source, target, *options):
    """What `npm run move` prints."""
    command = [_BINARIES / "node", ROOT / "scripts" / "move.mjs", "--from", source, "--to", target]
    command += ["--url", worker.base, "--ca", worker.authority.certificate, *options]
    environment = {**os.environ, "MOVE_SECRET": secret}
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert secret not in ended.stdout + ended.stderr
    return ended.stdout


def _dump(worker, engine):
    """All rows of an engine's database, by table: but for what says which engine it is and which migrations it has."""
    with sqlite3.connect(f"file:{worker.database(engine)}?mode=ro", uri=True) as database:
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")]
        own = [name for name in tables if not re.match("sqlite_|_cf_|__|engine$|d1_migrations$", name)]
        return {name: sorted(database.execute(f"SELECT * FROM {name}"), key=repr) for name in own}


def _written(worker):
    """How many requests have taken calls, up to one that is made for this: the log's lines come in the order of the answers."""
    mark = "GET /_matrix/client/v3/profile"
    seen = len(_costs(worker, mark))
    with pytest.raises(ApiError):
        worker.client().get(f"/profile/@nobody:{worker.name}")
    _costs(worker, mark, seen + 1)
    return len(_costs(worker))


def _costs(worker, request="", count=0):
    """How many calls to the database each such request took, in the order of the log, which is written a moment after the
    answers: as soon as it has this many."""
    method, _, endpoint = request.partition(" ")
    asked = rf'"method":"{method}","endpoint":"{endpoint}.*' if request else ""
    # What the front answers itself takes none.
    line = re.compile(rf'"what":"request".*{asked}"calls":([1-9]\d*)')
    deadline = time.monotonic() + PATIENCE
    while len(found := line.findall(worker.log())) < count and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(found) >= count, worker.log()[-2000:]
    return [int(calls) for calls in found]
