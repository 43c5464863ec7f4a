"""Which layer of the UNet each pair of a FaceID file's LoRA belongs to, against diffusers' order of attention processors."""

import pytest
import torch

from ipadapter_core.adapter.lora import lora_layers
from ipadapter_core.errors import IPAdapterError
from support import reference_unet, synth

BASES = {"SD1.5": "sd15", "SDXL": "sdxl"}


def block(processor: str) -> tuple[str, int]:
    """The UNet block of "down_blocks.1.attentions.0..." in the numbering of the original implementation: three blocks to a level."""
    side, level, _, place = processor.split(".")[:4]
    if side == "mid_block":
        return "middle", 0
    level, place = int(level), int(place)
    return ("input", 3 * level + 1 + place) if side == "down_blocks" else ("output", 3 * level + place)


@pytest.mark.parametrize(("base", "arch"), BASES.items())
def test_every_pair_goes_where_diffusers_puts_it(base, arch):
    tensors = synth.ip_layers(arch, synth.TINY, lora=8)
    found = {(layer.block, layer.id, layer.index, layer.attention, layer.linear): layer for layer in lora_layers(tensors, base)}
    with torch.device("meta"):
        processors = list(reference_unet.unet(arch).attn_processors)
    assert len(found) == 4 * len(processors) == {"sd15": 128, "sdxl": 560}[arch]
    for number, processor in enumerate(processors):
        *_, index, attention, _ = processor.split(".")
        for name, linear in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("out", "to_out.0")):
            layer = found[(*block(processor), int(index), attention, linear)]
            assert layer.down is tensors[f"{number}.to_{name}_lora.down.weight"]
            assert layer.up is tensors[f"{number}.to_{name}_lora.up.weight"]


def test_a_file_without_lora_has_no_layers():
    assert lora_layers(synth.ip_layers("sd15", synth.TINY), "SD1.5") == ()


def test_half_a_pair_and_another_base_are_errors():
    tensors = synth.ip_layers("sdxl", synth.TINY, lora=8)
    with pytest.raises(IPAdapterError, match=r"does not fit SD1\.5"):
        lora_layers(tensors, "SD1.5")
    del tensors["7.to_k_lora.up.weight"]
    with pytest.raises(IPAdapterError, match="layer 7, to_k"):
        lora_layers(tensors, "SDXL")
