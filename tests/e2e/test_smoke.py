"""The server answers over verified TLS, and a Synapse accepts its key."""

import time

import pytest
import requests
from signedjson.key import decode_verify_key_bytes
from signedjson.sign import verify_signed_json
from unpaddedbase64 import decode_base64

from client import segment
from worker import Worker


def get(worker, path, method="GET"):
    return requests.request(method, worker.base + path, verify=str(worker.authority.certificate), timeout=30)


def test_version(worker):
    server = get(worker, "/_matrix/federation/v1/version").json()["server"]
    assert server["name"] == "Verge" and server["version"]


def test_well_known(worker):
    answer = get(worker, "/.well-known/matrix/server")
    assert answer.json() == {"m.server": "localhost:443"}
    assert answer.headers["Content-Type"] == "application/json"


def test_server_keys_are_signed_by_themselves(worker):
    keys = get(worker, "/_matrix/key/v2/server").json()
    assert keys["server_name"] == worker.name
    assert keys["valid_until_ts"] > time.time() * 1000 + 3600_000
    assert keys["verify_keys"]
    for key_id, key in keys["verify_keys"].items():
        verify_signed_json(keys, worker.name, decode_verify_key_bytes(key_id, decode_base64(key["key"])))


@pytest.mark.parametrize("prefix", ["federation/v1", "key/v2", "client/v3", "media/v3"])
def test_unknown_paths_are_not_recognized(worker, prefix):
    answer = get(worker, f"/_matrix/{prefix}/nothing")
    assert (answer.status_code, answer.json()["errcode"]) == (404, "M_UNRECOGNIZED")


@pytest.mark.parametrize(
    "path", ["/_matrix/federation/v1/version", "/_matrix/key/v2/server", "/_matrix/client/versions"]
)
def test_wrong_methods_are_not_recognized(worker, path):
    answer = get(worker, path, "DELETE")
    assert (answer.status_code, answer.json()["errcode"]) == (405, "M_UNRECOGNIZED")


def test_tls_is_verified_with_the_test_authority_only(worker):
    with pytest.raises(requests.exceptions.SSLError):
        requests.get(worker.base + "/_matrix/federation/v1/version", timeout=30)


def test_synapse_fetches_our_key_and_trusts_our_signature(worker, synapse):
    """A profile of our server's user is asked for by Synapse, whose signed request we check with its key."""
    alice = worker.user("alice")
    alice.put(f"/profile/{segment(alice.user_id)}/displayname", {"displayname": "Alice"})
    bob = synapse.user("bob")
    assert bob.get(f"/profile/{segment(alice.user_id)}")["displayname"] == "Alice"
