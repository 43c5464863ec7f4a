"""Flux and SD3.5 through the nodes: files under their published keys, encoders, negative sides, references, saved embeds, sampling."""

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from support import lab, synth, whole_transformer
from support.whole_transformer import comfyui_noise, error

SAME = 2e-5


@pytest.fixture(scope="module")
def flux(pack, comfy):
    """XLabs' adapter under its published keys, and ViT-L."""
    state = whole_transformer.xlabs(features=768)
    published = {f"ip_adapter_proj_model.{key}": value for key, value in state["image_proj"].items()}
    for key, value in state["ip_adapter"].items():
        number, part, kind = key.split(".")
        published[f"double_blocks.{number}.processor.ip_adapter_double_stream_{part[3]}_proj.{kind}"] = value
    return _setup(pack, comfy, "flux", published, lab.clip_vision(hidden=1024, proj=768))


@pytest.fixture(scope="module")
def sd3(pack, comfy):
    """InstantX' adapter under diffusers' keys, and an encoder as wide as SigLIP."""
    state = whole_transformer.sd3(features=1152)
    names = {
        "0.norm1.": "ln0.", "0.norm2.": "ln1.", "0.to_q.": "attn.to_q.", "0.to_kv.": "attn.to_kv.", "0.to_out.": "attn.to_out.0.",
        "1.0.": "adaln_norm.", "1.1.": "ff.net.0.proj.", "1.3.": "ff.net.2.", "2.1.": "adaln_proj.",
    }  # fmt: skip
    published = {f"ip_adapter.{key}": value for key, value in state["ip_adapter"].items()}
    for key, value in state["image_proj"].items():
        for ours, theirs in names.items():
            if key[9:].startswith(ours) and key.startswith("layers."):
                key = f"{key[:9]}{theirs}{key[9:].removeprefix(ours)}"
                break
        published[f"image_proj.{key}"] = value
    return _setup(pack, comfy, "sd3", published, lab.clip_vision(hidden=1152, proj=64))


def _setup(pack, comfy, arch, published, encoder):
    folder = comfy / "models" / "ipadapter"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{arch}.safetensors"
    save_file({key: value.contiguous() for key, value in published.items()}, path)
    adapter = lab.call(pack["IPAdapterModelLoader"], ipadapter_file=path.name)[0]
    path.unlink()
    model, call = whole_transformer.comfyui(arch), whole_transformer.given(arch)
    one = SimpleNamespace(pack=pack, arch=arch, adapter=adapter, encoder=encoder, model=model, call=call)
    one.noise = lambda patched, **how: comfyui_noise(patched, arch, call, **how)
    one.plain = one.noise(model)
    return one


@pytest.fixture(params=["flux", "sd3"])
def one(request):
    return request.getfixturevalue(request.param)


def advanced(one, model=None, **given):
    how = dict(
        image=lab.images(1), weight=0.8, weight_type="linear", combine_embeds="concat", start_at=0.0, end_at=1.0, embeds_scaling="V only",
        clip_vision=one.encoder, ipadapter=one.adapter, model=one.model if model is None else model,
    )  # fmt: skip
    return lab.call(one.pack["IPAdapterAdvanced"], **{**how, **given})[0]


def prompt(one, *references, **given):
    chained = None
    for tag, how in references:
        how = {"weight": 1.0, "role": "everything", "fit": "stretch", "tiles": 1, "more": chained, **how}
        chained = lab.call(one.pack["ImagePromptReference"], image=lab.images(1, tag=tag), **how)[0]
    how = dict(model=one.model, ipadapter=one.adapter, clip_vision=one.encoder, weight=0.8, reference=chained, **given)
    return lab.call(one.pack["ImagePrompt"], **how)[0]


def test_the_picture_counts(one):
    found = [one.noise(advanced(one, image=lab.images(1, tag=tag))) for tag in ("a", "b")]
    assert (found[0] - one.plain).norm() > 0.01 * one.plain.norm()
    assert error(found[1], found[0], one.plain) > 0.01


def test_the_negative_side(one, pack):
    """Without a picture there: XLabs has the black one, InstantX features of zero."""
    from ipadapter_pack.ipadapter_core.files.encoders import HIDDEN, PROJECTED
    from ipadapter_pack.nodes.host.apply import project
    from ipadapter_pack.nodes.host.pictures import encoder

    feature = PROJECTED if one.arch == "flux" else HIDDEN
    picture = encoder.encode_fitted(one.encoder, lab.images(1), feature, "center crop" if one.arch == "flux" else "stretch", 1)
    black = encoder.encode_black(one.encoder, feature) if one.arch == "flux" else torch.zeros_like(picture)
    want = project.apply_features(one.model, one.adapter, (picture,), (black,), project.Settings(weight=0.8))
    for side in (0, 1):
        options = {"cond_or_uncond": [side]}
        assert torch.equal(one.noise(advanced(one), options=options), one.noise(want, options=options))


def test_embeds(one):
    """Encoded, then applied: as from the picture."""
    pos, neg = lab.call(one.pack["IPAdapterEncoder"], ipadapter=one.adapter, image=lab.images(1), weight=1.0, clip_vision=one.encoder)
    how = dict(weight=0.8, weight_type="linear", start_at=0.0, end_at=1.0, embeds_scaling="V only")
    got = lab.call(one.pack["IPAdapterEmbeds"], model=one.model, ipadapter=one.adapter, pos_embed=pos, neg_embed=neg, **how)[0]
    assert torch.equal(one.noise(got), one.noise(advanced(one)))


def test_references_each_by_itself_are_adapters_stacked(one):
    """Each with its own region: the sum of both, as two nodes with masks would give it."""
    left = torch.zeros(1, 16, 24)
    left[..., :12] = 1
    got = prompt(one, ("a", {"region": left}), ("b", {"region": 1 - left}), join="each by itself", method="as IPAdapter Plus")
    embeds = [lab.call(one.pack["IPAdapterEncoderAdvanced"], ipadapter=one.adapter, image=lab.images(1, tag=tag), weight=1.0, fit="stretch",
                       tiles=1, size=0, clip_vision=one.encoder) for tag in "ab"]  # fmt: skip
    model = one.model
    for (pos, neg), region in zip(embeds, (left, 1 - left), strict=True):
        how = dict(weight=0.8, weight_type="linear", start_at=0.0, end_at=1.0, embeds_scaling="V only", attn_mask=region)
        model = lab.call(one.pack["IPAdapterEmbeds"], model=model, ipadapter=one.adapter, pos_embed=pos, neg_embed=neg, **how)[0]
    assert error(one.noise(got), one.noise(model), one.plain) < SAME


def test_blocks_and_steps_of_an_image_prompt(one):
    full, first = prompt(one, ("a", {})), prompt(one, ("a", {}), layers="first half")
    assert not torch.equal(one.noise(first), one.noise(full))
    assert torch.equal(one.noise(prompt(one, ("a", {}), layers="double: 0")), one.noise(one.model))
    half = prompt(one, ("a", {}), weight_over_steps="0:0.5, 1:0.5")
    want = prompt(one, ("a", {}), layers="everything, double: 0.5")
    assert error(one.noise(half), one.noise(want), one.plain) < SAME


def test_a_role_that_needs_a_unet_is_refused(one):
    with pytest.raises(ValueError, match="no preset 'style' for"):
        prompt(one, ("a", {"role": "style"}))


def test_what_is_on_the_model_can_be_plotted(one):
    node = one.pack["IPAdapterPlotModel"]
    (plot,) = getattr(node(), node.FUNCTION)(model=advanced(one), steps=4, scheduler="normal")["result"]
    assert plot.ndim == 4 and plot.std() > 0


def test_attention_maps_are_refused_in_a_sentence(one):
    with pytest.raises(ValueError, match=r"cross-attentions of SD1\.5, SDXL and Kolors, and the connected model is"):
        lab.call(one.pack["WatchImagePrompt"], model=advanced(one), tokens=False)


def test_sampling(one):
    """ComfyUI's own sampler with cfg, so both sides; a window that holds no step changes nothing."""
    import comfy.sample

    text = [[one.call["text"], {"pooled_output": one.call["pooled"]}]]
    other = [[synth.noise("other", one.call["text"].shape, 1.0), {"pooled_output": one.call["pooled"]}]]

    def sample(model):
        latent = torch.zeros(1, 16, 8, 12)
        with torch.inference_mode():
            return comfy.sample.sample(model, one.call["x"], 2, 3.0, "euler", "simple", text, other, latent, disable_pbar=True, seed=1)

    plain, late = sample(one.model), sample(advanced(one, start_at=0.999))
    assert torch.equal(late, plain)
    again = [sample(advanced(one)) for _ in range(2)]
    assert torch.isfinite(again[0]).all() and not torch.equal(again[0], plain)
    assert torch.equal(again[0], again[1])
