"""Maps of Image Prompt's references in every join, with regions: those of softmax(q K^T / sqrt d), written out beside the UNet's own q."""

import pytest
import torch
import torch.nn.functional as F

from support import lab, plain, synth

HW, WEIGHT = (8, 12), 0.8
TOLERANCE = 1e-5  # of values in 0..1: two implementations in float32


@pytest.fixture(scope="module")
def small(pack, comfy):
    return plain.Small(pack, comfy)


def grey(tag, least=0.0):
    """A smooth region with black, white and grey places."""
    return F.interpolate(synth.noise(f"grey {tag}", (1, 1, 4, 4), 3.0).add(0.5).clamp(least, 1), size=(32, 32), mode="bilinear")[0]


A, B = grey("a"), grey("b", 0.1)
JOINS = {  # an Image Prompt for each, one behind the other: (tag, weight, region) of its references
    "side by side": [("x", 1.0, A), ("y", 0.6, B), ("z", -0.4, A)],
    "each by itself": [("x", 0.7, B), ("y", -0.5, None)],
    "blended": [("y", 1.0, A), ("z", 0.5, A)],
}


def prompted(small, model, join):
    chain = None
    for tag, weight, region in JOINS[join]:
        given = dict(image=lab.images(1, tag=tag), weight=weight, role="everything", fit="center crop", tiles=2, region=region)
        chain = lab.call(small.pack["ImagePromptReference"], **given, more=chain)[0]
    given = dict(weight=WEIGHT, join=join, method="as IPAdapter Plus", ipadapter=small.adapter, clip_vision=small.encoder)
    return lab.call(small.pack["ImagePrompt"], model=model, reference=chain, **given)[0]


class Tensors:
    """q, K and V of the text attention in each of a UNet's layers: {(block, number): [(q, k, v, side of each chunk) of each call]}."""

    def __init__(self, unet):
        self.seen, self.sides, self.handles = {}, [], []
        for place in plain.KEYS:
            (layer,) = [m for n, m in unet.named_modules() if n.startswith("{}_blocks.{}.".format(*place)) and n.endswith("attn2")]
            for name in "qkv":
                self.handles.append(getattr(layer, f"to_{name}").register_forward_hook(self.hook(self.seen.setdefault(place, []), name)))

    def hook(self, calls, name):
        def keep(module, inputs, out):
            if name == "q":
                calls.append({"sides": self.sides})
            calls[-1][name] = out.clone()

        return keep

    def spy(self, model):
        """A clone that says which chunks of a call are the negative prompt's."""

        def wrapper(apply_model, args):
            self.sides = [number != 0 for number in args["cond_or_uncond"]]
            return apply_model(args["input"], args["timestep"], **args["c"])

        work = model.clone()
        work.set_model_unet_function_wrapper(wrapper)
        return work

    def close(self):
        for handle in self.handles:
            handle.remove()


def on_grid(region, size):
    return torch.ones(size[0] * size[1]) if region is None else F.interpolate(region[None], size=size, mode="bilinear").flatten()


@torch.no_grad()
def written_out(small, join, negative):
    """[(tokens [t, 768], weight, region) of each map]; nothing stands on the negative side, with the same weights and regions."""
    found = []
    for tag, weight, region in JOINS[join]:
        features = small.features(lab.images(1, tag=tag))
        found.append((torch.zeros_like(features) if negative else features, weight, region))
    if join == "blended":
        weights = torch.tensor([w for _, w, _ in found])
        mixed = sum(w * features for features, w, _ in found) / weights.sum()
        found = [(mixed, float(weights.mean()), found[0][2])]
    return [(small.tokens(features)[0], WEIGHT * weight, region) for features, weight, region in found]


def expected(small, join, shown, number, call, row, size):
    """[(probabilities [t, n], influence [n]) of each reference that is shown] in a layer, for one row of a call."""
    q, k, v = (call[name][row] for name in "qkv")
    heads = 8
    text = plain.attend(q[None], k[None], v[None], heads)[0].norm(dim=-1)
    to_k, to_v = (small.state["ip_adapter"][f"{2 * number + 1}.to_{part}_ip.weight"] for part in "kv")
    grids = [on_grid(region, size) for _, _, region in shown]
    scores, values = [], []
    for tokens, _, _ in shown:
        qs, ks, vs = (t.unflatten(-1, (heads, -1)).transpose(0, 1) for t in (q, tokens @ to_k.T, tokens @ to_v.T))
        scores.append((qs @ ks.transpose(-1, -2) / qs.shape[-1] ** 0.5).exp())  # [h, n, t]
        values.append(vs)
    if join == "side by side":
        total = sum(grid[:, None] * part.sum(-1, keepdim=True) for grid, part in zip(grids, scores, strict=True))
        chances = [grid[:, None] * part / total for grid, part in zip(grids, scores, strict=True)]
        cover = sum({id(region): grid for (_, _, region), grid in zip(shown, grids, strict=True)}.values()).clamp(max=1)
        covers = [cover] * len(shown)
    else:
        chances, covers = [part / part.sum(-1, keepdim=True) for part in scores], grids
    found = []
    for p, vs, cover, (_, weight, _) in zip(chances, values, covers, shown, strict=True):
        added = (weight * cover[:, None] * (p @ vs).transpose(0, 1).flatten(1)).norm(dim=-1)
        found.append((p.mean(0).T, added / (added + text)))
    return found


def test_the_maps_of_every_join_with_regions(small):
    """Three Image Prompts on one model, watched over two steps of two latents: tokens, shares and influence, both sides."""
    from ipadapter_pack.nodes.host.look.map_choice import chosen_maps

    model = small.unet
    for join in JOINS:
        model = prompted(small, model, join)
    model, record = lab.call(small.pack["WatchImagePrompt"], model=model, tokens=True)
    tensors = Tensors(small.unet.model.diffusion_model)
    try:
        samples = small.out(tensors.spy(model), hw=HW, batch=2)
    finally:
        tensors.close()
    shown = {(join, side): written_out(small, join, side) for join in JOINS for side in (False, True)}
    want: dict[tuple, list] = {}
    for number, place in enumerate(plain.KEYS):
        for call in tensors.seen[place]:
            count = call["q"].shape[1]
            size = next(s for s in ((-(-HW[0] // d), -(-HW[1] // d)) for d in (1, 2, 4, 8)) if s[0] * s[1] == count)
            for row in range(len(call["q"])):
                side, latent = call["sides"][row // 2], row % 2
                each = [one for join in JOINS for one in expected(small, join, shown[join, side], number, call, row, size)]
                for reference, parts in enumerate(each, 1):
                    p, influence = (F.interpolate(part.view(1, -1, *size), HW, mode="bilinear")[0] for part in parts)
                    maps = {"tokens": p, "attention": p.sum(0, keepdim=True), "influence": influence}
                    for show, values in maps.items():
                        want.setdefault((show, reference, ("positive", "negative")[side], latent), []).append(values)
    recording = record.find(samples)
    assert len(recording.references) == 6 and len(want) == 3 * 6 * 2 * 2
    for (show, reference, side, latent), values in want.items():
        got = torch.stack([one.map for one in chosen_maps(recording, show, reference, "all", side) if one.latent == latent])
        mean = torch.stack(values).mean(0)
        assert len(values) == 2 * len(plain.KEYS)
        assert float((got - mean).abs().max()) < TOLERANCE, (show, reference, side, latent)
        if show == "influence":
            assert mean.std() > 10 * TOLERANCE, "a map that is the same everywhere would hold nothing"
