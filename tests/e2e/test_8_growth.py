"""What a request reads and writes depends on its room, not on how many rooms the server has; and what history costs depends on how much
of it is asked for, not on how much there is.

A server of 10 rooms takes the requests, then 990 rooms are put into its database, and it takes them again. Another one takes them in a
room of 1,000 events, and of 100,000.
"""

import re
import sqlite3
from glob import glob

import pytest

from client import segment
from fake_origin import FakeOrigin
from net import wait_for
from worker import Worker

ROOMS = (10, 1_000)
EVENTS = (1_000, 100_000)
MARK = '"endpoint":"/_matrix/federation/v1/version"'
COST = re.compile(r"\bcalls\W+(\d+)\W+rows_read\W+(\d+)\W+rows_written\W+(\d+)")


class Requests:
    """The requests, of Alice and of a server that is with her in one room."""

    def __init__(self, worker, origin):
        self.worker, self.origin = worker, origin
        self.alice = worker.user("alice")
        self.room_id = self.alice.create_room(preset="public_chat", room_alias_name="room")
        self.room = origin.join(worker, self.room_id, origin.user("mallory"))
        self.newcomers = (origin.user(f"newcomer{number}") for number in range(100))
        for _ in range(4):
            self.last = self.send(50)

    def costs(self):
        """D1 calls, rows read and rows written, by what was asked for. Keys are in memory then."""
        self.settle()
        room, event = segment(self.room_id), segment(self.last)
        known = [event_id for event_id, made in self.origin.events.items() if made.type == "m.room.message"]
        missing = {"earliest_events": known[-40:-39], "latest_events": [self.last], "limit": 20}
        newcomer = segment(next(self.newcomers))
        found = {
            "`/send`, 1 PDU": self.cost(lambda: self.send(1)),
            "`/send`, 50 PDUs": self.cost(lambda: self.send(50)),
            "local event": self.cost(self.say),
            "`/state`": self.cost(lambda: self.alice.state_events(self.room_id)),
            "`/messages`, 10": self.cost(lambda: next(self.alice.pages(self.room_id, 10))),
        }
        self.alice.sync()
        self.settle()
        found["idle `/sync`"] = self.cost(self.alice.sync)
        for name, path in {
            "`event`": f"event/{event}",
            "`event_auth`": f"event_auth/{room}/{event}",
            "`state`": f"state/{room}?event_id={event}",
            "`state_ids`": f"state_ids/{room}?event_id={event}",
            "`backfill`, 100": f"backfill/{room}?v={event}&limit=100",
            "`make_join`": f"make_join/{room}/{newcomer}?ver={self.room.version.identifier}",
            "`query/directory`": f"query/directory?room_alias={segment(f'#room:{self.worker.name}')}",
            "`timestamp_to_event`": f"timestamp_to_event/{room}?ts=1&dir=f",
            "`user/devices`": f"user/devices/{segment(self.alice.user_id)}",
        }.items():
            found[name] = self.cost(lambda path=path: self.signed("GET", path))
        found["`get_missing_events`, 20"] = self.cost(lambda: self.signed("POST", f"get_missing_events/{room}", missing))
        return found

    def send(self, count):
        """A transaction of so many messages; the ID of the last."""
        sender = self.origin.user("mallory")
        pdus = [self.room.message(sender, f"message {number}") for number in range(count)]
        answer = self.origin.send(self.worker, pdus)
        assert answer.ok and answer.json()["pdus"] == {pdu.event_id: {} for pdu in pdus}, answer.text
        return pdus[-1].event_id

    def say(self):
        """A message of Alice's, which what the other server sends next cites: a fork would cost more."""
        self.room.tips = [self.alice.say(self.room_id, "hello")]

    def signed(self, method, path, content=None):
        answer = self.origin.request(self.worker, method, f"/_matrix/federation/v1/{path}", content)
        assert answer.ok, answer.text
        return answer.json()

    def settle(self):
        """Remembers this server's key in the isolate, and waits until the log has told all."""
        self.signed("GET", f"event/{segment(self.last)}")
        self.mark()

    def mark(self):
        """Makes a mark in the log, whose lines come in the order of the answers."""
        before = self.worker.log().count(MARK)
        self.alice.get("/_matrix/federation/v1/version")
        wait_for(lambda: self.worker.log().count(MARK) > before, "the mark in the log")

    def cost(self, work):
        """What the one request of `work` costs, by the Worker's log."""
        before = len(COST.findall(self.worker.log()))
        work()
        self.mark()
        figures = COST.findall(self.worker.log())[before:]
        assert len(figures) == 2, f"its own, and that of the mark: {figures}"
        return tuple(map(int, figures[0]))


def fill(worker, room_id, rooms):
    """Makes copies of all rooms but this one in the database of a Worker that is stopped, until there are so many."""
    (path,) = [path for path in glob(f"{worker.folder}/data/v3/d1/miniflare-D1DatabaseObject/*.sqlite") if "metadata" not in path]
    with sqlite3.connect(path) as database:
        (others,) = database.execute("SELECT count(*) FROM rooms WHERE room_id <> ?", (room_id,)).fetchone()
        copies = (rooms - others - 1) // others
        (offset,) = database.execute("SELECT max(event_nid) FROM events").fetchone()
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            columns = database.execute(f"SELECT name, type FROM pragma_table_info('{table}')").fetchall()
            names = {name for name, _ in columns}
            if not names & {"room_id", "node_id", "cited"} or table == "outbox":
                continue
            sql = f"""
                WITH RECURSIVE copy(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM copy WHERE n < {copies})
                INSERT OR IGNORE INTO {table} SELECT {", ".join(copied(*column, offset) for column in columns)}
                FROM {table}, copy {"WHERE room_id <> ?1" if "room_id" in names else "WHERE ?1 <> ''"}"""
            database.execute(sql, (room_id,))
    database.close()


def copied(name, kind, offset):
    if name == "event_nid":
        return f"event_nid + n * {offset}"
    if kind == "TEXT" and (name.endswith("_id") or name in ("cited", "citing", "redacts")):
        return f"{name} || '~' || n"
    return name


@pytest.fixture(scope="module")
def costs(start, authority, tmp_path_factory):
    """What each request costs, in the server of 10 rooms and in that of 1,000."""
    worker = start(Worker, cron_seconds=3600, options=["--log-costs"])
    origin = FakeOrigin(tmp_path_factory.mktemp("growth-origin"), authority).start()
    try:
        requests = Requests(worker, origin)
        bob = worker.user("bob")
        for number in range(ROOMS[0] - 1):
            room_id = bob.create_room(name=f"Room {number}")
            bob.say(room_id, "hello")
        few = requests.costs()
        worker.stop()
        fill(worker, requests.room_id, ROOMS[1])
        worker.start()
        assert worker.rows("SELECT count(*) FROM rooms") == [(ROOMS[1],)]
        many = requests.costs()
    finally:
        origin.close()
    print(f"\n| | in a server of {ROOMS[0]} rooms | of {ROOMS[1]:,} |\n|---|---:|---:|")
    for name in few:
        print(f"| {name} | {' / '.join(map(str, few[name]))} | {' / '.join(map(str, many[name]))} |")
    return few, many


def test_costs_do_not_grow_with_the_number_of_rooms(costs):
    few, many = costs
    assert all(read > 0 for _, read, _ in few.values()), "the rows are counted"
    grown = {
        name: (few[name], many[name])
        for name in few
        if any(abs(now - before) > 0.05 * before for before, now in zip(few[name], many[name]))
    }
    assert not grown


def test_other_servers_reads_take_two_calls(costs):
    few, _ = costs
    reads = {"event", "event_auth", "state", "state_ids", "backfill", "get_missing_events", "timestamp_to_event"}
    reads |= {"make_join", "query/directory", "user/devices"}
    measured = {name.split(",")[0].strip("`"): cost for name, cost in few.items()}
    assert reads <= measured.keys()
    for name in reads:
        calls, _, written = measured[name]
        assert calls <= 2 and written == 0, name


# The ID of an event of a long history.
NUMBERED = "$%043d"


def prolong(worker, room_id, event_id, begin, end):
    """Puts so many copies of a message into the room of a Worker that is stopped, below all that it has, each of which cites the next."""
    with sqlite3.connect(worker.database()) as database:
        columns = [name for _, name, *_ in database.execute("PRAGMA table_info('events')")]
        made = {
            "event_nid": "(SELECT max(event_nid) FROM events) + n",
            "event_id": f"printf('{NUMBERED}', n)",
            "depth": "1000000 - n",
            "pos": "-n",
            "json": f"json_set(json, '$.prev_events', json_array(printf('{NUMBERED}', n + 1)), '$.depth', 1000000 - n)",
        }
        numbers = f"WITH RECURSIVE number(n) AS (SELECT {begin} UNION ALL SELECT n + 1 FROM number WHERE n < {end - 1})"
        columns = ", ".join(made.get(name, name) for name in columns)
        database.execute(f"{numbers} INSERT INTO events SELECT {columns} FROM events, number WHERE event_id = ?1", (event_id,))
        database.execute(
            f"{numbers} INSERT INTO timeline (room_id, pos, event_nid) "
            f"SELECT room_id, -n, event_nid FROM number, events WHERE event_id = printf('{NUMBERED}', n)"
        )
        assert database.execute("SELECT count(*) FROM timeline WHERE room_id = ?", (room_id,)).fetchone()[0] >= end - 1
    database.close()


def test_history_costs_what_is_asked_for_however_long_the_room_is(start, authority, tmp_path):
    worker = start(Worker, cron_seconds=3600, options=["--log-costs"])
    origin = FakeOrigin(tmp_path / "origin", authority).start()
    found = []
    try:
        requests = Requests(worker, origin)
        room, begun = segment(requests.room_id), 1
        for events in EVENTS:
            worker.stop()
            prolong(worker, requests.room_id, requests.last, begun, events)
            begun = events
            worker.start()
            requests.settle()
            costs = {}
            for name, first in {"the newest": requests.last, "the midst": NUMBERED % 500}.items():
                path = f"backfill/{room}?v={segment(first)}&limit=100"
                assert len(requests.signed("GET", path)["pdus"]) == 100
                requests.settle()
                costs[f"backfill of 100 from {name}"] = requests.cost(lambda path=path: requests.signed("GET", path))
            missing = {"earliest_events": [NUMBERED % 700], "latest_events": [NUMBERED % 500], "limit": 20}
            answer = requests.signed("POST", f"get_missing_events/{room}", missing)
            assert [event["depth"] for event in answer["events"]] == [1_000_000 - n for n in range(520, 500, -1)]
            requests.settle()
            costs["get_missing_events of 20"] = requests.cost(
                lambda: requests.signed("POST", f"get_missing_events/{room}", missing)
            )
            found.append(costs)
    finally:
        origin.close()
    print(f"\n{found[0]}")
    short, long = found
    for name, before in short.items():
        assert all(abs(now - then) <= 0.05 * then for then, now in zip(before, long[name])), (name, before, long[name])
