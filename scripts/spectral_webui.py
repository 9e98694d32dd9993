"""The door of AUTOMATIC1111's web UI and the Forge family, which run every file of this folder as they start.

It makes the extension's folder importable as the package `spectral_adapters`, without putting it on sys.path, where
its `nodes` or `trainer` could shadow other extensions' modules, and hands over to `hosts`.
"""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

PACKAGE = "spectral_adapters"


def _register() -> None:
    """Once: modules of the package stay when the web UI reloads its scripts."""
    folder = Path(__file__).resolve().parent.parent
    known = getattr(sys.modules.get(PACKAGE), "__file__", None)
    if known is not None and Path(known).resolve().parent == folder:
        return
    spec = spec_from_file_location(PACKAGE, folder / "__init__.py", submodule_search_locations=[str(folder)])
    module = module_from_spec(spec)
    sys.modules[PACKAGE] = module
    spec.loader.exec_module(module)


_register()

from spectral_adapters import hosts  # noqa: E402  the package is importable only now

hosts.start()
