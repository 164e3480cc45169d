"""Our server on the real runtime, started as a developer starts it: `scripts/dev.mjs`."""

import glob
import os
import re
import signal
import sqlite3
import subprocess
from pathlib import Path

from client import Client
from net import Line, free_port, is_free, wait_for

ROOT = Path(__file__).resolve().parents[2]
_BINARIES = ROOT / "node_modules" / ".bin"


class Worker:
    """One Worker with its data folder, of the engine that this run of the tests is for. `with_line` puts a line before its port that a test can cut. It trusts
    `authority`, which also certifies it, unless that is left to a `certifier` of its own."""

    engine = "d1"
    # By engine, the folder in which the runtime keeps the database.
    DATABASES = {"d1": "d1/miniflare-D1DatabaseObject", "object": "do/verge-Homeserver"}

    def __init__(self, folder: Path, authority, with_line=False, cron_seconds=1, options=(), certifier=None, engine=None):
        self.engine = engine or self.engine
        self.folder = folder
        self.authority = authority
        folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.line = Line(self.port) if with_line else None
        self.name = f"localhost:{self.line.port if self.line else self.port}"
        self.base = f"https://localhost:{self.port}"
        self.log_path = folder / "dev.log"
        self.cron_seconds = cron_seconds
        self.options = list(options)
        self.certify(certifier or authority)
        self.process = None

    def certify(self, certifier):
        """From its next start on it serves a certificate of this authority."""
        self.certifier = certifier
        self.tls = certifier.leaf(self.folder, "localhost", "127.0.0.1")

    def start(self):
        key, certificate = self.tls
        command = [_BINARIES / "node", ROOT / "scripts" / "dev.mjs", "--as-built", "--persist-to", self.folder / "data"]
        command += ["--server-name", self.name, "--port", str(self.port), "--cron-seconds", str(self.cron_seconds)]
        command += ["--engine", self.engine]
        command += ["--tls-key", key, "--tls-cert", certificate, "--ca", self.authority.certificate, *self.options]
        start = self.log_path.stat().st_size if self.log_path.exists() else 0
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=ROOT)
        wait_for(lambda: self._is_ready(start), f"a Worker in {self.folder}")
        return self

    def stop(self):
        if self.process:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                for pid in [*self._descendants(), self.process.pid]:
                    _kill(pid)
                self.process.wait()
            self.process = None

    def crash(self):
        """SIGKILL for the runtime's processes, without a warning; then whatever is left of the launcher."""
        descendants = self._descendants()
        runtime = [pid for pid in descendants if b"workerd" in _command(pid)]
        assert runtime, "no workerd is running"
        for pid in runtime:
            _kill(pid)
        for pid in [*self._descendants(), *descendants, self.process.pid]:
            _kill(pid)
        self.process.wait()
        self.process = None
        # What was killed may be gone a moment later.
        wait_for(lambda: is_free(self.port), f"port {self.port} is free again")

    def close(self):
        self.stop()
        if self.line:
            self.line.close()

    def user(self, name, password="password"):
        """Registers a user, and answers with a client for it."""
        client = self.client()
        body = {"username": name, "password": password, "auth": {"type": "m.login.dummy"}}
        answer = client.post("/register", body)
        client.token, client.user_id = answer["access_token"], answer["user_id"]
        return client

    def client(self):
        """A client that is not logged in."""
        return Client(self.base, self.certifier.certificate)

    def fire_scheduled(self):
        """Fires the scheduled trigger once, as the platform does every minute."""
        self.client().call("GET", "/__scheduled", cron="* * * * *")

    def rows(self, sql, *parameters):
        """What the database answers; only for reading."""
        with sqlite3.connect(f"file:{self.database()}?mode=ro", uri=True) as database:
            return database.execute(sql, parameters).fetchall()

    def database(self, engine=None):
        """The file of the database, of the engine that runs or of another one."""
        pattern = f"{self.folder}/data/v3/{self.DATABASES[engine or self.engine]}/*.sqlite"
        (path,) = [path for path in glob.glob(pattern) if "metadata" not in path]
        return path

    def log(self):
        return self.log_path.read_text(errors="replace")

    def runtime(self):
        """The id of the process that runs the Worker and its database: the one that has the database open."""

        def opens_database(pid):
            return any(self.DATABASES[self.engine] in _target(link) for link in Path(f"/proc/{pid}/fd").iterdir())

        (found,) = [pid for pid in self._descendants() if opens_database(pid)]
        return found

    def inspector_port(self):
        """Where the runtime answers to debuggers."""
        return next(int(port) for pid in self._descendants() for port in re.findall(rb"--inspector-port\0(\d+)", _command(pid)))

    def _is_ready(self, start):
        if self.process.poll() is not None:
            # A tool that is ended with the launcher may have much to say after the launcher's last word.
            raise AssertionError(f"the Worker has ended: {self.log()[-30_000:]}")
        return b"\nready https://" in self.log_path.read_bytes()[start:]

    def _descendants(self):
        children = {}
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                try:
                    fields = Path(f"/proc/{entry}/stat").read_text().rsplit(")", 1)[1].split()
                except OSError:
                    continue
                children.setdefault(int(fields[1]), []).append(int(entry))
        found, todo = [], [self.process.pid]
        while todo:
            below = children.get(todo.pop(), [])
            found += below
            todo += below
        return found


def _command(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _target(link):
    """Where a link leads; nowhere, if it is gone: files are opened and closed meanwhile."""
    try:
        return os.readlink(link)
    except OSError:
        return ""


def _kill(pid):
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
