"""Puts an application on a model: its layer patches, and the wrappers that settle once per model call what every layer needs."""

from __future__ import annotations

from typing import Any

import torch
from comfy.patcher_extension import CallbacksMP, WrappersMP

from .application import Application
from .block_patch import BlockPatch
from .chunks import chunks_of, describe_conds, remember_conds
from .flux import FluxPatch
from .layer_patch import APPLIED, PLAN, Acting, LayerPatch, Plan, applications, current_sigma, layer_patches
from .layout import layout_of
from .sd3 import SD3Patch
from .unet import compute_dtype
from .watch import watching

KEY = "ipadapter"  # of our wrappers and callbacks


def add_application(model: Any, application: Application) -> None:
    """Put an application on the layers of a ModelPatcher (a fresh clone) whose weight is not zero."""
    if application.on_blocks:
        _on_blocks(model, application)
    else:
        _on_attentions(model, application)

    if not model.get_callbacks(CallbacksMP.ON_CLONE, KEY):
        model.add_callback_with_key(CallbacksMP.ON_CLONE, KEY, unshare)
    for kind, wrapper in (
        (WrappersMP.OUTER_SAMPLE, settle_windows),
        (WrappersMP.PREDICT_NOISE, remember_conds),
        (WrappersMP.CALC_COND_BATCH, describe_conds),
        (WrappersMP.APPLY_MODEL, prepare_call),
    ):
        if not model.get_wrappers(kind, KEY):
            model.add_wrapper_with_key(kind, KEY, wrapper)


def _on_blocks(model: Any, application: Application) -> None:
    options = model.model_options["transformer_options"]
    options[APPLIED] = (*options.get(APPLIED, ()), application)
    standing = options.get("patches_replace", {}).get("dit", {})
    kind = FluxPatch if application.timed is None else SD3Patch
    for layer in application.layers.values():
        name = f"{layer.name}_block"
        previous = standing.get((name, layer.id))
        if isinstance(previous, kind):
            patch = previous.copy()
            patch.applications += (application,)
        else:
            patch = kind(layer, previous, (application,))
        model.set_model_patch_replace(patch, "dit", name, layer.id)


def _on_attentions(model: Any, application: Application) -> None:
    standing = model.model_options.get("transformer_options", {}).get("patches_replace", {}).get("attn2", {})
    for layer in application.layers.values():
        full, short = (layer.name, layer.id, layer.index), (layer.name, layer.id)
        previous = standing.get(full, standing.get(short))
        if isinstance(previous, LayerPatch) and previous.layer == layer:
            patch = previous.copy()
            patch.applications += (application,)
        else:
            patch = LayerPatch(layer, previous, (application,))
        whole_block = layer.depth == 1 and full not in standing
        model.set_model_attn2_replace(patch, layer.name, layer.id, None if whole_block else layer.index)


def settle_windows(executor, *args, **kwargs):
    """OUTER_SAMPLE wrapper: start_at, end_at and curves as sigmas of the sampling that is set now, which later nodes may have changed."""
    model = executor.class_obj.model_patcher
    for application in applications(model.model_options.get("transformer_options", {})):
        if application.window is not None:
            application.window.settle(model.get_model_object("model_sampling"))
    return executor(*args, **kwargs)


def prepare_call(executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kwargs):
    """APPLY_MODEL wrapper: settles once what every layer of this call needs. At most one host sync, for all windows and curves."""
    options = {} if transformer_options is None else transformer_options
    patches = layer_patches(options).values()
    found = applications(options)
    plan = Plan(size=(x.shape[-2], x.shape[-1]), text=0 if c_crossattn is None else c_crossattn.shape[1])
    if any(application.timed for application in found):
        plan.sigma = float(t.flatten()[0])
    elif any(application.window for application in found) or any(patch.joined for patch in patches):
        plan.sigma = current_sigma(options)
    dtype, sampling = compute_dtype(executor.class_obj), executor.class_obj.model_sampling
    acting = plan.acting
    if found:
        chunks = chunks_of(options, x.shape[0], (x.shape[-2], x.shape[-1]))
        plan.watching = watching(options, chunks)
        for application in found:
            window, sigma = application.window, plan.sigma
            strength = 1.0 if window is None or sigma is None else window.strength(sigma, sampling)
            layout = None
            if strength:
                current = application
                if application.timed is not None and sigma is not None:
                    norms = application.timed.settle(executor.class_obj.diffusion_model.joint_blocks, x.device, dtype)
                    current = application.at(float(sampling.timestep(torch.tensor(sigma))), norms)
                layout = layout_of(current, chunks, x.device, dtype)
            acting[application] = None if layout is None else Acting(layout, strength)
    for patch in patches:
        plan.layouts[patch.layer.key] = patch, tuple(acting[application] for application in patch.applications)
    return executor(x, t, c_concat, c_crossattn, control, {**options, PLAN: plan}, **kwargs)


def unshare(old: Any, new: Any) -> None:
    """ON_CLONE callback: where a clone shares patch objects, gives it its own, so that .add stays in one model."""
    mine = new.model_options.get("transformer_options", {})
    theirs = layer_patches(old.model_options.get("transformer_options", {}))
    for key, patch in layer_patches(mine).items():
        if theirs.get(key) is patch:
            mine["patches_replace"]["dit" if isinstance(patch, BlockPatch) else "attn2"][key] = patch.copy()
