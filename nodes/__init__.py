"""ComfyUI nodes. Thin: they read widgets, call the engine and hand ComfyUI its objects."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import folder
from .loader import SpectralAdapterLoader

# Here and not in `ComfyExtension.on_load`, which older ComfyUI never calls.
folder.register()


class SpectralAdaptersExtension(ComfyExtension):
    """The pack as ComfyUI sees it."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [SpectralAdapterLoader]
