"""A resolver for DNS over HTTPS that knows the SRV records which a test gives it."""

import threading
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from fake_origin import HttpsServer
from net import free_port

_SRV = 33
_NO_SUCH_NAME = 3


class FakeResolver:
    """The resolver at `url`; `records` holds name to `priority weight port target`."""

    def __init__(self, folder: Path, authority):
        self.port = free_port()
        self.url = f"https://localhost:{self.port}/dns-query"
        self.records = {}
        self.asked = []
        self._server = HttpsServer(self, *authority.leaf(folder, "localhost"))

    def start(self):
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def close(self):
        self._server.shutdown()
        self._server.server_close()

    def answer(self, _method, path, _content):
        """The JSON form of a DNS answer."""
        name = parse_qs(urlsplit(path).query)["name"][0]
        self.asked.append(name)
        if name not in self.records:
            return 200, {"Status": _NO_SUCH_NAME}
        return 200, {"Status": 0, "Answer": [{"name": name, "type": _SRV, "TTL": 60, "data": self.records[name]}]}
