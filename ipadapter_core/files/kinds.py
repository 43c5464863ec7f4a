"""What a weights file is when it is not an IP-Adapter: told by its key names, for messages that say where it belongs."""

from __future__ import annotations

from collections.abc import Iterable

# (what it is, folder under models/ where it belongs, marks): the first row with a mark in the keys decides.
# A mark is matched as text; the line breaks tie it to the start or the end of a key.
_KINDS = (
    ("a LoRA", "loras", (".lora_up.weight\n", ".lora_down.weight\n", ".lora_A.", ".lora_B.", "_lora.up.weight\n", ".lora.up.weight\n")),
    ("a LoRA (LyCORIS)", "loras", (".hada_w1_a\n", ".lokr_w1", ".oft_blocks\n")),
    ("an AnimateDiff motion module", "animatediff_models", ("motion_modules.",)),
    ("a ControlNet", "controlnet", ("\ncontrol_model.", "\ncontrolnet_", "\ninput_hint_block.", "\nzero_convs.")),
    ("a T2I-Adapter", "controlnet", ("\nadapter.body.", "\nbody.0.block1.")),
    ("a PuLID model", "pulid", ("\nid_adapter", "\npulid_")),
    ("a PhotoMaker model", "photomaker", ("\nid_encoder.",)),
    ("a style model (Redux)", "style_models", ("\nredux_up.",)),
    ("a full checkpoint", "checkpoints", ("\nmodel.diffusion_model.",)),
    ("a diffusion model without its encoders", "diffusion_models", (
        "\ndown_blocks.0.", "\ninput_blocks.0.", "\ndouble_blocks.0.", "\ntransformer_blocks.0.", "\njoint_blocks.0.", "\ndiffusion_model.",
    )),
    ("an image encoder (CLIP Vision)", "clip_vision", ("\nvision_model.", "\nvisual.", "\nvisual_projection.")),
    ("a text encoder", "text_encoders", ("\ntext_model.", "\nencoder.block.0.layer.", "\ntransformer.resblocks.", "\nmodel.embed_tokens.")),
    ("a VAE", "vae", ("\nfirst_stage_model.", "\ndecoder.conv_in.", "\nencoder.conv_in.", "\nvae.")),
    ("a textual inversion embedding", "embeddings", ("\nemb_params\n", "\nstring_to_param.", "\nclip_l\n", "\nclip_g\n")),
)


def text_of(names: Iterable[str]) -> str:
    """Key names as one text, every name on a line of its own with a line break on both sides."""
    return "\n" + "\n".join(names) + "\n"


def kind_of(names: Iterable[str]) -> tuple[str, str] | None:
    """("a LoRA", "loras"): what a file with these key names is and the folder under models/ it belongs to; None if unknown."""
    text = text_of(names)
    for kind, folder, marks in _KINDS:
        if any(mark in text for mark in marks):
            return kind, folder
    return None
