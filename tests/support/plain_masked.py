"""The plain adapter of plain.py with a mask, for SD1.5 and SDXL, and the neighbours that are tested beside it.

The height and width of a layer's tokens are those of its SpatialTransformer's input, which ComfyUI puts into extra_options
("activations_shape"). Which crop of the latent a chunk holds is found by looking for it in the whole latent.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from support import lab, plain, synth
from support.world import AdapterFiles

_SDXL = [("input", i, 2) for i in (4, 5)] + [("input", i, 10) for i in (7, 8)]
_SDXL += [("output", i, 10) for i in range(3)] + [("output", i, 2) for i in range(3, 6)]
KEYS: dict[str, list[tuple]] = {  # cross-attentions in the files' order, without the middle block
    "sd15": plain.KEYS,
    "sdxl": [(name, block, index) for name, block, depth in _SDXL for index in range(depth)],
}
WHOLE, CROPS = "test_whole", "test_crops"


class Masked(plain.Small):
    """The rig of plain.Small for either base."""

    def __init__(self, pack: dict[str, type], comfy: Path, arch: str):
        self.pack, self.arch = pack, arch
        self.unet = lab.unet(arch)
        self.encoder = lab.clip_vision(hidden=64, proj=1024, heads=4)
        self.state = synth.adapter("base", arch)
        self.file = AdapterFiles(comfy / "models" / "ipadapter")["base", arch]
        self.adapter = self.load()
        self.positive, self.negative, self.third = (lab.cond(arch, tag=tag) for tag in ("pos", "neg", "third"))

    def out(self, model, **kw) -> Tensor:
        torch.manual_seed(0)  # HyperTile and ToMe draw random numbers
        with torch.inference_mode():
            return lab.sample(model, self.arch, **{"steps": 1, "hw": (16, 24), **kw})

    def tokens(self, features: Tensor) -> Tensor:
        proj = self.state["image_proj"]
        width = proj["norm.weight"].shape[0]
        flat = F.linear(features, proj["proj.weight"], proj["proj.bias"])
        return F.layer_norm(flat.unflatten(-1, (4, width)), (width,), proj["norm.weight"], proj["norm.bias"])

    def masked(self, mask: Tensor, model=None, weight: float = 0.8, negative=None):
        """A clone with the plain adapter on it, one picture, under a mask [n, H, W]; `negative`: the prompts of that side."""
        patched = (self.unet if model is None else model).clone()
        rows = plain.by_sides(*self.sides(lab.images(1)))
        for number, key in enumerate(KEYS[self.arch]):
            to_k, to_v = (self.state["ip_adapter"][f"{2 * number + 1}.to_{part}_ip.weight"] for part in "kv")
            patched.set_model_attn2_replace(masked_attention(to_k, to_v, rows, weight, mask), *key)
        plain.name_sides(patched, [prompt[0][0] for prompt in negative or [self.negative]])
        return name_crops(patched)


def masked_attention(to_k: Tensor, to_v: Tensor, rows: plain.Rows, weight: float, mask: Tensor):
    def replace(q, k, v, extra_options):
        tokens, heads = rows(extra_options, q.shape[0]), extra_options["n_heads"]
        image = plain.attend(q, tokens @ to_k.T, tokens @ to_v.T, heads)
        return plain.attend(q, k, v, heads) + weight * image * on_grid(mask, extra_options)

    return replace


def on_grid(mask: Tensor, extra_options: dict[str, Any]) -> Tensor:
    """A mask [n, H, W] as a layer's rows see it, [b, tokens, 1]: of each chunk's crop, latent i with mask i, the last repeating."""
    rows, _, height, width = extra_options["activations_shape"]
    crops, (whole_height, whole_width) = extra_options[CROPS]
    across, along = mask.shape[-2] / whole_height, mask.shape[-1] / whole_width
    out = []
    for top, left, crop_height, crop_width in crops:
        edges = [top * across, (top + crop_height) * across, left * along, (left + crop_width) * along]
        y, below, x, beyond = (round(edge) for edge in edges)
        assert edges == pytest.approx([y, below, x, beyond]), "a crop has to lie on whole pixels of the mask"
        cropped = mask[:, y:below, x:beyond]
        grid = F.interpolate(cropped[:, None], size=(height, width), mode="bilinear")
        count = rows // len(crops)
        out.append(grid[[min(i, mask.shape[0] - 1) for i in range(count)]].flatten(1))
    return torch.cat(out)[..., None]


def name_crops(model):
    """Puts CROPS into transformer_options: (top, left, height, width) of each chunk, and the height and width of the whole latent."""
    from comfy.patcher_extension import WrappersMP

    def whole(executor, base, conds, x_in, timestep, model_options):
        options = {**model_options.get("transformer_options", {}), WHOLE: x_in}
        return executor(base, conds, x_in, timestep, {**model_options, "transformer_options": options})

    below = model.model_options["model_function_wrapper"]

    def wrapper(apply_model, args):
        options = args["c"]["transformer_options"]
        crops = [find(chunk, options[WHOLE]) for chunk in args["input"].chunk(len(args["cond_or_uncond"]))]
        options = {**options, CROPS: (crops, tuple(options[WHOLE].shape[-2:]))}
        return below(apply_model, {**args, "c": {**args["c"], "transformer_options": options}})

    model.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, "test", whole)
    model.set_model_unet_function_wrapper(wrapper)
    return model


def find(chunk: Tensor, whole: Tensor) -> tuple[int, int, int, int]:
    height, width = chunk.shape[-2:]
    for top in range(whole.shape[-2] - height + 1):
        for left in range(whole.shape[-1] - width + 1):
            if torch.equal(whole[..., top : top + height, left : left + width], chunk):
                return top, left, height, width
    raise AssertionError("the chunk is no crop of the latent")


def spotted(n: int = 1, height: int = 128, width: int = 192, tag: str = "mask") -> Tensor:
    """Masks [n, H, W] in 0..1 without any symmetry: a few wide spots."""
    spots = synth.noise(tag, (n, 1, 5, 4), 0.5) + 0.5
    return F.interpolate(spots, size=(height, width), mode="bilinear")[:, 0]


# Neighbours


def control_net():
    """A narrow ControlNet of SD1.5's layout in ComfyUI's class."""
    import comfy.cldm.cldm
    import comfy.controlnet
    import comfy.ops

    unused = ("out_channels", "transformer_depth_output", "use_temporal_attention", "use_temporal_resblock")
    config = {key: value for key, value in lab.CONF["sd15"].items() if key not in unused}
    how = dict(dtype=torch.float32, operations=comfy.ops.disable_weight_init)
    net = comfy.cldm.cldm.ControlNet(**config, model_channels=32, hint_channels=3, **how)
    return comfy.controlnet.ControlNet(synth.fill(net, "control"))


def gligen(positive, boxes):
    """GLIGENTextBoxApply with a narrow GLIGEN for the narrow SD1.5 UNet; boxes: (height, width, y, x) in latents."""
    import comfy.gligen
    import comfy.model_management as mm
    import comfy.model_patcher

    widths = [32] * 2 + [64] * 2 + [128] * 2 + [128] + [128] * 3 + [64] * 3 + [32] * 3  # in the order of execution
    modules = [comfy.gligen.GatedSelfAttentionDense(width, 768, 8, width // 8) for width in widths]
    made = comfy.gligen.Gligen(modules, comfy.gligen.PositionNet(768, 768), 768)
    synth.fill(made, "gligen")
    patcher = comfy.model_patcher.ModelPatcher(made.eval(), load_device=mm.get_torch_device(), offload_device=mm.unet_offload_device())
    params = [(synth.noise(f"box{i}", (1, 768), 1.0), *box) for i, box in enumerate(boxes)]
    return [[text, {**extra, "gligen": ("position", patcher, params)}] for text, extra in positive]


def couple(model, texts: list[Tensor], masks: list[Tensor], tells: bool):
    """Attention couple: positive chunks attend once for each region, to its own text, and the results are blended by the regions' masks.

    As the packs of that name do it, the rows of q, k and v of a positive chunk are repeated in an attn2_patch and brought back in an
    attn2_output_patch. texts: of the second region and on (the first has the prompt); masks [H, W] add up to 1.
    tells: puts a cond_or_uncond that fits the rows into extra_options for the time between.
    """
    regions = len(masks)

    def more_rows(n, context, value, extra_options):
        chunks = extra_options["cond_or_uncond"]
        queries, contexts, sides = [], [], []
        for side, q, own in zip(chunks, n.chunk(len(chunks)), context.chunk(len(chunks)), strict=True):
            count = regions if side == 0 else 1
            queries.append(q.repeat(count, 1, 1))
            contexts.append(torch.cat([own, *(text.expand(len(q), -1, -1) for text in texts)]) if side == 0 else own)
            sides += [side] * count
        extra_options["test_rows_of"] = list(chunks)
        if tells:
            extra_options["cond_or_uncond"] = sides
        contexts = torch.cat(contexts)
        return torch.cat(queries), contexts, contexts

    def back(out, extra_options):
        chunks = extra_options["cond_or_uncond"] = extra_options.pop("test_rows_of")
        batch = out.shape[0] // sum(regions if side == 0 else 1 for side in chunks)
        size = extra_options["activations_shape"][-2:]
        shares = F.interpolate(torch.stack(masks)[:, None], size=size, mode="bilinear").flatten(1)[:, None, :, None]  # [r, 1, n, 1]
        pieces = out.split([batch * (regions if side == 0 else 1) for side in chunks])
        blended = [(p.unflatten(0, (regions, batch)) * shares).sum(0) if side == 0 else p for side, p in zip(chunks, pieces, strict=True)]
        return torch.cat(blended)

    model = model.clone()
    model.set_model_attn2_patch(more_rows)
    model.set_model_attn2_output_patch(back)
    return model


def coupled(rig: Masked, texts: list[Tensor], masks: list[Tensor], mask: Tensor | None = None, weight: float = 0.8):
    """Attention couple and the plain adapter in one replace patch, without further rows: what `couple` around an adapter has to give.

    Without `mask` there is no adapter. to_k and to_v of the text are the UNet's own.
    """
    patched = rig.unet.clone()
    positive, negative = rig.sides(lab.images(1))
    rows = plain.by_sides(positive, negative)
    numbers = {key: number for number, key in enumerate(KEYS[rig.arch])}
    unet = patched.model.diffusion_model

    def blocks():
        yield from ((("input", i), block) for i, block in enumerate(unet.input_blocks))
        yield ("middle", 0), unet.middle_block
        yield from ((("output", i), block) for i, block in enumerate(unet.output_blocks))

    def one(key, attn):
        number = numbers.get(key if rig.arch == "sdxl" else key[:2])

        def replace(q, k, v, extra_options):
            heads, chunks = extra_options["n_heads"], extra_options["cond_or_uncond"]
            size = extra_options["activations_shape"][-2:]
            first, *shares = F.interpolate(torch.stack(masks)[:, None], size=size, mode="bilinear").flatten(1)[..., None]
            pieces = []
            for side, *own in zip(chunks, *(t.chunk(len(chunks)) for t in (q, k, v)), strict=True):
                out = plain.attend(own[0], own[1], own[2], heads)
                if side == 0:
                    both = [torch.cat([text] * len(out)) for text in texts]
                    others = [plain.attend(own[0], attn.to_k(text), attn.to_v(text), heads) for text in both]
                    out = first * out + sum(share * other for share, other in zip(shares, others, strict=True))
                pieces.append(out)
            out = torch.cat(pieces)
            if mask is None or number is None:
                return out
            to_k, to_v = (rig.state["ip_adapter"][f"{2 * number + 1}.to_{part}_ip.weight"] for part in "kv")
            tokens = rows(extra_options, q.shape[0])
            return out + weight * plain.attend(q, tokens @ to_k.T, tokens @ to_v.T, heads) * on_grid(mask, extra_options)

        return replace

    from comfy.ldm.modules.attention import SpatialTransformer

    for place, block in blocks():
        for module in block:
            for index, transformer in enumerate(module.transformer_blocks if isinstance(module, SpatialTransformer) else ()):
                patched.set_model_attn2_replace(one((*place, index), transformer.attn2), *place, index)
    plain.name_sides(patched, [rig.negative[0][0]])
    return name_crops(patched)
