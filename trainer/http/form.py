"""Routes of the form: what can be set, where one starts, what there is to choose from, and what it would cost."""

from __future__ import annotations

from typing import Any

from .. import form as forms
from ..studio import Studio
from .call import Call
from .guard import token_is
from .route import Refused, Route, Welcome
from .strings import strings


def form(studio: Studio, call: Call) -> dict[str, Any]:
    """Every setting of a training, the presets and the methods."""
    return forms.form(studio.places)


def values(studio: Studio, call: Call) -> dict[str, Any]:
    """A preset's values for a base and a method, and where each comes from."""
    method = call.text("method", "") or None
    return forms.values(call.text("preset"), method, call.text("base", "tiny"), studio.places)


def engine(studio: Studio, call: Call) -> dict[str, Any]:
    """What the engine that is asked for does otherwise than the built-in one, or cannot do."""
    from ..request import Request

    return studio.engine_says(Request.from_json(call.table("request")))


def estimate(studio: Studio, call: Call) -> dict[str, Any]:
    """Memory, time and file size of a training."""
    from ..request import Request

    return studio.estimate(Request.from_json(call.table("request")))


def bases(studio: Studio, call: Call) -> list[Any]:
    """The base models to train on."""
    return studio.bases()


def adapters(studio: Studio, call: Call) -> list[Any]:
    """The adapter files there are."""
    return studio.adapters()


def texts(studio: Studio, call: Call) -> dict[str, Any]:
    """The panel's strings."""
    return strings(call.text("lang", "en", 35))


def session(studio: Studio, call: Call) -> Welcome:
    """Leave the token with the browser."""
    given = call.text("token")
    if not token_is(given, call.access):
        raise Refused("this is not the token of this server; it stands in what the server printed when it started")
    return Welcome(given)


ROUTES = (
    Route("GET", "/form", form),
    Route("POST", "/form/values", values, ("preset", "method", "base")),
    Route("POST", "/form/engine", engine, ("request",)),
    Route("POST", "/estimate", estimate, ("request",)),
    Route("GET", "/bases", bases),
    Route("GET", "/adapters", adapters),
    Route("GET", "/strings", texts, ("lang",), open_to_all=True),
    Route("POST", "/session", session, ("token",), open_to_all=True),
)
