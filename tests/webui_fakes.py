"""A small AUTOMATIC1111 of our own: the names that `hosts` touches, with what the real ones do behind them.

Weights are backed up, restored and changed as its Lora does it; a generation swallows the errors that it swallows.
"""

import sys
from collections import namedtuple
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch
from adapters import base_weight
from safetensors import safe_open
from torch import nn

import spectral_adapters as sa

#: Layer in kohya's spelling -> (name in the web UI, shape). Of OpenCLIP's attention q, k, v are parts of one weight.
SD1 = {
    "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q": (
        "diffusion_model_middle_block_1_transformer_blocks_0_attn1_to_q",
        (24, 24),
    ),
    "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k": (
        "diffusion_model_middle_block_1_transformer_blocks_0_attn2_to_k",
        (24, 768),
    ),
    "lora_unet_down_blocks_0_resnets_0_conv1": ("diffusion_model_input_blocks_1_0_in_layers_2", (20, 8, 3, 3)),
    "lora_te_text_model_encoder_layers_0_self_attn_q_proj": (
        "transformer_text_model_encoder_layers_0_self_attn_q_proj",
        (24, 24),
    ),
    "lora_te_text_model_encoder_layers_0_mlp_fc1": ("transformer_text_model_encoder_layers_0_mlp_fc1", (40, 24)),
}
#: Those that the web UI's own table does not find.
NORMS = {
    "lora_unet_conv_norm_out": ("diffusion_model_out_0", (20,)),
    "lora_te_text_model_final_layer_norm": ("transformer_text_model_final_layer_norm", (24,)),
}


def openclip(prefix: str, root: str, width: int, unet: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The layers of a model with OpenCLIP's text encoder."""
    attention = f"{root}model_transformer_resblocks_0_attn"
    layer = f"{prefix}text_model_encoder_layers_0_self_attn_"
    return {
        unet: ("diffusion_model_middle_block_1_transformer_blocks_0_attn2_to_k", (24, width)),
        **{f"{layer}{part}_proj": (attention, (24, 24)) for part in "qkv"},
        f"{layer}out_proj": (f"{attention}_out_proj", (24, 24)),
    }


SD2 = openclip("lora_te_", "", 1024, "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k")
SDXL = openclip("lora_te2_", "1_", 2048, "lora_unet_middle_block_1_transformer_blocks_0_attn2_to_k")


def weights_of(layers, seed: int = 0) -> dict[str, torch.Tensor]:
    """{layer: its weight in the checkpoint}, fp16 values; norms are near 1."""
    made = {}
    for i, (layer, (_, shape)) in enumerate(layers.items()):
        made[layer] = base_weight(shape, seed + i) if len(shape) > 1 else torch.linspace(0.5, 1.5, shape[0]).half()
    return {layer: weight.float() for layer, weight in made.items()}


class Model(nn.Module):
    """What `shared.sd_model` is: modules by the web UI's names, filled from a checkpoint."""

    def __init__(self, layers, checkpoint: Path, seed: int = 0):
        super().__init__()
        self.network_layer_mapping, self.layers = {}, layers
        for name, shape in layers.values():
            if name in self.network_layer_mapping:
                continue
            if name.endswith("_attn"):
                attention = nn.MultiheadAttention(24, 2)
                self.network_layer_mapping[name] = attention
                self.network_layer_mapping[f"{name}_out_proj"] = attention.out_proj
            else:
                self.network_layer_mapping[name] = self._module(shape)
        for i, module in enumerate(self.network_layer_mapping.values()):
            self.add_module(str(i), module)
        for name, module in self.network_layer_mapping.items():
            module.network_layer_name = name
        self.requires_grad_(False)
        self.load(checkpoint, seed)

    @staticmethod
    def _module(shape) -> nn.Module:
        if len(shape) == 1:
            return nn.LayerNorm(shape[0])
        if len(shape) == 4:
            return nn.Conv2d(shape[1], shape[0], shape[2])
        return nn.Linear(shape[1], shape[0])

    def load(self, checkpoint: Path, seed: int) -> None:
        """Another checkpoint into the same object, as the web UI does it; backups go."""
        self.sd_checkpoint_info = SimpleNamespace(filename=str(checkpoint))
        for layer, weight in weights_of(self.layers, seed).items():
            self.stored(layer).copy_(weight)
        for module in self.network_layer_mapping.values():
            module.network_current_names, module.network_weights_backup = (), None

    def stored(self, layer: str) -> torch.Tensor:
        """Where a layer's weight lies, to be read or written."""
        module = self.network_layer_mapping[self.layers[layer][0]]
        if isinstance(module, nn.MultiheadAttention):
            return module.in_proj_weight.chunk(3)["qkv".index(layer.removesuffix("_proj")[-1])]
        return module.weight

    def now(self) -> dict[str, torch.Tensor]:
        return {layer: self.stored(layer).clone() for layer in self.layers}


class Generation:
    """One `StableDiffusionProcessing`: the steps between which networks are activated."""

    def __init__(self):
        self.comments = []

    def comment(self, text: str) -> None:
        self.comments.append(text)

    def setup_conds(self) -> None:
        pass

    def calculate_hr_conds(self) -> None:
        pass


NetworkWeights = namedtuple("NetworkWeights", ["network_key", "sd_key", "w", "sd_module"])


class Network:
    def __init__(self, name, on_disk):
        self.name, self.network_on_disk, self.modules = name, on_disk, {}
        self.te_multiplier = self.unet_multiplier = 1.0
        self.dyn_dim = None


class ModuleType_:
    def create_module(self, net, weights):
        return None


class NetworkModule:
    def __init__(self, net, weights):
        self.network, self.sd_key, self.sd_module = net, weights.sd_key, weights.sd_module

    def multiplier(self):
        return self.network.te_multiplier if "transformer" in self.sd_key[:20] else self.network.unet_multiplier


class Difference(ModuleType_):
    """The host's own kind of file: `<layer>.diff`."""

    class Module(NetworkModule):
        def __init__(self, net, weights):
            super().__init__(net, weights)
            self.difference = weights.w["diff"]

        def calc_updown(self, orig_weight):
            return self.difference.reshape(orig_weight.shape) * self.multiplier(), None

    def create_module(self, net, weights):
        return self.Module(net, weights) if "diff" in weights.w else None


class LoraNetwork:
    """The host's `ExtraNetworkLora`."""

    def __init__(self, networks):
        self._networks = networks

    def activate(self, generation, params_list):
        self._networks.load_networks(params_list)


class OptionInfo:
    def __init__(self, default, label, component=None, component_args=None, section=None):
        self.default, self.label, self.section, self.component_args = default, label, section, component_args

    def info(self, text: str) -> "OptionInfo":
        self.comment_after = text
        return self


class Options(SimpleNamespace):
    labels: dict

    def add_option(self, key, info) -> None:
        self.labels[key] = info
        if not hasattr(self, key):
            setattr(self, key, info.default)


class App:
    """A FastAPI application: its routes by method and path, called as functions."""

    def __init__(self):
        self.router = SimpleNamespace(routes=[])

    def get(self, path, dependencies=()):
        return self._route("GET", path, dependencies)

    def post(self, path, dependencies=()):
        return self._route("POST", path, dependencies)

    def _route(self, method, path, dependencies):
        def add(function):
            self.router.routes.append(
                SimpleNamespace(method=method, path=path, function=function, dependencies=dependencies)
            )
            return function

        return add

    def call(self, method: str, path: str, *given):
        route = next(r for r in self.router.routes if (r.method, r.path) == (method, path))
        return route.function(*given)


class HTTPException(Exception):
    def __init__(self, status_code, detail=None, headers=None):
        super().__init__(detail)
        self.status_code, self.detail = status_code, detail


class Lock:
    def __init__(self):
        self.held = 0

    def __enter__(self):
        self.held += 1

    def __exit__(self, *_):
        pass


class A1111:
    """The host in `sys.modules`, with one model loaded and a folder of Lora files."""

    def __init__(self, monkeypatch, folder: Path, layers=None):
        self._patch, self.folder = monkeypatch, folder
        self.callbacks = {"app_started": [], "script_unloaded": []}
        (folder / "Lora").mkdir()
        (folder / "one.ckpt").write_bytes(b"1")
        self.model = Model(SD1 | NORMS if layers is None else layers, folder / "one.ckpt")
        self._own_modules()
        self._host_modules()
        self.app = App()
        self.before_ui()

    def _own_modules(self) -> None:
        """The built-in Lora's, under their bare names."""
        self.module(
            "network",
            Network=Network,
            NetworkWeights=NetworkWeights,
            ModuleType=ModuleType_,
            NetworkModule=NetworkModule,
        )
        self.networks = self.module(
            "networks",
            module_types=[Difference()],
            loaded_networks=[],
            available_networks={},
            networks_in_memory={},
            load_networks=self.load_networks,
            list_available_networks=self.refresh,
            network_restore_weights_from_backup=self.restore,
        )

    def _host_modules(self) -> None:
        self.opts, self.state = Options(labels={}), SimpleNamespace(textinfo="", interrupted=False)
        self.lock = Lock()
        parts = {
            "shared": {
                "sd_model": self.model,
                "opts": self.opts,
                "state": self.state,
                "OptionInfo": OptionInfo,
                "cmd_opts": SimpleNamespace(lora_dir=str(self.folder / "Lora"), api_auth=None),
            },
            "devices": {"device": torch.device("cpu")},
            "extra_networks": {
                "extra_network_registry": {},
                "extra_network_aliases": {},
                "register_extra_network_alias": self._alias,
            },
            "script_callbacks": {
                "on_app_started": self.callbacks["app_started"].append,
                "on_script_unloaded": self.callbacks["script_unloaded"].append,
            },
            "call_queue": {"queue_lock": self.lock},
        }
        package = self.module("modules")
        for name, members in parts.items():
            setattr(package, name, self.module(f"modules.{name}", **members))
        self.module("gradio", Radio=object, Slider=object)
        self.module("fastapi", Body=lambda *_: None, Depends=lambda check: check, HTTPException=HTTPException)
        self.module("fastapi.security", HTTPBasic=object, HTTPBasicCredentials=SimpleNamespace)
        self.shared, self.extra = package.shared, package.extra_networks

    def module(self, name: str, **members) -> ModuleType:
        made = ModuleType(name)
        made.__dict__.update(members)
        self._patch.setitem(sys.modules, name, made)
        return made

    def _alias(self, network, alias: str) -> None:
        self.extra.extra_network_aliases[alias] = network

    def before_ui(self) -> None:
        self.extra.extra_network_registry["lora"] = LoraNetwork(self.networks)

    def start(self) -> None:
        """The web UI runs the extension's script and builds its page."""
        from spectral_adapters import hosts

        hosts.start()
        for callback in self.callbacks["app_started"]:
            callback(None, self.app)

    def unload(self) -> None:
        """The web UI is about to run its scripts again; Lora's module stays."""
        for callback in self.callbacks["script_unloaded"]:
            callback()
        for known in self.callbacks.values():
            known.clear()

    def refresh(self) -> None:
        for path in sorted((self.folder / "Lora").glob("*.safetensors")):
            with safe_open(path, "pt") as file:
                found = SimpleNamespace(name=path.stem, filename=str(path), metadata=file.metadata() or {})
            self.networks.available_networks[path.stem] = found

    def path(self, name: str) -> Path:
        return self.folder / "Lora" / f"{name}.safetensors"

    def save(self, adapter, name: str, **settings) -> Path:
        path = sa.save(adapter, self.path(name), **settings)
        self.refresh()
        return Path(path)

    def load_networks(self, tags) -> None:
        """tags: (name, text encoder's strength, UNet's strength)."""
        self.networks.loaded_networks.clear()
        for name, te, unet in tags:
            net = self.networks.networks_in_memory.setdefault(name, self._network(name))
            net.te_multiplier, net.unet_multiplier = te, unet
            self.networks.loaded_networks.append(net)

    def _network(self, name: str) -> Network:
        from safetensors.torch import load_file

        net, found = Network(name, self.networks.available_networks[name]), {}
        for key, tensor in load_file(net.network_on_disk.filename).items():
            layer, _, part = key.partition(".")
            if layer in self.model.layers and layer not in NORMS:
                found.setdefault(layer, {})[part] = tensor
        for layer, parts in found.items():
            name = self.model.layers[layer][0]
            fused = name.endswith("_attn")
            key = f"{name}_{layer.rsplit('_', 2)[1]}_proj" if fused else name
            weights = NetworkWeights(f"{layer}.x", key, parts, self.model.network_layer_mapping[name])
            made = (kind.create_module(net, weights) for kind in self.networks.module_types)
            net.modules[key] = next(module for module in made if module is not None)
        return net

    def generate(self, *tags, hires=()) -> tuple[dict[str, torch.Tensor], Generation]:
        """The weights that a picture is made with, and the generation, whose comments the user sees."""
        generation = Generation()
        self.activate(generation, tags)
        generation.setup_conds()
        if hires:
            self.activate(generation, hires)
            generation.calculate_hr_conds()
        self.forward()
        return self.model.now(), generation

    def activate(self, generation, tags) -> None:
        try:
            self.extra.extra_network_registry["lora"].activate(generation, list(tags))
        except Exception as error:  # noqa: BLE001  as the host does
            print("activating extra network", error)

    def forward(self) -> None:
        for name, module in self.shared.sd_model.network_layer_mapping.items():
            if not name.endswith("_attn_out_proj"):  # the attention around it uses its weight without calling it
                self._apply(module)

    def _apply(self, module) -> None:
        names = tuple((n.name, n.te_multiplier, n.unet_multiplier) for n in self.networks.loaded_networks)
        attention = isinstance(module, nn.MultiheadAttention)
        if module.network_weights_backup is None and names:
            kept = (module.in_proj_weight.clone(), module.out_proj.weight.clone()) if attention else None
            module.network_weights_backup = kept or module.weight.clone()
        if module.network_current_names == names:
            return
        self.restore(module)
        for net in self.networks.loaded_networks:
            try:
                self._add(module, net, attention)
            except RuntimeError as error:
                print("Networks with errors", net.name, error)
        module.network_current_names = names

    @staticmethod
    def restore(module) -> None:
        if (backup := module.network_weights_backup) is not None:
            attention = isinstance(module, nn.MultiheadAttention)
            places = (module.in_proj_weight, module.out_proj.weight) if attention else (module.weight,)
            for place, weight in zip(places, backup if attention else (backup,)):
                place.copy_(weight)

    @staticmethod
    def _add(module, net, attention: bool) -> None:
        name = module.network_layer_name
        if not attention:
            if (ours := net.modules.get(name)) is not None:
                module.weight.copy_(module.weight + ours.calc_updown(module.weight)[0])
            return
        parts = [net.modules.get(f"{name}_{part}_proj") for part in ("q", "k", "v", "out")]
        if all(parts):  # the host leaves out an attention of which a file lacks a part
            thirds = [part.calc_updown(w)[0] for part, w in zip(parts, module.in_proj_weight.chunk(3))]
            out = parts[3].calc_updown(module.out_proj.weight)[0]
            module.in_proj_weight.add_(torch.vstack(thirds))
            module.out_proj.weight.add_(out)
