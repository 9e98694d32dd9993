"""Patches as ComfyUI's weight hooks: their strength follows keyframes in the course of sampling."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from inspect import signature

from comfy.hooks import EnumWeightTarget, HookGroup, HookKeyframe, HookKeyframeGroup, WeightHook, create_target_dict
from comfy.sd import CLIP

from .apply import Patches

# Newer ComfyUI streams models in a way that knows no hooks, and clones them out of it with this argument.
_OUT_OF_STREAMING = {"disable_dynamic": True} if "disable_dynamic" in signature(CLIP.clone).parameters else {}


def hook_group(patches: Iterable[Patches], keyframes: Sequence[tuple[float, float]]) -> HookGroup:
    """Hooks for the patches of several adapters, in their order, whose strength follows the keyframes.

    keyframes: (share of the course, strength) from which on that strength holds, the first at 0.
    """
    group = HookGroup()
    for each in patches:
        for strength, on_model in each.model.items():
            group.add(_hook(strength, on_model, {}))
        for strength, on_clip in each.clip.items():
            group.add(_hook(strength, {}, on_clip))
    course = HookKeyframeGroup()
    for share, strength in keyframes:
        # None is guaranteed a step: where a sampler takes fewer steps than there are keyframes, it would fall behind.
        course.add(HookKeyframe(strength, share, guarantee_steps=0))
    group.set_keyframes_on_hooks(course)
    return group


def _hook(strength: float, model: dict, clip: dict) -> WeightHook:
    hook = WeightHook(strength_model=strength, strength_clip=strength)
    hook.weights, hook.weights_clip, hook.need_weight_init = model, clip, False
    return hook


def hooked(clip: CLIP, hooks: HookGroup, follows: bool) -> CLIP:
    """A clone of the text encoder that all its conditionings carry the hooks of, beside those it has already.

    follows: whether its own weights follow the keyframes too; a prompt is then encoded once for each. Else they have
    their full strength throughout.
    """
    both = HookGroup.combine_all_hooks([clip.apply_hooks_to_conds, hooks])
    clone = clip.clone(**_OUT_OF_STREAMING)
    # Out of streaming it is another module, and that one has to encode; else it is the same.
    clone.cond_stage_model = clone.patcher.model
    clone.apply_hooks_to_conds = both
    changing = [hook for hook in both.hooks if isinstance(hook, WeightHook) and hook.weights_clip]
    if not changing:
        return clone
    forced = both.clone()
    if not follows:
        forced.set_keyframes_on_hooks(None)
    clone.patcher.forced_hooks = forced
    clone.use_clip_schedule = follows
    clone.patcher.register_all_hook_patches(both, create_target_dict(EnumWeightTarget.Clip))
    return clone
