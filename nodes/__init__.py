"""ComfyUI nodes. Thin: they read widgets, call the engine and hand ComfyUI its objects."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from comfy_api.latest import ComfyExtension, io

from ..spectral.errors import SpectralError
from . import folder
from .blocks import SpectralAdapterBlocks
from .conflict import SpectralAdapterConflict
from .extract import SpectralAdapterExtract
from .fusion import SpectralAdapterFusion
from .info import SpectralAdapterInfo
from .loader import SpectralAdapterLoader
from .save import SpectralAdapterSave
from .schedule import SpectralAdapterSchedule
from .stack import SpectralAdapterStack
from .transfer import SpectralAdapterTransfer
from .xy import SpectralAdapterXY

_PACK = Path(__file__).resolve().parent.parent
_USING = (SpectralAdapterLoader, SpectralAdapterStack, SpectralAdapterInfo)
_PARTS_AND_STEPS = (SpectralAdapterBlocks, SpectralAdapterSchedule, SpectralAdapterXY)
_MIXING = (
    SpectralAdapterFusion,
    SpectralAdapterConflict,
    SpectralAdapterSave,
    SpectralAdapterExtract,
    SpectralAdapterTransfer,
)
# Here and not in `ComfyExtension.on_load`, which older ComfyUI never calls.
folder.register()


class SpectralAdaptersExtension(ComfyExtension):
    """The pack as ComfyUI sees it."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [*_USING, *_PARTS_AND_STEPS, *_MIXING, *_training()]


def _training() -> list[type[io.ComfyNode]]:
    """The nodes that train, with the panel's routes; none where something is missing that the loader does not need."""
    try:
        from .job import SpectralAdapterJob
        from .server import open_door
        from .studio import studio
        from .trainer import SpectralAdapterTrainer
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith(__name__.rpartition(".")[0]):
            raise
        logging.warning(
            "Spectral Adapters: the loader works, training is off: Python package %s is missing. To train, run: "
            "%s -m pip install -r %s, and start ComfyUI again.",
            error.name,
            sys.executable,
            _PACK / "requirements.txt",
        )
        return []
    try:
        open_door()
        studio().start()
    except (SpectralError, OSError) as error:
        logging.warning("Spectral Adapters: the loader works, training is off: %s", error)
        return []
    return [SpectralAdapterTrainer, SpectralAdapterJob]
