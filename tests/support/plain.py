"""A small rig for tests of the engine, and a plain IP-Adapter to hold it against.

The plain one is written from the paper (arXiv 2308.06721) and the published key layout alone: it shares no code with the pack, projects
K and V in every layer and call, and is told the tokens of each row of the batch by the test.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from support import lab, synth
from support.world import AdapterFiles

# SD1.5's cross-attentions in the files' order, without the middle block
KEYS = [("input", i) for i in (1, 2, 4, 5, 7, 8)] + [("output", i) for i in range(3, 12)]
SIDES = "test_sides"
Rows = Callable[[dict[str, Any], int], Tensor]


def share_of(model, sigma):
    """By core's own table of log(sigma): 999 steps, the last of which is share 0."""
    log_sigmas = model.get_model_object("model_sampling").log_sigmas.double().numpy()
    return 1 - np.interp(np.log(sigma), log_sigmas, np.arange(len(log_sigmas))) / 999


class Small:
    """A narrow SD1.5 UNet, a narrow encoder, a standard adapter, and calls of the pack's nodes with them."""

    def __init__(self, pack: dict[str, type], comfy: Path):
        self.pack = pack
        self.unet = lab.unet("sd15")
        self.encoder = lab.clip_vision(hidden=64, proj=1024, heads=4)
        self.state = synth.adapter("base", "sd15")
        self.file = AdapterFiles(comfy / "models" / "ipadapter")["base", "sd15"]
        self.adapter = self.load()

    def load(self):
        return lab.call(self.pack["IPAdapterModelLoader"], ipadapter_file=self.file)[0]

    def apply(self, model=None, node="IPAdapterAdvanced", **kw):
        """The model that an apply node gives."""
        given: dict[str, Any] = dict(ipadapter=self.adapter, clip_vision=self.encoder, image=lab.images(1), weight=0.8)
        given.update(weight_type="linear", start_at=0.0, end_at=1.0, embeds_scaling="V only")
        given.update(kw)
        if node == "IPAdapterAdvanced":
            given.setdefault("combine_embeds", "concat")
        return lab.call(self.pack[node], model=self.unet if model is None else model, **given)[0]

    def out(self, model, **kw) -> Tensor:
        return lab.sample(model, "sd15", **{"steps": 2, **kw})

    def features(self, images: Tensor) -> Tensor:
        return self.encoder.encode_image(images)["image_embeds"].float()

    def tokens(self, features: Tensor) -> Tensor:
        """[n, 1024] -> [n, 4, 768]: ImageProjModel, a linear layer to four tokens and a layer norm."""
        proj = self.state["image_proj"]
        flat = F.linear(features, proj["proj.weight"], proj["proj.bias"])
        return F.layer_norm(flat.unflatten(-1, (4, 768)), (768,), proj["norm.weight"], proj["norm.bias"])

    def sides(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Positive and negative tokens [n, 4, 768] of pictures."""
        positive = self.features(images)
        return self.tokens(positive), self.tokens(torch.zeros_like(positive))

    def plain_model(self, rows: Rows, weight: float = 0.8, model=None, masks: Rows | None = None):
        """A clone with the plain adapter on it; rows(extra_options, batch) gives the tokens [b, t, 768] of a call, masks its [b, h, w]."""
        patched = (self.unet if model is None else model).clone()
        for number, (name, block) in enumerate(KEYS):
            to_k, to_v = (self.state["ip_adapter"][f"{2 * number + 1}.to_{part}_ip.weight"] for part in "kv")
            patched.set_model_attn2_replace(plain_attention(to_k, to_v, rows, weight, masks), name, block)
        return patched

    def with_curve(self, y: Callable[[float], float]):
        """The plain adapter whose weight is 0.8 y(share) at each call; also the sigmas of the calls."""
        rows, seen = by_sides(*self.sides(lab.images(1))), []
        patched = self.unet.clone()
        for number, place in enumerate(KEYS):
            to_k, to_v = (self.state["ip_adapter"][f"{2 * number + 1}.to_{part}_ip.weight"] for part in "kv")

            def replace(q, k, v, options, to_k=to_k, to_v=to_v):
                sigma = options["sigmas"][0].item()
                seen.append(sigma)
                return plain_attention(to_k, to_v, rows, 0.8 * y(share_of(self.unet, sigma)))(q, k, v, options)

            patched.set_model_attn2_replace(replace, *place)
        return name_sides(patched, [lab.cond("sd15", tag="neg")[0][0]]), seen

    def reference(self, negative_prompts: list[Any], model=None, masks: Rows | None = None):
        """A model with the plain adapter and one picture, the chunks of these prompts on the negative side."""
        patched = self.plain_model(by_sides(*self.sides(lab.images(1))), model=model, masks=masks)
        return name_sides(patched, [prompt[0][0] for prompt in negative_prompts])


def plain_attention(to_k: Tensor, to_v: Tensor, rows: Rows, weight: float, masks: Rows | None = None):
    def replace(q, k, v, extra_options):
        tokens = rows(extra_options, q.shape[0])
        heads = extra_options["n_heads"]
        image = attend(q, tokens @ to_k.T, tokens @ to_v.T, heads)
        if masks is not None:
            size = tuple(extra_options["activations_shape"][-2:])
            image = image * F.interpolate(masks(extra_options, q.shape[0])[:, None], size=size, mode="bilinear").flatten(2).movedim(1, 2)
        return attend(q, k, v, heads) + weight * image

    return replace


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """softmax(q K^T / sqrt(d)) V of [b, n, h d], written out."""
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


def name_sides(model, negative_prompts: list[Tensor]):
    """Tells the plain adapter each chunk's side by the text that the UNet is really given: puts SIDES into transformer_options."""

    def wrapper(apply_model, args):
        c = args["c"]
        chunks = c["c_crossattn"].chunk(len(args["cond_or_uncond"]))
        sides = tuple(any(torch.equal(chunk[:1], prompt) for prompt in negative_prompts) for chunk in chunks)
        options = {**c["transformer_options"], SIDES: sides}
        return apply_model(args["input"], args["timestep"], **{**c, "transformer_options": options})

    model.set_model_unet_function_wrapper(wrapper)
    return model


def by_sides(positive: Tensor, negative: Tensor) -> Rows:
    """Rows for plain_model: a set of tokens [1, t, 768] for each side, all rows of a chunk the same."""

    def rows(extra_options, batch):
        sides = extra_options[SIDES]
        return torch.cat([(negative if side else positive).expand(batch // len(sides), -1, -1) for side in sides])

    return rows


def error(got: Tensor, want: Tensor, without: Tensor) -> float:
    """The difference of two latents as a share of the effect that `want` has against `without`."""
    return float((got - want).norm() / (want - without).norm())


def core_node(name: str) -> Any:
    """An instance of a node that comes with ComfyUI."""
    return sys.modules["nodes"].NODE_CLASS_MAPPINGS[name]()  # type: ignore[attr-defined]


def run(guider, steps: int = 2, batch: int = 1, hw: tuple[int, int] = (8, 8)) -> Tensor:
    """Sample with a guider of ComfyUI's."""
    import comfy.samplers

    latent = torch.zeros(batch, 4, *hw)
    sampling = guider.model_patcher.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "normal", steps)
    noise = synth.noise("noise1", tuple(latent.shape), 1.7)
    return guider.sample(noise, latent, comfy.samplers.sampler_object("euler"), sigmas, disable_pbar=True, seed=1)


def clear_caches():
    """Forget every encoded picture, face, token and projected K and V."""
    from ipadapter_pack.nodes.host.cache import empty_caches

    empty_caches()
