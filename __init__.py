"""Spectral adapters for Stable Diffusion. Importing this costs nothing: everything is loaded at first use.

As a library: ``import spectral_adapters as sa``, then ``sa.decompose``, ``sa.method``, ``sa.inject``, ``sa.load``,
``sa.save``, ``sa.to_lora``, ``sa.merge``. In ComfyUI's ``custom_nodes`` this file is the door of the node pack.
"""

# pytest collects this file without a package name; there is nothing for it here.
if __package__:
    from importlib import import_module as _import_module

    __version__ = "0.1.0"
    WEB_DIRECTORY = "./web"

    # Public name -> module of spectral/ that defines it.
    _HOMES = {
        name: home
        for home, names in {
            "adapter": "Adapter AdapterLayer MatchReport check_layers join",
            "basis": "Basis canonical content_hash decompose decompose_all",
            "cache": "BasisCache",
            "columns": "Columns",
            "conflict": "Conflict conflict",
            "column_plan": "Plan plan_columns",
            "convert": "Export Residual to_diff to_lora",
            "curve": "Curve",
            "errors": "AdapterFileError Cancelled SettingError SpectralError UnknownLayerError WrongBaseError",
            "edit": "edit",
            "extract": "Extracted difference extract",
            "file": "load read_metadata save",
            "fusion": "Ingredient fuse verify",
            "info": "Info read_info",
            "layer": "InjectedAdapter inject",
            "live": "Live",
            "merge": "merge module_weights",
            "methods": "METHODS Method method",
            "occupied": "Occupied occupied",
            "open": "open_source",
            "parted": "parted",
            "parts": "Parts",
            "source": "AdapterSource Source",
            "stiefel": "StiefelAdam",
            "transfer": "Transferred transfer",
        }.items()
        for name in names.split()
    }
    __all__ = sorted(_HOMES)

    def __getattr__(name: str):
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it offers {', '.join(__all__)}")
        value = getattr(_import_module(f".spectral.{_HOMES[name]}", __package__), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return [*globals(), *__all__]

    async def comfy_entrypoint():
        """ComfyUI's V3 entry point: the pack's nodes, imported only now."""
        from .nodes import SpectralAdaptersExtension

        return SpectralAdaptersExtension()
