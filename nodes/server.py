"""The training routes on ComfyUI's own server."""

from __future__ import annotations

import logging
import os
import secrets
from pathlib import Path

from server import PromptServer

from ..trainer.http import Access, routes
from .studio import listens_on_loopback, studio


def open_door() -> None:
    """Registers the routes, which answer under /api too. Where others can reach ComfyUI, they ask for a token."""
    token = None if listens_on_loopback() else _token(studio().places.home / "token")
    for route in routes(studio(), Access(token is None, token)):
        # Without the route's options, which ComfyUI would hand on wrongly.
        PromptServer.instance.routes.route(route.method, route.path)(route.handler)
    if token is not None:
        logging.info("Spectral Adapters: others can reach this server. The panel asks for this token: %s", token)


def _token(file: Path) -> str:
    """The token of this home folder, the same at each start so that browsers keep it; made when missing."""
    try:
        return file.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        token = secrets.token_urlsafe(32)
        with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as made:
            made.write(token)
        return token
