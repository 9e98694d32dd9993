"""The trainer over HTTP: `routes` for a host's aiohttp server, `serve` for a server of its own.

Importing this imports aiohttp at first use of either, so that ComfyUI starts no slower.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .guard import Access

if TYPE_CHECKING:
    from aiohttp import web

    from ..studio import Studio

__all__ = ["Access", "routes"]


def routes(studio: Studio, access: Access) -> list[web.RouteDef]:
    """Every route, guarded, as aiohttp's `add_routes` takes them."""
    from . import datasets, files, form, jobs, results
    from .route import definition

    every = (*jobs.ROUTES, *datasets.ROUTES, *form.ROUTES, *files.ROUTES, *results.ROUTES)
    return [definition(route, studio, access) for route in every]
