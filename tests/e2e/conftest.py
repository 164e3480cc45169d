"""Fixtures: servers that are started once for a test file, and always ended."""

import os

import pytest

from net import Authority, take_ports_of
from synapse_peer import Synapse
from worker import Worker


def pytest_addoption(parser):
    parser.addoption("--engine", choices=sorted(Worker.DATABASES), default="d1", help="where our server runs")


def pytest_configure(config):
    # Whatever proxy leads out of this machine, servers on it reach one another without.
    outside = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
    direct = ",".join([*([outside] if outside else []), "localhost", "127.0.0.1", "::1"])
    os.environ.update(no_proxy=direct, NO_PROXY=direct)
    Worker.engine = config.getoption("--engine")
    # Of pytest-xdist, which runs the files in several processes.
    process = getattr(config, "workerinput", {"workerid": "gw0", "workercount": 1})
    take_ports_of(Worker.engine, int(process["workerid"].removeprefix("gw")), process["workercount"])


@pytest.fixture(scope="session")
def authority(tmp_path_factory):
    """The certificate authority that all servers trust."""
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="session")
def unknown_authority(tmp_path_factory):
    """A certificate authority that no server trusts."""
    return Authority(tmp_path_factory.mktemp("unknown-ca"))


@pytest.fixture(scope="module")
def start(tmp_path_factory, authority, request):
    """Makes and starts servers: `start(Worker)`, `start(Synapse, with_line=True)`; they end with the file's tests."""
    servers = []

    def make(kind, **options):
        folder = tmp_path_factory.mktemp(f"{request.module.__name__}-{kind.__name__.lower()}")
        server = kind(folder, authority, **options)
        servers.append(server)
        return server.start()

    yield make
    for server in reversed(servers):
        server.close()


@pytest.fixture(scope="module")
def worker(start):
    """Our server."""
    return start(Worker)


@pytest.fixture(scope="module")
def synapse(start):
    """A Synapse."""
    return start(Synapse)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """The ends of the servers' logs, beside what failed."""
    outcome = yield
    report = outcome.get_result()
    if report.failed:
        for name, value in getattr(item, "funcargs", {}).items():
            for server in value if isinstance(value, (list, tuple)) else [value]:
                if isinstance(server, (Worker, Synapse)) and server.log_path.exists():
                    report.sections.append((f"{name}: {server.log_path}", server.log()[-4000:]))
