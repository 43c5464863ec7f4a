"""The patch objects that stand in a model's transformer_options, and the wrappers that prepare them for a model call.

An Application holds the projected K and V of one apply; a LayerPatch stands on one cross-attention's key and names the
applications that reach it. What is the same for every layer of a call (window, chunks, masks) is settled once, by
`prepare_call` around the model call, and read in the layers from transformer_options[PLAN].
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from comfy.ldm.modules import attention
from comfy.patcher_extension import CallbacksMP, WrappersMP
from torch import Tensor

from ...ipadapter_core.attention import KV, image_attention, scale_kv, select_rows
from ...ipadapter_core.layers import Layer, Weight
from ...ipadapter_core.masks import level_sizes, mask_to_tokens, take
from .unet import compute_dtype

KEY = "ipadapter"  # of our wrappers and callbacks
PLAN = "ipadapter_plan"  # {slot: (Application, Prepared, or None while its window is closed)}, for one model call
CONDS = "ipadapter_conds"  # the guider's ((name, conds), ...)
NEGATIVE = "ipadapter_negative"  # for each list given to calc_cond_batch: is it a negative one?
LAYOUTS = 4  # prepared layouts that an application keeps
LAYOUT_BYTES = 256 << 20  # and what they may hold when there are more than two: one with K and V for each of many frames is large


@dataclass
class Prepared:
    """An application laid out for the chunks of one kind of model call."""

    dtype: torch.dtype
    kv: dict[int, tuple[Tensor, Tensor]]
    factor: dict[int, float]
    masks: dict[int, dict[int, Tensor]] | None  # t -> token count -> [b or 1, count or 1, 1]
    mask_for: Callable[[int, int], Tensor] | None

    @property
    def held(self) -> int:
        """Bytes of K and V."""
        return sum(part.nbytes for pair in self.kv.values() for part in pair)

    def add(self, out: Tensor, image: Tensor, layer: Layer) -> Tensor:
        if self.masks is None or self.mask_for is None:
            return torch.add(out, image, alpha=self.factor[layer.key])
        by_count = self.masks[layer.t]
        count = out.shape[1]
        if count not in by_count:
            by_count[count] = self.mask_for(layer.t, count)
        return torch.addcmul(out, image, by_count[count], value=self.factor[layer.key])


@dataclass(frozen=True, eq=False)
class Application:
    """One adapter applied with one set of tokens. Immutable: copies of a model share it.

    kv.rows: the `negatives` sets of tokens of the negative side, then the positive side's; one of each, or one for
    every latent where `per_latent` (the last of a side repeats). weights: t -> weight. window: (sigma_start, sigma_end),
    None for all of the sampling. mask [n, H, W]. For people to see: the adapter's name,
    and `away`, the t where the picture is on the negative side.
    """

    kv: KV
    negatives: int
    layers: Mapping[int, Layer]
    weights: Mapping[int, Weight]
    scaling: str
    window: tuple[float, float] | None
    mask: Tensor | None
    per_latent: bool
    name: str = ""
    away: frozenset[int] = frozenset()
    _layouts: dict[Any, Prepared] = field(default_factory=dict, repr=False)

    def __deepcopy__(self, memo: dict) -> Application:
        return self

    def is_open(self, sigma: float) -> bool:
        return self.window is None or self.window[1] <= sigma <= self.window[0]

    def to(self, target: Any) -> None:
        """Forget what was laid out on other devices; prepare() moves to the model's device and dtype when needed."""
        if isinstance(target, torch.device):
            for key in [key for key in self._layouts if key[-2] != target]:
                self._layouts.pop(key, None)

    def prepare(self, options: Mapping[str, Any], shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Prepared:
        """Laid out for transformer_options and an input of shape [b, c, h, w]; kept for the next call like it."""
        negative = negative_chunks(options, shape[0])
        latents = latent_index(options, shape[0] // len(negative))
        key = (negative, latents, shape[0], shape[-2:], device, dtype)
        prepared = self._layouts.get(key)
        if prepared is None:
            prepared = self._lay_out(negative, latents, shape, device, dtype)
            kept = list(self._layouts.items())
            while len(kept) >= LAYOUTS or (len(kept) > 1 and sum(other.held for _, other in kept) > LAYOUT_BYTES):
                self._layouts.pop(kept.pop(0)[0], None)
            self._layouts[key] = prepared
        return prepared

    def _lay_out(self, negative, latents, shape, device, dtype) -> Prepared:
        positives = self.kv.rows.shape[0] - self.negatives
        if self.per_latent:
            places = ((neg, i) for neg in negative for i in latents)
            index = [min(i, self.negatives - 1) if neg else self.negatives + min(i, positives - 1) for neg, i in places]
        else:
            index = [0 if neg else 1 for neg in negative]
        kv = KV(select_rows(self.kv.rows, index).to(device, dtype), self.kv.slots)

        def each(weight: tuple[float, ...]) -> Tensor:
            values = take(torch.tensor(weight), latents).repeat(len(negative))
            return values.to(device, dtype).view(-1, 1, 1)

        pairs, factor = {}, {}
        for number, layer in self.layers.items():
            k, v = kv.layer(number)
            weight = self.weights[layer.t]
            single = not isinstance(weight, tuple)
            if self.scaling != "V only":
                scale = torch.tensor(weight, device=device, dtype=dtype) if single else each(weight)[..., None]
                k, v = scale_kv(k, v, self.scaling, scale)
            pairs[number] = k, v
            factor[number] = weight if single and self.scaling == "V only" else 1.0

        # A factor for each latent: its weight, or 0 and 1 where K and V carry the weight, so that 0 is exactly off.
        listed = {t: w for t, w in self.weights.items() if isinstance(w, tuple)}
        rows = {t: each(w if self.scaling == "V only" else tuple(float(x != 0) for x in w)) for t, w in listed.items()}
        if self.mask is None and not rows:
            return Prepared(dtype, pairs, factor, None, None)

        mask = None if self.mask is None else self.mask.float()
        if mask is not None and mask.shape[0] > 1:
            mask = take(mask, latents)

        def mask_for(t: int, count: int) -> Tensor:
            if mask is None:
                return rows[t]
            grid = mask_to_tokens(mask, count, shape[-2], shape[-1]).to(device, dtype)
            if grid.shape[0] > 1:
                grid = grid.repeat(len(negative), 1, 1)
            return rows[t] * grid if t in rows else grid

        masks: dict[int, dict[int, Tensor]] = {}
        plain = {} if rows else {count: mask_for(next(iter(self.weights)), count) for count in level_sizes(shape[-2], shape[-1])}
        for t in self.weights:
            masks[t] = {count: mask_for(t, count) for count in level_sizes(shape[-2], shape[-1])} if rows else plain
        return Prepared(dtype, pairs, factor, masks, mask_for)


def negative_chunks(options: Mapping[str, Any], batch: int) -> tuple[bool, ...]:
    """For each chunk of the batch: does it belong to a negative prompt? One positive chunk where it cannot be told."""
    chunks = options.get("cond_or_uncond") or ()
    if not chunks or batch % len(chunks):
        return (False,)
    named = options.get(NEGATIVE, ())
    return tuple(named[i] if i < len(named) and named[i] is not None else i != 0 for i in chunks)


def latent_index(options: Mapping[str, Any], count: int) -> tuple[int, ...]:
    """Which latents of the whole batch a chunk holds: AnimateDiff's sub_idxs, core's context window, or all."""
    frames = (options.get("ad_params") or {}).get("sub_idxs")
    if frames is not None and len(frames) == count:
        return tuple(frames)
    window = options.get("context_window")
    if window is not None and getattr(window, "dim", None) == 0 and len(window.index_list) == count:
        return tuple(window.index_list)
    return tuple(range(count))


class LayerPatch:
    """Stands on one attn2 key: the attention that stood there before, plus the image attention of each application.

    `parts` are (slot, Application) pairs of ours, or (callback, kwargs) that InstantID, PuLID and the like `.add`:
    callback(out, q, k, v, extra_options, **kwargs) is added to the output while kwargs' sigma_start >= sigma >= sigma_end.
    """

    def __init__(self, layer: Layer, previous: Callable | None, parts: list[tuple[Any, Any]]):
        self.layer = layer
        self.previous = previous
        self.parts = parts

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, extra_options: dict[str, Any]) -> Tensor:
        heads, precision = extra_options["n_heads"], extra_options["attn_precision"]
        if self.previous is None:
            out = attention.optimized_attention(q, k, v, heads, attn_precision=precision, transformer_options=extra_options)
        else:
            out = self.previous(q, k, v, extra_options)

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return attention.optimized_attention(
                q, k, v, heads, attn_precision=precision, transformer_options=extra_options, skip_reshape=True
            )

        plan = extra_options.get(PLAN, {})
        for first, second in self.parts:
            if not isinstance(second, Application):
                sigma = plan["sigma"] if "sigma" in plan else current_sigma(extra_options)
                if second.get("sigma_end", 0.0) <= sigma <= second.get("sigma_start", float("inf")):
                    out = out + first(out, q, k, v, extra_options, **second)
                continue
            owner, prepared = plan.get(first, (None, None))
            if owner is not second or (prepared is not None and prepared.dtype != q.dtype):
                prepared = self._unplanned(second, q, extra_options)
            if prepared is not None:
                image = image_attention(q, *prepared.kv[self.layer.key], attend)
                out = prepared.add(out, image, self.layer)
        return out

    @staticmethod
    def _unplanned(application: Application, q: Tensor, options: dict[str, Any]) -> Prepared | None:
        """For calls that did not come through prepare_call, or with a q of another dtype than the model computes in."""
        if application.window is not None and not application.is_open(current_sigma(options)):
            return None
        return application.prepare(options, tuple(options["original_shape"]), q.device, q.dtype)

    def add(self, callback: Callable, **kwargs: Any) -> None:
        """The protocol by which InstantID and PuLID join whatever stands on their key."""
        self.parts.append((callback, kwargs))

    def applications(self) -> list[tuple[int, Application]]:
        return [part for part in self.parts if isinstance(part[1], Application)]

    def to(self, target: Any) -> LayerPatch:
        for _, application in self.applications():
            application.to(target)
        if hasattr(self.previous, "to"):
            self.previous = self.previous.to(target)  # type: ignore[union-attr]
        return self

    def models(self) -> list:
        """Those of the patch that stood here before: nothing of the adapter but its K and V is needed while sampling."""
        return self.previous.models() if hasattr(self.previous, "models") else []  # type: ignore[union-attr]

    def copy(self) -> LayerPatch:
        return LayerPatch(self.layer, self.previous, list(self.parts))

    def __deepcopy__(self, memo: dict) -> LayerPatch:
        return LayerPatch(self.layer, copy.deepcopy(self.previous, memo), list(self.parts))


def current_sigma(options: Mapping[str, Any]) -> float:
    sigmas = options.get("sigmas")
    return 999999999.9 if sigmas is None else float(sigmas[0])


def layer_patches(options: Mapping[str, Any]) -> dict[Any, LayerPatch]:
    """Our patches in transformer_options, by their attn2 key."""
    patches = options.get("patches_replace", {}).get("attn2", {})
    return {key: patch for key, patch in patches.items() if isinstance(patch, LayerPatch)}


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


def remember_conds(executor, x, timestep, model_options=None, seed=None):
    """PREDICT_NOISE wrapper: puts the guider's conds where name_conds finds them."""
    model_options = {} if model_options is None else model_options
    options = {**model_options.get("transformer_options", {}), CONDS: tuple(executor.class_obj.conds.items())}
    return executor(x, timestep, {**model_options, "transformer_options": options}, seed)


def name_conds(executor, model, conds, x_in, timestep, model_options):
    """CALC_COND_BATCH wrapper: tells negative lists of conds from the others, whatever their place in the call."""
    options = model_options.get("transformer_options", {})
    named = options.get(CONDS, ())
    negative = tuple(None if cond is None else is_negative(cond, named) for cond in conds)
    options = {**options, NEGATIVE: negative}
    return executor(model, conds, x_in, timestep, {**model_options, "transformer_options": options})


def is_negative(cond: list[dict], named: tuple[tuple[str, list[dict]], ...]) -> bool | None:
    """Whether a list of conds is one of the guider's whose name has "negative" in it; None if it is not known.

    Context windows give copies with the same uuids; prompts with an area lend their uuid to the other side, so
    only uuids of one side tell.
    """
    for name, conds in named:
        if conds is cond:
            return "negative" in name
    sides: dict[Any, set[bool]] = {}
    for name, conds in named:
        for one in conds or ():
            sides.setdefault(one.get("uuid"), set()).add("negative" in name)
    for one in cond:
        side = sides.get(one.get("uuid"), set())
        if len(side) == 1:
            return next(iter(side))
    return None


def unshare(old: Any, new: Any) -> None:
    """ON_CLONE callback: where a clone shares patch objects, gives it its own, so that .add stays in one model."""
    mine = new.model_options.get("transformer_options", {})
    theirs = layer_patches(old.model_options.get("transformer_options", {}))
    for key, patch in layer_patches(mine).items():
        if theirs.get(key) is patch:
            mine["patches_replace"]["attn2"][key] = patch.copy()


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
