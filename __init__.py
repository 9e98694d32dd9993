"""Spectral adapters for Stable Diffusion. Importing this costs nothing: everything is loaded at first use.

As a library: ``import spectral_adapters as sa``, then ``sa.decompose``, ``sa.method``, ``sa.inject``, ``sa.load``, ``sa.save``,
``sa.to_lora``, ``sa.merge`` (see ``spectral/api.py``). In ComfyUI's ``custom_nodes`` this file is the door of the node pack.
"""

# pytest collects this file without a package name; there is nothing for it here.
if __package__:
    from importlib import import_module as _import_module

    __version__ = "0.1.0"
    WEB_DIRECTORY = "./web"

    def __getattr__(name: str):
        if name.startswith("_") or name in {"NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"}:
            raise AttributeError(name)
        api = _import_module(".spectral.api", __package__)
        if name not in api.__all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it offers {', '.join(api.__all__)}")
        return getattr(api, name)

    async def comfy_entrypoint():
        """ComfyUI's V3 entry point: the pack's nodes, imported only now."""
        from .nodes import SpectralAdaptersExtension

        return SpectralAdaptersExtension()
