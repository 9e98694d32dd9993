"""The page of its own: the files of web/, by name, with fixed content types and a policy that runs nothing foreign."""

from __future__ import annotations

from pathlib import Path

from aiohttp import web

from ..places import NameFault, inside
from . import guard
from .route import leave_token

WEB = Path(__file__).resolve().parents[2] / "web"
# Not asked from the system, whose table a Windows registry may have changed.
_KINDS = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".webp": "image/webp",
    ".json": "application/json",
}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


def page(access: guard.Access) -> web.RouteDef:
    """`GET /…`: the page and what belongs to it. With ?token=… the browser gets its cookie, and a clean address."""

    async def handle(request: web.Request) -> web.StreamResponse:
        refusal = guard.check_page(request.headers, access)
        if refusal is not None:
            return web.Response(status=refusal.status, text=f"{refusal.text}\n", headers=_HEADERS)
        name = request.match_info["name"]
        given = request.query.get("token")
        if given is not None and not name:
            return _welcomed(request.headers["Host"], given, access)
        return _file(name or "index.html")

    return web.RouteDef("GET", "/{name:.*}", handle, {"allow_head": False})


def _welcomed(host: str, given: str, access: guard.Access) -> web.Response:
    response = web.Response(status=303, headers={**_HEADERS, "Location": "/"})
    if guard.token_is(given, access):
        leave_token(response, host, given)
    return response


def _file(name: str) -> web.StreamResponse:
    kind = _KINDS.get(Path(name).suffix)
    try:
        path = inside(WEB, *name.split("/"))
    except NameFault:
        kind = None
    if kind is None or not path.is_file():
        return web.Response(status=404, text="There is no such page.\n", headers=_HEADERS)
    return web.FileResponse(path, headers={**_HEADERS, "Content-Type": kind})
