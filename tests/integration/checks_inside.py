"""Checks that run inside ComfyUI's interpreter and drive its ModelPatcher directly, on the CPU.

    python checks_inside.py COMFYUI PACK LIBRARY RESULT.json

Every function named check_* runs once; RESULT.json says "ok" or what went wrong for each. `test_patcher.py` reads it.
"""

import importlib.util
import inspect
import json
import math
import os
import sys
import tempfile
import traceback
from collections.abc import Collection
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT, PACK, LIBRARY, RESULT = (Path(p) for p in sys.argv[1:5])
# The pack must not be found as top-level modules, and ComfyUI must: just as inside the running program.
sys.path[:] = [str(ROOT), str(HERE), *(p for p in sys.path if Path(p or ".").resolve() not in (HERE, PACK))]
sys.argv = ["main.py", "--cpu"]
os.environ["SPECTRAL_ADAPTERS_CACHE"] = tempfile.mkdtemp(prefix="basis_cache")

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.hooks  # noqa: E402
import comfy.lora  # noqa: E402
import comfy.model_management  # noqa: E402
import comfy.model_patcher  # noqa: E402
import comfy.sd  # noqa: E402
import comfy.supported_models  # noqa: E402
import comfy.utils  # noqa: E402
import small_checkpoint  # noqa: E402
import torch  # noqa: E402
from comfy.model_patcher import ModelPatcher  # noqa: E402
from comfy.sd1_clip import SD1ClipModel  # noqa: E402
from comfy.sdxl_clip import SDXLClipModel  # noqa: E402
from comfy.text_encoders.sd2_clip import SD2ClipModel  # noqa: E402
from torch import Tensor  # noqa: E402

spec = importlib.util.spec_from_file_location(
    "spectral_adapters", PACK / "__init__.py", submodule_search_locations=[str(PACK)]
)
sys.modules["spectral_adapters"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["spectral_adapters"])

import sample_adapters  # noqa: E402

from spectral_adapters.nodes.adapters import Held, Use  # noqa: E402
from spectral_adapters.nodes.apply import Applied, apply_uses, ready_patches  # noqa: E402
from spectral_adapters.nodes.hooking import hook_group, hooked  # noqa: E402
from spectral_adapters.nodes.patch import dense_patch, thin_patch  # noqa: E402
from spectral_adapters.nodes.weights import original_weight  # noqa: E402
from spectral_adapters.spectral import names  # noqa: E402
from spectral_adapters.spectral.convert import to_diff  # noqa: E402
from spectral_adapters.spectral.errors import SpectralError, WrongBaseError  # noqa: E402
from spectral_adapters.spectral.file import load  # noqa: E402
from spectral_adapters.spectral.host_keys import places  # noqa: E402

CPU = torch.device("cpu")
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn}
# What storing the changed weight costs, relative to the largest weight; fp8 has three bits of mantissa.
ROUNDING = {"fp32": 1e-6, "fp16": 1e-3, "bf16": 8e-3, "fp8": 0.13, "scaled fp8": 0.13}
# ComfyUI's UNet configurations, without weights.
UNET = {
    "in_channels": 4, "out_channels": 4, "model_channels": 320, "image_size": 32, "adm_in_channels": None,
    "use_checkpoint": False, "use_spatial_transformer": True, "legacy": False,
    "use_temporal_attention": False, "use_temporal_resblock": False,
}  # fmt: skip
FOUR_LEVELS = {
    "channel_mult": [1, 2, 4, 4], "num_res_blocks": [2] * 4, "transformer_depth": [1] * 6 + [0, 0],
    "transformer_depth_middle": 1, "transformer_depth_output": [1] * 9 + [0] * 3,
}  # fmt: skip
THREE_LEVELS = {
    "channel_mult": [1, 2, 4], "num_res_blocks": [2] * 3, "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_middle": 10, "transformer_depth_output": [0] * 3 + [2] * 3 + [10] * 3,
    "num_classes": "sequential", "adm_in_channels": 2816,
}  # fmt: skip
LINEAR = {"use_linear_in_transformer": True, "num_head_channels": 64}
FULL_SIZE = {
    "sd1": (
        comfy.supported_models.SD15,
        FOUR_LEVELS | {"context_dim": 768, "use_linear_in_transformer": False, "num_heads": 8},
    ),
    "sd2": (comfy.supported_models.SD20, FOUR_LEVELS | LINEAR | {"context_dim": 1024}),
    "sdxl": (comfy.supported_models.SDXL, THREE_LEVELS | LINEAR | {"context_dim": 2048}),
}
KEY = "diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.weight"
CONV = "diffusion_model.middle_block.0.in_layers.2.weight"


class CheckError(Exception):
    """A check did not hold."""


def expect(condition: bool, message: str) -> None:
    if not condition:
        raise CheckError(message)


def unet(kind: str = "fp16") -> ModelPatcher:
    """The small UNet as ComfyUI loads it, in one of the storage types of ROUNDING."""
    if kind == "scaled fp8":
        return comfy.sd.load_diffusion_model_state_dict(small_checkpoint.scaled_fp8(small_checkpoint.unet_state()))
    state = small_checkpoint.unet_state()
    return comfy.sd.load_diffusion_model_state_dict(state, model_options={"dtype": DTYPES[kind]})


def adapted(patcher: ModelPatcher, name: str = "additive", strength: float = 1.0, mode: str = "linear") -> ModelPatcher:
    path = str(LIBRARY / "adapters" / f"{name}.safetensors")
    use = Use(Held.file(path), name, strength, strength, mode=mode)
    return apply_uses([use], patcher, None, "refuse").model


def applied(path: str, model: ModelPatcher, clip: comfy.sd.CLIP | None) -> Applied:
    """An adapter file at strength 1."""
    return apply_uses([Use(Held.file(path), Path(path).stem)], model, clip, "refuse")


def loaded(patcher: ModelPatcher, memory: float = 1e12) -> ModelPatcher:
    """Put on the (CPU) device in place of any other clone; what exceeds `memory` bytes is patched at every forward."""
    patcher.partially_load(CPU, memory)
    return patcher


def output(patcher: ModelPatcher) -> Tensor:
    random = torch.Generator().manual_seed(3)
    x = torch.randn(1, 4, 16, 16, generator=random)
    context = torch.randn(1, 77, 768, generator=random)
    return patcher.model.apply_model(x, torch.tensor([1.0]), c_crossattn=context).float()


def stored(patcher: ModelPatcher) -> dict[str, bytes]:
    """The bytes of every stored weight."""
    return {k: _bytes(v) for k, v in patcher.model.diffusion_model.state_dict().items() if isinstance(v, Tensor)}


def _bytes(t: Tensor) -> bytes:
    return t.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def relative(a: Tensor, b: Tensor) -> float:
    """||a - b|| / ||b||"""
    return float((a - b).norm() / b.norm())


def current(patcher: ModelPatcher, key: str) -> Tensor:
    """The weight that is in the module now, dequantised."""
    weight, _, convert = comfy.model_patcher.get_key_weight(patcher.model, key)
    weight = comfy.model_management.cast_to_device(weight, CPU, torch.float32, copy=True)
    return weight if convert is None else convert(weight, inplace=True)


def _storage(kind: str) -> None:
    base = unet(kind)
    before, original = stored(base), original_weight(base, KEY).float()
    model = adapted(base)
    patch = model.patches[KEY][0][1]
    wanted = original + patch.change(CPU, 1.0)
    effect = float((wanted - original).abs().max())
    loaded(model)
    error = float((current(model, KEY) - wanted).abs().max())
    limit = ROUNDING[kind] * float(wanted.abs().max())
    expect(error <= limit < 10 * effect, f"{kind}: weight off by {error:.2e}, allowed {limit:.2e}, effect {effect:.2e}")
    expect(
        bool((original_weight(model, KEY).float() == original).all()), f"{kind}: the original is misread while patched"
    )
    model.unpatch_model(CPU)
    expect(stored(base) == before, f"{kind}: unloading did not give the stored weights back bit for bit")


def check_storage_fp32() -> None:
    _storage("fp32")


def check_storage_fp16() -> None:
    _storage("fp16")


def check_storage_bf16() -> None:
    _storage("bf16")


def check_storage_fp8() -> None:
    _storage("fp8")


def check_storage_scaled_fp8() -> None:
    _storage("scaled fp8")


def check_half_loaded_and_lowvram_give_the_full_load() -> None:
    for kind, tolerance in (("fp32", 1e-5), ("fp16", 2e-3), ("bf16", 1e-2), ("fp8", 0.1), ("scaled fp8", 0.1)):
        base = unet(kind)
        plain = output(loaded(base.clone()))
        model = adapted(base)
        full = output(loaded(model))
        model.unpatch_model(CPU)
        size = model.model_size()
        for share in (1, size // 2):
            model = adapted(base)
            part = output(loaded(model, share))
            streamed = model.lowvram_patch_counter() if callable(model.lowvram_patch_counter) else 1
            expect(streamed > 0, f"{kind}: nothing was streamed with {share} bytes, so this shows nothing")
            error = relative(part, full)
            expect(error < tolerance, f"{kind}: {share} of {size} bytes loaded: output off by {error:.1e}")
            model.unpatch_model(CPU)
        expect(relative(full, plain) > 5 * 2e-3, f"{kind}: the adapter has no visible effect")


def check_strength_is_linear_and_zero_is_the_input() -> None:
    base = unet("fp32")
    expect(adapted(base, strength=0.0) is base, "strength 0 must return the model it was given")
    original = original_weight(base, KEY)
    changes = {}
    for strength in (-1.0, 0.5, 1.0):
        model = loaded(adapted(base, strength=strength))
        changes[strength] = current(model, KEY) - original
        model.unpatch_model(CPU)
    for strength in (-1.0, 0.5):
        error = relative(changes[strength], strength * changes[1.0])
        expect(error < 1e-5, f"strength {strength} is off by {error:.1e} from linear")


def check_spectral_mode_agrees_at_one() -> None:
    base = unet("fp32")
    for name in ("additive", "rotation", "svdiff", "soda"):
        patches = {}
        for mode, strength in (("linear", 1.0), ("spectral", 1.0), ("spectral", 0.5)):
            entry = adapted(base, name, strength, mode).patches[KEY][0]
            patches[mode, strength] = entry[1].change(CPU, entry[0])
        one, half = patches["linear", 1.0], patches["spectral", 0.5]
        error = relative(patches["spectral", 1.0], one)
        expect(error < 2e-3, f"{name}: the modes differ by {error:.1e} at strength 1")
        share = float(half.norm() / one.norm())
        expect(0.3 < share < 0.7, f"{name}: half the spectral strength gives {share:.2f} of the change")


def check_dynamic_loading_may_rebuild_the_patch() -> str | None:
    """0.33 rebuilds a patch from its class, loaded_keys and staged weights; here the staging itself is driven."""
    lowvram = comfy.model_patcher.LowVramPatch
    if not hasattr(lowvram, "prepare"):
        return "this ComfyUI has no staging of patches"
    base = unet("fp32")
    for name in ("additive", "svdiff"):
        model = adapted(base, name)
        for key in (KEY, CONV):
            staged = lowvram(key, model.patches)
            weight = original_weight(base, key)
            wanted = staged(weight.clone())
            room = torch.zeros(staged.memory_required(), dtype=torch.uint8)
            staged.prepare(room, None, copy=True, commit=True)
            expect(staged.prepared_patches[0][1] is not model.patches[key][0][1], "the patch was not rebuilt")
            expect(bool((staged(weight.clone()) == wanted).all()), f"{name} {key}: the staged patch differs")
            expect(relative(wanted, weight) > 1e-3, f"{name} {key}: the patch has no effect")
    return None


def check_hooks_equal_the_patch_and_revert() -> None:
    base = unet("fp32")
    before = stored(base)
    model = adapted(base)
    wanted = output(loaded(model))
    patches = {key: entries[0][1] for key, entries in model.patches.items()}
    model.unpatch_model(CPU)
    hook = comfy.hooks.WeightHook(strength_model=1.0)
    hook.weights, hook.need_weight_init = patches, False
    group = comfy.hooks.HookGroup()
    group.add(hook)
    hooked = loaded(base.clone())
    target = comfy.hooks.create_target_dict(comfy.hooks.EnumWeightTarget.Model)
    hooked.register_all_hook_patches(group, target)
    hooked.patch_hooks(group)
    expect(relative(output(hooked), wanted) < 1e-6, "a weight hook and the patch give different outputs")
    original = original_weight(base, KEY)
    error = relative(original_weight(hooked, KEY), original_weight(unet("fp32"), KEY))
    expect(error == 0, f"while hooked, the original is misread by {error:.1e}")
    hooked.patch_hooks(None)
    hooked.unpatch_model(CPU)
    expect(stored(base) == before, "removing the hook did not give the weights back bit for bit")
    expect(original.shape == original_weight(base, KEY).shape, "the original changed its shape")


def check_merging_halves_the_change() -> None:
    """What ModelMergeSimple does: the adapted model's patches with ratio, into the base."""
    base = unet("fp32")
    original = original_weight(base, KEY)
    whole = loaded(adapted(base))
    change = current(whole, KEY) - original
    whole.unpatch_model(CPU)
    merged = base.clone()
    merged.add_patches(adapted(base).get_key_patches("diffusion_model."), 0.5, 0.5)
    loaded(merged)
    error = relative(current(merged, KEY) - original, 0.5 * change)
    merged.unpatch_model(CPU)
    expect(error < 1e-4, f"a half-half merge is off by {error:.1e} from half the change")


def check_the_order_with_a_lora_does_not_matter() -> None:
    base = unet("fp32")
    lora = comfy.utils.load_torch_file(str(LIBRARY / "adapters" / "rotation-lora.safetensors"))
    keys = comfy.lora.model_lora_keys_unet(base.model, {})
    patches = comfy.lora.load_lora(lora, keys, log_missing=False)
    before, after = base.clone(), adapted(base)
    before.add_patches(patches, 0.7)
    # The LoRA is loaded while the adapter is prepared: its weights must not be taken for the originals.
    output(loaded(before))
    before = adapted(before)
    after.add_patches(patches, 0.7)
    a = output(loaded(before))
    before.unpatch_model(CPU)
    b = output(loaded(after))
    after.unpatch_model(CPU)
    expect(relative(a, b) < 1e-5, f"LoRA before and after differ by {relative(a, b):.1e}")


def check_core_lora_with_our_export_gives_our_weights() -> None:
    base = unet("fp32")
    for name in ("additive", "rotation"):
        lora = comfy.utils.load_torch_file(str(LIBRARY / "adapters" / f"{name}-lora.safetensors"))
        exported = base.clone()
        exported.add_patches(comfy.lora.load_lora(lora, comfy.lora.model_lora_keys_unet(base.model, {})))
        for key in (KEY, CONV):
            original = original_weight(base, key)
            ours = comfy.lora.calculate_weight(adapted(base, name).patches[key], original.clone(), key) - original
            core = comfy.lora.calculate_weight(exported.patches[key], original.clone(), key) - original
            expect(relative(core, ours) < 2e-3, f"{name} {key}: the export differs by {relative(core, ours):.1e}")


def check_offset_and_function_are_honoured() -> None:
    """Merging nodes patch a slice of a weight, and some pass the change through a function."""
    up, down = torch.randn(4, 2), torch.randn(2, 6)
    for patch in (thin_patch(KEY, up, down), dense_patch(KEY, up @ down)):
        weight = torch.zeros(8, 6)
        entry = (0.5, patch, 1.0, (0, 4, 4), lambda change: 2 * change)
        comfy.lora.calculate_weight([entry], weight, KEY)
        expect(relative(weight[4:], up @ down) < 1e-3, "the slice did not receive function(strength * change)")
        expect(bool((weight[:4] == 0).all()), "the change left its slice")
        try:
            comfy.lora.calculate_weight([(1.0, patch, 1.0, None, None)], weight, KEY)
        except ValueError as refused:
            expect(KEY in str(refused), "the refusal does not name the weight")
        else:
            expect(False, "a change of another shape was accepted")


def check_small_changes_survive_their_storage() -> None:
    up, down = 1e-4 * torch.randn(64, 3), 1e-4 * torch.randn(3, 64)
    for patch, limit in ((thin_patch(KEY, up, down), 1e-6), (dense_patch(KEY, up @ down), 1e-3)):
        error = relative(patch.change(CPU, 1.0), up @ down)
        expect(error < limit, f"{type(patch).__name__}: a change of size 1e-8 is off by {error:.1e}")


def check_bypass_equals_the_patch() -> str | None:
    if importlib.util.find_spec("comfy.weight_adapter.bypass") is None:
        return "this ComfyUI has no bypass mode"
    from comfy.weight_adapter.bypass import BypassForwardHook

    base = unet("fp32")
    inputs = {KEY: torch.randn(2, 77, 320), CONV: torch.randn(2, 320, 8, 8)}
    for name in ("additive", "svdiff"):
        for key, x in inputs.items():
            model = adapted(base, name)
            module = comfy.utils.get_attr(base.model, key.removesuffix(".weight"))
            loaded(model)
            wanted = module(x)
            model.unpatch_model(CPU)
            plain = module(x)
            hook = BypassForwardHook(module, model.patches[key][0][1], multiplier=1.0)
            hook.inject()
            seen = module(x)
            hook.eject()
            error = relative(seen - plain, wanted - plain)
            expect(error < 2e-3, f"{name} {key}: bypass differs from the patch by {error:.1e}")
    return None


def check_cancel_is_honoured_and_nothing_is_patched() -> None:
    base = unet("fp32")
    comfy.model_management.interrupt_current_processing(True)
    try:
        adapted(base, "rotation-compact")
    except comfy.model_management.InterruptProcessingException:
        pass
    else:
        expect(False, "the interrupt was ignored")
    comfy.model_management.interrupt_current_processing(False)
    expect(not base.patches, "a cancelled node left patches behind")


def check_another_fine_tune_is_refused_for_compact_svdiff() -> None:
    base = comfy.sd.load_checkpoint_guess_config(str(LIBRARY / "changed.safetensors"), output_clip=False)[0]
    try:
        adapted(base, "svdiff")
    except WrongBaseError as refused:
        expect("small" in str(refused), f"the refusal does not name the base: {refused}")
    else:
        expect(False, "a compact svdiff file was applied to a changed base")
    expect(not base.patches, "a refused adapter left patches behind")
    expect(bool(adapted(base, "rotation").patches), "a portable file must apply to a related base")


def check_broken_files_are_refused() -> None:
    try:
        adapted(unet("fp32"), "cut-off")
    except SpectralError as refused:
        expect("cut" in str(refused), f"the refusal does not speak of a cut: {refused}")
    else:
        expect(False, "the cut-off file was accepted")


NORMS = (
    "diffusion_model.input_blocks.1.1.transformer_blocks.0.norm2.weight",
    "diffusion_model.middle_block.1.norm.weight",
    "diffusion_model.middle_block.0.out_layers.0.weight",
    "diffusion_model.out.0.weight",
)


def _shift(key: str) -> Tensor:
    """What the file itself holds for a norm of the UNet."""
    held = comfy.utils.load_torch_file(str(LIBRARY / "adapters" / "norms.safetensors"))
    name = next(n for n, k in sample_adapters.norm_keys().items() if k == small_checkpoint.UNET + key.split(".", 1)[1])
    return held[f"{name}.gain"].float()


def check_norm_gains_are_shifted_and_revert() -> None:
    for kind in ("fp32", "fp16", "bf16"):
        base = unet(kind)
        before = stored(base)
        originals = {key: original_weight(base, key).float().clone() for key in NORMS}
        for strength in (1.0, -0.5):
            model = loaded(adapted(base, "norms", strength))
            for key in NORMS:
                wanted = originals[key] + strength * _shift(key)
                error = float((current(model, key) - wanted).abs().max())
                limit = ROUNDING[kind] * float(wanted.abs().max())
                expect(error <= limit, f"{kind}, strength {strength}, {key}: off by {error:.1e}, allowed {limit:.1e}")
            model.unpatch_model(CPU)
        expect(stored(base) == before, f"{kind}: unloading did not give the stored weights back bit for bit")


def check_norm_gains_give_the_output_of_the_dense_weights() -> None:
    """The file's changes stored in the weights, the norms' from the file itself, against the patches in all loads."""
    base = unet("fp32")
    plain = output(loaded(base.clone()))
    model = adapted(base, "norms")
    changes = {key: entries[0][1] for key, entries in model.patches.items()}
    dense = unet("fp32")
    for key, patch in changes.items():
        weight = comfy.utils.get_attr(dense.model, key)
        change = patch[1][0] if isinstance(patch, tuple) else patch.change(CPU, 1.0)
        weight.data.add_(change.reshape(weight.shape))
    for key in NORMS:
        comfy.utils.get_attr(dense.model, key).data.copy_(original_weight(base, key) + _shift(key))
    wanted = output(loaded(dense))
    expect(relative(wanted, plain) > 1e-2, "the adapter has no visible effect")
    for memory in (1e12, 1):
        found = output(loaded(model, memory))
        model.unpatch_model(CPU)
        expect(relative(found, wanted) < 1e-5, f"{memory:.0f} bytes: output off by {relative(found, wanted):.1e}")
        model = adapted(base, "norms")
    alone = adapted(base, "svdiff")
    expect(relative(output(loaded(alone)), wanted) > 1e-2, "the norms' share of the change is too small to be tested")
    alone.unpatch_model(CPU)


def check_core_reads_the_norms_of_a_difference_export() -> None:
    base = unet("fp32")
    known = places(comfy.lora.model_lora_keys_unet(base.model, {}), base.model)
    adapter = load(LIBRARY / "adapters" / "norms.safetensors")
    adapter.layers = {n: layer for n, layer in adapter.layers.items() if n in known}
    adapter.gains = {n: gain for n, gain in adapter.gains.items() if n in known}
    weights = {n: original_weight(base, known[n]) for n in adapter.layers}
    exported = comfy.lora.load_lora(dict(to_diff(adapter, weights, dtype=torch.float32)), known)
    expect(len(exported) == len(adapter.layers) + len(adapter.gains), f"core took {len(exported)} of the differences")
    for key in NORMS:
        original = original_weight(base, key)
        core = comfy.lora.calculate_weight([(1.0, exported[key], 1.0, None, None)], original.clone(), key) - original
        expect(float((core - _shift(key)).abs().max()) < 1e-6, f"{key}: core adds another difference")


def check_norms_of_the_text_encoder_are_shifted() -> None:
    path = str(LIBRARY / "small.safetensors")
    model, clip = comfy.sd.load_checkpoint_guess_config(path, output_vae=False, output_clip=True)[:2]
    file = str(LIBRARY / "adapters" / "norms.safetensors")
    done = applied(file, model, clip)
    held = comfy.utils.load_torch_file(file)
    norms = {n: k for n, k in sample_adapters.norm_keys().items() if n.startswith("lora_te_")}
    count = len(sample_adapters.norm_keys())
    expect(f"{count} of {count} norms" in done.text, f"the report does not count the norms: {done.text}")
    for name, key in norms.items():
        there = "clip_l." + key.removeprefix("cond_stage_model.")
        (strength, patch, *_) = done.clip.patcher.patches[there][0]
        expect(strength == 1.0 and patch[0] == "diff", f"{there}: not an added difference")
        expect(bool((patch[1][0] == held[f"{name}.gain"].float()).all()), f"{there}: another shift than the file's")
        weight = original_weight(clip.patcher, there).float()
        shifted = comfy.lora.calculate_weight(done.clip.patcher.patches[there], weight.clone(), there)
        expect(bool((shifted - weight - patch[1][0]).abs().max() < 1e-6), f"{there}: the shift is not what is added")
    left = applied(file, model, None).model
    expect(not any("clip" in key for key in left.patches), "without a CLIP its norms must be left alone")


def check_a_schedule_out_of_streaming_encodes_with_its_own_module() -> str | None:
    """A streamed text encoder is cloned onto a module loaded anew; core's own clone encodes with the old one."""
    if "disable_dynamic" not in inspect.signature(comfy.sd.CLIP.clone).parameters:
        return "this ComfyUI does not stream text encoders"
    path = str(LIBRARY / "small.safetensors")
    model, clip = comfy.sd.load_checkpoint_guess_config(path, output_vae=False)[:2]
    anew = comfy.sd.load_checkpoint_guess_config(path, output_vae=False, output_model=False)[1]
    use = Use(Held.file(str(LIBRARY / "adapters" / "additive.safetensors")), "additive", model=0.0)

    def encoded(text_encoder: comfy.sd.CLIP) -> Tensor:
        return text_encoder.encode_from_tokens_scheduled(text_encoder.tokenize("a dog"), show_pbar=False)[0][0].float()

    wanted = encoded(apply_uses([use], model, clip, "refuse").clip)
    plain = encoded(clip)
    hooks = hook_group(ready_patches([use], model, clip, "refuse").patches, [(0.0, 1.0)])
    clip.patcher.clone = lambda disable_dynamic=False: anew.patcher.clone()
    found = encoded(hooked(clip, hooks, True))
    expect(relative(wanted, plain) > 1e-3, "the adapter does not change the text encoder")
    expect(relative(found, wanted) < 1e-6, f"off by {relative(found, wanted):.1e}")
    return None


def check_comfyui_knows_every_layer_name() -> None:
    """Full-size models without weights: each layer name of the package must have a place in ComfyUI's key maps."""
    for family, (kind, differences) in FULL_SIZE.items():
        model = kind(UNET | differences).get_model({}, "", torch.device("meta"))
        known = places(comfy.lora.model_lora_keys_unet(model, {}), model)
        _all_known(family, names.unet_paths(family), known, model)
        norms = {name for name in names.norm_paths(family) if name.startswith(names.UNET_PREFIX)}
        _all_known(family, norms, known, model)
    for family, kind in (("sd1", SD1ClipModel), ("sd2", SD2ClipModel), ("sdxl", SDXLClipModel)):
        model = kind(device="meta", dtype=torch.float16)
        keys = places(comfy.lora.model_lora_keys_clip(model, {}), model)
        for prefix in names.TEXT_PREFIXES[family]:
            _all_known(family, names.text_paths(family, prefix), keys, model)
            norms = {name for name in names.norm_paths(family) if name.startswith(prefix)}
            _all_known(family, norms, keys, model, least=2 * names.TEXT_DEPTH[family, prefix] + 1)


def _all_known(
    family: str, paths: Collection[str], keys: dict[str, str], model: torch.nn.Module, least: int = 61
) -> None:
    state = model.state_dict()
    unknown = [name for name in paths if name not in keys or keys[name] not in state]
    expect(len(paths) >= least and not unknown, f"{family}: {len(unknown)} unknown to ComfyUI, such as {unknown[:3]}")


def check_patches_stay_on_the_cpu_and_small() -> None:
    base = unet("fp32")
    for name, most in (("additive", 6), ("rotation", 6), ("svdiff", 40)):
        patches = [p for entries in adapted(base, name).patches.values() for _, p, *_ in entries]
        tensors = [t for p in patches for t in p.weights if isinstance(t, Tensor)]
        expect(all(t.device == CPU for t in tensors), f"{name}: a patch is not on the CPU")
        size = sum(t.numel() * t.element_size() for t in tensors) / 1e6
        expect(math.isfinite(size) and size < most, f"{name}: the patches take {size:.1f} MB")


def main() -> None:
    results = {}
    for name, check in [item for item in globals().items() if item[0].startswith("check_")]:
        try:
            with torch.inference_mode():  # as nodes run
                reason = check()
            results[name] = f"skip: {reason}" if reason else "ok"
        except Exception:  # noqa: BLE001 - one failing check must not hide the others; the text goes to the test
            results[name] = traceback.format_exc()
    RESULT.write_text(json.dumps(results))


if __name__ == "__main__":
    main()
