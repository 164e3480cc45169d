"""A real Synapse on loopback, as the other homeserver: TLS verified both ways, no rate limits."""

import hashlib
import hmac
import json
import secrets
import signal
import subprocess
import sys
from pathlib import Path

import requests
from unpaddedbase64 import encode_base64

from client import Client
from net import Line, free_port, wait_for

_REGISTRATION_SECRET = "end-to-end"
_UNLIMITED = {"per_second": 1_000_000, "burst_count": 1_000_000}
_LIMITS = (
    "rc_message rc_registration rc_registration_token_validity rc_admin_redaction rc_joins_per_room rc_3pid_validation "
    "rc_third_party_invite rc_media_create rc_key_requests rc_room_creation rc_user_directory rc_profile rc_reports"
).split()


class Synapse:
    """One Synapse. `with_line` puts a line before its federation port that a test can cut; its name begins with `host`."""

    def __init__(self, folder: Path, authority, with_line=False, settings=None, host="localhost"):
        self.folder = folder
        self.authority = authority
        self.settings = settings or {}
        folder.mkdir(parents=True, exist_ok=True)
        self.port, self.client_port = free_port(), free_port()
        self.line = Line(self.port) if with_line else None
        self.name = f"{host}:{self.line.port if self.line else self.port}"
        self.base = f"http://127.0.0.1:{self.client_port}"
        self.log_path = folder / "synapse.log"
        self.process = None
        self._write_configuration()

    def start(self):
        with open(self.folder / "stdout.log", "ab") as log:
            command = [sys.executable, "-m", "synapse.app.homeserver", "-c", self.folder / "homeserver.yaml"]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder)
        wait_for(self._answers, f"a Synapse in {self.folder}")
        return self

    def stop(self):
        if self.process:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process = None

    def close(self):
        self.stop()
        if self.line:
            self.line.close()

    def user(self, name, password="password"):
        """Registers a user, and answers with a client for it."""
        path = f"{self.base}/_synapse/admin/v1/register"
        nonce = requests.get(path, timeout=60).json()["nonce"]
        mac = hmac.new(_REGISTRATION_SECRET.encode(), digestmod=hashlib.sha1)
        mac.update("\0".join((nonce, name, password, "notadmin")).encode())
        body = {"nonce": nonce, "username": name, "password": password, "admin": False, "mac": mac.hexdigest()}
        answer = requests.post(path, json=body, timeout=60).json()
        return Client(self.base, token=answer["access_token"], user_id=answer["user_id"])

    def client(self):
        """A client that is not logged in."""
        return Client(self.base)

    def log(self):
        return self.log_path.read_text(errors="replace")

    def _answers(self):
        if self.process.poll() is not None:
            raise AssertionError(f"Synapse has ended: {(self.folder / 'stdout.log').read_text()[-3000:]}")
        try:
            return requests.get(f"{self.base}/_matrix/client/versions", timeout=2).ok
        except requests.RequestException:
            return False

    def _write_configuration(self):
        folder = self.folder
        key, certificate = self.authority.leaf(folder, "localhost", "127.0.0.1")
        seed = secrets.token_bytes(32)
        (folder / "signing.key").write_text(f"ed25519 a_test {encode_base64(seed)}\n")
        handler = {"class": "logging.FileHandler", "filename": str(self.log_path), "formatter": "line"}
        line = {"format": "%(asctime)s %(levelname)s %(name)s %(request)s %(message)s"}
        logging = {
            "version": 1,
            "formatters": {"line": line},
            "handlers": {"file": handler},
            "root": {"level": "INFO", "handlers": ["file"]},
            "disable_existing_loggers": False,
        }
        (folder / "log.yaml").write_text(json.dumps(logging))
        listener = {"type": "http", "bind_addresses": ["127.0.0.1"], "x_forwarded": False}
        configuration = {
            "server_name": self.name,
            "pid_file": str(folder / "synapse.pid"),
            "public_baseurl": self.base,
            "listeners": [
                {**listener, "port": self.port, "tls": True, "resources": [{"names": ["federation"]}]},
                {**listener, "port": self.client_port, "tls": False, "resources": [{"names": ["client"]}]},
            ],
            "tls_private_key_path": str(key),
            "tls_certificate_path": str(certificate),
            "federation_verify_certificates": True,
            "federation_custom_ca_list": [str(self.authority.certificate)],
            "ip_range_whitelist": ["127.0.0.0/8", "::1/128"],
            "signing_key_path": str(folder / "signing.key"),
            "trusted_key_servers": [],
            "suppress_key_server_warning": True,
            "report_stats": False,
            "registration_shared_secret": _REGISTRATION_SECRET,
            "macaroon_secret_key": "macaroon",
            "form_secret": "form",
            "bcrypt_rounds": 4,
            "database": {"name": "sqlite3", "args": {"database": str(folder / "homeserver.db")}},
            "media_store_path": str(folder / "media"),
            "log_config": str(folder / "log.yaml"),
            "allow_public_rooms_over_federation": True,
            # A server that was away for a moment is tried again at once, not after ten minutes.
            "federation": {
                # In milliseconds. What is said within such a pause waits for a minute, when all queues are looked at.
                "destination_min_retry_interval": 10,
                "destination_retry_multiplier": 1,
                "destination_max_retry_interval": 10,
                "max_short_retries": 1,
                "max_short_retry_delay": 200,
                "max_long_retries": 2,
                "max_long_retry_delay": "1s",
            },
            "rc_federation": {
                "window_size": 1000,
                "sleep_limit": 1_000_000,
                "sleep_delay": 1,
                "reject_limit": 1_000_000,
                "concurrent": 1000,
            },
            "federation_rr_transactions_per_room_per_second": 1_000_000,
            "rc_joins": {"local": _UNLIMITED, "remote": _UNLIMITED},
            "rc_login": {"address": _UNLIMITED, "account": _UNLIMITED, "failed_attempts": _UNLIMITED},
            "rc_invites": {"per_room": _UNLIMITED, "per_user": _UNLIMITED, "per_issuer": _UNLIMITED},
            # Otherwise a sync that is asked for again gets the answer of some time ago.
            "caches": {"sync_response_cache_duration": "0s"},
            "rc_presence": {"per_user": _UNLIMITED},
            **{limit: _UNLIMITED for limit in _LIMITS},
            **self.settings,
        }
        (folder / "homeserver.yaml").write_text(json.dumps(configuration, indent=1))

