"""Drives a private Forge, reForge or Forge Classic. SPECTRAL_<HOST>_DIR and SPECTRAL_<HOST>_PYTHON: see `webui_driver`.

SPECTRAL_REFORGE_HF_HOME, SPECTRAL_FORGE_CLASSIC_HF_HOME: a cache of the Hugging Face hub for a machine without network.
"""

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


class OlderForge(WebUI):
    """What the two hosts built on Forge's first version have in common."""

    name = "Forge"
    layers = Forge.layers
    arguments = Forge.arguments

    def environment(self) -> dict[str, str]:
        home = self.given("HF_HOME")
        return {"TRANSFORMERS_OFFLINE": "1", "GRADIO_ANALYTICS_ENABLED": "False"} | ({"HF_HOME": home} if home else {})


class ReForge(OlderForge):
    """One reForge process."""

    host = "REFORGE"


class ForgeClassic(OlderForge):
    """One Forge Classic process."""

    host = "FORGE_CLASSIC"
