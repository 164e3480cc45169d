"""Ports, certificates, waiting, and a line between servers that a test can cut."""

import itertools
import os
import socket
import subprocess
import threading
import time
from ipaddress import ip_address
from pathlib import Path

# Ports for servers to listen on, by the engine that a run of the tests is for: two runs go on at the same time. Systems take
# those of outgoing connections from 32,768 upwards, which would otherwise sometimes take a port between its choice and its
# server's start.
PORTS = {"d1": range(12_000, 22_000), "object": range(22_000, 32_000)}
# For so long, in seconds, something may take that happens in a moment on an idle machine. What a Synapse could not send it sends
# again when it has more for the same server, or after a minute; and who waits for nothing loses no time.
PATIENCE = 240.0
_ports = PORTS["d1"]
_next_port = itertools.count(os.getpid() * 7)


def take_ports_of(engine, part, parts):
    """From now on ports are those of one of the processes that run this engine's tests, each of which has as many."""
    global _ports
    share = len(PORTS[engine]) // parts
    _ports = PORTS[engine][part * share : (part + 1) * share]


def free_port():
    """A port that nobody listens on, and that this process has not been given before."""
    for number in itertools.islice(_next_port, len(_ports)):
        port = _ports[number % len(_ports)]
        with socket.socket() as listener:
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no port is free")


def is_free(port):
    """Whether a server may listen on the port."""
    try:
        socket.create_server(("127.0.0.1", port)).close()
        return True
    except OSError:
        return False


def wait_for(condition, what, timeout=PATIENCE, step=0.1):
    """The first true value of `condition()`; fails with `what` when there is none in time."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout} s: {what}")
        time.sleep(step)


def insist(act, seen, what, each=5.0, timeout=PATIENCE):
    """As `wait_for`, for what is lost on the way now and then and is not repeated: `act` is done again and again. A server that
    did not take something is told nothing of the kind for a minute."""
    due = 0.0

    def is_seen():
        nonlocal due
        if time.monotonic() >= due:
            act()
            due = time.monotonic() + each
        return seen()

    return wait_for(is_seen, what, timeout)


class Authority:
    """A certificate authority. All servers of one test run trust the same one, and nobody else does."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.key, self.certificate = folder / "ca.key", folder / "ca.crt"
        # Servers may be made at the same time, and all take their certificate's number from one file.
        self._lock = threading.Lock()
        _new_key(self.key)
        _openssl(
            "req", "-x509", "-new", "-key", self.key, "-days", "30", "-subj", "/CN=end-to-end tests",
            "-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign",
            "-out", self.certificate,
        )  # fmt: skip

    def leaf(self, folder: Path, *hosts):
        """Paths of a key and a certificate for `hosts`."""
        folder.mkdir(parents=True, exist_ok=True)
        key, certificate, request, extensions = (folder / f"tls.{end}" for end in ("key", "crt", "csr", "ext"))
        names = ",".join(f"{'IP' if _is_ip(host) else 'DNS'}:{host}" for host in hosts)
        extensions.write_text(f"basicConstraints=CA:FALSE\nextendedKeyUsage=serverAuth\nsubjectAltName={names}\n")
        _new_key(key)
        _openssl("req", "-new", "-key", key, "-subj", f"/CN={hosts[0]}", "-out", request)
        with self._lock:
            _openssl(
                "x509", "-req", "-in", request, "-CA", self.certificate, "-CAkey", self.key, "-CAcreateserial",
                "-days", "30", "-extfile", extensions, "-out", certificate,
            )  # fmt: skip
        return key, certificate


class Line:
    """A TCP port through which a server is reached, until the test cuts it."""

    def __init__(self, target_port):
        self.target_port = target_port
        self.port = free_port()
        self._lock = threading.Lock()
        self._listener = None
        self._open = set()
        self.restore()

    def restore(self):
        listener = socket.create_server(("127.0.0.1", self.port))
        with self._lock:
            self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def cut(self):
        """From now on connections are refused, and those that exist are closed."""
        with self._lock:
            listener, self._listener = self._listener, None
            connections, self._open = self._open, set()
        if listener:
            # Wakes the thread that is in accept, which a close alone would not.
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        for connection in connections:
            _close(connection)

    close = cut

    def _accept(self, listener):
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self.target_port))
            except OSError:
                near.close()
                continue
            with self._lock:
                if self._listener is not listener:
                    near.close()
                    far.close()
                    return
                self._open |= {near, far}
            for ends in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=ends, daemon=True).start()

    def _pump(self, source, target):
        try:
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            _close(source)
            _close(target)


def _close(connection):
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
    connection.close()


def _is_ip(host):
    try:
        ip_address(host)
        return True
    except ValueError:
        return False


def _new_key(path):
    _openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", path)


def _openssl(*args):
    subprocess.run(["openssl", *map(str, args)], check=True, capture_output=True)
