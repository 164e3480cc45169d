"""A Matrix client over plain HTTP, for the users of both our server and Synapse."""

import time
from itertools import count
from urllib.parse import quote

import requests

from net import wait_for


class ApiError(Exception):
    """An error response."""

    def __init__(self, status, body, what):
        self.status = status
        self.errcode = body.get("errcode") if isinstance(body, dict) else None
        self.body = body
        super().__init__(f"{what}: {status} {body}")


def segment(text):
    """`text` as one segment of a path."""
    return quote(text, safe="")


def facts(event):
    """What every server must say alike of an event."""
    members = ("event_id", "type", "state_key", "sender", "origin_server_ts", "content")
    return {member: event[member] for member in members if member in event}


class Client:
    """One user of one server."""

    _transactions = count(1)

    def __init__(self, base, ca=None, token=None, user_id=None):
        self.base = base
        self.token = token
        self.user_id = user_id
        self.session = requests.Session()
        # Otherwise the environment's authorities would take the place of ours.
        self.session.trust_env = False
        self.session.verify = str(ca) if ca else True
        self.since = None
        self._used = 0.0

    def call(self, method, path, body=None, patience=60, **query):
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        query = {name: value for name, value in query.items() if value is not None}
        url = f"{self.base}/_matrix/client/v3{path}" if not path.startswith("/_") else self.base + path
        if body is None and method in ("POST", "PUT"):
            body = {}
        if time.monotonic() - self._used > 3:
            # The runtime closes connections that are idle for 5 s, in that moment without a word.
            self.session.close()
        try:
            answer = self.session.request(method, url, json=body, params=query, headers=headers, timeout=patience)
        finally:
            self._used = time.monotonic()
        try:
            decoded = answer.json()
        except ValueError:
            decoded = answer.text
        if answer.status_code != 200:
            raise ApiError(answer.status_code, decoded, f"{method} {path}")
        return decoded

    def get(self, path, **query):
        return self.call("GET", path, **query)

    def post(self, path, body=None, **query):
        return self.call("POST", path, body, **query)

    def put(self, path, body=None, **query):
        return self.call("PUT", path, body, **query)

    # Rooms

    def create_room(self, **options):
        return self.post("/createRoom", options)["room_id"]

    def join(self, room, via=None):
        room = self.post(f"/join/{segment(room)}", {}, via=via, server_name=via, patience=120)["room_id"]
        # Either server joins without the room's members, and leaves the room out of syncs until it has them; so long it waits here.
        wait_for(lambda: self._knows_members(room), f"the members of {room} at {self.user_id}")
        return room

    def leave(self, room):
        self.post(f"/rooms/{segment(room)}/leave")

    def membership(self, room, action, user_id, **body):
        self.post(f"/rooms/{segment(room)}/{action}", {"user_id": user_id, **body})

    def invite(self, room, user_id):
        self.membership(room, "invite", user_id)

    def send(self, room, content, event_type="m.room.message", transaction=None):
        transaction = transaction or f"t{time.time_ns()}.{next(self._transactions)}"
        path = f"/rooms/{segment(room)}/send/{segment(event_type)}/{segment(transaction)}"
        return self.put(path, content)["event_id"]

    def say(self, room, text, **more):
        return self.send(room, {"msgtype": "m.text", "body": text}, **more)

    def set_state(self, room, event_type, content, key=""):
        return self.put(f"/rooms/{segment(room)}/state/{segment(event_type)}/{segment(key)}", content)["event_id"]

    def get_state(self, room, event_type, key=""):
        """The content of one state event, `None` where there is none."""
        try:
            return self.get(f"/rooms/{segment(room)}/state/{segment(event_type)}/{segment(key)}")
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    def state_events(self, room):
        """The events of the current state."""
        return self.get(f"/rooms/{segment(room)}/state")

    def state(self, room):
        """The current state: (type, state key) to event id."""
        return {(event["type"], event["state_key"]): event["event_id"] for event in self.state_events(room)}

    def event(self, room, event_id):
        """The event, `None` where it is not there."""
        try:
            return self.get(f"/rooms/{segment(room)}/event/{segment(event_id)}")
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    def pages(self, room, limit):
        """What this user can page back to: pages of at most so many events, the newest first."""
        token = None
        while True:
            page = self.get(f"/rooms/{segment(room)}/messages", dir="b", limit=limit, **{"from": token})
            assert len(page["chunk"]) <= limit
            yield page["chunk"]
            if not page.get("end") or page["end"] == token:
                return
            token = page["end"]

    def history(self, room, limit=100):
        """All events of the room that this user can page back to, the newest first."""
        return [event for page in self.pages(room, limit) for event in page]

    def bodies(self, room):
        """The texts of the messages in the room, the oldest first."""
        events = reversed(self.history(room))
        return [event["content"].get("body") for event in events if event["type"] == "m.room.message"]

    def members(self, room, membership="join"):
        """The users whose membership is this."""
        events = self.get(f"/rooms/{segment(room)}/members")["chunk"]
        return {event["state_key"] for event in events if event["content"]["membership"] == membership}

    def _knows_members(self, room):
        try:
            return bool(self.members(room))
        except ApiError as error:
            if error.status != 504:
                raise
            return False

    def membership_of(self, room, user_id):
        """What the current state says of a user."""
        return (self.get_state(room, "m.room.member", user_id) or {}).get("membership")

    # Waiting

    def sync(self, timeout_ms=0):
        """The next sync; this client remembers how far it has come."""
        query = {"timeout": timeout_ms, "since": self.since, "filter": '{"room":{"timeline":{"limit":100}}}'}
        answer = self.get("/sync", patience=timeout_ms / 1000 + 60, **query)
        self.since = answer["next_batch"]
        return answer

    def news(self, room):
        """The events in the room's timeline that have come since the last sync, in the order in which they came."""
        joined = self.sync().get("rooms", {}).get("join", {})
        timeline = joined.get(room, {}).get("timeline", {"events": []})
        assert not timeline.get("limited"), f"more has come to {self.user_id} than one sync holds"
        return timeline["events"]

    def wait_for_event(self, room, event_id):
        return wait_for(lambda: self.event(room, event_id), f"{event_id} at {self.user_id}")

    def wait_for_history(self, room, event_ids):
        """The room's history, the oldest first, once these events are in it: Synapse fetches what it lacks after it has
        answered."""

        def history():
            events = self.history(room)[::-1]
            return events if set(event_ids) <= {event["event_id"] for event in events} else None

        return wait_for(history, f"the whole history at {self.user_id}", step=0.3)

    def wait_for_invite(self, room):
        wait_for(lambda: self._is_invited(room), f"an invite of {self.user_id} to {room}", step=0.3)

    def wait_for_no_invite(self, room):
        wait_for(lambda: not self._is_invited(room), f"no invite of {self.user_id} to {room}", step=0.3)

    def _is_invited(self, room):
        return room in self.get("/sync", timeout=0).get("rooms", {}).get("invite", {})

    def wait_for_membership(self, room, user_id, membership):
        def has():
            return self.membership_of(room, user_id) == membership

        wait_for(has, f"{membership} of {user_id}, says {self.user_id}")

    def wait_for_members(self, room, members):
        wait_for(lambda: self.members(room) == set(members), f"{members} joined, says {self.user_id}", step=0.2)
