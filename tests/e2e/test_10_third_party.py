"""Invites by e-mail address between our server and Synapse, through an identity server of this test."""

import json
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest
import requests
from signedjson.key import encode_verify_key_base64, generate_signing_key, get_verify_key
from signedjson.sign import sign_json

from client import segment
from net import free_port
from synapse_peer import Synapse
from worker import Worker

ADDRESS = "carol@mail.test"


class Identity:
    """Keeps invites, vouches for its key, and has signed whoever an address is bound to."""

    def __init__(self, folder, authority):
        self.port = free_port()
        self.name = f"localhost:{self.port}"
        self.key = generate_signing_key("0")
        self.public = encode_verify_key_base64(get_verify_key(self.key))
        self.invites, self.asked_keys = [], []
        itself = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self._answer(None)

            def do_POST(self):
                self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def _answer(self, body):
                text = json.dumps(itself.answer(urlsplit(self.path), body)).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        key, certificate = authority.leaf(folder, "localhost", "127.0.0.1")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def answer(self, url, body):
        name = url.path.removeprefix("/_matrix/identity/v2/")
        if name == "hash_details":
            return {"lookup_pepper": "pepper", "algorithms": ["sha256"]}
        if name == "lookup":
            return {"mappings": {}}
        if name == "store-invite":
            token = f"token{len(self.invites)}"
            self.invites.append({**body, "token": token})
            key = {"public_key": self.public, "key_validity_url": f"https://{self.name}/_matrix/identity/v2/pubkey/isvalid"}
            return {"token": token, "display_name": "c...@m...", "public_keys": [key, key]}
        assert name == "pubkey/isvalid", url
        asked = parse_qs(url.query)["public_key"]
        self.asked_keys += asked
        return {"valid": asked == [self.public]}

    def bind(self, user_id):
        """What it sends to the homeserver of the user whose the address has become."""
        invites = []
        for invite in self.invites:
            signed = sign_json({"mxid": user_id, "token": invite["token"]}, self.name, self.key)
            about = {name: invite[name] for name in ("medium", "address", "room_id", "sender")}
            invites.append({**about, "mxid": user_id, "signed": signed})
        return {"medium": "email", "address": ADDRESS, "mxid": user_id, "invites": invites}


@pytest.fixture
def identity(tmp_path, authority):
    server = Identity(tmp_path / "identity", authority)
    yield server
    server.close()


@pytest.fixture(scope="module")
def trusting_synapse(start):
    # It asks identity servers by its client for all the world, which knows no authority of ours.
    return start(Synapse, settings={"use_insecure_ssl_client_just_for_testing_do_not_use": True})


@pytest.mark.parametrize("ours_offers", [True, False])
def test_an_invite_by_address_is_exchanged(worker: Worker, trusting_synapse, identity, authority, ours_offers):
    inviting, invited = (worker, trusting_synapse) if ours_offers else (trusting_synapse, worker)
    suffix = "ours" if ours_offers else "theirs"
    alice, carol = inviting.user(f"alice{suffix}"), invited.user(f"carol{suffix}")
    room = alice.create_room(preset="private_chat")
    body = {"id_server": identity.name, "id_access_token": "t", "medium": "email", "address": ADDRESS}
    alice.post(f"/rooms/{segment(room)}/invite", body)
    offer = alice.get_state(room, "m.room.third_party_invite", "token0")
    assert (offer["display_name"], offer["public_key"]) == ("c...@m...", identity.public)

    url = f"https://{invited.name}/_matrix/federation/v1/3pid/onbind"
    # As the specification has it; a Synapse knows it only as the identity server Sydent sends it.
    method = "POST" if ours_offers else "PUT"
    answer = requests.request(method, url, json=identity.bind(carol.user_id), verify=str(authority.certificate), timeout=60)
    assert answer.status_code == 200, answer.text
    carol.wait_for_invite(room)
    assert identity.public in identity.asked_keys, "who makes the invite asks whether the key is valid"
    carol.join(room, via=inviting.name)
    alice.wait_for_members(room, {alice.user_id, carol.user_id})
    said = carol.say(room, "here by mail")
    alice.wait_for_event(room, said)
