"""Other packs' patches and ComfyUI's own nodes beside ours: called before or after, the picture is the same.

Reference: the plain adapter of support/plain.py in our place. Errors are shares of the adapter's effect; TOLERANCE is the rounding of
float32 sums in another order.
"""

import pytest
import torch

from support import lab, plain, synth

TOLERANCE = 1e-4
POSITIVE, NEGATIVE = lab.cond("sd15"), lab.cond("sd15", tag="neg")


@pytest.fixture(scope="module")
def small(pack, comfy):
    return plain.Small(pack, comfy)


@pytest.fixture(scope="module")
def adapted(small):
    return small.apply()


# InstantID and PuLID: an object with lists of callbacks on each key, joined by .add where something stands there already.


class Joined:
    """Stand-in for the object that InstantID and PuLID put on an attn2 key, after the protocol they share."""

    def __init__(self, callback, **kwargs):
        self.callback, self.kwargs = [callback], [kwargs]

    def add(self, callback, **kwargs):
        self.callback.append(callback)
        self.kwargs.append(kwargs)

    def __call__(self, q, k, v, extra_options):
        out = plain.attend(q, k, v, extra_options["n_heads"])
        sigma = float(extra_options["sigmas"][0])
        for callback, kwargs in zip(self.callback, self.kwargs, strict=True):
            if kwargs["sigma_end"] <= sigma <= kwargs["sigma_start"]:
                out = out + callback(out, q, k, v, extra_options, **kwargs)
        return out


def face_attention(out, q, k, v, extra_options, weight=1.0, **kwargs):
    """A third attention over tokens of its own, nothing for negative chunks."""
    tokens = synth.noise("face", (1, 5, q.shape[-1]), 1.0)
    added = plain.attend(q, tokens.expand(q.shape[0], -1, -1), tokens.flip(1).expand(q.shape[0], -1, -1), extra_options["n_heads"])
    chunks = extra_options["cond_or_uncond"]
    sides = torch.tensor([1.0 - side for side in chunks]).repeat_interleave(q.shape[0] // len(chunks))
    return weight * added * sides[:, None, None]


def join(model, keys, **kwargs):
    """What those packs' nodes do: clone, then add to the object on each key, or put their own there."""
    kwargs = {"sigma_start": 999.0, "sigma_end": 0.0, "weight": 0.7, **kwargs}
    model = model.clone()
    for key in keys:
        standing = model.model_options["transformer_options"].get("patches_replace", {}).get("attn2", {})
        if key in standing:
            standing[key].add(face_attention, **kwargs)
        else:
            model.set_model_attn2_replace(Joined(face_attention, **kwargs), *key)
    return model


@pytest.mark.parametrize("window", [{}, {"sigma_end": 3.0}, {"sigma_start": 3.0}], ids=["all", "first steps", "last steps"])
def test_instantid_and_pulid(small, adapted, window):
    theirs = join(small.unet, plain.KEYS, **window)
    want, without = small.out(small.apply(theirs), steps=3), small.out(theirs, steps=3)
    assert plain.error(small.out(join(adapted, plain.KEYS, **window), steps=3), want, without) < TOLERANCE
    assert not torch.equal(without, small.out(small.unet, steps=3))


def test_two_such_packs_around_ours(small, adapted):
    both = join(join(small.unet, plain.KEYS), plain.KEYS, weight=0.2)
    want = small.out(small.apply(both))
    around = join(small.apply(join(small.unet, plain.KEYS)), plain.KEYS, weight=0.2)
    assert plain.error(small.out(around), want, small.out(both)) < TOLERANCE
    after = join(join(adapted, plain.KEYS), plain.KEYS, weight=0.2)
    assert plain.error(small.out(after), want, small.out(both)) < TOLERANCE


def test_theirs_on_keys_with_an_index(small):
    """Some packs name the transformer block in the key even where there is one: looked up first, so it is theirs that ours must join."""
    short, full = (join(small.unet, [(*key, *index) for key in plain.KEYS]) for index in ((), (0,)))
    assert torch.equal(small.out(short), small.out(full))
    assert torch.equal(small.out(small.apply(full)), small.out(small.apply(short)))


def test_sdxl(pack, comfy, small):
    """Keys with an index for each of 70 blocks, both orders."""
    files = plain.AdapterFiles(comfy / "models" / "ipadapter")
    adapter = lab.call(pack["IPAdapterModelLoader"], ipadapter_file=files["base", "sdxl"])[0]
    unet = lab.unet("sdxl")
    depth = {("input", 4): 2, ("input", 5): 2, ("output", 3): 2, ("output", 4): 2, ("output", 5): 2}
    blocks = [("input", i) for i in (4, 5, 7, 8)] + [("output", i) for i in range(6)]
    keys = [(*block, index) for block in blocks for index in range(depth.get(block, 10))]
    assert len(keys) == 60

    def sample(model):
        return lab.sample(model, "sdxl", steps=1)

    theirs = join(unet, keys)
    want = sample(small.apply(theirs, ipadapter=adapter))
    got = sample(join(small.apply(unet, ipadapter=adapter), keys))
    assert plain.error(got, want, sample(theirs)) < TOLERANCE


# Plain patches of the same attention


def louder(q, k, v, extra_options):
    """A replace patch: the text attention times 1.3."""
    return 1.3 * plain.attend(q, k, v, extra_options["n_heads"])


def with_louder(model, keys=plain.KEYS):
    model = model.clone()
    for key in keys:
        model.set_model_attn2_replace(louder, *key)
    return model


def louder_values(model):
    """The same by an attn2_patch on the values, the attention being linear in them."""
    model = model.clone()
    wanted = set(plain.KEYS)
    model.set_model_attn2_patch(lambda q, k, v, extra_options: (q, k, v * 1.3 if extra_options["block"] in wanted else v))
    return model


@pytest.mark.parametrize("index", [(), (0,)], ids=["block", "block and index"])
def test_a_plain_replace_patch_is_called_below_ours(small, adapted, index):
    theirs = with_louder(small.unet, [(*key, *index) for key in plain.KEYS])
    want = small.out(louder_values(adapted))
    assert plain.error(small.out(small.apply(theirs)), want, small.out(theirs)) < TOLERANCE


def test_an_attn2_patch_before_and_after(small, adapted):
    after, before = small.out(louder_values(adapted)), small.out(small.apply(louder_values(small.unet)))
    assert torch.equal(after, before)


def test_an_attn2_output_patch_before_and_after(small, adapted):
    def quieter(model):
        model = model.clone()
        model.set_model_attn2_output_patch(lambda out, extra_options: out * 0.8)
        return model

    after, before = small.out(quieter(adapted)), small.out(small.apply(quieter(small.unet)))
    assert torch.equal(after, before)
    want, without = small.out(quieter(small.reference([NEGATIVE]))), small.out(quieter(small.unet))
    assert plain.error(after, want, without) < TOLERANCE


def test_a_pack_that_wraps_ours_and_ours_again(small, adapted):
    """A patch that calls what stood on its key (ours), with another adapter of ours on top: each keeps its own picture."""
    wrapped = adapted.clone()
    standing = dict(wrapped.model_options["transformer_options"]["patches_replace"]["attn2"])
    for key in plain.KEYS:
        wrapped.set_model_attn2_replace(lambda *args, below=standing[key]: below(*args), *key)
    other = dict(image=lab.images(1, tag="b"), weight=0.5, end_at=0.9)
    assert torch.equal(small.out(wrapped), small.out(adapted))
    assert (
        plain.error(small.out(small.apply(wrapped, **other)), small.out(small.apply(adapted, **other)), small.out(small.unet)) < TOLERANCE
    )


def test_an_attention_override(small, adapted):
    """Another attention for everything, as packs for sage or flash attention set it."""

    def overridden(model):
        def override(func, q, k, v, heads, *args, skip_reshape=False, **kwargs):
            if skip_reshape:
                q, k, v = (t.transpose(1, 2).flatten(2) for t in (q, k, v))
            return 1.1 * plain.attend(q, k, v, heads)

        model = model.clone()
        model.model_options["transformer_options"]["optimized_attention_override"] = override
        return model

    after, before = small.out(overridden(adapted)), small.out(small.apply(overridden(small.unet)))
    assert torch.equal(after, before)
    assert not torch.equal(after, small.out(adapted))


# ComfyUI's own nodes


def lora(strength):
    def add(model):
        import comfy.sd

        sd = {}
        for part, width in (("attn2_to_q", 32), ("attn1_to_v", 32)):
            name = f"lora_unet_input_blocks_1_1_transformer_blocks_0_{part}"
            sd[f"{name}.lora_up.weight"] = synth.noise(f"up{part}", (width, 4), 0.5)
            sd[f"{name}.lora_down.weight"] = synth.noise(f"down{part}", (4, 32), 0.5)
        return comfy.sd.load_lora_for_models(model, None, sd, strength, 0.0)[0]

    return add


def node(module, name, **inputs):
    def add(model):
        import importlib

        cls = getattr(importlib.import_module(f"comfy_extras.{module}"), name)
        made = cls.execute(model, **inputs) if hasattr(cls, "execute") else getattr(cls(), cls.FUNCTION)(model, **inputs)
        return made[0]

    return add


def deep_shrink(factor):
    how = dict(downscale_after_skip=True, downscale_method="bilinear", upscale_method="bilinear")
    return node(
        "nodes_model_downscale",
        "PatchModelAddDownscale",
        block_number=3,
        downscale_factor=factor,
        start_percent=0.0,
        end_percent=1.0,
        **how,
    )


def hypertile(size):
    return node("nodes_hypertile", "HyperTile", tile_size=size, swap_size=1, max_depth=0, scale_depth=False)


NODES = {
    "LoRA": lora(1.0),
    "FreeU": node("nodes_freelunch", "FreeU", b1=1.1, b2=1.2, s1=0.9, s2=0.2),
    "FreeU_V2": node("nodes_freelunch", "FreeU_V2", b1=1.3, b2=1.4, s1=0.9, s2=0.2),
    "PAG": node("nodes_pag", "PerturbedAttentionGuidance", scale=3.0),
    "SAG": node("nodes_sag", "SelfAttentionGuidance", scale=0.5, blur_sigma=2.0),
    "RescaleCFG": node("nodes_model_advanced", "RescaleCFG", multiplier=0.7),
    "HyperTile": hypertile(64),
    "DeepShrink": deep_shrink(2.0),
    "ToMe": node("nodes_tomesd", "TomePatchModel", ratio=0.4),
}
NEUTRAL = {  # settings that change nothing
    "LoRA": lora(0.0),
    "FreeU": node("nodes_freelunch", "FreeU", b1=1.0, b2=1.0, s1=1.0, s2=1.0),
    "PAG": node("nodes_pag", "PerturbedAttentionGuidance", scale=0.0),
    "SAG": node("nodes_sag", "SelfAttentionGuidance", scale=0.0, blur_sigma=2.0),
    "RescaleCFG": node("nodes_model_advanced", "RescaleCFG", multiplier=0.0),
    "HyperTile": hypertile(2048),
    "DeepShrink": deep_shrink(1.0),
    "ToMe": node("nodes_tomesd", "TomePatchModel", ratio=0.0),
}
ROUNDED = ("FreeU", "RescaleCFG", "SAG")  # a Fourier transform there and back; cfg taken apart; the middle's attention by other sums


def sample(small, model):
    torch.manual_seed(0)  # for ToMe's random tokens
    return small.out(model, hw=(16, 16))


@pytest.mark.parametrize("name", NODES)
def test_before_and_after_a_node(small, adapted, name):
    add = NODES[name]
    after, before = sample(small, add(adapted)), sample(small, small.apply(add(small.unet)))
    assert torch.isfinite(after).all()
    assert torch.equal(after, before)
    want, without = sample(small, small.reference([NEGATIVE], add(small.unet))), sample(small, add(small.unet))
    assert plain.error(after, want, without) < TOLERANCE
    assert plain.error(after, sample(small, adapted), sample(small, small.unet)) > 10 * TOLERANCE  # the node does act


@pytest.mark.parametrize("name", NEUTRAL)
def test_a_node_that_does_nothing(small, adapted, name):
    got, want = sample(small, NEUTRAL[name](adapted)), sample(small, adapted)
    if name in ROUNDED:
        assert plain.error(got, want, sample(small, small.unet)) < TOLERANCE
    else:
        assert torch.equal(got, want)


def test_a_mask_on_shrunken_layers(small):
    """DeepShrink's layers have token counts that no level of the UNet has: masks are made for them too."""
    model = deep_shrink(1.6)(small.apply())
    masked = deep_shrink(1.6)(small.apply(attn_mask=torch.ones(1, 50, 50)))
    assert plain.error(sample(small, masked), sample(small, model), sample(small, deep_shrink(1.6)(small.unet))) < TOLERANCE


def control_net():
    """A narrow ControlNet of SD1.5's layout in ComfyUI's class."""
    import comfy.cldm.cldm
    import comfy.controlnet
    import comfy.ops

    config = {key: value for key, value in lab.CONF["sd15"].items() if key not in ("out_channels", "transformer_depth_output")}
    for key in ("use_temporal_attention", "use_temporal_resblock"):
        del config[key]
    net = comfy.cldm.cldm.ControlNet(
        **config, model_channels=32, hint_channels=3, dtype=torch.float32, operations=comfy.ops.disable_weight_init
    )
    return comfy.controlnet.ControlNet(synth.fill(net, "control"))


def test_controlnet(small, adapted):
    """It steers beside ours and sees nothing of it: the plain adapter gives the same."""
    hint = lab.images(1, h=64, w=64, tag="hint")
    applied = plain.core_node("ControlNetApplyAdvanced").apply_controlnet(POSITIVE, NEGATIVE, control_net(), hint, 0.01, 0.0, 1.0)
    prompts = dict(zip(("positive", "negative"), applied, strict=True))
    got, want, without = (small.out(model, **prompts) for model in (adapted, small.reference([NEGATIVE]), small.unet))
    assert torch.isfinite(got).all()
    assert plain.error(got, want, without) < TOLERANCE
    assert plain.error(got, small.out(adapted), without) > 10 * TOLERANCE


def compiled(model, keys):
    """As ComfyUI's TorchCompileModel sets it, with dynamo's tracing and no code generation; a graph break is an error."""
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    model = model.clone()
    torch._dynamo.reset()
    set_torch_compile_wrapper(model, backend="eager", fullgraph=True, keys=keys)
    return model


def test_torch_compile(small, adapted):
    got = small.out(compiled(adapted, ["diffusion_model"]), steps=1)
    assert plain.error(got, small.out(adapted, steps=1), small.out(small.unet, steps=1)) < TOLERANCE


@pytest.mark.parametrize("order", ["compiled last", "compiled first"])
def test_torch_compile_of_some_blocks(small, order):
    """With a mask, a window that closes on the way and another adapter, in both orders."""

    def patched(model):
        first = small.apply(model, attn_mask=torch.ones(1, 8, 8), end_at=0.5)
        return small.apply(first, image=lab.images(1, tag="b"), embeds_scaling="K+V")

    blocks = [f"diffusion_model.{name}_blocks.{i}.1.transformer_blocks.0" for name, i in (("input", 2), ("output", 11))]
    model = compiled(patched(small.unet), blocks) if order == "compiled last" else patched(compiled(small.unet, blocks))
    assert plain.error(small.out(model), small.out(patched(small.unet)), small.out(small.unet)) < TOLERANCE
