"""Puts an application on a model: its layer patches, and the wrappers that settle once per model call what every layer needs."""

from __future__ import annotations

from typing import Any

from comfy.patcher_extension import CallbacksMP, WrappersMP

from .application import Application
from .chunks import chunks_of, describe_conds, remember_conds
from .layer_patch import PLAN, Acting, LayerPatch, Plan, applications, current_sigma, layer_patches
from .layout import layout_of
from .unet import compute_dtype
from .watch import watching

KEY = "ipadapter"  # of our wrappers and callbacks


def add_application(model: Any, application: Application) -> None:
    """Put an application on the layers of a ModelPatcher (a fresh clone) whose weight is not zero."""
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
    plan = Plan()
    if any(application.window for application in found) or any(patch.joined for patch in patches):
        plan.sigma = current_sigma(options)
    dtype, sampling = compute_dtype(executor.class_obj), executor.class_obj.model_sampling
    acting: dict[Application, Acting | None] = {}
    if found:
        chunks = chunks_of(options, x.shape[0], (x.shape[-2], x.shape[-1]))
        plan.watching = watching(options, chunks)
        for application in found:
            window, sigma = application.window, plan.sigma
            strength = 1.0 if window is None or sigma is None else window.strength(sigma, sampling)
            layout = layout_of(application, chunks, x.device, dtype) if strength else None
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
            mine["patches_replace"]["attn2"][key] = patch.copy()
