"""The trainer over HTTP: `routes` for a host's aiohttp server; app.py is a server of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .guard import Access

if TYPE_CHECKING:
    from aiohttp import web

    from ..studio import Studio
    from .route import Route

__all__ = ["Access", "every_route", "routes"]


def every_route() -> list[Route]:
    """All routes, as they are written down."""
    from . import datasets, files, form, jobs, library, mix, results

    rooms = (jobs, datasets, form, files, results, library, mix)
    return [route for room in rooms for route in room.ROUTES]


def routes(studio: Studio, access: Access) -> list[web.RouteDef]:
    """Every route, guarded, as aiohttp's `add_routes` takes them."""
    from .route import definition

    return [definition(route, studio, access) for route in every_route()]
