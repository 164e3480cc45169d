"""npm run bench -- --members N: a user joins a room of so many members on another server, which leaves them out of its answer.

What is measured: when the user is in the room, when the room's server has their first message, when it is known who is in the room; how
much memory the module has at the end, which never becomes less, and how much of JavaScript's heap is used at most; and the same again
with a SIGKILL while the members come. The module of every build has a bound to its memory (`build.rs`).
"""

import subprocess
import time
from pathlib import Path

from client import segment
from fake_origin import FakeOrigin, HostedRoom
from net import wait_for
from synapse.events import make_event_from_dict
from worker import ROOT, Worker

HERE = Path(__file__).parent
PATIENCE = 1_800
MB = 1 << 20


def run(folder, authority, engine, members):
    """Both runs on one engine; the lines to print."""
    return [measure(folder / f"{engine}{kill}", authority, engine, members, kill) for kill in (False, True)]


def measure(folder, authority, engine, members, kill):
    worker = Worker(folder, authority, cron_seconds=20, options=["--entry", HERE / "measured.mjs"], engine=engine).start()
    origin = FakeOrigin(folder / "origin", authority).start()
    try:
        room = HostedRoom(origin, members, omits_members=True).room.room_id
        alice = worker.user("alice")
        memory = Memory(worker)
        begun = time.monotonic()
        alice.post(f"/join/{segment(room)}?via={segment(origin.name)}", patience=120)
        times = [time.monotonic() - begun]
        said = alice.say(room, "hello")
        wait_for(lambda: said in heard(origin, room), "the first message", 60, 0.02)
        times.append(time.monotonic() - begun)
        if kill:
            wait_for(lambda: count(worker, "claimed_events") > members // 2, "half of the members", PATIENCE, 0.1)
            worker.crash()
            worker.start()
            memory = Memory(worker)

        def is_whole():
            memory.look()
            return worker.rows("SELECT stage FROM partial_rooms") == [(2,)]

        wait_for(is_whole, "who is in the room", PATIENCE, 0.5)
        times.append(time.monotonic() - begun)
        assert len(alice.members(room)) == members + 2
        memory.look()
        joined, first, whole = times
        how = "killed when half had come" if kill else "undisturbed"
        return (
            f"{engine}, {how}: {members} members; in the room after {joined:.1f} s, first message there after {first:.1f} s, all members "
            f"known after {whole:.0f} s; the module's memory {memory.module / MB:.0f} MB, JavaScript's heap at most {memory.heap / MB:.0f} MB"
        )
    finally:
        worker.close()
        origin.close()


class Memory:
    """The most of each that was seen."""

    def __init__(self, worker):
        self.worker = worker
        self.module = self.heap = 0
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.asked = subprocess.Popen([ROOT / "node_modules" / ".bin" / "node", HERE / "heap.mjs", str(worker.inspector_port())], **pipes)

    def look(self):
        self.module = max(self.module, *self.worker.client().get("/__memory"))
        self.asked.stdin.write("\n")
        self.asked.stdin.flush()
        self.heap = max(self.heap, int(self.asked.stdout.readline() or 0))


def heard(origin, room):
    """The IDs of the events that the room's server was sent."""
    version = origin.hosted[room].room.version
    pdus = [pdu for _, content in origin.received for pdu in content["pdus"]]
    return {make_event_from_dict(pdu, version).event_id for pdu in pdus}


def count(worker, table):
    return worker.rows(f"SELECT count(*) FROM {table}")[0][0]
