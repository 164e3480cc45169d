"""The part of the bench that measures what a room full of life takes: local events, waiting syncs, several origins at once."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median, quantiles

from client import Client
from fake_origin import FakeOrigin

# Local events, each of which wakes a waiting sync.
WAKES = 30
# How many clients wait for nothing, and for how many seconds.
IDLE, IDLE_SECONDS = 5, 10
# Origins that send to one room at once, and what each sends.
ORIGINS, TRANSACTIONS, SIZE = 4, 6, 50


def measure(contestants, folder, authority, cpu_seconds):
    """By what is measured, a figure of each contestant, in their order, as text."""
    figures = {}
    for contestant in contestants:
        for what, figure in _measure(contestant, Path(folder), authority, cpu_seconds).items():
            figures.setdefault(what, []).append(figure)
    return figures


def _measure(contestant, folder, authority, cpu_seconds):
    sent, woken = _wakes(contestant)
    return {
        "local event sent, median | 95th percentile": _times(sent),
        "a waiting sync wakes after, median | 95th percentile": _times(woken),
        f"{IDLE} idle syncs, CPU a second": f"{_idle(contestant, cpu_seconds):.1f} ms",
        f"{ORIGINS} origins at once in one room, PDUs a second": f"{_at_once(contestant, folder, authority):.0f}",
    }


def _times(values):
    return f"{median(values) * 1000:.1f} | {quantiles(values, n=20)[-1] * 1000:.1f} ms"


def _user(contestant):
    """The contestant's user once more, with a connection of their own."""
    user = contestant.user
    authority = user.session.verify
    return Client(user.base, None if authority is True else authority, user.token, user.user_id)


def _wakes(contestant):
    """How long sending took, and how long after the answer to it (or before) the waiting sync had the event; in seconds."""
    sender, waiter = _user(contestant), _user(contestant)
    room_id = sender.create_room(preset="private_chat")
    since = waiter.get("/sync")["next_batch"]
    sent, woken = [], []
    with ThreadPoolExecutor(1) as pool:
        for number in range(WAKES):
            begun = threading.Event()

            def wait():
                begun.set()
                answer = waiter.get("/sync", since=since, timeout=30_000)
                return answer["next_batch"], time.perf_counter()

            waiting = pool.submit(wait)
            begun.wait()
            # It waits for some while first, and not always for as long.
            time.sleep(0.3 + 0.05 * (number % 7))
            start = time.perf_counter()
            sender.say(room_id, f"wake {number}")
            end = time.perf_counter()
            since, heard = waiting.result(60)
            sent.append(end - start)
            woken.append(max(heard - end, 0))
    return sent, woken


def _idle(contestant, cpu_seconds):
    """Milliseconds of CPU a second while clients wait for nothing."""
    users = [_user(contestant) for _ in range(IDLE)]
    since = users[0].get("/sync")["next_batch"]
    with ThreadPoolExecutor(IDLE) as pool:
        waiting = [pool.submit(user.get, "/sync", since=since, timeout=(IDLE_SECONDS + 4) * 1000) for user in users]
        time.sleep(2)
        before = cpu_seconds(contestant.pid)
        time.sleep(IDLE_SECONDS)
        spent = cpu_seconds(contestant.pid) - before
        for each in waiting:
            each.result(60)
    return spent / IDLE_SECONDS * 1000


def _at_once(contestant, folder, authority):
    """PDUs a second, answered for, of several origins that send to one room at the same time."""
    server = contestant.server
    room_id = contestant.user.create_room(preset="public_chat", room_version="12")
    origins = [FakeOrigin(folder / f"at-once-{contestant.server.port}-{number}", authority).start() for number in range(ORIGINS)]
    try:
        rooms = [origin.join(server, room_id, origin.user("mallory")) for origin in origins]
        load = []
        for origin, room in zip(origins, rooms):
            say = lambda text: room.message(origin.user("mallory"), text)  # noqa: E731
            origin.send(server, [say("keys are fetched with this one")])
            load.append([[say(f"{turn}.{index}") for index in range(SIZE)] for turn in range(TRANSACTIONS)])

        def send(origin, transactions):
            for pdus in transactions:
                answer = origin.send(server, pdus)
                assert answer.json()["pdus"] == {pdu.event_id: {} for pdu in pdus}, answer.text

        start = time.perf_counter()
        with ThreadPoolExecutor(ORIGINS) as pool:
            for done in [pool.submit(send, *pair) for pair in zip(origins, load)]:
                done.result(120)
        return ORIGINS * TRANSACTIONS * SIZE / (time.perf_counter() - start)
    finally:
        for origin in origins:
            origin.close()
