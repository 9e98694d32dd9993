"""A server of its own, for people without ComfyUI: on this machine only, behind a token."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING

from aiohttp import web

from ...spectral.errors import SpectralError
from . import Access, routes
from .pages import page

if TYPE_CHECKING:
    from ..studio import Studio

HOST = "127.0.0.1"
_GRACE = 2.0  # seconds that calls under way get at the end


def application(studio: Studio, token: str) -> web.Application:
    """The routes and the page, each guarded."""
    access = Access(loopback=True, token=token)
    app = web.Application()
    app.add_routes([*routes(studio, access), page(access)])
    return app


def serve(studio: Studio, port: int, token: str, ready: Callable[[str], None]) -> None:
    """Serve until Ctrl-C or SIGTERM; `ready` gets the address with the token once it answers.

    port: 0 takes any free one. Raises SpectralError where the port is taken.
    """
    asyncio.run(_serve(application(studio, token), port, lambda address: ready(f"{address}/?token={token}")))


async def _serve(app: web.Application, port: int, ready: Callable[[str], None]) -> None:
    # The log of calls would hold the token.
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=_GRACE)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, HOST, port).start()
        except OSError as error:
            raise SpectralError(
                f"the page cannot be served at {HOST}:{port} ({error.strerror or error}); choose another port with "
                "--port, or 0 for any free one"
            ) from error
        ready(f"http://{HOST}:{runner.addresses[0][1]}")
        await _until_asked_to_stop()
    finally:
        await runner.cleanup()


async def _until_asked_to_stop() -> None:
    asked = asyncio.Event()
    loop = asyncio.get_running_loop()
    with contextlib.suppress(NotImplementedError):  # Windows: Ctrl-C comes as KeyboardInterrupt
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, asked.set)
    await asked.wait()
