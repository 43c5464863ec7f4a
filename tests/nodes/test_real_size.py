"""One pass at the published sizes with random weights: SD 1.5's UNet, ViT-H and a plus adapter, from the picture to a latent."""

import gc
import weakref

import pytest
import torch

from support import lab, quick
from support.held import Peak, reachable, tensor_bytes

GB = 1 << 30
NAME = "ip-adapter-plus_real-size_sd15.safetensors"
STEPS, LATENT = 1, (16, 16)
WIDTHS = [320] * 2 + [640] * 2 + [1280] * 5 + [640] * 3 + [320] * 3  # of SD 1.5's cross-attentions without the middle block


def apply(pack, model, adapter, encoder):
    return lab.call(
        pack["IPAdapterAdvanced"],
        model=model,
        ipadapter=adapter,
        clip_vision=encoder,
        image=lab.images(1, 256, 256),
        weight=0.8,
        weight_type="linear",
        combine_embeds="concat",
        start_at=0.0,
        end_at=1.0,
        embeds_scaling="V only",
    )[0]


@torch.inference_mode()
def test_real_size(pack, comfy):
    """Memory: the models themselves (UNet and adapter in bf16, ViT-H as ComfyUI loads it) and little more; K and V stay, nothing else."""
    with Peak() as building:
        adapter_bytes = quick.save_adapter(comfy / "models" / "ipadapter" / NAME, "plus", "sd15", 320, torch.bfloat16)
        unet = quick.unet("sd15", 320, torch.bfloat16)
        encoder = quick.clip_vision()
    unet_weights = sum(p.numel() for p in unet.model.diffusion_model.parameters())
    encoder_weights = sum(p.numel() for p in encoder.model.parameters())
    assert unet_weights == 859_520_964  # the published SD 1.5 UNet's
    assert encoder_weights == pytest.approx(632e6, rel=1e-3)
    models_bytes = sum(p.nbytes for model in (unet.model, encoder.model) for p in model.parameters())
    assert building.grown < models_bytes + 2 * adapter_bytes + GB

    with Peak() as running:
        without = lab.sample(unet, "sd15", STEPS, hw=LATENT)
        adapter = lab.call(pack["IPAdapterModelLoader"], ipadapter_file=NAME)[0]
        patched = apply(pack, unet, adapter, encoder)
        latent = lab.sample(patched, "sd15", STEPS, hw=LATENT)
    assert running.grown < adapter_bytes + GB  # activations at this latent, one layer at a time in fp32 in the encoder
    assert torch.isfinite(latent).all()
    assert (latent - without).norm() > 0.01 * without.norm()

    held = tensor_bytes(patched.model_options) - tensor_bytes(unet.model_options)
    assert held == (2 * 16) * (2 * 2) * sum(WIDTHS)  # both sides' 16 tokens; K and V, two bytes each
    assert held < 0.02 * adapter_bytes
    found = list(reachable(patched.model_options))
    assert not any(one is adapter or one is adapter.module or one is adapter.patcher for one in found)
    parameters = {id(value): value for one in found if isinstance(one, torch.nn.Module) for value in one.parameters()}
    assert sum(value.nbytes for value in parameters.values()) == held

    gone = [weakref.ref(adapter), weakref.ref(adapter.module), *map(weakref.ref, adapter.module.parameters())]
    del adapter
    gc.collect()
    assert not any(ref() is not None for ref in gone)
    assert torch.equal(lab.sample(patched, "sd15", STEPS, hw=LATENT), latent)
