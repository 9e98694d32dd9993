"""Drives a private Forge. SPECTRAL_FORGE_DIR and SPECTRAL_FORGE_PYTHON: see `webui_driver`."""

from webui_driver import WebUI


class Forge(WebUI):
    """One Forge process."""

    name = "Forge"
    host = "FORGE"
    layers = '1 + hasattr(networks.load_lora_for_models.spectral_adapters_original, "spectral_adapters_original")'
    arguments = ("--always-cpu",)

    def store_in(self, mode: str) -> None:
        """ "Diffusion in Low Bits" of the page. The amount of memory must change too for the API to load anew."""
        self._megabytes = getattr(self, "_megabytes", 1500) + 10
        status, _ = self.call(
            "/sdapi/v1/options", {"forge_unet_storage_dtype": mode, "forge_inference_memory": self._megabytes}
        )
        assert status == 200
