"""npm run bench: the Worker and a Synapse take the same load in the same run.

A fake origin joins a room on each and sends 88 transactions of 50 signed PDUs, then 200 transactions of one PDU. A
transaction is sent when the one before it is stored. The two servers take turns, so that whatever else the machine does
slows both; what is sent in a turn is signed before the clock starts. On a machine so busy that the turns take too long,
there are fewer of them.

Stored means, for both servers: the transaction is answered with 200 and every PDU of it with `{}`, and then the last of
them can be read by a user of the server, through the Client-Server API. (Synapse answers before it has stored.) What those
reads cost is measured apart and taken off the servers' CPU time. How many times faster the Worker stores is the median of the
pairs of turns.

Then the fake origin reads that room from both, as other servers do: `bench_reads.py`; and clients wait for news, and several
origins send to one room at once: `bench_live.py`. With `--engine both` the Worker takes part twice, once on each engine.

Without a Synapse, and instead of all that: with `--members N` a user joins a room of so many members (`bench_join.py`), and with
`--people` it is measured what people cost in CPU (`bench_people.py`).
"""

import argparse
import http.client
import json
import os
import re
import signal
import ssl
import sys
import tempfile
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import NamedTuple
from urllib.parse import urlsplit

import bench_join
import bench_live
import bench_people
import bench_reads
import bundle
from client import segment
from fake_origin import FakeOrigin, now_ms
from net import Authority
from synapse_peer import Synapse
from worker import Worker

SEND = "/_matrix/federation/v1/send"
ROOM_VERSION = "12"


class Stretch(NamedTuple):
    """A part of the load."""

    # How many PDUs a transaction has.
    size: int
    # How many transactions a server gets in its turn, and how many turns.
    transactions: int
    rounds: int
    # After how many seconds no further round begins.
    seconds: int
    # How long to wait before asking again whether a transaction is stored: asking slows the server down.
    pause: float


FULL = Stretch(50, 8, 11, 120, 0.02)
SINGLE = Stretch(1, 40, 5, 30, 0.004)


def join(engines, members):
    with tempfile.TemporaryDirectory(prefix="verge-bench-") as folder:
        folder = Path(folder)
        authority = Authority(folder / "ca")
        for engine in engines:
            for line in bench_join.run(folder, authority, engine, members):
                print(line, flush=True)


def people(engines):
    say("What people cost, in an encrypted room of 50 members on 10 servers")
    with tempfile.TemporaryDirectory(prefix="verge-bench-") as folder:
        authority = Authority(Path(folder) / "ca")
        bench_people.report({engine: bench_people.measure(folder, authority, engine, cpu_seconds) for engine in engines})


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    parser = argparse.ArgumentParser(prog="npm run bench --")
    parser.add_argument("--engine", choices=[*Worker.DATABASES, "both"], default="d1", help="where the Worker keeps its data")
    parser.add_argument("--members", type=int, help="join a room of so many members, and nothing else")
    parser.add_argument("--people", action="store_true", help="measure what people cost: keys, typing, receipts, waiting")
    options = parser.parse_args()
    engines = list(Worker.DATABASES) if options.engine == "both" else [options.engine]
    if options.members:
        return join(engines, options.members)
    if options.people:
        return people(engines)
    say("Starting a Synapse and the Worker, with a room on each")
    with tempfile.TemporaryDirectory(prefix="verge-bench-") as folder:
        folder = Path(folder)
        authority = Authority(folder / "ca")
        workers = [
            Worker(folder / engine, authority, cron_seconds=60, options=["--log-costs"], engine=engine) for engine in engines
        ]
        synapse = Synapse(folder / "synapse", authority)
        origins = []
        try:
            contestants = []
            for server in (synapse, *workers):
                server.start()
                origins.append(FakeOrigin(folder / f"origin{len(origins)}", authority).start())
                contestants.append(Contestant(server, origins[-1]))
            compete(contestants)
            costs = [Costs(worker) for worker in workers]
            say("What other servers read")
            reads = bench_reads.measure(contestants)
            say("Waiting syncs, and several origins at once")
            live = bench_live.measure(contestants, folder, authority, cpu_seconds)
        finally:
            for server in (*workers, synapse):
                server.close()
            for origin in origins:
                origin.close()
    say("Weighing the bundle, and starting it cold")
    synapse, *verges = contestants
    report(synapse, verges, costs, reads, live, bundle.compressed_kb(), bundle.cold_start_ms())


def compete(contestants):
    """The load, in turns."""
    for contestant in contestants:
        contestant.warm_up()
    for stretch in (FULL, SINGLE):
        say(f"{stretch.rounds} rounds of {stretch.transactions} transactions of {stretch.size} PDUs to each")
        start = time.monotonic()
        for _ in range(stretch.rounds):
            if time.monotonic() - start > stretch.seconds:
                say("The machine is busy: the other rounds are left out")
                break
            for contestant in contestants:
                contestant.take(stretch)
    for contestant in contestants:
        contestant.settle()


@dataclass
class Transaction:
    """A transaction, ready to be sent."""

    uri: str
    headers: dict
    body: bytes
    event_ids: list


@dataclass
class Taken:
    """What the transactions of one size have taken, in seconds."""

    pdus: int = 0
    cpu: float = 0.0
    reads: int = 0
    latencies: list = field(default_factory=list)
    # PDUs a second, of each turn.
    rates: list = field(default_factory=list)


class Contestant:
    """A server under test, with a room on it that the fake origin has joined."""

    def __init__(self, server, origin):
        self.server, self.origin = server, origin
        self.name = f"Verge, {server.engine}" if isinstance(server, Worker) else type(server).__name__
        self.user = server.user("alice")
        self.room_id = self.user.create_room(preset="public_chat", room_version=ROOM_VERSION, room_alias_name="bench")
        self.alias = f"#bench:{server.name}"
        self.room = origin.join(server, self.room_id, origin.user("mallory"))
        self.pid = server.runtime() if isinstance(server, Worker) else server.process.pid
        self._serial = 0
        self.event_ids = []
        self.connection = self.reading = None
        self.first = self._transaction(1)
        self.taken = {FULL.size: Taken(), SINGLE.size: Taken()}
        self.read_cpu = 0.0

    def warm_up(self):
        """Keys are fetched, and what the join set in motion comes to rest."""
        self.connect()
        self._send(self.first)
        while not self._holds(self.first.event_ids[-1]):
            time.sleep(0.1)
        time.sleep(1)

    def take(self, stretch):
        """One turn: sends transactions, each when the one before it is stored."""
        size, taken = stretch.size, self.taken[stretch.size]
        batch = [self._transaction(size) for _ in range(stretch.transactions)]
        self.connect()
        cpu, clock = cpu_seconds(self.pid), time.perf_counter()
        for transaction in batch:
            start = time.perf_counter()
            self._send(transaction)
            taken.reads += 1
            while not self._holds(transaction.event_ids[-1]):
                time.sleep(stretch.pause)
                taken.reads += 1
            taken.latencies.append(time.perf_counter() - start)
            taken.pdus += size
        taken.rates.append(size * len(batch) / (time.perf_counter() - clock))
        taken.cpu += cpu_seconds(self.pid) - cpu

    def settle(self):
        """What a read costs, for `cpu_ms`; and whether everything is there."""
        self.connect()
        self.memory = resident_mb(self.pid)
        times = 200
        cpu = cpu_seconds(self.pid)
        for _ in range(times):
            assert self._holds(self.first.event_ids[0])
        self.read_cpu = (cpu_seconds(self.pid) - cpu) / times
        bodies = [body for body in self.user.bodies(self.room_id) if body]
        sent = sum(taken.pdus for taken in self.taken.values()) + 1
        assert len(bodies) == len(set(bodies)) == sent, f"{self.name} shows {len(bodies)} of {sent} messages"

    def cpu_ms(self, size):
        """CPU time for one PDU, without the reads."""
        taken = self.taken[size]
        return (taken.cpu - taken.reads * self.read_cpu) / taken.pdus * 1000

    def rate(self, size):
        return median(self.taken[size].rates)

    def times_faster(self, other, size):
        """The median of the pairs of turns that the two took one after the other."""
        pairs = zip(self.taken[size].rates, other.taken[size].rates, strict=True)
        return median(ours / theirs for ours, theirs in pairs)

    def _transaction(self, size):
        serial, self._serial = self._serial, self._serial + size
        sender = self.origin.user("mallory")
        text = "a message of the length that people write, more or less"
        pdus = [self.room.message(sender, f"{text}, number {serial + index}") for index in range(size)]
        self.event_ids += [pdu.event_id for pdu in pdus]
        content = {"origin": self.origin.name, "origin_server_ts": now_ms(), "pdus": [pdu.get_pdu_json() for pdu in pdus]}
        uri = f"{SEND}/bench{size}.{serial}"
        headers = {
            "Authorization": self.origin.authorization("PUT", uri, self.server.name, content),
            "Content-Type": "application/json",
        }
        return Transaction(uri, headers, json.dumps(content).encode(), [pdu.event_id for pdu in pdus])

    def connect(self):
        """Connections for the transactions of one turn and for seeing them stored; the servers close those that are idle while
        others have theirs."""
        for connection in (self.connection, self.reading):
            if connection:
                connection.close()
        context = ssl.create_default_context(cafile=str(self.server.authority.certificate))
        self.connection = http.client.HTTPSConnection("localhost", self.server.port, context=context, timeout=60)
        base = urlsplit(self.user.base)
        secure = base.scheme == "https"
        kind = partial(http.client.HTTPSConnection, context=context) if secure else http.client.HTTPConnection
        self.reading = kind(base.hostname, base.port, timeout=60)
        self.connection.connect()
        self.reading.connect()

    def _send(self, transaction):
        self.connection.request("PUT", transaction.uri, transaction.body, transaction.headers)
        answer = self.connection.getresponse()
        text = answer.read()
        assert answer.status == 200, text
        assert json.loads(text)["pdus"] == {event_id: {} for event_id in transaction.event_ids}, text

    def _holds(self, event_id):
        """Asked for without a library, whose own time would be a third of the answer's."""
        path = f"/_matrix/client/v3/rooms/{segment(self.room_id)}/event/{segment(event_id)}"
        self.reading.request("GET", path, headers={"Authorization": f"Bearer {self.user.token}"})
        answer = self.reading.getresponse()
        text = answer.read()
        assert answer.status in (200, 404), text
        return answer.status == 200


class Costs:
    """What the Worker's log says of its transactions: of those of each size, the mean database calls, rows read and written."""

    LINE = re.compile(
        r'"transaction":"bench(\d+)\.(\d+)","status":200,'
        r'.*"calls":(\d+),"rows_read":(\d+),"rows_written":(\d+)'
    )

    def __init__(self, worker):
        by_size = {}
        for size, serial, *figures in self.LINE.findall(worker.log()):
            # The first one fetched the keys.
            if serial != "0":
                by_size.setdefault(int(size), []).append([int(figure) for figure in figures])
        assert by_size.keys() == {FULL.size, SINGLE.size}, f"the log names costs of {by_size.keys()}"
        self.mean = {size: [sum(column) / len(rows) for column in zip(*rows)] for size, rows in by_size.items()}
        self.most_calls = {size: max(row[0] for row in rows) for size, rows in by_size.items()}


def report(synapse, verges, costs, reads, live, bundle_kb, cold_ms):
    everybody = [synapse, *verges]
    full, single = FULL.size, SINGLE.size
    rows = [("", *(contestant.name for contestant in everybody), "target", "")]

    def line(what, figures=(), target="", reached=None):
        verdict = "" if reached is None else "reached" if reached else "MISSED"
        rows.append((what, *figures, *[""] * (len(everybody) - len(figures)), target, verdict))

    def ours(figures):
        return ["", *figures]

    def milliseconds(size):
        for what, figure in (("median", median), ("95th percentile", lambda values: quantiles(values, n=20)[-1])):
            line(f"  until stored, {what}", [f"{figure(c.taken[size].latencies) * 1000:.1f} ms" for c in everybody])

    line(f"{len(verges[0].taken[full].latencies)} transactions of {full} PDUs")
    faster = [verge.times_faster(synapse, full) for verge in verges]
    rates = [f"{contestant.rate(full):.0f}" for contestant in everybody]
    line("  PDUs stored a second", rates, "x20: " + " | ".join(f"x{times:.1f}" for times in faster), min(faster) >= 20)
    objects = [times for verge, times in zip(verges, faster) if verge.server.engine == "object"]
    if objects:
        line("    in the object", target="x35: " + f"x{objects[0]:.1f}", reached=objects[0] >= 35)
    cheaper = [synapse.cpu_ms(full) / verge.cpu_ms(full) for verge in verges]
    cpu = [f"{contestant.cpu_ms(full):.2f} ms" for contestant in everybody]
    line("  CPU per PDU", cpu, "1/20: " + " | ".join(f"1/{times:.1f}" for times in cheaper), min(cheaper) >= 20)
    milliseconds(full)
    line(f"{len(verges[0].taken[single].latencies)} transactions of one PDU")
    milliseconds(single)
    theirs = median(synapse.taken[single].latencies)
    quicker = [theirs / median(verge.taken[single].latencies) for verge in verges if verge.server.engine == "object"]
    if quicker:
        line("    in the object", target="1/1.8: " + f"1/{quicker[0]:.2f}", reached=quicker[0] >= 1.8)
    line("  CPU per PDU", [f"{contestant.cpu_ms(single):.2f} ms" for contestant in everybody])
    line("memory (RSS) after it", [f"{contestant.memory:.0f} MB" for contestant in everybody])
    line("the database, for a transaction of", ours(f"{full} | {single}" for _ in verges))
    calls = [each.most_calls for each in costs]
    alike = all(each[full] == each[single] for each in calls)
    most = max(max(each.values()) for each in calls)
    line("  calls, at most", ours(f"{each[full]} | {each[single]}" for each in calls), "5, alike", most <= 5 and alike)
    for index, what in ((1, "read"), (2, "written")):
        line(f"  rows {what}", ours(f"{each.mean[full][index]:.1f} | {each.mean[single][index]:.1f}" for each in costs))
        per_pdu = [each.mean[full][index] / full for each in costs]
        figures = ours(f"{one:.2f} | {each.mean[single][index]:.1f}" for one, each in zip(per_pdu, costs))
        line(f"  rows {what} per PDU", figures, *(("5 of 50", max(per_pdu) <= 5) if what == "written" else ()))
    versions = reads.pop("version")
    messages = len(verges[0].event_ids)
    line(f"other servers read, {messages} messages", [f"version: {figure:.1f} ms" for figure in versions], "theirs + our version")
    for name, times in reads.items():
        line(*bench_reads.line_of(name, times, versions))
    line("a room full of life")
    for what, figures in live.items():
        line(f"  {what}", figures)
    line("bundle, compressed", ours([f"{bundle_kb:.0f} KB"]), "1,200 KB", bundle_kb < 1_200)
    start_ms, reading_ms = cold_ms
    line("cold start", ours([f"{start_ms:.0f} ms"]), "50 ms", start_ms < 50)
    line("  the runtime's reading of its configuration", ours([f"{reading_ms:.0f} ms"]))

    print(f"\nStored: answered with 200, and the last PDU readable by a local user. Load average {os.getloadavg()[0]:.1f}.")
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for what, *figures, verdict in rows:
        cells = (f"{figure:>{width}}" for figure, width in zip(figures, widths[1:]))
        print(f"{what:<{widths[0]}}  {'  '.join(cells)}  {verdict}".rstrip())


def cpu_seconds(pid):
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mb(pid):
    (kb,) = re.findall(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(kb) / 1000


def say(line):
    print(f"\033[36m==>\033[0m {line}", flush=True)


main()
