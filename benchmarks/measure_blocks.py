"""Flux and SD3.5: what an adapter costs on narrow transformers with all of their blocks, and on one block of each kind at real width."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from calls import medians, seconds
from counts import compiled, flops, operations, syncs

from support import whole_transformer as whole
from support.held import tensor_bytes

WEIGHT, OTHERS = 0.8, (0.7, 0.6, 0.5)


@dataclass(frozen=True)
class Kind:
    """blocks: patched ones of each stream; width, heads, tokens (of one picture): the published sizes."""

    name: str
    family: str
    make: Callable[[], Any]
    blocks: dict[str, int]
    width: int
    heads: int
    tokens: int


KINDS = {
    "flux": Kind("Flux, XLabs v2", "flux-xlabs", partial(whole.xlabs, 16), {"double": 19}, 3072, 24, 16),
    "flux-instantx": Kind("Flux, InstantX", "flux-instantx", whole.instantx, {"double": 19, "single": 38}, 3072, 24, 128),
    "sd35": Kind("SD3.5 Large, InstantX", "sd3-instantx", whole.sd3, {"double": 38}, 2432, 38, 64),
}


class Narrow:
    """A whole narrow transformer with random weights, in fp32."""

    def __init__(self, kind: Kind, repetitions: int):
        self.kind, self.arch, self.host = kind, whole.ADAPTERS[kind.family][0], whole.parts()
        self.model, self.call = whole.comfyui(self.arch), whole.given(self.arch, rows=2)
        self.adapter = self.host.as_adapter(kind.make())
        self.repetitions = max(repetitions // 6, 3)

    def apply(self, weight: float = WEIGHT, model: Any = None, picture: str = "a", **settings: Any) -> Any:
        features = whole.features(self.kind.family, tag=picture)
        how = self.host.Settings(weight=weight, **settings)
        given = self.model if model is None else model
        with torch.inference_mode():
            return self.host.apply(given, self.adapter, (features,), (torch.zeros_like(features),), how)

    def noise(self, model: Any) -> torch.Tensor:
        return whole.comfyui_noise(model, self.arch, self.call, options={"cond_or_uncond": [1, 0]})

    def measure(self) -> dict[str, float]:
        first = seconds(self.apply)
        second = min(seconds(partial(self.apply, weight)) for weight in OTHERS)
        patched = self.apply()
        calls = [partial(self.noise, model) for model in (self.model, patched, self.apply(end_at=0.9))]
        for call in calls:
            call()
        (without, _), (took, ratio) = medians(calls[:2], self.repetitions)
        plain = syncs(calls[0])
        return {
            "first": first,
            "second": second,
            "without": without,
            "with": took,
            "ratio": ratio,
            "operations": operations(calls[1]).total() - operations(calls[0]).total(),
            "syncs": syncs(calls[1]) - plain,
            "windowed": syncs(calls[2]) - plain,
            "held": tensor_bytes(patched.model_options) - tensor_bytes(self.model.model_options),
            **self.compiling(),
        }

    def compiling(self) -> dict[str, int]:
        """Of one block of each stream, patched alone: tracing all of them takes half a minute each time."""
        from comfy_api.torch_helpers import set_torch_compile_wrapper

        model = self.model.clone()
        set_torch_compile_wrapper(model, backend="eager")
        counted, blocks = {}, "3: 1, 24: 1" if "single" in self.kind.blocks else "3: 1"
        patched = partial(self.apply, model=model, layer_weights=blocks)
        with whole.left(self.model, "double_blocks.3", "single_blocks.5", "joint_blocks.3"):
            for name, given in (("plain", model), ("with", patched())):
                torch._dynamo.reset()
                counted[name] = compiled(partial(self.noise, given))
            again = sum(compiled(partial(self.noise, patched(weight)))[1] for weight in OTHERS)
        torch._dynamo.reset()
        return {"breaks": counted["with"][0] - counted["plain"][0], "again": again}


class Wide:
    """One block of a stream at its published width, in fp32 with random weights, for a picture of `pixels` and both sides.

    CPUs calculate in fp32 as fast as they can; in bf16 most are slower. held: of K and V in bf16, in all blocks.
    """

    def __init__(self, kind: Kind, stream: str, pixels: int = 256, text: int = 128):
        from ipadapter_pack.ipadapter_core.adapter.attention import KV, Slot
        from ipadapter_pack.ipadapter_core.adapter.layers import Layer
        from ipadapter_pack.nodes.host.engine import application, chunks, flux, layer_patch, layout, sd3, timed

        latent, sd35 = pixels // 8, kind.family == "sd3-instantx"
        layer = Layer(0, stream, 0, 0, 0, 1, 1)
        slot = Slot(0, kind.heads, kind.tokens, kind.width // kind.heads)
        kv = KV(_noise(2, 2 * slot.size), {0: slot})
        self.held, self.kind = 2 * kv.rows.numel() * sum(kind.blocks.values()), kind
        block = (_joint if sd35 else _double if stream == "double" else _single)(kind)
        norms = torch.ones(slot.dim), torch.ones(slot.dim)
        clock = timed.Timed(lambda timestep, device: kv, {0: norms}, self, (), kv.rows.nbytes) if sd35 else None
        applied = application.Application(
            kv=kv, patchers=(), negative=(0,), positive=(1,), tokens=kind.tokens, layers={0: layer}, weights={0: WEIGHT}, scaling="V only",
            window=None, mask=None, timed=clock, outside=kind.family == "flux-xlabs",
        )  # fmt: skip
        if clock is not None:
            clock.settle([block], torch.device("cpu"), torch.float32)
        patch = (sd3.SD3Patch if sd35 else flux.FluxPatch)(layer, None, (applied,))
        call = chunks.chunks_of({"cond_or_uncond": [1, 0]}, 2, (latent, latent))
        laid_out = layout.layout_of(applied, call, torch.device("cpu"), torch.float32)
        plan = layer_patch.Plan(layouts={0: (patch, (layer_patch.Acting(laid_out, 1.0),))}, size=(latent, latent), text=text)
        self.arguments = _arguments(kind, stream, text, (latent // 2) ** 2)
        self.options = {layer_patch.PLAN: plan}
        self.block, self.patch = partial(_run, block, stream, sd35), patch

    def call(self, patched: bool) -> None:
        given = {key: value.clone() if key in ("img", "txt") else value for key, value in self.arguments.items()}  # core adds in place
        given["transformer_options"] = dict(self.options)
        with torch.inference_mode():
            self.patch(given, {"original_block": self.block}) if patched else self.block(given)

    def measure(self, repetitions: int) -> dict[str, float]:
        calls = [partial(self.call, patched) for patched in (False, True)]
        (without, _), (took, ratio) = medians(calls, repetitions)
        counted: list[int] = []
        plain, more = (flops(lambda call=call: counted.append(operations(call).total())) for call in calls)
        figures = {"without": without, "with": took, "ratio": ratio, "operations": counted[1] - counted[0], "flops": (more - plain) / plain}
        return {**figures, "held": self.held}


def _noise(*shape: int) -> torch.Tensor:
    return torch.empty(shape).uniform_(-1, 1)


def _filled(block: torch.nn.Module) -> Any:
    for parameter in block.parameters():
        parameter.data.uniform_(-0.02, 0.02)
    return block.requires_grad_(False)


def _double(kind: Kind) -> Any:
    import comfy.ops
    from comfy.ldm.flux.layers import DoubleStreamBlock

    made = DoubleStreamBlock(kind.width, kind.heads, 4.0, qkv_bias=True, dtype=torch.float32, operations=comfy.ops.disable_weight_init)
    return _filled(made)


def _single(kind: Kind) -> Any:
    import comfy.ops
    from comfy.ldm.flux.layers import SingleStreamBlock

    return _filled(SingleStreamBlock(kind.width, kind.heads, 4.0, dtype=torch.float32, operations=comfy.ops.disable_weight_init))


def _joint(kind: Kind) -> Any:
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.mmdit import JointBlock

    how = SimpleNamespace(dtype=torch.float32, operations=comfy.ops.disable_weight_init, qk_norm="rms", pre_only=False, qkv_bias=True)
    block = _filled(JointBlock(kind.width, kind.heads, **vars(how)))
    for part in ("ln_q", "ln_k"):
        getattr(block.x_block.attn, part).weight.data.fill_(1)
    return block


def _arguments(kind: Kind, stream: str, text: int, tokens: int) -> dict[str, Any]:
    img, txt, vec = _noise(2, tokens, kind.width), _noise(2, text, kind.width), _noise(2, kind.width)
    if kind.family == "sd3-instantx":
        return {"img": img, "txt": txt, "vec": vec}
    from comfy.ldm.flux.layers import EmbedND

    pe = EmbedND(dim=kind.width // kind.heads, theta=10000, axes_dim=[16, 56, 56])(torch.zeros(2, text + tokens, 3))
    shared = {"vec": vec, "pe": pe, "attn_mask": None}
    return {"img": img, "txt": txt, **shared} if stream == "double" else {"img": torch.cat([txt, img], 1), **shared}


def _run(block: Any, stream: str, sd35: bool, args: dict[str, Any]) -> dict[str, Any]:
    if sd35:
        txt, img = block(args["txt"], args["img"], c=args["vec"], transformer_options=args["transformer_options"])
        return {"img": img, "txt": txt}
    if stream == "double":
        img, txt = block(**args)
        return {"img": img, "txt": txt}
    return {"img": block(args["img"], **{key: value for key, value in args.items() if key != "img"})}
