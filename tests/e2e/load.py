"""A load of transactions by several origins, of which nothing that was acknowledged may be lost or doubled."""

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from threading import Event

import requests

from fake_origin import FakeOrigin

ORIGINS = 3
PDUS = 5


class Load:
    """Origins that are in a room, send transactions to it, and each again until it is acknowledged."""

    def __init__(self, worker, room_id, origins):
        self.worker = worker
        self.acknowledged = []
        self._stop = Event()
        self._senders = [(origin, origin.join(worker, room_id, origin.user("mallory"))) for origin in origins]

    @contextmanager
    def running(self):
        """While it runs; when it ends, all that was begun is acknowledged."""
        with ThreadPoolExecutor(len(self._senders)) as pool:
            sending = [pool.submit(self._send, *sender) for sender in self._senders]
            try:
                yield
            finally:
                self._stop.set()
            for each in sending:
                each.result(120)

    def is_complete(self, history):
        """Whether the messages of a history are what was acknowledged: all of it, none twice."""
        ids = [event["event_id"] for event in history if event["type"] == "m.room.message"]
        return sorted(ids) == sorted(self.acknowledged)

    def _send(self, origin, room):
        for number in count():
            if self._stop.is_set():
                return
            pdus = [room.message(origin.user("mallory"), f"{origin.name} {number}.{index}") for index in range(PDUS)]
            while (answer := self._attempt(origin, pdus, f"load{number}")) is None:
                time.sleep(0.05)
            assert answer["pdus"] == {pdu.event_id: {} for pdu in pdus}
            self.acknowledged.extend(pdu.event_id for pdu in pdus)

    def _attempt(self, origin, pdus, transaction):
        try:
            answer = origin.send(self.worker, pdus, transaction=transaction)
            return answer.json() if answer.ok else None
        except requests.RequestException:
            return None


@contextmanager
def loading(worker, room_id, authority, folder):
    """Such a load on a room."""
    origins = [FakeOrigin(folder / f"origin{number}", authority).start() for number in range(ORIGINS)]
    try:
        yield Load(worker, room_id, origins)
    finally:
        for origin in origins:
            origin.close()
