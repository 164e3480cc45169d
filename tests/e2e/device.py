"""A device's keys as servers see them: made and signed here, without a client's encryption."""

import secrets

from signedjson.key import generate_signing_key, get_verify_key
from signedjson.sign import sign_json
from unpaddedbase64 import encode_base64

_ALGORITHMS = ["m.olm.v1.curve25519-aes-sha2", "m.megolm.v1.aes-sha2"]


class Device:
    """One device of the user that a client is logged in as."""

    def __init__(self, client, device_id):
        self.client = client
        self.id = device_id
        self._key = generate_signing_key(device_id)

    @classmethod
    def log_in(cls, server, user_id, device_id, password="password"):
        """Another device of a user, which has uploaded its keys."""
        client = server.client()
        identifier = {"type": "m.id.user", "user": user_id}
        body = {"type": "m.login.password", "identifier": identifier, "password": password, "device_id": device_id}
        answer = client.post("/login", body)
        client.token, client.user_id = answer["access_token"], answer["user_id"]
        device = cls(client, device_id)
        client.post("/keys/upload", {"device_keys": device.keys()})
        return device

    def log_out(self):
        self.client.post("/logout")

    def keys(self):
        """The identity keys."""
        ed25519 = encode_base64(get_verify_key(self._key).encode())
        keys = {f"ed25519:{self.id}": ed25519, f"curve25519:{self.id}": _random_key()}
        return self.sign({"user_id": self.client.user_id, "device_id": self.id, "algorithms": _ALGORITHMS, "keys": keys})

    def one_time_keys(self, names, **more):
        """One-time keys of these names; with `fallback=True` fallback keys."""
        return {f"signed_curve25519:{name}": self.sign({"key": _random_key(), **more}) for name in names}

    def sign(self, value):
        return sign_json(value, self.client.user_id, self._key)


class CrossSigning:
    """A user's master and self-signing keys."""

    def __init__(self, user_id):
        self.user_id = user_id
        self.master, self._master_key = self._new("master")
        self.self_signing, _ = self._new("self_signing")
        self.self_signing = sign_json(self.self_signing, user_id, self._master_key)

    def body(self):
        return {"master_key": self.master, "self_signing_key": self.self_signing}

    def _new(self, usage):
        key = generate_signing_key("any")
        public = encode_base64(get_verify_key(key).encode())
        # The key's version is its public part.
        key.version = public
        return {"user_id": self.user_id, "usage": [usage], "keys": {f"ed25519:{public}": public}}, key


def _random_key():
    return encode_base64(secrets.token_bytes(32))
