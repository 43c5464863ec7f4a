"""Puts an application on a model: its layer patches, and the wrappers that settle once per model call what every layer needs."""

from __future__ import annotations

from typing import Any

from comfy.patcher_extension import CallbacksMP, WrappersMP

from .application import Application
from .layer_patch import PLAN, LayerPatch, current_sigma, layer_patches
from .polarity import name_conds, remember_conds
from .unet import compute_dtype

KEY = "ipadapter"  # of our wrappers and callbacks


def add_application(model: Any, application: Application) -> None:
    """Put an application on the layers of a ModelPatcher (a fresh clone) whose weight is not zero."""
    standing = model.model_options.get("transformer_options", {}).get("patches_replace", {}).get("attn2", {})
    slots = [slot for patch in standing.values() if isinstance(patch, LayerPatch) for slot, _ in patch.applications()]
    slot = 1 + max(slots, default=-1)
    for layer in application.layers.values():
        full, short = (layer.name, layer.id, layer.index), (layer.name, layer.id)
        previous = standing.get(full, standing.get(short))
        if isinstance(previous, LayerPatch) and previous.layer == layer:
            patch = previous.copy()
            patch.parts.append((slot, application))
        else:
            patch = LayerPatch(layer, previous, [(slot, application)])
        whole_block = layer.depth == 1 and full not in standing
        model.set_model_attn2_replace(patch, layer.name, layer.id, None if whole_block else layer.index)

    if not model.get_callbacks(CallbacksMP.ON_CLONE, KEY):
        model.add_callback_with_key(CallbacksMP.ON_CLONE, KEY, unshare)
    for kind, wrapper in (
        (WrappersMP.PREDICT_NOISE, remember_conds),
        (WrappersMP.CALC_COND_BATCH, name_conds),
        (WrappersMP.APPLY_MODEL, prepare_call),
    ):
        if not model.get_wrappers(kind, KEY):
            model.add_wrapper_with_key(kind, KEY, wrapper)


def prepare_call(executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kwargs):
    """APPLY_MODEL wrapper: settles once what every layer of this call needs. At most one host sync, for the window."""
    options = {} if transformer_options is None else transformer_options
    found: dict[int, set[Application]] = {}
    joined = False
    for patch in layer_patches(options).values():
        for first, second in patch.parts:
            if isinstance(second, Application):
                found.setdefault(first, set()).add(second)
            else:
                joined = True
    applications = {slot: next(iter(these)) for slot, these in found.items() if len(these) == 1}
    plan: dict[Any, Any] = {}
    if joined or any(application.window is not None for application in applications.values()):
        plan["sigma"] = current_sigma(options)
    dtype = compute_dtype(executor.class_obj)
    for slot, application in applications.items():
        open_now = application.window is None or application.is_open(plan["sigma"])
        plan[slot] = application, application.prepare(options, tuple(x.shape), x.device, dtype) if open_now else None
    return executor(x, t, c_concat, c_crossattn, control, {**options, PLAN: plan}, **kwargs)


def unshare(old: Any, new: Any) -> None:
    """ON_CLONE callback: where a clone shares patch objects, gives it its own, so that .add stays in one model."""
    mine = new.model_options.get("transformer_options", {})
    theirs = layer_patches(old.model_options.get("transformer_options", {}))
    for key, patch in layer_patches(mine).items():
        if theirs.get(key) is patch:
            mine["patches_replace"]["attn2"][key] = patch.copy()
