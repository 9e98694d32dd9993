"""AUTOMATIC1111's web UI and the Forge family. `start()` makes their Lora understand the files of this package.

`scripts/spectral_webui.py` calls it each time the web UI runs its scripts. Nothing of a web UI is imported before.
"""

from __future__ import annotations

from typing import Any

from .host import Host, Undo

NOTHING_FOUND = (
    "Spectral Adapters: found no Lora extension that takes other kinds of files, so adapters are not applied here; "
    "expected AUTOMATIC1111 1.10, Forge, reForge or Forge Classic with their built-in Lora switched on."
)


def start() -> str:
    """Registers with the web UI that runs in this process, and takes it back when its scripts are unloaded.

    Called again, as at every reload, it changes nothing that it has not put there. Returns the line that it printed.
    """
    from modules import script_callbacks

    from . import routes, settings, tag

    host = _find()
    if host is None:
        print(NOTHING_FOUND)
        return NOTHING_FOUND
    undo: list[Undo] = [host.attach()]
    settings.register()

    def started(_: Any, app: Any) -> None:
        undo.append(tag.attach(host))
        routes.add(app, host)

    def unloaded() -> None:
        while undo:
            undo.pop()()

    script_callbacks.on_app_started(started)
    script_callbacks.on_script_unloaded(unloaded)
    said = f"Spectral Adapters: ready in {host.name}."
    print(said)
    return said


def _find() -> Host | None:
    """The web UI that runs here, told by what it offers and not by its name."""
    from .automatic1111 import AUTOMATIC1111
    from .forge_family import FORGE_FAMILY

    return next((host for host in (FORGE_FAMILY, AUTOMATIC1111) if host.present()), None)
