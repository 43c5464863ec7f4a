"""How often an adapter is laid out for the calls of a sampling, and what it holds: context windows, several devices, equal pictures."""

from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from measure import Bench

from support import lab, synth
from support.held import tensor_bytes

FRAMES, LENGTH, STARTS, STEPS = 24, 8, (0, 5, 10, 15, 16), 3
DEVICES, CALLS = ("cpu", "cpu:0"), 100  # two keys of one device


def batch_node(bench: Bench, pictures: torch.Tensor, weight: Any = 0.8, **inputs: Any) -> Any:
    given = dict(model=bench.unet, ipadapter=bench.adapter, clip_vision=bench.encoder, image=pictures, weight=weight)
    how = dict(weight_type="linear", start_at=0.0, end_at=1.0, embeds_scaling="V only", encode_batch_size=0)
    with torch.inference_mode():
        return lab.call(bench.pack["IPAdapterBatch"], **given, **how, **inputs)[0]


def application(model: Any) -> Any:
    from ipadapter_pack.nodes.host.engine.layer_patch import applications

    (one,) = applications(model.model_options["transformer_options"])
    return one


def call(bench: Bench, model: Any, batch: int, **options: Any) -> torch.Tensor:
    """One call of the UNet with two chunks of `batch` latents, as a sampler makes it."""
    from comfy.patcher_extension import merge_nested_dicts

    conds = [lab.cond(bench.arch, tag=tag)[0] for tag in ("neg", "pos")]
    x, t = synth.noise("x", (2 * batch, 4, bench.size, bench.size), 1.7), torch.full((2 * batch,), 5.0)
    given: dict[str, Any] = dict(c_crossattn=torch.cat([text.expand(batch, -1, -1) for text, _ in conds]))
    if bench.arch == "sdxl":
        given["y"] = torch.zeros(2 * batch, 2816)
    options = {**model.model_options["transformer_options"], "cond_or_uncond": [1, 0], "sigmas": t, **options}
    with torch.inference_mode():
        return model.model.apply_model(x, t, transformer_options=merge_nested_dicts(options, {"wrappers": model.wrappers}), **given)


def windows(bench: Bench) -> tuple[int, int]:
    """(layouts made, masks resized) for FRAMES frames in windows over STEPS steps, each frame with its own weight and mask."""
    masks = torch.rand(FRAMES, 20, 20, generator=torch.Generator().manual_seed(0))
    model = batch_node(bench, lab.images(FRAMES, 64, 64), [i / FRAMES for i in range(FRAMES)], attn_mask=masks)
    resized, resize = [], F.interpolate

    def counted(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        resized.append(len(x) if x.shape[1] == 1 else 0)
        return resize(x, *args, **kwargs)

    with mock.patch.object(F, "interpolate", counted):
        for start in STARTS * STEPS:
            call(bench, model, LENGTH, context_window=SimpleNamespace(dim=0, index_list=list(range(start, start + LENGTH))))
    return application(model).layouts.made, sum(resized)


def devices(bench: Bench) -> int:
    """Layouts made in CALLS model calls on two devices in turn, with the `.to` before each that ComfyUI does."""
    from ipadapter_pack.nodes.host.engine.chunks import chunks_of
    from ipadapter_pack.nodes.host.engine.layout import layout_of

    model = bench.apply(bench.unet)
    one, patches = application(model), model.model_options["transformer_options"]["patches_replace"]["attn2"]
    for number in range(CALLS):
        device = torch.device(DEVICES[number % len(DEVICES)])
        for patch in patches.values():
            patch.to(device)
        layout_of(one, chunks_of({"cond_or_uncond": [1, 0]}, 2, (bench.size, bench.size)), device, torch.float32)
    return one.layouts.made


def equal_pictures(bench: Bench, latents: int) -> int:
    """Bytes of all tensors that a batch with the same picture for each latent holds, its layout included."""
    model = batch_node(bench, lab.images(1, 64, 64).expand(latents, -1, -1, -1))
    call(bench, model, latents)
    one = application(model)
    return tensor_bytes([one.kv, one.layouts])
