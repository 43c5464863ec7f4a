"""Whatever is put into the nodes' inputs: a finite result or one sentence of ours, never another exception (hypothesis)."""

import math
import random
from dataclasses import is_dataclass

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from support import forge, headers, lab, mutate, narrow, synth

SETTINGS = dict(derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
DTYPES = (torch.float32, torch.float32, torch.float16, torch.float64, torch.bfloat16, torch.uint8, torch.int64, torch.bool, torch.complex64)
VALUES = (0.0, 1.0, 0.3, -1.0, 300.0, 1e30, 3e38, math.nan, math.inf)


@pytest.fixture(scope="module")
def models(pack):
    return narrow.Models(pack)


@pytest.fixture(scope="module")
def ours(pack):
    from ipadapter_pack.ipadapter_core.errors import IPAdapterError

    return IPAdapterError


@pytest.fixture(scope="module")
def plus(models, comfy):
    folder = comfy / "models" / "ipadapter"
    folder.mkdir(parents=True, exist_ok=True)
    for family in ("plus", "faceid-plus"):
        (folder / f"narrow-{family}.safetensors").write_bytes(narrow.content(family, "safetensors"))
    return models.load("narrow-plus.safetensors")


@pytest.fixture(scope="module")
def face_plus(models, plus):
    return models.load("narrow-faceid-plus.safetensors")


@st.composite
def tensors(draw, *axes):
    """A tensor with sizes from `axes`, sometimes with an axis more or less, filled with noise or with an odd value here and there."""
    shape = [draw(st.sampled_from(sizes)) for sizes in axes]
    if draw(st.integers(0, 9)) == 0:
        shape = shape[1:] if draw(st.booleans()) else [1, *shape]
    dtype = draw(st.sampled_from(DTYPES))
    value = synth.noise("odd", shape, 0.5) + 0.5
    if draw(st.booleans()) and value.numel():
        value.view(-1)[draw(st.integers(0, value.numel() - 1)) :] = draw(st.sampled_from(VALUES))
    value = value.nan_to_num().clamp(0, 255).to(dtype) if not dtype.is_floating_point and not dtype.is_complex else value.to(dtype)
    return value.transpose(0, -1).contiguous().transpose(0, -1) if shape and draw(st.booleans()) else value


NUMBERS = st.one_of(
    st.floats(), st.integers(), st.sampled_from([0, 1, -1, 0.5, 5.0, 1e5, 1e38, 10**400, True, np.float32(0.5), np.int64(3)])
)
ODD = st.one_of(
    st.none(),
    st.booleans(),
    NUMBERS,
    st.text(max_size=5),
    st.lists(NUMBERS, max_size=3),
    st.dictionaries(st.text(max_size=2), NUMBERS, max_size=2),
    st.sampled_from(
        [object(), (), [[]], "0.5", b"1", {1}, lambda: 1, 2j, torch.ones(2), torch.tensor(0.5), np.ones(3), np.array("x"), [None], ["a"]]
    ),
)
PICTURES = st.one_of(tensors((1, 2, 3, 0), (40, 1, 7, 0), (50, 1, 90, 0), (3, 1, 4, 2, 5, 0)), ODD)
MASKS = st.one_of(tensors((1, 2, 5, 0), (16, 1, 33, 0), (16, 1, 9, 0)), tensors((16, 1, 0), (16, 1)), ODD)
WEIGHTS = st.one_of(NUMBERS, st.lists(NUMBERS, max_size=4), ODD)
EMBEDS = st.one_of(tensors((1, 2, 3, 0), (17, 1, 5, 0), (narrow.HIDDEN, 1, 65, 0)), tensors((1, 0), (narrow.HIDDEN, 16)), ODD)


def choice(*good):
    return st.one_of(st.sampled_from(good), ODD)


def check(ours, run):
    """What the node gives must be finite, or the error ours and readable."""
    try:
        result = run()
    except ours as error:
        assert type(error) is ours and str(error).isprintable() and str(error).endswith(".") and len(str(error)) < 600, repr(str(error))
        return None
    assert finite(result), result
    return result


def finite(value) -> bool:
    if isinstance(value, torch.Tensor):
        return bool(torch.isfinite(value).all())
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict):
        return all(map(finite, value.values()))
    if isinstance(value, list | tuple):
        return all(map(finite, value))
    if hasattr(value, "model_options"):
        return all(finite([one.kv.rows, dict(one.weights), one.window, one.mask]) for one in narrow.applications(value))
    return finite(list(vars(value).values())) if is_dataclass(value) and not isinstance(value, type) else True


def changed(good, odd):
    """The good inputs with one to three of them drawn from `odd`."""
    keys = st.lists(st.sampled_from(sorted(odd)), min_size=1, max_size=3, unique=True)
    return keys.flatmap(lambda names: st.fixed_dictionaries({name: odd[name] for name in names})).map(lambda drawn: {**good, **drawn})


GOOD = dict(weight=0.8, weight_type="linear", start_at=0.0, end_at=1.0, embeds_scaling="V only")
APPLY = dict(
    image=PICTURES,
    image_negative=PICTURES,
    attn_mask=MASKS,
    weight=WEIGHTS,
    weight_type=choice("ease in", "composition precise"),
    start_at=choice(0.0, 1.0),
    end_at=choice(0.0, 1.0),
    combine_embeds=choice("concat", "subtract", "norm average"),
    embeds_scaling=choice("V only", "K+V"),
    encode_batch_size=choice(0, 1),
)
NODES = {
    "IPAdapterAdvanced": APPLY,
    "IPAdapterBatch": APPLY,
    "IPAdapterMS": {**APPLY, "layer_weights": st.one_of(st.text("0123456789:,. -ena\n", max_size=12), ODD)},
    "IPAdapterClipVisionEnhancer": {**APPLY, "enhance_tiles": choice(1, 2, 3), "enhance_ratio": WEIGHTS},
    "IPAdapterPreciseStyleTransfer": {**APPLY, "style_boost": WEIGHTS},
    "IPAdapterPreciseCompositionBatch": {**APPLY, "composition_boost": WEIGHTS},
    "IPAdapterStyleComposition": {
        **APPLY,
        "image_style": PICTURES,
        "image_composition": PICTURES,
        "weight_style": WEIGHTS,
        "weight_composition": WEIGHTS,
    },
}


@pytest.mark.parametrize("node", NODES)
def test_apply_nodes(node, pack, models, plus, ours):
    good = dict(GOOD, image=lab.images(1, 20, 30), model=models.unets["sd15"], ipadapter=plus, clip_vision=models.encoder)

    @settings(max_examples=40, **SETTINGS)
    @given(changed(good, NODES[node]))
    def run(inputs):
        check(ours, lambda: lab.call(pack[node], **inputs))

    run()


def test_tiled(pack, models, plus, ours):
    good = dict(GOOD, image=lab.images(1, 20, 30), model=models.unets["sd15"], ipadapter=plus, clip_vision=models.encoder, sharpening=0.0)

    @settings(max_examples=25, **SETTINGS)
    @given(changed(good, {**APPLY, "sharpening": WEIGHTS}))
    def run(inputs):
        check(ours, lambda: lab.call(pack["IPAdapterTiled"], **inputs))

    run()


def test_encoders_and_what_takes_their_embeds(pack, models, plus, ours):
    good = dict(ipadapter=plus, clip_vision=models.encoder, image=lab.images(1, 20, 30), weight=1.0)
    odd = dict(image=PICTURES, mask=MASKS, weight=WEIGHTS, ipadapter=ODD)
    advanced = dict(fit=choice("pad", "tiles"), tiles=choice(1, 2), size=choice(0, 28, 30))

    @settings(max_examples=60, **SETTINGS)
    @given(
        changed(good, odd),
        changed({**good, "fit": "tiles", "tiles": 1, "size": 0}, {**odd, **advanced}),
        EMBEDS,
        EMBEDS,
        choice("add", "max", "norm average"),
        WEIGHTS,
    )
    def run(inputs, more, first, second, method, weight):
        check(ours, lambda: lab.call(pack["IPAdapterEncoder"], **inputs))
        check(ours, lambda: lab.call(pack["IPAdapterEncoderAdvanced"], **more))
        check(ours, lambda: lab.call(pack["IPAdapterCombineEmbeds"], embed1=first, embed2=second, method=method))
        for node in ("IPAdapterEmbeds", "IPAdapterEmbedsBatch"):
            rest = dict(GOOD, weight=weight, model=models.unets["sd15"], ipadapter=plus, clip_vision=models.encoder)
            check(ours, lambda node=node, rest=rest: lab.call(pack[node], pos_embed=first, neg_embed=second, **rest))

    run()


def test_faces(pack, models, face_plus, ours):
    good = dict(model=models.unets["sd15"], ipadapter=face_plus, clip_vision=models.encoder, face_embeds=models.faces, weight=0.8)
    odd = dict(face_embeds=ODD, weight=WEIGHTS, weight_faceidv2=WEIGHTS, attn_mask=MASKS, image_negative=PICTURES, weight_kolors=WEIGHTS)

    @settings(max_examples=40, **SETTINGS)
    @given(changed(good, odd), ODD, choice("average", "concat"))
    def run(inputs, other, method):
        check(ours, lambda: lab.call(pack["IPAdapterApplyFaceEmbeds"], **inputs))
        check(ours, lambda: lab.call(pack["IPAdapterCombineFaceEmbeds"], face_embeds_1=models.faces, face_embeds_2=other, method=method))

    run()


def test_pictures(pack, ours):
    @settings(max_examples=60, **SETTINGS)
    @given(PICTURES, choice("BICUBIC", "BOX"), choice("pad", "top"), WEIGHTS, choice("fade", "shuffle"), choice(0, 3))
    def run(image, interpolation, position, number, kind, blur):
        check(
            ours,
            lambda: lab.call(
                pack["PrepImageForClipVision"], image=image, interpolation=interpolation, crop_position=position, sharpening=number
            ),
        )
        check(ours, lambda: lab.call(pack["IPAdapterNoise"], type=kind, strength=number, blur=blur, image_optional=image))

    run()


def test_weights_of_frames(pack, ours):
    good = dict(weights="1, 0", timing="linear", frames=4, start_frame=0, end_frame=9, add_starting_frames=0, add_ending_frames=0)
    odd = dict(
        weights=st.one_of(st.text("0123456789.,-ena \n", max_size=10), ODD),
        timing=choice("random", "custom", "ease_in"),
        image=PICTURES,
        method=choice("full batch", "alternate batches"),
        weights_strategy=ODD,
        **{name: choice(0, 1, 7) for name in ("frames", "start_frame", "end_frame", "add_starting_frames", "add_ending_frames")},
    )

    @settings(max_examples=120, **SETTINGS)
    @given(changed(good, odd), WEIGHTS, WEIGHTS, ODD)
    def run(inputs, first, second, prompt):
        result = check(ours, lambda: lab.call(pack["IPAdapterWeights"], **inputs))
        strategy = {"weights": "1", **{name: value for name, value in inputs.items() if name in good}} if result is None else result[5]
        node = pack["IPAdapterPromptScheduleFromWeightsStrategy"]
        check(ours, lambda: lab.call(node, weights_strategy=strategy, prompt=prompt))
        check(ours, lambda: lab.call(pack["IPAdapterCombineWeights"], weights_1=first, weights_2=second))

    run()


def test_regions(pack, models, plus, ours):
    good = dict(image=lab.images(1, 20, 30), image_weight=0.8, prompt_weight=1.0, weight_type="linear", start_at=0.0, end_at=1.0)
    odd = dict(image=PICTURES, image_weight=WEIGHTS, weight_type=ODD, start_at=ODD, end_at=ODD, mask=MASKS, positive=ODD)

    @settings(max_examples=40, **SETTINGS)
    @given(changed(good, odd), ODD)
    def run(inputs, other):
        how = dict(model=models.unets["sd15"], ipadapter=plus, clip_vision=models.encoder)
        made = check(ours, lambda: lab.call(pack["IPAdapterRegionalConditioning"], **inputs)[:1])
        for params in (other, *(made or ())):
            check(ours, lambda params=params: lab.call(pack["IPAdapterFromParams"], ipadapter_params=params, **how))
        check(ours, lambda: lab.call(pack["IPAdapterCombineParams"], params_1=other, params_2=made and made[0]))

    run()


FILES = {  # node: (input, suffix, the tensors of a good file)
    "IPAdapterLoadEmbeds": ("embeds", ".ipadpt", {"embeds": torch.ones(2, 5, 8)}),
    "IPAdapterLoadFaceEmbeds": (
        "face_embeds",
        ".faces.safetensors",
        {"embedding": torch.ones(1, 512), "crops": torch.zeros(1, 256, 256, 3, dtype=torch.uint8)},
    ),
}


@pytest.mark.parametrize("node", FILES)
def test_saved_files(node, pack, ours, comfy, monkeypatch, tmp_path):
    """Damaged and forged as the adapter files are, and with every kind of tensor."""
    key, suffix, tensors_inside = FILES[node]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(narrow, "adapter", lambda family: {"image_proj.x": torch.ones(4, 4), **tensors_inside})
    monkeypatch.setattr(narrow, "content", lambda family, container: narrow.written(narrow.adapter(family), container))
    path = comfy / "input" / f"odd{suffix}"
    kinds = [
        *mutate.BYTES.values(),
        mutate.dropped,
        mutate.reshaped,
        mutate.other_dtype,
        mutate.not_numbers,
        headers.header_values,
        headers.header_text,
        headers.offsets,
        *forge.PICKLES.values(),
        *forge.ZIPS.values(),
        forge.other_kinds,
    ]
    loaded = 0
    for number in range(6 * len(kinds)):
        rng = random.Random(number)
        path.write_bytes(kinds[number % len(kinds)](rng, mutate.Subject("plus", rng.choice(("safetensors", "zip", "legacy")))))
        loaded += check(ours, lambda: lab.call(pack[node], **{key: path.name})) is not None
    for tensor in (torch.ones(2), torch.ones(0, 8), torch.ones(1, 8, dtype=torch.int64), torch.ones(1, 8) * 1e300, torch.zeros(1, 512)):
        path.write_bytes(save({name: tensor.clone() for name in ("embeds", "embedding", "crops")}))
        check(ours, lambda: lab.call(pack[node], **{key: path.name}))
    path.unlink()
    assert loaded and not forge.MARKER.exists()
