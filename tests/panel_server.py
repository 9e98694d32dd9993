"""What tests of the routes share: a server on a free port in a thread, and a client that can send any header."""

import asyncio
import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

from aiohttp import web

from spectral_adapters.trainer.addresses import PREFIX
from spectral_adapters.trainer.http.app import application
from spectral_adapters.trainer.jobs.host import CPU, Standalone
from spectral_adapters.trainer.places import standalone
from spectral_adapters.trainer.studio import Studio

TOKEN = "token-of-the-test"


@dataclass
class Answer:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)


@dataclass
class Client:
    """Calls the routes of the server at `port`; with the token unless told otherwise."""

    port: int
    token: str | None = TOKEN

    def call(self, method: str, path: str, body: bytes | None = None, headers: dict | None = None) -> Answer:
        """A call with exactly these headers besides Host; `headers` may give another Host."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.putrequest(method, path, skip_host="Host" in (headers or {}), skip_accept_encoding=True)
            for name, value in (headers or {}).items():
                connection.putheader(name, value)
            if body is not None:
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            found = connection.getresponse()
            return Answer(found.status, found.headers, found.read())
        finally:
            connection.close()

    def raw(self, method: str, path: str, sent: bytes, headers: dict) -> int:
        """The status of a call whose body is sent as it stands."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.putrequest(method, path, skip_accept_encoding=True)
            for name, value in headers.items():
                connection.putheader(name, value)
            connection.endheaders()
            connection.send(sent)
            return connection.getresponse().status
        finally:
            connection.close()

    def get(self, path: str, **query: object) -> Answer:
        """GET beneath the prefix."""
        return self.call("GET", f"{PREFIX}{path}{'?' + urlencode(query) if query else ''}", headers=self._own())

    def post(self, path: str, body: object = None) -> Answer:
        """POST beneath the prefix, as the panel does."""
        headers = {**self._own(), "Content-Type": "application/json"}
        return self.call("POST", PREFIX + path, json.dumps({} if body is None else body).encode(), headers)

    def _own(self) -> dict[str, str]:
        return {} if self.token is None else {"X-Spectral-Token": self.token}


def make_studio(folder: Path, **roots: Path) -> Studio:
    """A studio with its home in `folder`, on the CPU alone."""
    return Studio(standalone(folder / "home", roots, []), Standalone(), devices=(CPU,))


@contextmanager
def serving(studio: Studio) -> Iterator[Client]:
    """The server of `ui` around a studio, on a free port. Nothing is trained unless the studio is started."""
    ready, loop = threading.Event(), asyncio.new_event_loop()
    ports: list[int] = []

    async def start() -> web.AppRunner:
        runner = web.AppRunner(application(studio, TOKEN), access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        ports.append(runner.addresses[0][1])
        return runner

    def work() -> None:
        asyncio.set_event_loop(loop)
        runner = loop.run_until_complete(start())
        ready.set()
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        connections = asyncio.all_tasks(loop)
        for connection in connections:
            connection.cancel()
        loop.run_until_complete(asyncio.gather(*connections, return_exceptions=True))
        loop.close()

    thread = threading.Thread(target=work)
    thread.start()
    assert ready.wait(30)
    try:
        yield Client(ports[0])
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)
