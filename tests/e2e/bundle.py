"""The built Worker by itself: what it weighs, and how fast it begins."""

import http.client
import re
import subprocess
import tempfile
import time
from pathlib import Path
from statistics import median

from net import free_port
from worker import ROOT

_BINARIES = ROOT / "node_modules" / ".bin"
_VERSION = "/_matrix/federation/v1/version"

# Any object passes for a database in a request that asks it nothing.
_CONFIGURATION = """\
using Workerd = import "/workerd/workerd.capnp";
const config :Workerd.Config = (
  services = [(name = "main", worker = .worker)],
  sockets = [(name = "http", address = "127.0.0.1:{port}", http = (), service = "main")],
);
const worker :Workerd.Worker = (
  compatibilityDate = "{date}",
  modules = [{modules}],
  bindings = [
    (name = "SERVER_NAME", text = "bench.example"),
    (name = "SIGNING_KEY", text = "ed25519 a_bench AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"),
    (name = "DB", service = "main"),
  ],
);
"""
_VERGE = '(name = "index.js", esModule = embed "index.js"), (name = "index_bg.wasm", wasm = embed "index_bg.wasm")'
_EMPTY = '(name = "empty.js", esModule = "export default { fetch() { return new Response(); } };")'
# As many bytes, which nobody compiles.
_IDLE = f'{_EMPTY}, (name = "index_bg.wasm", data = embed "index_bg.wasm")'


def compressed_kb():
    """The bundle's compressed size in KB, as wrangler reports it when it uploads."""
    with tempfile.TemporaryDirectory() as folder:
        command = [_BINARIES / "wrangler", "deploy", "--dry-run", "--outdir", folder]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    found = re.search(r"gzip: ([0-9.]+) KiB", done.stdout)
    if not found:
        raise AssertionError(f"wrangler names no size: {done.stdout}{done.stderr}")
    return float(found[1]) * 1.024


def cold_start_ms(times=11):
    """From the start of a runtime until the first answer, less the same with a Worker of as many bytes that does
    nothing: compiling and instantiating the bundle, and one request. And what that Worker takes longer than an empty
    one, which is how long `workerd serve` reads its configuration: no isolate waits for that when it starts. The
    medians of some starts."""
    verge, idle, empty = (
        median(_first_answer_ms(modules) for _ in range(times)) for modules in (_VERGE, _IDLE, _EMPTY)
    )
    return verge - idle, idle - empty


def _first_answer_ms(modules):
    port = free_port()
    date = re.search('^compatibility_date = "(.*)"', (ROOT / "wrangler.toml").read_text(), re.MULTILINE)[1]
    with tempfile.TemporaryDirectory() as folder:
        for name in ("index.js", "index_bg.wasm"):
            (Path(folder) / name).symlink_to(ROOT / "build" / name)
        configuration = Path(folder) / "config.capnp"
        configuration.write_text(_CONFIGURATION.format(port=port, modules=modules, date=date))
        start = time.perf_counter()
        runtime = subprocess.Popen([_BINARIES / "workerd", "serve", configuration], stderr=subprocess.PIPE)
        try:
            while runtime.poll() is None:
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
                try:
                    connection.request("GET", _VERSION)
                    status = connection.getresponse().status
                except ConnectionRefusedError:
                    time.sleep(0.001)
                    continue
                assert status == 200, status
                return (time.perf_counter() - start) * 1000
            raise AssertionError(runtime.stderr.read().decode())
        finally:
            runtime.kill()
            runtime.communicate()
