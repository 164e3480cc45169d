"""The part of the bench that measures what people cost: CPU of the runtime for each thing that they do.

An encrypted room of 50 members on 10 servers, five on each; nine of the servers are fakes, whose work is another process's. What
is told to them has ended when all of them have it. The CPU time is that of the workerd process that runs the Worker and its
database, less what it takes while nothing happens. `npm run bench -- --people`
"""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from client import segment
from fake_origin import FakeOrigin, now_ms
from net import wait_for
from worker import Worker

SERVERS, MEMBERS = 9, 5
# How often each thing is done.
TIMES = 20
# How many clients wait for nothing, and for how many seconds.
IDLE, IDLE_SECONDS = 5, 20


def measure(folder, authority, engine, cpu_seconds):
    """By what is done, the milliseconds of CPU that it takes once."""
    worker = Worker(Path(folder) / engine, authority, cron_seconds=60, engine=engine).start()
    origins = [FakeOrigin(Path(folder) / f"{engine}-{number}", authority).start() for number in range(SERVERS)]
    try:
        return _People(worker, origins, cpu_seconds).measure()
    finally:
        worker.close()
        for origin in origins:
            origin.close()


def report(figures):
    """`figures`: by engine, what `measure` says."""
    engines = list(figures)
    print(f"\nMilliseconds of CPU, the mean of {TIMES}. Load average {os.getloadavg()[0]:.1f}.")
    names = list(figures[engines[0]])
    width = max(len(name) for name in names)
    print(f"{'':<{width}}  " + "  ".join(f"{engine:>8}" for engine in engines))
    for name in names:
        print(f"{name:<{width}}  " + "  ".join(f"{figures[engine][name]:>8,.1f}" for engine in engines))


class _People:
    """The room, and those who are in it."""

    def __init__(self, worker, origins, cpu_seconds):
        self.worker, self.origins, self.cpu_seconds = worker, origins, cpu_seconds
        self.pid = worker.runtime()
        self.alice = worker.user("alice")
        self.room_id = self.alice.create_room(preset="public_chat", room_version="12")
        self.path = f"/rooms/{segment(self.room_id)}"
        for number in range(MEMBERS - 1):
            worker.user(f"local{number}").post(f"/join/{segment(self.room_id)}", {})
        self.alice.put(f"{self.path}/state/m.room.encryption", {"algorithm": "m.megolm.v1.aes-sha2"})
        self.rooms = [origin.join(worker, self.room_id, origin.user("m0")) for origin in origins]
        for origin in origins:
            for number in range(1, MEMBERS):
                origin.join(worker, self.room_id, origin.user(f"m{number}"))
        self.serial = 0
        self.said = []
        # All that is known once is known.
        self._say()
        time.sleep(3)
        self.idle = self._cpu(lambda: time.sleep(5)) / 5

    def measure(self):
        def each(work):
            """The milliseconds of CPU that it takes once."""
            start = time.perf_counter()
            cpu = self._cpu(lambda: [work(number) for number in range(TIMES)])
            return max(cpu - self.idle * (time.perf_counter() - start), 0) / TIMES * 1000

        bob = self.origins[0].user("m0")
        device = self.alice.get("/account/whoami")["device_id"]
        typing = f"{self.path}/typing/{segment(self.alice.user_id)}"
        query = {"device_keys": {bob: []}}
        figures = {"a message of a local user, until nine servers have taken it": each(lambda _: self._say())}
        figures["45 receipts, a transaction of each of nine servers"] = each(self._read_elsewhere)
        figures["a receipt of a local user, told to nine servers"] = each(self._read)
        figures["typing begun and ceased, told to nine servers"] = each(lambda _: self._type(typing))
        figures["a message to a device of another server, until it was taken"] = each(lambda _: self._send_to(bob, "D", 1))
        figures["a message to a device here"] = each(lambda _: self._send_to(self.alice.user_id, device, 0))
        figures["a key query for a user of another server, the first"] = each(
            lambda number: self.alice.post("/keys/query", {"device_keys": {self._newcomer(number): []}})
        )
        self.alice.post("/keys/query", query)
        figures["the same, held"] = each(lambda _: self.alice.post("/keys/query", query))
        figures["an idle client for an hour"] = self._wait() * 3600 * 1000
        return figures

    def _cpu(self, work):
        before = self.cpu_seconds(self.pid)
        work()
        return self.cpu_seconds(self.pid) - before

    def _heard(self, origins, what, work):
        """Does `work`, and waits until each of the origins has received as much more."""

        def count(origin):
            return sum(len(content.get(what, [])) for _, content in list(origin.received))

        before = [count(origin) for origin in origins]
        work()
        wait_for(
            lambda: all(count(origin) > known for origin, known in zip(origins, before)),
            f"{what} at {len(origins)} servers",
            60,
        )

    def _say(self):
        self.serial += 1
        content = {"algorithm": "m.megolm.v1.aes-sha2", "ciphertext": "x" * 600, "session_id": "s", "device_id": "D"}
        path = f"{self.path}/send/m.room.encrypted/{self.serial}"
        self._heard(self.origins, "pdus", lambda: self.said.append(self.alice.put(path, content)["event_id"]))

    def _read_elsewhere(self, number):
        event_id = self.said[number + 1]
        for origin in self.origins:
            users = {origin.user(f"m{member}"): {"event_ids": [event_id], "data": {"ts": now_ms()}} for member in range(MEMBERS)}
            edu = {"edu_type": "m.receipt", "content": {self.room_id: {"m.read": users}}}
            answer = origin.send(self.worker, [], [edu])
            assert answer.ok, answer.text

    def _read(self, number):
        path = f"{self.path}/receipt/m.read/{segment(self.said[number + 1])}"
        self._heard(self.origins, "edus", lambda: self.alice.post(path, {}))

    def _type(self, path):
        self._heard(self.origins, "edus", lambda: self.alice.put(path, {"typing": True, "timeout": 30_000}))
        self._heard(self.origins, "edus", lambda: self.alice.put(path, {"typing": False}))

    def _send_to(self, user, device, servers):
        self.serial += 1
        path, content = f"/sendToDevice/m.test/{self.serial}", {"messages": {user: {device: {"n": self.serial}}}}
        self._heard(self.origins[:servers], "edus", lambda: self.alice.put(path, content))

    def _newcomer(self, number):
        """A member whose keys nobody has asked for."""
        return self.origins[number % SERVERS].user(f"m{1 + number // SERVERS}")

    def _wait(self):
        """Seconds of CPU for each second that a client waits."""
        since = self.alice.get("/sync")["next_batch"]
        users = [self.worker.client() for _ in range(IDLE)]
        for user in users:
            user.token, user.user_id = self.alice.token, self.alice.user_id
        with ThreadPoolExecutor(IDLE) as pool:
            waiting = [pool.submit(user.get, "/sync", since=since, timeout=(IDLE_SECONDS + 6) * 1000) for user in users]
            time.sleep(3)
            spent = self._cpu(lambda: time.sleep(IDLE_SECONDS))
            for each in waiting:
                each.result(60)
        return max(spent - self.idle * IDLE_SECONDS, 0) / IDLE_SECONDS / IDLE
