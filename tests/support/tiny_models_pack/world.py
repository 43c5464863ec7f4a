"""Lets ComfyUI's Load Checkpoint take the tiny world's model: SD 1.5's layout 64 wide, a one-layer text encoder, a narrow TAESD."""

from pathlib import Path

import comfy.ops
import comfy.sd1_clip
import comfy.supported_models
import comfy.taesd.taesd
import torch
from comfy.supported_models_base import ClipTarget

TOKENIZER = Path(__file__).resolve().parents[3] / "world" / "models" / "tokenizer"
WIDTH, HEADS, LENGTH, WORDS = 64, 4, 16, 634
END = WORDS - 1
TEXT = {
    "num_hidden_layers": 1, "intermediate_size": 256, "max_position_embeddings": LENGTH, "eos_token_id": END, "hidden_act": "quick_gelu",
    "hidden_size": 768, "num_attention_heads": 12,
}  # fmt: skip


class WorldTokenizer(comfy.sd1_clip.SDTokenizer):
    def __init__(self, embedding_directory=None, tokenizer_data=None):
        super().__init__(str(TOKENIZER), LENGTH, embedding_directory=embedding_directory, tokenizer_data=tokenizer_data or {})


class WorldSD1Tokenizer(comfy.sd1_clip.SD1Tokenizer):
    def __init__(self, embedding_directory=None, tokenizer_data=None):
        super().__init__(embedding_directory, tokenizer_data or {}, tokenizer=WorldTokenizer)


class WorldText(comfy.sd1_clip.SDClipModel):
    def __init__(self, device="cpu", dtype=None, model_options=None):
        special = {"start": END - 1, "end": END, "pad": END}
        options = model_options or {}
        super().__init__(
            device, LENGTH, textmodel_json_config=dict(TEXT), dtype=dtype, special_tokens=special, return_projected_pooled=False,
            model_options=options,
        )  # fmt: skip
        self.transformer.set_input_embeddings(comfy.ops.manual_cast.Embedding(WORDS, 768, dtype=dtype, device=device))


class WorldClip(comfy.sd1_clip.SD1ClipModel):
    def __init__(self, device="cpu", dtype=None, model_options=None):
        super().__init__(device=device, dtype=dtype, model_options=model_options or {}, clip_model=WorldText)


class WorldSD15(comfy.supported_models.SD15):
    unet_config = {**comfy.supported_models.SD15.unet_config, "model_channels": WIDTH}  # noqa: RUF012 (the host's interface)
    unet_extra_config = {"num_heads": HEADS, "num_head_channels": -1}  # noqa: RUF012

    def clip_target(self, state_dict=None):
        return ClipTarget(WorldSD1Tokenizer, WorldClip)


class AnyWidthTAESD(comfy.taesd.taesd.TAESD):
    """TAESD with as many channels as the file that is loaded into it."""

    def load_state_dict(self, state_dict, *args, **kwargs):
        width = state_dict["taesd_encoder.0.weight"].shape[0]
        if width != self.taesd_encoder[0].out_channels:
            self.taesd_encoder, self.taesd_decoder = (narrowed(part, width) for part in (self.taesd_encoder, self.taesd_decoder))
        return super().load_state_dict(state_dict, *args, **kwargs)


def narrowed(layers: torch.nn.Sequential, width: int) -> torch.nn.Sequential:
    """The same layers with `width` channels where there were 64."""
    made = []
    for layer in layers:
        if isinstance(layer, comfy.taesd.taesd.Block):
            layer = comfy.taesd.taesd.Block(width, width)
        elif isinstance(layer, torch.nn.Conv2d):
            inside, outside = (width if n == 64 else n for n in (layer.in_channels, layer.out_channels))
            layer = comfy.taesd.taesd.conv(inside, outside, stride=layer.stride, bias=layer.bias is not None)
        made.append(layer)
    return torch.nn.Sequential(*made)


comfy.taesd.taesd.TAESD = AnyWidthTAESD
