"""From a route's plain function to what aiohttp calls, with the guard always between.

A route is a function of the studio and a `Call` that returns plain values. aiohttp cannot call it as it stands, so no
route can be registered without coming through `definition`, where the guard, the body's cap and the errors are.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from aiohttp import web

from ...spectral.errors import SettingError, SpectralError
from ..addresses import PREFIX
from ..jobs.job import JobConflict, UnknownJob
from ..places import NameTaken
from . import guard
from .call import Call, check_names, read_body

if TYPE_CHECKING:
    from ..studio import Studio

BODY = 256 << 10  # bytes of a call's body, where the route says nothing else
# Threads of our own: an estimate keeps one for seconds, and the host needs its few for itself.
_THREADS = ThreadPoolExecutor(16, thread_name_prefix="spectral-http")
_LOG = logging.getLogger(__name__)
_ALWAYS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",  # other ports of this machine are the same site to a browser
}


@dataclass(frozen=True)
class Picture:
    """An answer that is a picture. kind: its content type. lasting: it never changes under this address."""

    data: bytes
    kind: Literal["image/png", "image/jpeg", "image/webp"]
    lasting: bool = False


class Missing(SpectralError):
    """What the call names is not there."""


class Refused(SpectralError):
    """The call may not do this."""


@dataclass(frozen=True)
class Welcome:
    """An answer that leaves the token with the browser, out of reach of scripts."""

    token: str


_STATUS: dict[type[BaseException], int] = {
    UnknownJob: 404,
    Missing: 404,
    Refused: 403,
    JobConflict: 409,
    NameTaken: 409,
    SpectralError: 400,
    UnicodeError: 400,  # half a surrogate pair, which no file name and no text on disk can hold
}

Answer = dict[str, Any] | list[Any] | Picture | Welcome
Work = Callable[["Studio", Call], Answer]


@dataclass(frozen=True)
class Route:
    """One route. takes: the names of its values; most: bytes of its body; open_to_all: it answers without the token."""

    method: Literal["GET", "POST"]
    path: str
    work: Work
    takes: tuple[str, ...] = ()
    most: int = BODY
    open_to_all: bool = False


def definition(route: Route, studio: Studio, access: guard.Access) -> web.RouteDef:
    """The route as aiohttp registers it."""

    async def handle(request: web.Request) -> web.Response:
        refusal = guard.check(request.method, request.headers, request.cookies, access, open_to_all=route.open_to_all)
        if refusal is not None:
            return _refused(refusal)
        try:
            values = await _values(request, route)
        except _TooLarge as error:
            return _error(413, str(error))
        except SettingError as error:
            return _error(400, str(error))
        call = Call(dict(request.match_info), values, access, from_query=route.method == "GET")
        return await _answer(route, studio, call, request.headers["Host"])

    kwargs = {"allow_head": False} if route.method == "GET" else {}
    return web.RouteDef(route.method, PREFIX + route.path, handle, kwargs)


class _TooLarge(SpectralError):
    """The body goes over the route's cap."""


async def _values(request: web.Request, route: Route) -> dict[str, Any]:
    if route.method == "GET":
        values: dict[str, Any] = dict(request.query)
    else:
        blob = await _body(request, route.most)
        values = await _in_thread(read_body, blob)
    check_names(values, route.takes)
    return values


async def _body(request: web.Request, most: int) -> bytes:
    """The body, of which no more than `most` bytes are ever held."""
    said = _TooLarge(f"the body is too large; expected at most {most:,} bytes")
    if (request.content_length or 0) > most:
        raise said
    parts, size = [], 0
    async for part in request.content.iter_chunked(1 << 16):
        size += len(part)
        if size > most:
            raise said
        parts.append(part)
    return b"".join(parts)


async def _answer(route: Route, studio: Studio, call: Call, host: str) -> web.Response:
    """The work's answer; whatever goes wrong in it becomes a sentence, and the unexpected a line in the log too."""
    work = _in_thread(_work, route, studio, call)
    await asyncio.wait([work])
    error = work.exception()
    if error is None:
        return _response(work.result(), host)
    status = _status(error)
    if status < 500:
        return _error(status, str(error))
    _LOG.error("%s %s failed", route.method, route.path, exc_info=error)
    return _error(status, f"this went wrong on the server ({type(error).__name__}); its log says more")


def _in_thread(work: Callable[..., Any], *given: Any) -> asyncio.Future[Any]:
    return asyncio.get_running_loop().run_in_executor(_THREADS, work, *given)


def _work(route: Route, studio: Studio, call: Call) -> Picture | Welcome | bytes:
    answer = route.work(studio, call)
    return answer if isinstance(answer, (Picture, Welcome)) else _encoded(answer)


def _status(error: BaseException) -> int:
    for kind, status in _STATUS.items():
        if isinstance(error, kind):
            return status
    return 500


def _response(answer: Picture | Welcome | bytes, host: str) -> web.Response:
    if isinstance(answer, Picture):
        return _picture(answer)
    if isinstance(answer, bytes):
        return _json(answer)
    response = _json(_encoded({}))
    leave_token(response, host, answer.token)
    return response


def leave_token(response: web.Response, host: str, token: str) -> None:
    """Give the browser the token as a cookie that no script reads and no other site's call carries."""
    response.set_cookie(guard.cookie_name(host), token, httponly=True, samesite="Strict", path="/")


def _picture(picture: Picture) -> web.Response:
    headers = {
        **_ALWAYS,
        "Content-Disposition": "inline",
        "Content-Security-Policy": "default-src 'none'; sandbox",
        "Cache-Control": "private, max-age=604800, immutable" if picture.lasting else "private, no-cache",
    }
    return web.Response(body=picture.data, content_type=picture.kind, headers=headers)


def _encoded(answer: Any) -> bytes:
    return json.dumps(answer, allow_nan=False).encode()


def _json(blob: bytes, status: int = 200) -> web.Response:
    headers = {**_ALWAYS, "Cache-Control": "no-store"}
    return web.Response(body=blob, status=status, content_type="application/json", headers=headers)


def _refused(refusal: guard.Refusal) -> web.Response:
    more = {"token_needed": True} if refusal.token_needed else {}
    return _json(_encoded({"error": refusal.text, **more}), refusal.status)


def _error(status: int, text: str) -> web.Response:
    return _json(_encoded({"error": text[:2000]}), status)
