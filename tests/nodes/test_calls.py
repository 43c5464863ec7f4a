"""Model calls that hold other rows, other parts of the picture or other frames than the sampler's plain ones.

The reference is the plain adapter of support/plain.py, told by the test which tokens and which part of the mask each row gets. Errors are
shares of the adapter's effect; TOLERANCE is the rounding of float32 sums in another order.
"""

import logging

import pytest
import torch
import torch.nn.functional as F

from support import lab, plain

TOLERANCE = 1e-4
POSITIVE, NEGATIVE, THIRD, FOURTH = lab.cond("sd15"), *(lab.cond("sd15", tag=tag) for tag in ("neg", "third", "fourth"))


@pytest.fixture(scope="module")
def small(pack, comfy):
    return plain.Small(pack, comfy)


@pytest.fixture
def warnings(caplog):
    """Warnings told once are told again in each test."""
    from ipadapter_pack.nodes.host.engine.chunks import tell_once
    from ipadapter_pack.nodes.host.engine.polarity import tell_unknown

    tell_once.cache_clear()
    tell_unknown.cache_clear()
    caplog.set_level(logging.WARNING)
    return lambda: [record.message for record in caplog.records if record.name.startswith("ipadapter_pack")]


def error_class():
    from ipadapter_pack.ipadapter_core.errors import IPAdapterError

    return IPAdapterError


# Rows that are not the sampler's


def chunk_by_chunk(tell):
    """A DIFFUSION_MODEL wrapper that runs each chunk of a call by itself."""

    def wrapper(executor, x, timesteps, context=None, y=None, control=None, transformer_options=None, **kwargs):
        options, out = transformer_options or {}, []
        numbers = options["cond_or_uncond"]
        for i, number in enumerate(numbers):
            rows = slice(i * len(x) // len(numbers), (i + 1) * len(x) // len(numbers))
            told = {**options, "cond_or_uncond": [number]} if tell else dict(options)
            out.append(executor(x[rows], timesteps[rows], context[rows], y, control, told, **kwargs))
        return torch.cat(out)

    def add(model):
        from comfy.patcher_extension import WrappersMP

        model = model.clone()
        model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", wrapper)
        return model

    return add


@pytest.mark.parametrize("batch", [1, 2])
def test_a_wrapper_that_runs_each_chunk_alone_and_says_which(small, batch):
    split = chunk_by_chunk(tell=True)
    want, without = small.out(small.apply(), batch=batch), small.out(small.unet, batch=batch)
    assert plain.error(small.out(split(small.apply()), batch=batch), want, without) < TOLERANCE


@pytest.mark.parametrize("batch", [1, 2])
def test_a_wrapper_that_runs_each_chunk_alone_in_silence(small, batch):
    """Two latents for two chunks look like one latent each: taken so, half of each side would get the other's tokens."""
    with pytest.raises(error_class(), match="does not say which rows belong to the negative prompt"):
        small.out(chunk_by_chunk(tell=False)(small.apply()), batch=batch)


def test_chunks_of_one_side_need_no_telling(small):
    """At cfg 1 there is only the prompt: all rows get the same tokens, and the same part of a mask."""
    model = small.apply(attn_mask=torch.linspace(0, 1, 64).expand(1, 64, 64))
    got = small.out(chunk_by_chunk(tell=False)(model), cfg=1.0, batch=2)
    assert plain.error(got, small.out(model, cfg=1.0, batch=2), small.out(small.unet, cfg=1.0, batch=2)) < TOLERANCE


def couple(tell):
    """As attention couple does it: the prompt's rows of q twice, for two texts, blended behind the attention."""

    def split(q, k, v, options):
        numbers = options["cond_or_uncond"]
        parts = [(a, b, c) if number else (a.repeat(2, 1, 1), torch.cat([b, b.flip(1)]), torch.cat([c, c.flip(1)]))
                 for number, a, b, c in zip(numbers, *(t.chunk(len(numbers)) for t in (q, k, v)), strict=True)]  # fmt: skip
        if tell:
            options["cond_or_uncond"] = [number for one in numbers for number in ([one] if one else [one, one])]
        return tuple(torch.cat(each) for each in zip(*parts, strict=True))

    def blend(out, options):
        numbers = [1, 0] if options["cond_or_uncond"][0] else [0, 1]
        if len(set(options["cond_or_uncond"])) == 1:
            numbers = options["cond_or_uncond"][:1]
        sizes = [1 if number else 2 for number in numbers]
        each = len(out) // sum(sizes)
        return torch.cat([part.unflatten(0, (-1, each)).mean(0) for part in out.split([size * each for size in sizes])])

    def add(model):
        model = model.clone()
        model.set_model_attn2_patch(split)
        model.set_model_attn2_output_patch(blend)
        return model

    return add


def test_more_rows_of_q_in_silence(small):
    with pytest.raises(error_class(), match=r"3 rows for 2 prompts"):
        small.out(couple(tell=False)(small.apply()))


@pytest.mark.parametrize("mask", [None, torch.linspace(0, 1, 64).expand(1, 64, 64)], ids=["plain", "masked"])
def test_more_rows_of_q_that_are_told(small, mask):
    """Both halves of the prompt's rows get the prompt's tokens: one row of q in the reference, whose text attention is the mean."""
    without = small.out(couple(tell=True)(small.unet))
    got = small.out(couple(tell=True)(small.apply(attn_mask=mask)))
    positive, negative = small.sides(lab.images(1))

    def rows(options, batch):
        return torch.cat([negative if number else positive for number in options["cond_or_uncond"]])

    masks = None if mask is None else lambda options, batch: mask
    assert plain.error(got, small.out(couple(tell=True)(small.plain_model(rows, masks=masks))), without) < TOLERANCE


# Parts of the picture


def with_area(prompt, *area, percent=False, strength=1.0):
    name = "ConditioningSetAreaPercentage" if percent else "ConditioningSetArea"
    return plain.core_node(name).append(prompt, *area, strength)[0]


AREAS = {
    "one in pixels": lambda: (POSITIVE + with_area(THIRD, 64, 64, 64, 32), NEGATIVE),
    "one in percent": lambda: (POSITIVE + with_area(THIRD, 0.5, 0.5, 0.25, 0.5, percent=True), NEGATIVE),
    "two of one size": lambda: (with_area(POSITIVE, 128, 64, 0, 0) + with_area(THIRD, 128, 64, 64, 0), NEGATIVE),
    "both sides": lambda: (
        POSITIVE + with_area(THIRD, 64, 128, 0, 64),
        NEGATIVE + with_area(FOURTH, 64, 128, 0, 64),
    ),
    "beyond the edge": lambda: (POSITIVE + with_area(THIRD, 96, 96, 64, 64), NEGATIVE),
}
MASK = torch.rand(2, 128, 128, generator=torch.Generator().manual_seed(0))
MASK = F.avg_pool2d(MASK, 31, 1, 15).clamp(0.45, 0.55).sub(0.45).mul(10)


@pytest.mark.parametrize("name", AREAS)
def test_masks_are_cropped_with_the_area(small, name, monkeypatch):
    positive, negative = AREAS[name]()

    def sample(model):
        return small.out(model, positive=positive, negative=negative, hw=(16, 16))

    ours = small.apply(attn_mask=MASK[:1])
    assert plain.error(sample(ours), sample(placed(small, MASK[:1], monkeypatch)), sample(small.unet)) < TOLERANCE


def test_masks_of_each_latent_are_cropped_with_the_area(small, monkeypatch):
    positive, negative = AREAS["two of one size"]()

    def sample(model):
        return small.out(model, positive=positive, negative=negative, hw=(16, 16), batch=2)

    ours = small.apply(attn_mask=MASK)
    assert plain.error(sample(ours), sample(placed(small, MASK, monkeypatch)), sample(small.unet)) < TOLERANCE


def placed(small, masks, monkeypatch):
    """The plain adapter whose masks are cropped as the sampler crops its latents, in pixels.

    Where a crop lies is seen by letting the sampler's own function crop two planes of coordinates as it crops the latents.
    """
    import comfy.samplers

    crop, corners = comfy.samplers.get_area_and_mult, {}

    def watched(cond, x_in, timestep):
        planes = torch.stack(torch.meshgrid(*(torch.arange(n, dtype=x_in.dtype) for n in x_in.shape[-2:]), indexing="ij"))
        made = crop(cond, x_in, timestep)
        corners[made.uuid] = crop({**cond, "model_conds": {}}, planes[None], timestep).input_x[0, :, 0, 0].int().tolist()
        return made

    def cropped(options, batch):
        height, width = options["original_shape"][-2:]
        latents = batch // len(options["uuids"])
        each = [masks[:latents, y * 8 : (y + height) * 8, x * 8 : (x + width) * 8] for y, x in (corners[one] for one in options["uuids"])]
        return torch.cat([one.expand(latents, -1, -1) for one in each])

    monkeypatch.setattr(comfy.samplers, "get_area_and_mult", watched)
    return small.reference([NEGATIVE, FOURTH], masks=cropped)


def half(side):
    mask = torch.zeros(1, 128, 128)
    mask[:, :, 64:] = 1
    return mask if side else 1 - mask


@pytest.mark.parametrize("side", [0, 1])
def test_an_area_outside_the_mask_stays_free(small, side):
    """A prompt in the right half alone, and a mask in one of the halves: all of the picture's effect there, or none."""
    positive = with_area(POSITIVE, 64, 128, 64, 0)

    def sample(model):
        return small.out(model, positive=positive, negative=NEGATIVE, hw=(16, 16), cfg=1.0, steps=1)

    got = sample(small.apply(attn_mask=half(side)))
    want = sample(small.apply() if side else small.unet)
    assert plain.error(got, want, sample(small.unet) if side else sample(small.apply())) < TOLERANCE


def tiled(model):
    """A model function that samples the left and the right half of the latents in calls of their own."""

    def wrapper(apply_model, args):
        halves = []
        for x in args["input"].chunk(2, dim=-1):
            halves.append(apply_model(x, args["timestep"], **args["c"]))
        return torch.cat(halves, dim=-1)

    model = model.clone()
    model.set_model_unet_function_wrapper(wrapper)
    return model


def test_a_crop_that_nobody_places_is_told(small, warnings):
    small.out(tiled(small.apply()), hw=(16, 16))
    assert warnings() == []
    small.out(tiled(small.apply(attn_mask=half(1))), hw=(16, 16))
    assert len(warnings()) == 1 and "without saying where they lie" in warnings()[0]


# Frames

PICTURES = lab.images(5, tag="frame")
WEIGHTS = [0.9, 0.3, 0.0, -0.4, 0.7]


def frames(small, index):
    index = list(index)
    return small.apply(node="IPAdapterBatch", encode_batch_size=0, image=PICTURES[index], weight=[WEIGHTS[i] for i in index])


class Window:
    """core's window of newer versions, by what a patch may read of it: the call holds [anchor, *index_list] where there is an anchor."""

    dim = 0

    def __init__(self, index_list, anchor=None):
        self.index_list, self.causal_anchor_index = index_list, anchor


def in_window(small, window, count):
    model = frames(small, range(5))
    model.model_options["transformer_options"]["context_window"] = window
    return small.out(model, batch=count)


@pytest.mark.parametrize(("index", "anchor"), [((3, 4), 2), ((1, 2), 0), ((2, 3, 4), None)])
def test_a_window_with_an_anchor_in_front(small, index, anchor):
    held = index if anchor is None else (anchor, *index)
    got = in_window(small, Window(list(index), anchor), len(held))
    assert plain.error(got, small.out(frames(small, held), batch=len(held)), small.out(small.unet, batch=len(held))) < TOLERANCE


def test_a_window_that_does_not_say_all_of_its_frames(small, warnings):
    """Neither the anchor nor the list explains four rows: no picture rather than a wrong one, and one warning for all steps."""
    got = in_window(small, Window([3, 4], 2), 4)
    assert torch.equal(got, small.out(small.unet, batch=4))
    assert len(warnings()) == 1 and "frames of this model call are not known" in warnings()[0]


def test_one_picture_for_all_frames_needs_no_list(small, warnings):
    model = small.apply()
    want = small.out(model, batch=4)
    model.model_options["transformer_options"]["context_window"] = Window([3, 4], 2)
    assert torch.equal(small.out(model, batch=4), want)
    assert warnings() == []


# Guiders with other names


@pytest.mark.parametrize(
    ("names", "told"),
    [(("cond", "uncond"), 0), (("wanted", "avoided"), 2), (("positive", "bad"), 1)],
    ids=["known", "unknown", "half known"],
)
def test_a_guider_with_other_names(small, warnings, names, told):
    """Names that are not known fall back to the place in the call: the first is the prompt. Each is told once."""
    import comfy.samplers

    class Guider(comfy.samplers.CFGGuider):
        def predict_noise(self, x, timestep, model_options=None, seed=None):
            both = [self.conds[name] for name in names]
            good, bad = comfy.samplers.calc_cond_batch(self.inner_model, both, x, timestep, model_options)
            return bad + (good - bad) * self.cfg

    def sample(model):
        guider = Guider(model)
        guider.inner_set_conds(dict(zip(names, (POSITIVE, NEGATIVE), strict=True)))
        guider.set_cfg(4.0)
        return plain.run(guider)

    assert plain.error(sample(small.apply()), sample(small.reference([NEGATIVE])), sample(small.unet)) < TOLERANCE
    assert len(warnings()) == told


# The window of sampling, by the model_sampling of the call


def changed(how):
    def add(model):
        from comfy_extras import nodes_model_advanced as nodes

        if how == "zsnr":
            return nodes.ModelSamplingDiscrete().patch(model, "eps", True)[0]
        if how == "lcm":
            return nodes.ModelSamplingDiscrete().patch(model, "lcm", False)[0]
        return nodes.ModelSamplingContinuousEDM().patch(model, "eps", 80.0, 0.002)[0]

    return add


@pytest.mark.parametrize("how", ["edm", "zsnr", "lcm"])
def test_the_window_is_that_of_the_sampling_it_meets(small, how):
    """A node behind ours that changes the model's sampling: the same as one in front of it."""
    window = dict(start_at=0.3, end_at=0.7)
    want = small.out(small.apply(changed(how)(small.unet), **window), steps=8)
    without = small.out(changed(how)(small.unet), steps=8)
    assert torch.equal(small.out(changed(how)(small.apply(**window)), steps=8), want)
    assert not torch.equal(want, without)
    assert not torch.equal(want, small.out(changed(how)(small.apply()), steps=8))
