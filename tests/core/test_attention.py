"""Image attention from projected K and V: against diffusers' attention processor and against the paper's equation written out.

Compared in float64, where two ways of writing one formula agree to about 1e-15.
"""

import math

import pytest
import torch
from diffusers.models.attention_processor import Attention, IPAdapterAttnProcessor2_0
from torch import nn

from ipadapter_core.adapter.attention import KV, SCALINGS, Slot, build_layers, image_attention, project_kv, scale_kv, select_rows

EXACT = 1e-13
CONTEXT = 24


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def distance(got, want):
    assert got.shape == want.shape
    return float((got - want).norm() / want.norm())


def layer_weights(width, number=1, seed=0, context=CONTEXT):
    return {f"{number}.to_{part}_ip.weight": random(width, context, seed=seed + i) / context**0.5 for i, part in enumerate("kv")}


def modules(layers):
    """{number: (to_k, to_v)} of build_layers' result."""
    return {int(number): (block["to_k_ip"], block["to_v_ip"]) for number, block in layers.items()}


def diffusers_attention(sd, heads, scale, tokens):
    """diffusers' cross-attention of the layer, its output projection left out, with the adapter at `scale`."""
    width = sd["1.to_k_ip.weight"].shape[0]
    attention = Attention(query_dim=width, cross_attention_dim=CONTEXT, heads=heads, dim_head=width // heads).double()
    for i, linear in enumerate((attention.to_q, attention.to_k, attention.to_v)):
        linear.weight.data = random(*linear.weight.shape, seed=50 + i) / linear.weight.shape[1] ** 0.5
    attention.to_out = nn.ModuleList([nn.Identity(), nn.Identity()])
    processor = IPAdapterAttnProcessor2_0(width, CONTEXT, num_tokens=(tokens,), scale=scale).double()
    processor.load_state_dict({f"{key[2:9]}.0.weight": value for key, value in sd.items()})
    attention.set_processor(processor)
    return attention.requires_grad_(False)


def paper(q, k, v):
    """softmax(Q K^T / sqrt(d)) V of one head in numbers: q [n, d], k and v [t, d] (arXiv 2308.06721, equation 3)."""
    out = []
    for row in q.tolist():
        scores = [sum(a * b for a, b in zip(row, key, strict=True)) / math.sqrt(len(row)) for key in k.tolist()]
        shares = [math.exp(score - max(scores)) for score in scores]
        out.append([sum(s * x for s, x in zip(shares, column, strict=True)) / sum(shares) for column in v.T.tolist()])
    return torch.tensor(out, dtype=torch.float64)


@pytest.mark.parametrize("scale", [1.0, 0.6, -0.7])
@pytest.mark.parametrize(("width", "heads", "tokens", "images"), [(32, 8, 4, 1), (48, 2, 16, 1), (64, 1, 16, 3), (40, 5, 1, 2)])
def test_what_diffusers_adds(width, heads, tokens, images, scale):
    """Its output with the adapter minus its output at scale 0; several pictures' tokens stand in one attention."""
    sd = layer_weights(width)
    x, text, image = random(2, 35, width, seed=1), random(2, 7, CONTEXT, seed=2), random(2, images, tokens, CONTEXT, seed=3)
    attention = diffusers_attention(sd, heads, scale, tokens)
    without = diffusers_attention(sd, heads, 0.0, tokens)
    want = attention(x, (text, [image])) - without(x, (text, [image]))

    kv = project_kv(modules(build_layers(sd)), {1: image.flatten(1, 2)}, {1: heads}, torch.float64)
    got = scale * image_attention(attention.to_q(x), *kv.layer(1))
    assert distance(got, want) < EXACT


@pytest.mark.parametrize(("rows", "batch"), [(1, 1), (1, 4), (2, 2), (2, 6), (3, 3)])
def test_the_papers_equation(rows, batch):
    """K and V of a row serve batch / rows neighbouring entries; every entry and head by itself."""
    heads, dim, tokens, queries = 2, 5, 3, 7
    q = random(batch, queries, heads * dim, seed=1)
    k, v = random(rows, heads, tokens, dim, seed=2), random(rows, heads, tokens, dim, seed=3)
    got = image_attention(q, k, v)
    for entry in range(batch):
        for head in range(heads):
            columns = slice(head * dim, (head + 1) * dim)
            row = entry // (batch // rows)
            assert distance(got[entry, :, columns], paper(q[entry, :, columns], k[row, head], v[row, head])) < EXACT


def test_attention_can_be_of_another_make():
    seen = []

    def attention(q, k, v):
        seen.append((q.shape, k.shape, v.shape))
        return torch.zeros(q.shape[0], q.shape[2], q.shape[1] * q.shape[3])

    out = image_attention(random(6, 9, 8), random(2, 4, 3, 2), random(2, 4, 3, 2), attention)
    assert seen == [((2, 4, 27, 2), (2, 4, 3, 2), (2, 4, 3, 2))]
    assert out.shape == (6, 9, 8)


def test_layers_of_any_width_share_one_piece_of_memory():
    """Each layer's K and V are those of its own weights, tokens and heads, as views of `rows`, one behind the other."""
    widths, heads, counts = {1: 32, 3: 48, 121: 16}, {1: 4, 3: 6, 121: 1}, {1: 5, 3: 9, 121: 5}
    sd = {}
    for number, width in widths.items():
        sd |= layer_weights(width, number, seed=number)
    tokens = {number: random(3, count, CONTEXT, seed=200 + number) for number, count in counts.items()}
    kv = project_kv(modules(build_layers(sd)), tokens, heads, torch.float64)

    end = 0
    for number, width in widths.items():
        k, v = kv.layer(number)
        for got, part in ((k, "to_k_ip"), (v, "to_v_ip")):
            assert got.shape == (3, heads[number], counts[number], width // heads[number])
            assert got.untyped_storage().data_ptr() == kv.rows.untyped_storage().data_ptr()
            assert got[0].data_ptr() == kv.rows.data_ptr() + end * kv.rows.element_size()
            end += got[0].numel()
            linear = torch.einsum("rtc,wc->rtw", tokens[number], sd[f"{number}.{part}.weight"])
            for head in range(heads[number]):
                columns = slice(head * got.shape[-1], (head + 1) * got.shape[-1])
                assert distance(got[:, head], linear[..., columns]) < EXACT
    assert kv.rows.shape == (3, end)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_kept_in_the_dtype_asked_for(dtype):
    kv = project_kv(modules(build_layers(layer_weights(32))), {1: random(1, 4, CONTEXT, seed=1)}, {1: 4}, dtype)
    exact = project_kv(modules(build_layers(layer_weights(32))), {1: random(1, 4, CONTEXT, seed=1)}, {1: 4}, torch.float64)
    assert kv.rows.dtype == dtype
    assert torch.equal(kv.rows, exact.rows.to(dtype))


def test_layers_built_on_the_given_tensors_themselves():
    """In the order of their numbers; the LoRA that lies beside them in FaceID files is left out."""
    sd = layer_weights(48, 31) | layer_weights(32, 3) | layer_weights(16, 1)
    lora = {"0.to_q_lora.down.weight": random(8, 16), "1.to_k_lora.up.weight": random(16, 8)}
    before = torch.get_rng_state()
    layers = build_layers(sd | lora)
    assert torch.equal(torch.get_rng_state(), before)
    assert list(layers) == ["1", "3", "31"]
    built = layers.state_dict()
    assert built.keys() == sd.keys()
    assert all(built[key].data_ptr() == value.data_ptr() for key, value in sd.items())
    assert not any(parameter.requires_grad for parameter in layers.parameters())


@pytest.mark.parametrize(
    ("index", "shares"),
    [((0,), True), ((2, 3, 4), True), ((0, 1, 2, 3, 4), True), ((1, 0), False), ((0, 2), False), ((3, 3), False), ((4, 0, 4), False)],
)
def test_select_rows(index, shares):
    rows = random(5, 12)
    got = select_rows(rows, index)
    assert got.tolist() == [rows[i].tolist() for i in index]
    assert (got.untyped_storage().data_ptr() == rows.untyped_storage().data_ptr()) is shares


def test_selected_rows_have_the_same_layers():
    slots = {1: Slot(0, 2, 3, 4), 3: Slot(48, 1, 3, 2)}
    kv = KV(random(4, 60), slots)
    chosen = KV(select_rows(kv.rows, (2, 3)), slots)
    for number in slots:
        for got, want in zip(chosen.layer(number), kv.layer(number), strict=True):
            assert torch.equal(got, want[2:4])


WEIGHTS = {
    "one": torch.tensor(0.7, dtype=torch.float64),
    "one for each row": torch.tensor([0.7, -1.3], dtype=torch.float64).view(2, 1, 1, 1),
}


def scaled(k, v, scaling, w):
    """One row's K and V [h, t, d] under a scaling, written out: the C penalty is w C / 1280, C the width h d."""
    penalised = w * (k.shape[0] * k.shape[2]) / 1280
    if scaling == "K+V":
        return w * k, w * v
    if scaling == "K+V w/ C penalty":
        return penalised * k, penalised * v
    if scaling == "K+mean(V) w/ C penalty":
        tokens = v.shape[1]
        mean = sum(v[:, i] for i in range(tokens)) / tokens
        return penalised * k, torch.stack([v[:, i] + (penalised - 1) * mean for i in range(tokens)], dim=1)
    return k, v


@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize(("heads", "dim"), [(8, 40), (8, 160), (10, 64), (3, 5)])
def test_scalings(scaling, kind, heads, dim):
    k, v = random(2, heads, 6, dim, seed=1), random(2, heads, 6, dim, seed=2)
    weight = WEIGHTS[kind]
    got_k, got_v = scale_kv(k, v, scaling, weight)
    for row, w in enumerate(weight.expand(2, 1, 1, 1).flatten().tolist()):
        want_k, want_v = scaled(k[row], v[row], scaling, w)
        assert distance(got_k[row], want_k) < EXACT
        assert distance(got_v[row], want_v) < EXACT


def test_the_c_penalty_is_one_at_width_1280():
    k, v = random(1, 20, 4, 64, seed=1), random(1, 20, 4, 64, seed=2)
    weight = torch.tensor(0.6, dtype=torch.float64)
    for got, want in zip(scale_kv(k, v, "K+V w/ C penalty", weight), scale_kv(k, v, "K+V", weight), strict=True):
        assert torch.equal(got, want)


def test_queries_with_their_heads_in_front():
    """[b, h, n, d] gives what [b, n, h d] gives."""
    q = torch.randn(4, 3, 5, 8, generator=torch.Generator().manual_seed(0))
    k, v = torch.randn(2, 4, 3, 6, 8, generator=torch.Generator().manual_seed(1))
    flat = image_attention(q.transpose(1, 2).flatten(2), k, v)
    assert torch.allclose(image_attention(q, k, v), flat, rtol=0, atol=1e-6)
