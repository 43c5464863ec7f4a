"""Maps of where references act: the numbers are those of diffusers' tensors, and they are told apart by whose they are."""

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

from support import lab, plain, reference_unet, synth
from support.counting import SYNCS, Operations, model_call

SIZE, STEPS, WEIGHT = (8, 12), 2, 0.8
OPERATIONS = 7  # of an adapter in a layer
TOLERANCE = 1e-5  # of values in 0..1: two implementations in float32, measured 1e-6
GROUPS = {"down": "down_blocks", "middle": "mid_block", "up": "up_blocks"}


@pytest.fixture(scope="module")
def host(pack):
    from ipadapter_pack.nodes.host.apply import project
    from ipadapter_pack.nodes.host.engine import watch
    from ipadapter_pack.nodes.host.load import adapter
    from ipadapter_pack.nodes.host.look import map_choice

    return SimpleNamespace(
        as_adapter=adapter.as_adapter, apply=project.apply_features, Settings=project.Settings, Record=watch.Record, watched=watch.watched,
        chosen=map_choice.chosen_maps,
    )  # fmt: skip


@pytest.fixture(scope="module")
def unet(comfy):
    return lab.unet("sd15")


@pytest.fixture(scope="module")
def reference(unet):
    """A diffusers pipeline over a UNet with the ComfyUI model's weights."""
    parts: dict[str, Any] = dict.fromkeys(("vae", "text_encoder", "tokenizer", "scheduler", "feature_extractor", "image_encoder"))
    same = reference_unet.unet_like("sd15", unet).requires_grad_(False)
    return StableDiffusionPipeline(**parts, unet=same, safety_checker=None, requires_safety_checker=False)  # type: ignore


@pytest.fixture(scope="module")
def small(pack, comfy):
    return plain.Small(pack, comfy)


def features(family, tag, count):
    """What an encoder would give for `count` pictures: its projected embedding, or all its tokens."""
    return synth.noise(f"features {family} {tag}", (count, *{"base": (1024,), "plus": (257, 1280)}[family]), 1.5)


def spied(model, seen):
    """A clone that puts what the UNet is really given, and the side of each chunk, into `seen`."""
    from comfy.patcher_extension import WrappersMP

    def wrapper(executor, x, timesteps, context, *rest, **kw):
        options = next(one for one in rest if isinstance(one, dict) and "cond_or_uncond" in one)
        seen.append((x.clone(), timesteps.clone(), context.clone(), list(options["cond_or_uncond"])))
        return executor(x, timesteps, context, *rest, **kw)

    work = model.clone()
    work.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "spy", wrapper)
    return work


def attention_tensors(reference, x, timesteps, context, images) -> dict[str, dict[str, Any]]:
    """What diffusers' layers compute in one call: {name: {to_q, to_k, to_v, heads, and lists to_k_ip and to_v_ip of its adapters}}."""
    found: dict[str, dict[str, Any]] = {}
    handles = []
    for name, module in reference.unet.named_modules():
        if not name.endswith("attn2"):
            continue
        here = found[name] = {"heads": module.heads, "to_k_ip": {}, "to_v_ip": {}}
        for part in ("to_q", "to_k", "to_v"):
            handles.append(getattr(module, part).register_forward_hook(lambda m, i, out, here=here, part=part: here.update({part: out})))
        for part in ("to_k_ip", "to_v_ip"):
            for i, layer in enumerate(getattr(module.processor, part)):
                handles.append(layer.register_forward_hook(lambda m, _, out, at=here[part], i=i: at.update({i: out})))
    with torch.no_grad():
        reference.unet(x, timesteps, context, added_cond_kwargs={"image_embeds": images})
    for handle in handles:
        handle.remove()
    return found


def split(t, heads):
    return t.flatten(1, -2).unflatten(-1, (heads, -1)).transpose(1, 2)


def expected(layer, number, pictures, weight):
    """(softmax(q K^T / sqrt(d)) averaged over heads [b, n, t], influence [b, n, pictures]) of an adapter in a layer, written out."""
    heads, q = layer["heads"], split(layer["to_q"], layer["heads"])
    k, v = (split(layer[part][number], heads) for part in ("to_k_ip", "to_v_ip"))
    p = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
    text = plain.attend(layer["to_q"], layer["to_k"], layer["to_v"], heads).norm(dim=-1)
    each, influence = k.shape[2] // pictures, []
    for i in range(pictures):
        part = slice(i * each, (i + 1) * each)
        added = weight * (p[..., part] @ v[:, :, part]).transpose(1, 2).flatten(2).norm(dim=-1)
        influence.append(added / (added + text))
    return p.mean(1), torch.stack(influence, -1)


def grid_of(count):
    """Each level of the UNet halves, rounding up."""
    sizes = [(-(-SIZE[0] // 2**level), -(-SIZE[1] // 2**level)) for level in range(4)]
    return next(size for size in sizes if size[0] * size[1] == count)


def on_map(values):
    cells = values.movedim(1, 2).unflatten(2, grid_of(values.shape[1]))
    return F.interpolate(cells, SIZE, mode="bilinear")


CASES = {
    "one reference": (("plus",), 1, {}),
    "two adapters, two references in each": (("base", "plus"), 2, {}),
    "a reference for each latent": (("base",), 2, {"per_latent": True}),
    "a mask of halves": (("base",), 1, {"mask": torch.full((1, 16, 24), 0.5)}),  # one that every way of resizing leaves as it is
}


@pytest.mark.parametrize("case", CASES)
def test_the_numbers_are_those_of_diffusers_tensors(host, unet, reference, case):
    """Every adapter, reference, token, group of layers, side and latent, over two steps of a batch of two."""
    families, count, settings = CASES[case]
    each_its_own = settings.get("per_latent", False)
    pictures = 1 if each_its_own else count
    sides = [(features(f, f"positive {i}", count), features(f, f"negative {i}", count)) for i, f in enumerate(families)]
    patched = unet
    files = [synth.adapter(family, "sd15") for family in families]
    for file, (positive, negative) in zip(files, sides, strict=True):
        how = host.Settings(weight=WEIGHT, middle=True, **settings)
        patched = host.apply(patched, host.as_adapter(file), (positive,), (negative,), how)
    record, seen = host.Record(tokens=True), []
    prompts = {side: lab.cond("sd15", tag=side, tokens=7) for side in ("positive", "negative")}
    samples = lab.sample(spied(host.watched(patched, record), seen), "sd15", steps=STEPS, batch=2, hw=SIZE, **prompts)
    recording = record.find(samples)

    want: dict[tuple, list] = {}
    names = [""] * len(files)
    reference.load_ip_adapter(files, subfolder=names, weight_name=names, image_encoder_folder=None, low_cpu_mem_usage=False)
    weight = WEIGHT * (0.5 if "mask" in settings else 1)
    reference.set_ip_adapter_scale([weight] * len(families))
    try:
        for x, timesteps, context, chunks in seen:
            rows = [(number != 0, slice(latent, latent + 1) if each_its_own else slice(None)) for number in chunks for latent in (0, 1)]
            images = [torch.stack([pair_of[side][given] for side, given in rows]) for pair_of in sides]
            layers = attention_tensors(reference, x, timesteps, context, images)
            for name, layer in layers.items():
                for number in range(len(families)):
                    maps = [on_map(values) for values in expected(layer, number, pictures, weight)]
                    for row in range(len(x)):
                        key = (number, name.split(".")[0], chunks[row // 2] != 0, row % 2)
                        want.setdefault(key, []).append((maps[0][row], maps[1][row]))
    finally:
        reference.unload_ip_adapter()

    assert len(seen) == STEPS and len(recording.references) == len(families) * pictures
    off, spread = {}, []
    for place in range(1, 1 + len(recording.references)):
        number, picture = divmod(place - 1, pictures)
        for layers, block in (*GROUPS.items(), ("all", None)):
            for negative, side in enumerate(("positive", "negative")):
                for latent in (0, 1):
                    blocks = [block] if block else GROUPS.values()
                    both = [one for b in blocks for one in want[number, b, bool(negative), latent]]
                    tokens, influence = (torch.stack(one).mean(0) for one in zip(*both, strict=True))
                    tokens = tokens.unflatten(0, (pictures, -1))[picture]
                    got = {
                        show: torch.stack([one.map for one in host.chosen(recording, show, place, layers, side) if one.latent == latent])
                        for show in ("tokens", "attention", "influence")
                    }
                    parts = {"tokens": tokens, "attention": tokens.sum(0)[None], "influence": influence[picture][None]}
                    for show, part in parts.items():
                        off[place, layers, side, latent, show] = float((got[show] - part).abs().max())
                    spread.append(float(influence[picture].std()))
    assert max(off.values()) < TOLERANCE, {key: value for key, value in off.items() if value >= TOLERANCE}
    assert min(spread) > 10 * TOLERANCE, "a map that is the same everywhere would hold nothing"


def watch(small, model, tokens=False):
    return lab.call(small.pack["WatchImagePrompt"], model=model, tokens=tokens)


def show(small, record, samples, **kw):
    """(image, mask, text) of the node."""
    given: dict[str, Any] = dict(show="influence", reference=0, layers="all", side="positive", scale="each map", view="overlay")
    node = small.pack["ImagePromptAttention"]
    return node().show(record, {"samples": samples}, **{**given, **kw})["result"]


@pytest.fixture(scope="module")
def sampled(small):
    """(record, samples) of one sampling with two pictures side by side."""
    model, record = watch(small, small.apply(image=lab.images(2)))
    return record, small.out(model)


def test_watching_changes_no_bit(small, sampled):
    assert torch.equal(sampled[1], small.out(small.apply(image=lab.images(2))))


@pytest.mark.parametrize("order", ["watched first", "watched last"])
def test_the_adapters_may_come_before_or_behind_the_watch_node(small, order):
    if order == "watched first":
        bare, record = watch(small, small.unet)
        model = small.apply(bare)
    else:
        model, record = watch(small, small.apply())
    assert len(record.find(small.out(model, steps=1)).references) == 1


def test_without_the_watch_node_not_one_operation_more(small):
    """Seven in each layer, as before there were maps; a watched model that is not being sampled costs the same."""
    layers, counts = len(plain.KEYS), []
    for model in (small.unet, small.apply(), watch(small, small.apply())[0]):
        model_call(model)
        with Operations() as operations:
            model_call(model)
        counts.append(operations.count)
    assert counts[1] - counts[0] == counts[2] - counts[0] == OPERATIONS * layers


def test_one_transfer_at_the_end_and_no_wait_in_between(small, monkeypatch):
    counted = []
    for name in SYNCS:
        method = getattr(torch.Tensor, name)

        def counting(self, *args, method=method, name=name, **kw):
            counted.append(name)
            return method(self, *args, **kw)

        monkeypatch.setattr(torch.Tensor, name, counting)
    models = [small.apply(), watch(small, small.apply())[0]]
    found = []
    for model in models:
        for steps in (2, 5):
            small.out(model, steps=steps)
            counted.clear()
            small.out(model, steps=steps)
            found.append(counted.count("cpu") + counted.count("item") + counted.count("tolist"))
    plain_2, plain_5, watched_2, watched_5 = found
    assert watched_2 - plain_2 == watched_5 - plain_5 == 2  # the maps, and the latent by which they are found again


def test_what_is_held_does_not_grow_with_the_steps(small):
    held = []
    for steps in (1, 4):
        model, record = watch(small, small.apply())
        small.out(model, steps=steps)
        (one,) = record.recordings
        held.append(sum(t.untyped_storage().nbytes() for r in one.references for t in (r.influence, r.attention, r.counts)))
    assert held[0] == held[1]


def test_masks_and_pictures_of_the_node(small, sampled):
    record, samples = sampled
    picture = lab.images(1, 96, 64)
    image, mask, text = show(small, record, samples, image=picture)
    assert image.shape == (2, 96, 64, 3) and mask.shape == (2, 96, 64)
    assert mask.amin(dim=(1, 2)).tolist() == [0.0, 0.0] and mask.amax(dim=(1, 2)).tolist() == [1.0, 1.0]
    assert [line.split(":")[1].strip() for line in text.splitlines()] == [
        "ip-adapter_sd15_vit-h, picture 1", "ip-adapter_sd15_vit-h, picture 2",
    ]  # fmt: skip
    one_image, one_mask, _ = show(small, record, samples, image=picture, reference=2)
    assert torch.equal(one_mask[0], mask[1]) and torch.equal(one_image[0], image[1])
    beside = show(small, record, samples, image=picture, view="side by side")[0]
    assert torch.equal(beside[:, :, :64], picture.expand(2, -1, -1, -1))
    alone = show(small, record, samples)[0]
    assert alone.shape == (2, 64, 64, 3), "eight pixels for each cell of the latent"


def test_shares_of_the_references_of_one_adapter_add_up(small, sampled):
    record, samples = sampled
    _, mask, _ = show(small, record, samples, show="attention", scale="as measured")
    torch.testing.assert_close(mask.sum(0), torch.ones(64, 64), rtol=0, atol=1e-6)
    assert mask[0].std() > 1e-3


def test_a_map_is_a_mask_for_the_next_pass(small, sampled):
    record, samples = sampled
    _, mask, _ = show(small, record, samples, reference=1)
    masked = small.out(small.apply(attn_mask=mask))
    assert not torch.equal(masked, small.out(small.apply())) and not torch.equal(masked, small.out(small.unet))


def test_a_masked_reference_acts_where_its_mask_is(small):
    """In the left quarter; the coarsest layers, of two columns, see more of it than the finest."""
    mask = torch.zeros(1, 8, 16)
    mask[..., :4] = 1
    model, record = watch(small, small.apply(attn_mask=mask))
    found = show(small, record, small.out(model, steps=1, hw=(8, 16)), scale="as measured")[1][0]
    assert found[:, :24].min() > 5 * found[:, 64:].max()


def test_each_sampling_is_found_by_its_latent(small):
    """A second pass on the same model, larger: each latent has its own maps, whichever ran last."""
    model, record = watch(small, small.apply())
    first, second = small.out(model), small.out(model, hw=(12, 12), seed=2)
    alone, its = watch(small, small.apply())
    want = show(small, its, small.out(alone))
    assert torch.equal(show(small, record, first)[1], want[1])
    assert show(small, record, second)[1].shape == (1, 96, 96)


def test_only_the_last_samplings_are_kept(small):
    model, record = watch(small, small.apply())
    samples = [small.out(model, steps=1, seed=seed) for seed in range(5)]
    assert len(record.recordings) == 4
    with pytest.raises(ValueError, match="none that the watched model has sampled lately"):
        record.find(samples[0])
    assert record.find(samples[1]) is record.recordings[0]


def test_a_sampling_that_breaks_off_leaves_nothing_behind(small):
    model, record = watch(small, small.apply())

    def stop(*args):
        raise InterruptedError

    model.set_model_sampler_post_cfg_function(stop)
    with pytest.raises(InterruptedError):
        small.out(model)
    assert record.recordings == [] and record.recorder is None


def test_a_prompt_with_an_area_is_put_where_it_lies(small):
    """The right half has a prompt of its own: two maps are averaged there, one elsewhere."""
    model, record = watch(small, small.apply())
    area = lab.cond("sd15", tag="area")
    area[0][1].update(area=(8, 4, 0, 4), strength=1.0)
    samples = small.out(model, positive=[*lab.cond("sd15"), *area], steps=1)
    (reference,) = record.find(samples).references
    counts = reference.counts.sum(0)  # [2, latents, rows, columns]
    for side in counts[:, 0]:  # ComfyUI gives the negative side the same areas
        assert side[:, :4].unique().tolist() == [15.0] and side[:, 4:].unique().tolist() == [30.0]


def test_two_watch_nodes_both_record(small):
    model, first = watch(small, small.apply())
    model, second = watch(small, model)
    samples = small.out(model, steps=1)
    assert torch.equal(show(small, first, samples)[1], show(small, second, samples)[1])


def test_copies_of_the_model_share_the_record(small):
    model, record = watch(small, small.apply())
    assert copy.deepcopy(record) is record
    assert record.find(small.out(model.clone(), steps=1)).references


def test_layers_where_a_precise_type_swaps_the_sides_are_left_out(small):
    model, record = watch(small, small.apply(weight_type="style transfer precise"))
    (reference,) = record.find(small.out(model, steps=1)).references
    # style is layers 0 to 3 on the way down and 9 to 15 on the way up; at 4 and 5, those of composition, the sides are swapped
    assert reference.counts[:, 0, 0, 0, 0].tolist() == [4, 0, 7]


def test_bad_calls_are_told_in_a_sentence(small, sampled):
    record, samples = sampled
    empty = watch(small, small.unet)[1]
    bare, nothing = watch(small, small.unet)
    unsteered = small.out(bare, steps=1)
    for words, call in {
        "Nothing was recorded": lambda: show(small, empty, samples),
        "No reference acted while": lambda: show(small, nothing, unsteered),
        "none that the watched model has sampled lately": lambda: show(small, record, samples + 1),
        "There is no reference 3: 2 acted": lambda: show(small, record, samples, reference=3),
        "No maps of tokens were recorded": lambda: show(small, record, samples, show="tokens"),
        "in the layers 'middle'": lambda: show(small, record, samples, layers="middle"),
        "has 2 pictures and the latent 1": lambda: show(small, record, samples, image=lab.images(2)),
        "connect the record output": lambda: show(small, None, samples),
        "no kind of map": lambda: show(small, record, samples, show="all"),
        "no view": lambda: show(small, record, samples, view="beside"),
    }.items():
        with pytest.raises(ValueError, match=words):
            call()


def test_with_cfg_1_there_is_no_negative_side(small):
    model, record = watch(small, small.apply())
    samples = small.out(model, steps=1, cfg=1.0)
    assert show(small, record, samples)[1].shape == (1, 64, 64)
    with pytest.raises(ValueError, match="with cfg 1 there is no negative side"):
        show(small, record, samples, side="negative")
