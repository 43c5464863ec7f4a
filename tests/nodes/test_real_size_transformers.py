"""The published sizes of Flux and SD3.5 Large with random weights: a block of each kind, the whole adapters, what stays in memory."""

import gc
import time
import weakref

import pytest
import torch

from support import whole_transformer as whole
from support import wide_transformer as wide
from support.held import Peak, tensor_bytes

BF16 = 2  # bytes
SIDES = 2
GB = 1 << 30


def timed(patched):
    from ipadapter_pack.nodes.host.engine.layer_patch import applications

    return applications(patched.model_options["transformer_options"])[0].timed


@pytest.fixture
def applied(host):
    """(family, *blocks) -> the model, the adapter, a function that applies it with a weight."""

    def run(family, *blocks):
        model = wide.transformer(whole.ADAPTERS[family][0], *blocks)
        adapter = host.as_adapter(wide.adapter(family))
        features = wide.features(family)
        negative = torch.zeros_like(features)

        def apply(weight=0.8):
            return host.apply(model, adapter, (features,), (negative,), host.Settings(weight=weight))

        return model, adapter, apply

    return run


def held_beside(patched, model):
    return tensor_bytes(patched.model_options) - tensor_bytes(model.model_options)


@torch.inference_mode()
def test_flux(applied):
    """XLabs' second version: K and V of 16 tokens in 19 double blocks stay, 3072 wide, and nothing of the adapter's 1.06 GB."""
    model, adapter, apply = applied("flux-xlabs", "double_blocks.3", "single_blocks.5")
    weights = sum(part.nbytes for part in adapter.module.parameters())
    assert weights == pytest.approx(1_057_345_536, rel=1e-3)  # the published file's size
    with Peak() as applying:
        start = time.process_time()
        patched = apply()
        first = time.process_time() - start
    assert applying.grown < GB / 2  # one weight at a time in fp32, the largest of 201 MB
    start = time.process_time()
    apply(0.4)
    second = time.process_time() - start
    assert second < 0.05 * first
    held = held_beside(patched, model)
    assert held == SIDES * 16 * 3072 * 2 * 19 * BF16

    call = wide.given("flux", size=(8, 8))
    with Peak() as running:
        without, noise = (whole.comfyui_noise(one, "flux", call) for one in (model, patched))
    assert running.grown < GB / 2
    assert torch.isfinite(noise).all()
    assert (noise - without).norm() > 0.01 * without.norm()

    gone = [weakref.ref(adapter), *map(weakref.ref, adapter.module.parameters())]
    del adapter, apply
    gc.collect()
    assert not any(ref() is not None for ref in gone)
    assert torch.equal(whole.comfyui_noise(patched, "flux", call), noise)


@torch.inference_mode()
def test_sd3(applied):
    """Nothing before the first call; then K and V of 64 tokens in 38 blocks for each timestep, and of two on the device."""
    from ipadapter_pack.nodes.host.engine import timed as engine

    model, adapter, apply = applied("sd3-instantx", "joint_blocks.3")
    weights = sum(part.nbytes for part in adapter.module.parameters())
    assert weights == pytest.approx(1_595_851_776, rel=1e-3)
    patched, call = apply(), wide.given("sd3", size=(8, 8))
    size = SIDES * 64 * 2432 * 2 * 38 * BF16
    assert timed(patched).size == size
    before = engine._KEPT.held
    with Peak() as running:
        without, noise = (whole.comfyui_noise(one, "sd3", call) for one in (model, patched))
    assert running.grown < GB / 2
    assert torch.isfinite(noise).all()
    assert (noise - without).norm() > 0.01 * without.norm()
    assert engine._KEPT.held - before == size == sum(one.kv.rows.nbytes for one in timed(patched)._current.values())

    lighter = apply(0.4)
    assert not torch.equal(whole.comfyui_noise(lighter, "sd3", call), noise)
    assert timed(lighter).made == 0
