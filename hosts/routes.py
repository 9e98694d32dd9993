"""Three routes beside the web UI's own: what a file is, how it fits the loaded model, and its export.

    GET  /spectral-adapters/v1/NAME           what the file says of itself
    GET  /spectral-adapters/v1/NAME/match     how it fits the model that is loaded
    POST /spectral-adapters/v1/NAME/export    {"to": "lora" or "difference", "name": ..., "rank": ..., "energy": ...}

Files are known by their names in Lora's list, never by paths, and nothing is overwritten.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..spectral.adapter import Adapter
from ..spectral.basis import WeightSource
from ..spectral.cache import BasisCache
from ..spectral.convert import Export, to_diff, to_lora
from ..spectral.errors import SettingError, SpectralError, WrongBaseError
from ..spectral.export import SUFFIX, write_export
from ..spectral.file import load
from ..spectral.info import read_info
from ..spectral.known_files import MARK
from ..spectral.source import AdapterSource
from . import settings
from .changes import Applied, changes_of
from .host import Host

PREFIX = "/spectral-adapters/v1"
_NAME = re.compile(r"[^\W_][\w .()+-]{0,99}")  # of a new file; the first character is no dot and no dash
_OF_EXPORT = {"to", "name", "rank", "energy"}
_MOST_RANK = 4096


def add(app: Any, host: Host) -> None:
    """Adds the routes to the web UI's FastAPI application, in place of those of an earlier start."""
    from fastapi import Body, Depends, HTTPException
    from modules.call_queue import queue_lock

    app.router.routes[:] = [r for r in app.router.routes if not getattr(r, "path", "").startswith(PREFIX)]
    guarded = [Depends(allowed)] if (allowed := _password_check()) else []

    def answered(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        try:
            return work()
        except KeyError as error:
            raise HTTPException(404, error.args[0]) from error
        except SpectralError as error:
            raise HTTPException(422, str(error).replace(f"{_folder()}{os.sep}", "")) from error

    @app.get(f"{PREFIX}/{{name}}", dependencies=guarded)
    def details(name: str) -> Any:
        return answered(lambda: {"name": name, **read_info(_file(name)).as_json()})

    @app.get(f"{PREFIX}/{{name}}/match", dependencies=guarded)
    def match(name: str) -> Any:
        with queue_lock:  # no generation changes the weights meanwhile
            return answered(lambda: _match(name, host))

    @app.post(f"{PREFIX}/{{name}}/export", dependencies=guarded)
    def export(name: str, wanted: dict = Body(...)) -> Any:  # noqa: B008  FastAPI's way to say it
        with queue_lock:
            return answered(lambda: _export(name, wanted, host))


def _password_check() -> Callable[..., None] | None:
    """A check of what `--api-auth user:password` asks for, where the web UI was started with it."""
    from fastapi import Depends, HTTPException
    from fastapi.security import HTTPBasic
    from modules import shared

    stated = getattr(shared.cmd_opts, "api_auth", None)
    if not stated:
        return None
    accounts = dict(account.split(":", 1) for account in stated.split(","))

    def check(given: Any = Depends(HTTPBasic())) -> None:  # noqa: B008  FastAPI's way to say it
        password = accounts.get(given.username)
        if password is None or not secrets.compare_digest(given.password.encode(), password.encode()):
            raise HTTPException(401, "Incorrect username or password", {"WWW-Authenticate": "Basic"})

    return check


def _file(name: str) -> Path:
    """The adapter of this name in Lora's list. Raises KeyError."""
    import networks

    known = networks.available_networks.get(name)
    if known is None or MARK not in known.metadata:
        raise KeyError(
            f"found no spectral adapter named {name!r} in the Lora folder; expected the name of a file as Lora lists "
            "it, without its ending. Refresh the list if the file is new."
        )
    return Path(known.filename)


def _folder() -> Path:
    from modules import shared

    return Path(shared.cmd_opts.lora_dir)


def _match(name: str, host: Host) -> dict[str, Any]:
    path, base = _file(name), host.base()
    try:
        applied = changes_of(path, base, settings.current())
    except WrongBaseError as error:
        return {"name": name, "model": base.name, "fits": False, "text": str(error)}
    return {"name": name, "model": base.name, "fits": True, "text": applied.text, **_report(applied)}


def _report(applied: Applied) -> dict[str, Any]:
    report = applied.report
    verdicts = {**report.layers, **report.gains}
    return {
        "match": report.match,
        "layers": {layer: {"match": m.match, "same": m.same, "note": m.note} for layer, m in verdicts.items()},
        "unused": list(report.unused),
        "misfits": list(report.misfits),
    }


def _export(name: str, wanted: Mapping[str, Any], host: Host) -> dict[str, Any]:
    import networks

    path = _file(name)
    _check(wanted)
    out = _folder() / f"{wanted['name']}{SUFFIX}"
    base = host.base()
    changes_of(path, base, settings.current())  # refuses another model, whose weights would give another change
    adapter = load(path)
    made = _made(adapter, wanted, base.weights)
    write_export(made, AdapterSource(adapter, path.stem), out)
    networks.list_available_networks()
    residual = asdict(made.residual)
    return {"name": out.stem, "text": str(made.residual), "lost": residual["total"], "left_out": residual["left_out"]}


def _made(adapter: Adapter, wanted: Mapping[str, Any], weights: Mapping[str, WeightSource]) -> Export:
    if wanted["to"] == "difference":
        return to_diff(adapter, weights, cache=BasisCache())
    return to_lora(adapter, weights, rank=wanted.get("rank"), energy=wanted.get("energy"), cache=BasisCache())


def _check(wanted: Mapping[str, Any]) -> None:
    if unknown := sorted(wanted.keys() - _OF_EXPORT):
        raise SettingError(f"an export has no setting {unknown[0]!r}; it has {', '.join(sorted(_OF_EXPORT))}")
    if wanted.get("to") not in ("lora", "difference"):
        raise SettingError(f"found to={wanted.get('to')!r}; expected lora or difference")
    name, rank, energy = (wanted.get(key) for key in ("name", "rank", "energy"))
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name.endswith((" ", ".")):
        raise SettingError(
            f"found name={name!r}; expected the new file's name without ending: up to 100 letters, digits, spaces "
            "and _ . ( ) + -"
        )
    if rank is not None and not (type(rank) is int and 1 <= rank <= _MOST_RANK):
        raise SettingError(f"found rank={rank!r}; expected 1 to {_MOST_RANK}, or none")
    if energy is not None and not (type(energy) in (int, float) and 0 < energy <= 1):
        raise SettingError(f"found energy={energy!r}; expected a share above 0, up to 1, or none")
    if wanted["to"] == "difference" and (rank is not None or energy is not None):
        raise SettingError("found a rank or an energy for a difference, which is always whole; leave them out")
