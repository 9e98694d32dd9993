"""Who may call: the one place that decides it, for every route.

A page of another site can make a browser send requests here, with forms, images, scripts or a name that it rebinds to
this machine. So a change must be asked for with a content type that such a page may not send unasked, from a page of
this server, under a name of this machine; where others can reach the server at all, with a token as well.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address

TOKEN_HEADER = "X-Spectral-Token"
_AUTHORITY = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::(?P<port>[0-9]{1,5}))?", re.IGNORECASE)
_SCHEMES = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Access:
    """Who can reach the server.

    loopback: it listens on this machine only, so that it has to be called by a name of this machine. token: what every
    call must carry; None asks for none, which only a server on loopback may do.
    """

    loopback: bool
    token: str | None = None

    def __post_init__(self) -> None:
        if not self.loopback and not self.token:
            raise ValueError("a server that others can reach needs a token")


@dataclass(frozen=True)
class Refusal:
    """Why a call is not answered. token_needed: with the token it would be."""

    status: int
    text: str
    token_needed: bool = False


def check(
    method: str, headers: Mapping[str, str], cookies: Mapping[str, str], access: Access, *, open_to_all: bool = False
) -> Refusal | None:
    """Why a call with these headers is refused, or None.

    open_to_all: the route answers without the token, all else being as it must be. `headers` finds names in any case.
    """
    refusal = _host(headers, access) or _site(method, headers) or _content(method, headers)
    if refusal is None and not open_to_all and not _has_token(headers, cookies, access):
        text = "this server asks for its token: it stands in the address and the log that the server printed"
        return Refusal(401, text, token_needed=True)
    return refusal


def check_page(headers: Mapping[str, str], access: Access) -> Refusal | None:
    """The same for the page's own code, which is no secret and which links from anywhere may open."""
    return _host(headers, access)


def cookie_name(host: str) -> str:
    """The cookie that carries the token. Cookies do not tell ports apart, and a machine may run several servers."""
    found = _AUTHORITY.fullmatch(host)
    return f"spectral_adapters_{(found and found['port']) or 'token'}"


def token_is(given: str, access: Access) -> bool:
    """Whether it is the token, compared in a time that says nothing of it."""
    return access.token is None or secrets.compare_digest(given.encode("utf-8", "replace"), access.token.encode())


def is_loopback(host: str) -> bool:
    """Whether a Host header's value names this machine itself."""
    found = _AUTHORITY.fullmatch(host)
    if found is None:
        return False
    name = found["name"].strip("[]").lower()
    try:
        return name == "localhost" or ip_address(name).is_loopback
    except ValueError:
        return False


def _host(headers: Mapping[str, str], access: Access) -> Refusal | None:
    host = headers.get("Host", "")
    if _AUTHORITY.fullmatch(host) is None or (access.loopback and not is_loopback(host)):
        text = f"found the host name {host[:100]!r}; expected a name of this machine, such as 127.0.0.1 or localhost"
        return Refusal(403, text)
    return None


def _site(method: str, headers: Mapping[str, str]) -> Refusal | None:
    """A page elsewhere may neither change nor read; pages of other ports may at most load what changes nothing."""
    site = headers.get("Sec-Fetch-Site", "none")
    allowed = site != "cross-site" if method == "GET" else site in ("same-origin", "none")
    origin = headers.get("Origin")
    if not allowed or (origin is not None and not _same_origin(origin, headers["Host"])):
        return Refusal(403, "this call came from a page of another site; expected one of this server's own pages")
    return None


def _same_origin(origin: str, host: str) -> bool:
    scheme, separator, authority = origin.partition("://")
    if not separator or scheme not in _SCHEMES:
        return False
    return _with_port(authority, _SCHEMES[scheme]) == _with_port(host, _SCHEMES[scheme]) is not None


def _with_port(authority: str, default: int) -> tuple[str, int] | None:
    found = _AUTHORITY.fullmatch(authority)
    return None if found is None else (found["name"].lower(), int(found["port"] or default))


def _content(method: str, headers: Mapping[str, str]) -> Refusal | None:
    """Forms can send three content types without asking; this one they cannot."""
    kind = headers.get("Content-Type", "")
    if method != "GET" and kind != "application/json":
        return Refusal(415, f"found the content type {kind[:100]!r}; expected application/json")
    return None


def _has_token(headers: Mapping[str, str], cookies: Mapping[str, str], access: Access) -> bool:
    given = headers.get(TOKEN_HEADER) or cookies.get(cookie_name(headers.get("Host", "")), "")
    return token_is(given, access)
