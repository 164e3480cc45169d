"""npm run demo: two homeservers that have never heard of each other make rooms, join and talk."""

import signal
import sys
import tempfile
from pathlib import Path

from net import Authority, wait_for
from synapse_peer import Synapse
from worker import Worker

BOLD, DIM, HERE, THERE, END = "\033[1m", "\033[2m", "\033[36m", "\033[33m", "\033[0m"


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with tempfile.TemporaryDirectory(prefix="verge-demo-") as folder:
        authority = Authority(Path(folder) / "ca")
        worker = Worker(Path(folder) / "worker", authority)
        synapse = Synapse(Path(folder) / "synapse", authority)
        try:
            chapter("Two homeservers")
            worker.start()
            tell(HERE, "Verge", f"{worker.name}, a WebAssembly Worker with D1 on workerd")
            synapse.start()
            tell(THERE, "Synapse", f"{synapse.name}, unmodified, from PyPI")
            print("Each verifies the other's TLS certificate, and every signature.")
            play(worker, synapse)
        finally:
            synapse.close()
            worker.close()


def play(worker, synapse):
    alice, bob = worker.user("alice"), synapse.user("bob")

    chapter("Alice makes a room on the Worker, Bob joins it from Synapse")
    alias = f"#edge:{worker.name}"
    room = alice.create_room(preset="public_chat", room_alias_name="edge", name="At the edge")
    version = alice.get_state(room, "m.room.create")["room_version"]
    tell(HERE, "alice", f"made {alias}, room version {version}: {room}")
    bob.join(alias)
    tell(THERE, "bob", f"joined {alias}: asked the Worker for the room by make_join and send_join")
    lines = [(alice, "Hello Bob! This server is a Worker."), (bob, "Hello Alice! I could not tell."), (alice, "Good.")]
    talk(room, lines, alice, bob)
    compare(room, alice, bob)

    chapter("Bob makes a room on Synapse, Alice joins it and reads what was said before")
    theirs = bob.create_room(preset="public_chat", room_alias_name="library", name="The library")
    for line in ("A room with a past.", "Alice was not here yet."):
        bob.say(theirs, line)
    alice.join(f"#library:{synapse.name}")
    tell(HERE, "alice", f"joined #library:{synapse.name}, and pages back:")
    for line in alice.bodies(theirs):
        print(f"    {DIM}| {line}{END}")
    talk(theirs, [(alice, "I have read it all."), (bob, "Then you know everything.")], alice, bob)
    compare(theirs, alice, bob)
    alice.leave(theirs)
    wait_for(lambda: alice.user_id not in bob.members(theirs), "Bob hears that Alice has left")
    tell(HERE, "alice", "left, and Synapse knows it")
    print()


def talk(room, lines, alice, bob):
    """Says the lines; each is shown once it has arrived at the other server."""
    for speaker, line in lines:
        listener = bob if speaker is alice else alice
        event = listener.wait_for_event(room, speaker.say(room, line))
        color, name = (HERE, "alice") if speaker is alice else (THERE, "bob")
        there = "Synapse" if speaker is alice else "the Worker"
        tell(color, name, f"“{event['content']['body']}”  {DIM}arrived at {there} as {event['event_id']}{END}")


def compare(room, alice, bob):
    wait_for(lambda: alice.state(room) == bob.state(room), "the same state on both sides")
    print(f"{BOLD}✓{END} Both hold the same {len(alice.state(room))} state events, and the same messages.")


def chapter(title):
    print(f"\n{BOLD}{title}{END}")


def tell(color, who, what):
    print(f"  {color}{who:>8}{END}  {what}", flush=True)


main()
