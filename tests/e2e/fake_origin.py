"""A homeserver that says whatever a test wants: its own keys and TLS, rooms joined properly, and then any lie.

Hashes, event ids, signatures and auth events come from Synapse's own code, not from ours.
"""

import json
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from urllib.parse import unquote

import requests
from signedjson.key import generate_signing_key, get_verify_key
from signedjson.sign import sign_json
from synapse.api.room_versions import KNOWN_ROOM_VERSIONS
from synapse.crypto.event_signing import add_hashes_and_signatures
from synapse.event_auth import auth_types_for_event
from synapse.events import make_event_from_dict
from unpaddedbase64 import encode_base64

from client import segment
from net import free_port


class FakeOrigin:
    """One such homeserver, on its own port; its name has that port unless it is given another. It trusts `authority`,
    which also certifies it, unless that is left to a `certifier` of its own or is `certified_for` other hosts."""

    def __init__(
        self,
        folder: Path,
        authority,
        name=None,
        host="localhost",
        certifier=None,
        certified_for=("localhost", "127.0.0.1"),
    ):
        self.authority = authority
        self.port = free_port()
        self.name = name or f"{host}:{self.port}"
        self.key = generate_signing_key("a_fake")
        self.old_key, self.old_key_expired_ts = generate_signing_key("a_old"), now_ms() - 3600 * 1000
        self.valid_for_ms = 24 * 3600 * 1000
        self.events = {}
        self.hosted = {}
        self.received = []
        self.asked = []
        self._transactions = count(1)
        self._server = HttpsServer(self, *(certifier or authority).leaf(folder, *certified_for))

    def start(self):
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def close(self):
        self._server.shutdown()
        self._server.server_close()

    def user(self, localpart):
        return f"@{localpart}:{self.name}"

    # Requests

    def authorization(self, method, uri, destination, content=None, key=None):
        """The X-Matrix header for a request, signed with `key`, by default the published one."""
        key = key or self.key
        signed = {"method": method, "uri": uri, "origin": self.name, "destination": destination}
        if content is not None:
            signed["content"] = content
        signature = sign_json(signed, self.name, key)["signatures"][self.name][_key_id(key)]
        return f'X-Matrix origin="{self.name}",destination="{destination}",key="{_key_id(key)}",sig="{signature}"'

    def request(self, server, method, uri, content=None, authorization=None):
        """A request to one of the harness's servers, by default signed, with `False` not; the answer."""
        headers = {}
        if authorization is not False:
            headers["Authorization"] = authorization or self.authorization(method, uri, server.name, content)
        data = None
        if content is not None:
            data = json.dumps(content).encode()
            headers["Content-Type"] = "application/json"
        url = f"https://localhost:{server.port}{uri}"
        return requests.request(
            method, url, data=data, headers=headers, verify=str(self.authority.certificate), timeout=120
        )

    def send(self, server, pdus, edus=None, transaction=None):
        """A transaction; the HTTP answer."""
        transaction = transaction or f"fake{next(self._transactions)}"
        content = {"origin": self.name, "origin_server_ts": now_ms(), "pdus": [json_of(pdu) for pdu in pdus]}
        if edus is not None:
            content["edus"] = edus
        return self.request(server, "PUT", f"/_matrix/federation/v1/send/{transaction}", content)

    def join(self, server, room_id, user):
        """Joins a room through `server`, which has it, as the specification says; answers with the room."""
        versions = "&".join(f"ver={version}" for version in KNOWN_ROOM_VERSIONS)
        path = f"/{segment(room_id)}/{segment(user)}"
        answer = self.request(server, "GET", f"/_matrix/federation/v1/make_join{path}?{versions}")
        assert answer.ok, answer.text
        made = answer.json()
        version = KNOWN_ROOM_VERSIONS[made["room_version"]]
        template = made["event"]
        join = self.signed(version, template)
        uri = f"/_matrix/federation/v2/send_join/{segment(room_id)}/{segment(join.event_id)}"
        answer = self.request(server, "PUT", uri, json_of(join))
        assert answer.ok, answer.text
        room = Room(self, version, room_id)
        for pdu in answer.json()["state"]:
            room.add(make_event_from_dict(pdu, version))
        room.add(join)
        room.tips, room.depth = [join.event_id], join.depth
        return room

    def signed(self, version, event, key=None):
        """A PDU with hashes and signature of this server, as Synapse's event."""
        event = {name: value for name, value in event.items() if name not in ("hashes", "signatures", "event_id")}
        event.setdefault("origin_server_ts", now_ms())
        add_hashes_and_signatures(version, event, self.name, key or self.key)
        made = make_event_from_dict(event, version)
        self.events[made.event_id] = made
        return made

    # What it answers

    def answer(self, method, path, content):
        """The status and body of its answer to another server's request."""
        path, _, query = path.partition("?")
        self.asked.append(f"{method} {path}")
        if path == "/_matrix/key/v2/server":
            return 200, self._keys()
        if path == "/_matrix/federation/v1/version":
            return 200, {"server": {"name": "Fake", "version": "1"}}
        parts = [unquote(part) for part in path.split("/")[4:]]
        match method, parts:
            case "PUT", ["send", transaction]:
                self.received.append((transaction, content))
                return 200, {"pdus": {}}
            case "GET", ["event", event_id] if event_id in self.events:
                return 200, {"origin": self.name, "origin_server_ts": now_ms(), "pdus": [self._pdu(event_id)]}
            case "POST", ["get_missing_events", _]:
                return 200, {"events": self._before(content)}
            case "GET", ["make_join", room_id, user] if room_id in self.hosted:
                return 200, self.hosted[room_id].template(user)
            case "PUT", ["send_join", room_id, _] if room_id in self.hosted:
                return 200, self.hosted[room_id].admit("omit_members=true" in query)
            case "GET", ["state", room_id] if room_id in self.hosted:
                return 200, self.hosted[room_id].before
            case "GET", ["user", "devices", user]:
                return 200, {"user_id": user, "stream_id": 1, "devices": []}
            case "GET", ["query", "profile"]:
                return 200, {"displayname": "Fake"}
        return 404, {"errcode": "M_UNRECOGNIZED", "error": "The fake knows nothing of it."}

    def _keys(self):
        keys = {
            "server_name": self.name,
            "valid_until_ts": now_ms() + self.valid_for_ms,
            "verify_keys": {_key_id(self.key): {"key": _public(self.key)}},
            "old_verify_keys": {
                _key_id(self.old_key): {"key": _public(self.old_key), "expired_ts": self.old_key_expired_ts}
            },
        }
        return sign_json(keys, self.name, self.key)

    def _pdu(self, event_id):
        return json_of(self.events[event_id])

    def _before(self, content):
        known, todo, found = set(content["earliest_events"]), list(content["latest_events"]), []
        while todo and len(found) < content.get("limit", 10):
            event = self.events.get(todo.pop(0))
            for event_id in event.prev_event_ids() if event else ():
                if event_id in self.events and event_id not in known:
                    known.add(event_id)
                    found.insert(0, self._pdu(event_id))
                    todo.append(event_id)
        return found


class HostedRoom:
    """A public room of this server with so many members, as other servers join it: by an answer without the members, where they ask
    for that and it `omits_members`."""

    def __init__(self, origin, members, version="10", omits_members=False):
        self.origin = origin
        self.omits_members = omits_members
        self.joins_answered = []
        self.room = Room(origin, KNOWN_ROOM_VERSIONS[version], f"!hosted{members}:{origin.name}")
        owner = origin.user("owner")
        room = self.room
        room.event(owner, "m.room.create", {"creator": owner, "room_version": version}, "", prev_events=[], auth_events=[])
        room.event(owner, "m.room.member", {"membership": "join"}, owner)
        room.event(owner, "m.room.power_levels", {"users": {owner: 100}}, "")
        room.event(owner, "m.room.join_rules", {"join_rule": "public"}, "")
        for number in range(members):
            member = origin.user(f"member{number}")
            room.event(member, "m.room.member", {"membership": "join"}, member)
        origin.hosted[room.room_id] = self
        state = [json_of(event) for event in room.state.values()]
        answer = {"state": state, "auth_chain": state[:4], "origin": origin.name}
        self.answer = json.dumps(answer).encode()
        self.before = json.dumps({"pdus": state, "auth_chain": state[:4]}).encode()
        without = [event for event in state if event["type"] != "m.room.member"]
        answer |= {"state": without, "members_omitted": True, "servers_in_room": [origin.name]}
        self.answer_in_part = json.dumps(answer).encode()

    def template(self, user):
        room = self.room
        event = {"room_id": room.room_id, "sender": user, "type": "m.room.member", "state_key": user}
        event |= {"content": {"membership": "join"}, "depth": room.depth + 1, "prev_events": room.tips, "origin_server_ts": now_ms()}
        return {"room_version": room.version.identifier, "event": {**event, "auth_events": room.auth_events(event)}}

    def admit(self, omit_members):
        self.joins_answered.append(time.monotonic())
        return self.answer_in_part if omit_members and self.omits_members else self.answer


class Room:
    """A room as the fake homeserver sees it."""

    def __init__(self, origin, version, room_id):
        self.origin = origin
        self.version = version
        self.room_id = room_id
        self.state = {}
        self.tips = []
        self.depth = 0

    def add(self, event):
        """Takes a state event into the state."""
        self.state[(event.type, event.state_key)] = event

    def event(self, sender, event_type, content, state_key=None, key=None, advance=True, **other):
        """An event after the last ones, with the auth events that it needs; `other` members override."""
        event = {
            "room_id": self.room_id,
            "sender": sender,
            "type": event_type,
            "content": content,
            "depth": self.depth + 1,
            "prev_events": self.tips,
            "origin_server_ts": now_ms(),
        }
        if state_key is not None:
            event["state_key"] = state_key
        event["auth_events"] = self.auth_events(event)
        made = self.origin.signed(self.version, {**event, **other}, key)
        if advance:
            self.tips, self.depth = [made.event_id], made.depth
            if state_key is not None:
                self.add(made)
        return made

    def message(self, sender, body, **other):
        return self.event(sender, "m.room.message", {"msgtype": "m.text", "body": body}, **other)

    def auth_events(self, event):
        draft = make_event_from_dict({**event, "auth_events": [], "hashes": {}, "signatures": {}}, self.version)
        needed = set(auth_types_for_event(self.version, draft))
        if self.version.msc4291_room_ids_as_hashes:
            # The room id itself names the create event.
            needed.discard(("m.room.create", ""))
        return [self.state[key].event_id for key in needed if key in self.state]


def now_ms():
    return int(time.time() * 1000)


def json_of(event):
    """The PDU as it is sent; one that is JSON already stays what it is."""
    if isinstance(event, dict):
        return event
    pdu = event.get_pdu_json()
    pdu.pop("unsigned", None)
    return pdu


def _key_id(key):
    return f"{key.alg}:{key.version}"


def _public(key):
    return encode_base64(get_verify_key(key).encode())


class HttpsServer(ThreadingHTTPServer):
    """Answers every request with what `origin.answer(method, path, content)` returns, on `origin.port`."""

    daemon_threads = True

    def __init__(self, origin, key, certificate):
        self.origin = origin
        super().__init__(("127.0.0.1", origin.port), _Handler)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(certificate, key)

    def get_request(self):
        connection, address = super().get_request()
        # The handshake waits for the handler's thread, so that a silent client stops nobody else.
        return self.context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False), address

    def handle_error(self, request, client_address):
        """Clients may hang up."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _handle(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        content = json.loads(body) if body else None
        status, answer = self.server.origin.answer(self.command, self.path, content)
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_PUT = do_POST = _handle

    def log_message(self, *_):
        """Says nothing."""
