"""What the engine costs on Flux and SD3.5: little is added to a block, the host never waits in one, the compiled model stays whole."""

import pytest
import torch

from support import whole_transformer as whole
from support.counting import SYNCS, Operations
from support.whole_transformer import comfyui_noise, error

FAMILIES = pytest.mark.parametrize("family", whole.ADAPTERS)
SAME = 2e-5  # of the effect: the same sums in another order
KINDS = {
    "XLabs, double": ("flux-xlabs", "double_blocks.3", 3),
    "InstantX, double": ("flux-instantx", "double_blocks.3", 3),
    "InstantX, single": ("flux-instantx", "single_blocks.11", 30),
    "SD3.5, joint": ("sd3-instantx", "joint_blocks.3", 3),
}
FEW = {"flux": ("double_blocks.3", "double_blocks.18", "single_blocks.5"), "sd3": ("joint_blocks.3", "joint_blocks.18")}
ON_FEW = {"flux-xlabs": "3: 1, 18: 1", "flux-instantx": "3: 1, 18: 1, 24: 1", "sd3-instantx": "3: 1, 18: 1"}  # layer_weights
MASK = torch.cat([torch.ones(1, 8, 6), torch.zeros(1, 8, 6)], -1)
CASES = {
    "one side": (1, [0], {}),
    "both sides": (2, [1, 0], {}),
    "both sides of two latents": (4, [1, 0], {}),
    "one side of two latents": (2, [0], {}),
    "a mask": (2, [1, 0], {"mask": MASK}),
    "a window": (2, [1, 0], {"end_at": 0.9}),
}
ONCE = {"flux": 2, "sd3": 8}  # in a call: the window's sigma; the timestep, and the norms' state


def call_of(models, family, rows, sides):
    arch = whole.ADAPTERS[family][0]
    call = whole.given(arch, rows=rows)
    return lambda model: comfyui_noise(model, arch, call, options={"cond_or_uncond": sides})


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", KINDS)
def test_at_most_eight_operations_per_block(apply, models, kind, case):
    """Counted in one block, which is the only one that there is and that is patched."""
    (family, name, block), (rows, sides, settings) = KINDS[kind], CASES[case]
    arch = whole.ADAPTERS[family][0]
    call, plain = call_of(models, family, rows, sides), models[arch].model
    patched, counts = apply(family, layer_weights=f"{block}: 1", **settings), []
    with whole.left(plain, name):
        call(patched)
        for model in (plain, patched):
            with Operations() as operations:
                call(model)
            counts.append(operations.count)
    assert 0 < counts[1] - counts[0] <= 8 + ONCE[arch]


@FAMILIES
def test_the_host_waits_once_at_most_in_a_call(apply, models, family, monkeypatch):
    """Never in a block: once for the timestep, where the adapter needs it or there is a window. The first call lays out too."""
    count = 0

    def counting(method):
        def run(*args, **kw):
            nonlocal count
            count += 1
            return method(*args, **kw)

        return run

    call, plain = call_of(models, family, 2, [1, 0]), models[whole.ADAPTERS[family][0]].model
    patched = apply(family, mask=MASK, end_at=0.9)
    call(patched)
    for name in SYNCS:
        monkeypatch.setattr(torch.Tensor, name, counting(getattr(torch.Tensor, name)))
    call(plain)
    bare, count = count, 0
    call(patched)
    assert count - bare == (2 if family == "sd3-instantx" else 1)  # its timestep is a number in system memory


def compiled(model, keys):
    """As ComfyUI's TorchCompileModel sets it, with dynamo's tracing and no code generation; a graph break is an error."""
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    model = model.clone()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    set_torch_compile_wrapper(model, backend="eager", fullgraph=True, keys=keys)
    return model


@pytest.mark.parametrize(("family", "newer"), [*((one, False) for one in whole.ADAPTERS), ("flux-xlabs", True), ("flux-instantx", True)])
def test_torch_compile(apply, models, family, newer, monkeypatch):
    """The whole model, with few blocks, which are all that is patched: tracing all of them takes half a minute."""
    arch = whole.ADAPTERS[family][0]
    if newer:
        whole.newer_core(monkeypatch)
    call, plain = call_of(models, family, 2, [1, 0]), models[arch].model
    patched = apply(family, mask=MASK, layer_weights=ON_FEW[family])
    with whole.left(plain, *FEW[arch]):
        want, without = call(patched), call(plain)
        got = call(compiled(patched, ["diffusion_model"]))
    assert (want - without).norm() > 0.01 * without.norm()
    assert error(got, want, without) < SAME


@pytest.mark.parametrize("order", ["compiled last", "compiled first"])
@FAMILIES
def test_torch_compile_of_some_blocks(apply, models, family, order):
    """Block by block, as packs for Flux compile it: what is traced once serves every call, whatever the timestep."""
    arch = whole.ADAPTERS[family][0]
    names = ["double_blocks.3", "single_blocks.5"] if arch == "flux" else ["joint_blocks.3"]
    blocks = [f"diffusion_model.{name}" for name in names]
    call, plain = whole.given(arch), models[arch]

    def noise(model, sigma):
        return comfyui_noise(model, arch, call, sigma)

    want = [noise(apply(family, mask=MASK), sigma) for sigma in (0.9, 0.6, 0.3)]
    model = compiled(apply(family, mask=MASK), blocks) if order == "compiled last" else apply(
        family, model=compiled(plain.model, blocks), mask=MASK)  # fmt: skip
    got = [noise(model, sigma) for sigma in (0.9, 0.6, 0.3)]
    assert all(error(one, other, noise(plain.model, sigma)) < SAME for one, other, sigma in zip(got, want, (0.9, 0.6, 0.3), strict=True))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == len(blocks)
