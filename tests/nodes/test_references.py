"""Image Prompt beside what is written out: weights, regions, curves in real samplings, and IPAdapter Advanced bit for bit."""

import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from support import lab, plain, synth
from support.world import AdapterFiles

PLUS = "as IPAdapter Plus"
ROUNDING = 5e-5  # of float32 through a UNet and several steps, beside the size of the effect: measured at most 2.1e-5


@pytest.fixture(scope="module")
def small(pack, comfy):
    return plain.Small(pack, comfy)


@pytest.fixture(scope="module")
def bare(small):
    return small.out(small.unet)


def refer(small, image=None, weight=1.0, role="everything", fit="center crop", **given):
    image = lab.images(1) if image is None else image
    return lab.call(small.pack["ImagePromptReference"], image=image, weight=weight, role=role, fit=fit, tiles=2, **given)[0]


def face_reference(small, faces, role="everything"):
    return lab.call(small.pack["ImagePromptFaceReference"], face_embeds=faces, weight=1.0, role=role)[0]


def chain(small, *given, role="everything"):
    """(tag, weight, region) each."""
    found = None
    for tag, weight, region in given:
        found = refer(small, lab.images(1, tag=tag), weight, role, region=region, more=found)
    return found


def prompt(small, reference, model=None, **given):
    given = {"weight": 0.8, "join": "side by side", "method": PLUS, "ipadapter": small.adapter, "clip_vision": small.encoder, **given}
    return lab.call(small.pack["ImagePrompt"], model=small.unet if model is None else model, reference=reference, **given)[0]


def grey(tag):
    """A smooth mask with black, white and grey places."""
    return F.interpolate(synth.noise(f"grey {tag}", (1, 1, 4, 4), 3.0).add(0.5).clamp(0, 1), size=(32, 32), mode="bilinear")[0]


def test_a_picture_is_shown_to_whoever_has_an_editor_open(small, monkeypatch):
    """An output more where the prompt comes from an editor; the reference alone for programs, and where no server runs."""
    made = lab.call(small.pack["ImagePromptReference"], image=lab.images(5), weight=1.0, role="style", fit="tiles", tiles=2)
    server = SimpleNamespace(client_id="editor", sockets={"editor": object()})
    monkeypatch.setitem(sys.modules, "server", SimpleNamespace(PromptServer=SimpleNamespace(instance=server)))
    node = small.pack["ImagePromptReference"]()
    answer = node.refer(image=lab.images(5), weight=1.0, role="style", fit="tiles", tiles=2)
    assert len(answer["ui"]["images"]) == 4 and answer["ui"]["images"][0]["type"] == "temp"
    assert [type(one) for one in answer["result"]] == [type(one) for one in made]
    server.client_id = "program"
    assert type(node.refer(image=lab.images(1), weight=1.0, role="style", fit="tiles", tiles=2)) is tuple


# The equation of references side by side


def written_out(small, tags, weights, regions, negative=None, weight=0.8):
    """The model of one attention over all tokens: weights on V, regions in the softmax and at the end. negative: (tag, weight, region)s."""
    positive = [small.tokens(small.features(lab.images(1, tag=tag))) for tag in tags]
    nobody = small.tokens(torch.zeros(1, 1024))
    how = list(zip(weights, regions, strict=True))
    sides = {False: [(one, *rest) for one, rest in zip(positive, how, strict=True)], True: [(nobody, *rest) for rest in how]}
    if negative:
        sides[True] = [(small.tokens(small.features(lab.images(1, tag=tag))), *rest) for tag, *rest in negative]
    patched = small.unet.clone()
    for number, place in enumerate(plain.KEYS):
        to_k, to_v = (small.state["ip_adapter"][f"{2 * number + 1}.to_{part}_ip.weight"] for part in "kv")

        def replace(q, k, v, options, to_k=to_k, to_v=to_v):
            heads, size = options["n_heads"], tuple(options["activations_shape"][-2:])
            out, chunks = plain.attend(q, k, v, heads), []
            for side, rows in zip(options[plain.SIDES], q.chunk(len(options[plain.SIDES])), strict=True):
                shown = [one for one in sides[side] if one[1] != 0]
                areas = [torch.ones(size).flatten() if m is None else F.interpolate(m[None], size=size, mode="bilinear").flatten()
                         for _, _, m in shown]  # fmt: skip
                tokens = torch.cat([one for one, _, _ in shown], 1)[0]
                w = torch.tensor([weight * w for _, w, _ in shown]).repeat_interleave(4)
                m = torch.stack(areas, -1).repeat_interleave(4, -1)  # [n, t]
                qs, ks, vs = (t.unflatten(-1, (heads, -1)).transpose(-2, -3) for t in (rows, tokens @ to_k.T, tokens @ to_v.T * w[:, None]))
                e = m * (qs @ ks.transpose(-1, -2) / qs.shape[-1] ** 0.5).exp()
                p = e / e.sum(-1, keepdim=True).clamp_min(1e-30)
                distinct = {id(region): area for (_, _, region), area in zip(shown, areas, strict=True)}
                cover = sum(distinct.values()).clamp(max=1)[:, None]
                chunks.append(cover * (p @ vs).transpose(1, 2).flatten(2))
            return out + torch.cat(chunks)

        patched.set_model_attn2_replace(replace, *place)
    return plain.name_sides(patched, [lab.cond("sd15", tag="neg")[0][0]])


A, B = grey("a"), grey("b")
HALF = torch.zeros(1, 32, 32)
HALF[..., :16] = 1
CASES = {
    "weights": [("x", 1.0, None), ("y", 0.3, None), ("z", -0.5, None)],
    "one off": [("x", 0.7, None), ("y", 0.0, None), ("z", 0.7, None)],
    "regions": [("x", 1.0, A), ("y", 0.6, B), ("z", 1.0, A)],
    "halves": [("x", 1.0, HALF), ("y", 1.0, 1 - HALF)],
    "region and everywhere": [("x", 1.0, A), ("y", 1.0, None)],
    "one region for two": [("x", 1.0, A), ("y", 0.5, A)],
}


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_side_by_side_as_written_out(small, bare, case, batch):
    model = prompt(small, chain(small, *CASES[case]))
    want = small.out(written_out(small, *zip(*CASES[case], strict=True)), batch=batch)
    without = small.out(small.unet, batch=batch) if batch > 1 else bare
    assert plain.error(small.out(model, batch=batch), want, without) < ROUNDING


@pytest.mark.parametrize("regions", [(None, None, None), (A, None, B)], ids=["everywhere", "regions"])
def test_more_negative_references_than_positive_ones(small, bare, regions):
    negative = [("n", 0.9, regions[0]), ("m", 0.4, regions[1])]
    reference = refer(small, lab.images(1, tag="x"), 0.7, region=regions[2], more=chain(small, *negative, role="negative"))
    want = small.out(written_out(small, ["x"], [0.7], [regions[2]], negative), batch=2)
    assert plain.error(small.out(prompt(small, reference), batch=2), want, small.out(small.unet, batch=2)) < ROUNDING


def test_a_region_for_each_frame(small):
    """Frame 2 of two has the region of frame 2: it is as if it were sampled with that one alone."""
    both = torch.cat([A, B])
    one, two = (prompt(small, chain(small, ("x", 1.0, region), ("y", 1.0, None))) for region in (both, B))
    got, want = small.out(one, batch=2)[1], small.out(two, batch=2)[1]
    assert plain.error(got, want, small.out(small.unet, batch=2)[1]) < ROUNDING


def test_roles_are_layers(small, bare):
    """A style and a layout reference: each alone on its layers, as two established nodes one after the other."""
    reference = refer(small, lab.images(1, tag="y"), 0.6, "layout", more=refer(small, lab.images(1, tag="x"), role="style"))
    two = small.apply(image=lab.images(1, tag="x"), weight_type="style transfer")
    two = small.apply(two, image=lab.images(1, tag="y"), weight_type="composition", weight=0.48)
    assert plain.error(small.out(prompt(small, reference)), small.out(two), bare) < ROUNDING


def test_each_by_itself_is_one_after_the_other(small, bare):
    given = [("x", 1.0, A), ("y", -0.4, None), ("z", 0.7, B)]
    model = small.unet
    for tag, weight, region in given:
        model = small.apply(model, image=lab.images(1, tag=tag), weight=0.8 * weight, attn_mask=region)
    got = small.out(prompt(small, chain(small, *given), join="each by itself"), batch=2)
    assert plain.error(got, small.out(model, batch=2), small.out(small.unet, batch=2)) < ROUNDING


def test_blended_is_the_weighted_mean_of_the_features(small, bare):
    x, y = (small.features(lab.images(1, tag=tag)) for tag in "xy")
    mixed = (1.0 * x + 0.5 * y) / 1.5
    tokens = small.tokens(mixed), small.tokens(torch.zeros_like(mixed))
    model = small.plain_model(plain.by_sides(*tokens), weight=0.8 * 0.75)
    want = small.out(plain.name_sides(model, [lab.cond("sd15", tag="neg")[0][0]]))
    got = small.out(prompt(small, chain(small, ("x", 1.0, None), ("y", 0.5, None)), join="blended"))
    assert plain.error(got, want, bare) < ROUNDING


def test_one_application_however_many(small):
    model = prompt(small, chain(small, *[(f"p{i}", 1.0 - i / 10, None) for i in range(6)]))
    patches = model.model_options["transformer_options"]["patches_replace"]["attn2"].values()
    assert {len(patch.applications) for patch in patches} == {1} and len({patch.applications for patch in patches}) == 1


# IPAdapter Advanced, bit for bit


@pytest.mark.parametrize(
    ("reference", "given", "established"),
    [
        ({}, {}, {}),
        ({}, {"start_at": 0.2, "end_at": 0.7}, {"start_at": 0.2, "end_at": 0.7}),
        ({"region": A}, {"layers": "ease in"}, {"attn_mask": A, "weight_type": "ease in"}),
        ({"role": "style"}, {}, {"weight_type": "style transfer"}),
        ({"role": "layout"}, {}, {"weight_type": "composition"}),
        ({"image": lab.images(3)}, {}, {"image": lab.images(3)}),
        ({"image": lab.images(3)}, {"join": "blended"}, {"image": lab.images(3), "combine_embeds": "average"}),
        ({"image": lab.images(1, 90, 150)}, {"weight": -0.3}, {"image": lab.images(1, 90, 150), "weight": -0.3}),
        ({"more": "negative"}, {}, {"image_negative": lab.images(1, tag="unlike")}),
    ],
    ids=["plain", "window", "mask", "style", "layout", "batch", "average", "wide", "negative"],
)
def test_as_ipadapter_plus_equals_the_established_node(small, reference, given, established):
    if reference.get("more"):
        reference = {"more": refer(small, lab.images(1, tag="unlike"), role="negative")}
    got, want = small.out(prompt(small, refer(small, **reference), **given)), small.out(small.apply(**established))
    assert torch.equal(got, want)


@pytest.mark.parametrize("fit", ["pad", "stretch", "tiles"])
def test_fit_and_mask_of_picture_as_the_encoder_node_has_them(small, fit):
    picture, mask = lab.images(1, 64, 160), 1 - RIGHT
    given = dict(ipadapter=small.adapter, clip_vision=small.encoder)
    encode = small.pack["IPAdapterEncoderAdvanced"]
    positive, negative = lab.call(encode, **given, image=picture, weight=1.0, fit=fit, tiles=2, size=0, mask=mask)
    how = dict(weight=0.8, weight_type="linear", start_at=0.0, end_at=1.0, embeds_scaling="V only")
    want = lab.call(small.pack["IPAdapterEmbeds"], model=small.unet, pos_embed=positive, neg_embed=negative, **given, **how)[0]
    got = prompt(small, refer(small, picture, fit=fit, mask_of_picture=mask))
    assert torch.equal(small.out(got), small.out(want))


def test_families_that_read_all_tokens_see_black_there(pack, comfy, small):
    files = AdapterFiles(comfy / "models" / "ipadapter")
    adapter, encoder = lab.call(pack["IPAdapterModelLoader"], ipadapter_file=files["plus", "sd15"])[0], lab.clip_vision()
    got = prompt(small, refer(small), ipadapter=adapter, clip_vision=encoder)
    assert torch.equal(small.out(got), small.out(small.apply(ipadapter=adapter, clip_vision=encoder)))


@pytest.mark.parametrize("count", [1, 2])
def test_faces_as_apply_face_embeds_gives_them(pack, comfy, small, count):
    from ipadapter_pack.ipadapter_core.pictures.face_embeds import FaceEmbeds

    files = AdapterFiles(comfy / "models" / "ipadapter")
    adapter = lab.call(pack["IPAdapterModelLoader"], ipadapter_file=files["faceid", "sd15"])[0]
    faces = FaceEmbeds(synth.noise("faces", (count, 512), 3.0), lab.images(count, 256, 256))
    reference = face_reference(small, faces)
    how = dict(weight_faceidv2=1.0, weight_type="linear", combine_embeds="concat", start_at=0.0, end_at=1.0, embeds_scaling="V only")
    given = dict(model=small.unet, ipadapter=adapter, face_embeds=faces, weight=0.8, middle_block=True)
    want = lab.call(pack["IPAdapterApplyFaceEmbeds"], **given, **how)[0]
    got = prompt(small, reference, ipadapter=adapter, clip_vision=None, method="as published")
    assert torch.equal(small.out(got), small.out(want))


# Weight over steps

CURVE = "0.1:1, 0.4:-0.5, 0.75:0.25"


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpm_2_ancestral"])
def test_a_curve_at_every_model_call(small, sampler):
    """Heun's and DPM2's second evaluations lie at other sigmas than the steps: the weight is that of the call."""
    want, seen = small.with_curve(lambda x: np.interp(x, (0.1, 0.4, 0.75), (1, -0.5, 0.25)))
    how = dict(steps=5, sampler=sampler, scheduler="karras")
    expected = small.out(want, **how)
    assert len({round(sigma, 4) for sigma in seen}) >= 5
    got = small.out(prompt(small, refer(small), weight_over_steps=CURVE), **how)
    assert plain.error(got, expected, small.out(small.unet, **how)) < ROUNDING


def test_a_curve_is_evaluated_once_a_call_and_lays_out_nothing_anew(small, monkeypatch):
    from ipadapter_pack.ipadapter_core.weights.curves import Curve
    from ipadapter_pack.nodes.host.engine.layer_patch import applications

    model, asked, at = prompt(small, refer(small), weight_over_steps="0:1, 1:0.5"), [], Curve.at
    monkeypatch.setattr(Curve, "at", lambda curve, x: asked.append(x) or at(curve, x))
    small.out(model, steps=4)
    assert len(asked) == 4 and asked == sorted(asked) and asked[0] == 0.0
    (one,) = applications(model.model_options["transformer_options"])
    assert one.layouts.made == 1


def test_a_curve_compiles_nothing_anew_at_each_step(small):
    """Of each block one graph for the first weight and one for any weight; a graph break is an error."""
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    blocks = [f"diffusion_model.{name}_blocks.{i}.1.transformer_blocks.0" for name, i in (("input", 2), ("output", 11))]
    plain_one = prompt(small, chain(small, ("x", 1.0, A), ("y", 0.5, None)), weight_over_steps="0:1, 1:0.2")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = plain_one.clone()
    set_torch_compile_wrapper(model, backend="eager", fullgraph=True, keys=blocks)
    got = small.out(model, steps=6)
    assert len(blocks) <= torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2 * len(blocks)
    assert plain.error(got, small.out(plain_one, steps=6), small.out(small.unet, steps=6)) < ROUNDING


@pytest.mark.parametrize("value", ["0:1, 1:1", [1.0, 1.0, 1.0], {"points": [[0, 1], [1, 1]]}])
def test_an_even_curve_changes_nothing(small, value):
    assert torch.equal(small.out(prompt(small, refer(small), curve=value)), small.out(prompt(small, refer(small))))


@pytest.mark.parametrize("given", [{"weight_over_steps": "0:0"}, {"weight": 0.0, "join": "blended"}, {"layers": "everything: 0"}], ids=str)
def test_a_weight_of_0_is_exactly_off(small, bare, given):
    assert torch.equal(small.out(prompt(small, chain(small, ("x", 1.0, A), ("y", 0.5, A)), **given)), bare)


def test_a_curve_inside_start_at_and_end_at(small):
    """start_at and end_at cut what the curve leaves: with a curve of 1 they are what they are on other nodes."""
    how = dict(start_at=0.3, end_at=0.6)
    assert torch.equal(small.out(prompt(small, refer(small), curve=[1, 1], **how), steps=6), small.out(small.apply(**how), steps=6))


def test_the_plot_draws_the_curve(small):
    from ipadapter_pack.nodes.host.look.panels import panels

    model = prompt(small, refer(small), weight_over_steps=CURVE)
    steps = panels(model, 10, "normal")[1].series[0].values
    import comfy.samplers

    sigmas = comfy.samplers.calculate_sigmas(small.unet.get_model_object("model_sampling"), "normal", 10)[:-1].tolist()
    want = [0.8 * np.interp(plain.share_of(small.unet, sigma), (0.1, 0.4, 0.75), (1, -0.5, 0.25)) for sigma in sigmas]
    assert steps == pytest.approx(want, abs=1e-5)


# What users do wrong

BLACK = torch.zeros(1, 32, 32)
RIGHT = torch.zeros(1, 64, 160)
RIGHT[..., 150:] = 1


def nobody():
    from ipadapter_pack.ipadapter_core.pictures.references import References

    return References()


MISTAKES = [
    (lambda small: prompt(small, nobody()), "reference input has no picture and no face"),
    (lambda small: prompt(small, None), "reference input has a NoneType, not references"),
    (lambda small: prompt(small, lab.images(1)), "reference input has a Tensor, not references"),
    (lambda small: refer(small, "cat.png"), "image input is not a picture but a str"),
    (lambda small: refer(small, lab.images(1)[:0]), r"image input is empty"),
    (lambda small: refer(small, more=lab.images(1)), "more input has a Tensor, not references"),
    (lambda small: refer(small, region=BLACK), "region of a reference is black everywhere"),
    (lambda small: refer(small, mask_of_picture=BLACK), "mask of picture is black everywhere"),
    (lambda small: refer(small, lab.images(1, 64, 160), mask_of_picture=RIGHT), "lies outside the square"),
    (lambda small: refer(small, role="mood"), "no role 'mood'"),
    (lambda small: refer(small, weight=float("nan")), "weight of a reference must be a number"),
    (lambda small: refer(small, fit="zoom"), "no way to fit a picture 'zoom'"),
    (lambda small: prompt(small, refer(small), weight_over_steps=[]), "curve without points"),
    (lambda small: prompt(small, refer(small), weight_over_steps="0.5:1, 0.2:1"), "must increase in x"),
    (lambda small: prompt(small, refer(small), layers={"up": {"block_0": 1.0}}), "SD1.5 has no up 'block_0'"),
    (lambda small: prompt(small, refer(small), join="stacked"), "no way to join references 'stacked'"),
    (lambda small: prompt(small, refer(small), method="mine"), "no method 'mine'"),
    (lambda small: prompt(small, refer(small), clip_vision=None), "There is no image encoder"),
    (lambda small: prompt(small, refer(small), ipadapter=None), "no adapter in the ipadapter input"),
    (lambda small: prompt(small, chain(small, ("x", 1, None), ("y", -1, None)), join="blended"), "weights .* cancel out"),
    (lambda small: face_reference(small, lab.images(1)), "has a Tensor, not faces"),
]


@pytest.mark.parametrize("mistake", MISTAKES, ids=[words for _, words in MISTAKES])
def test_mistakes_give_a_sentence(small, mistake):
    run, words = mistake
    with pytest.raises(ValueError) as caught:
        run(small)
    assert type(caught.value).__name__ == "IPAdapterError" and re.search(words, str(caught.value))


@pytest.mark.parametrize("family", ["faceid", "base"])
def test_faces_and_pictures_each_need_their_own_reference(pack, comfy, small, family):
    from ipadapter_pack.ipadapter_core.pictures.face_embeds import FaceEmbeds

    adapter = lab.call(pack["IPAdapterModelLoader"], ipadapter_file=AdapterFiles(comfy / "models" / "ipadapter")[family, "sd15"])[0]
    faces = FaceEmbeds(synth.noise("faces", (1, 512), 3.0), lab.images(1, 256, 256))
    face = face_reference(small, faces)
    wrong, words = (refer(small), "use Image Prompt Face Reference") if family == "faceid" else (face, "use Image Prompt Reference")
    with pytest.raises(ValueError, match=words):
        prompt(small, wrong, ipadapter=adapter)
    with pytest.raises(ValueError, match="no role 'style'"):
        face_reference(small, faces, "style")


def test_an_adapter_for_another_base(pack, comfy, small):
    adapter = lab.call(pack["IPAdapterModelLoader"], ipadapter_file=AdapterFiles(comfy / "models" / "ipadapter")["base", "sdxl"])[0]
    with pytest.raises(ValueError, match="is an adapter for SDXL, the connected model is"):
        prompt(small, refer(small), ipadapter=adapter)
