"""Input declarations that several nodes share, with their tooltips."""

from __future__ import annotations

from typing import Any

from ..ipadapter_core.adapter.attention import SCALINGS
from ..ipadapter_core.adapter.embeds import COMBINE_METHODS
from ..ipadapter_core.adapter.layers import WEIGHT_TYPES
from ..ipadapter_core.pictures.fit import FITS

Input = tuple[Any, ...]

MODEL: Input = (
    "MODEL",
    {
        "tooltip": "The model that the picture should steer, of the kind that the adapter was made for (SD1.5, SDXL, Kolors, Flux.1 or "
        "SD3.5 Large). It stays as it is; the output is a patched copy."
    },
)
IPADAPTER: Input = (
    "IPADAPTER",
    {"tooltip": "The adapter, from an IPAdapter Unified Loader (which brings its image encoder along) or an IPAdapter Model Loader."},
)
IMAGE: Input = (
    "IMAGE",
    {
        "tooltip": "The reference picture. The encoder sees a square from its middle; several pictures in a batch are brought "
        "together by combine_embeds."
    },
)
IMAGE_PER_LATENT: Input = (
    "IMAGE",
    {
        "tooltip": "One reference picture for each latent: picture 1 goes with latent 1 and so on. The last one repeats when there "
        "are too few."
    },
)
IMAGE_NEGATIVE: Input = (
    "IMAGE",
    {"tooltip": "A picture of what you do not want. It becomes the negative side; without it, that side sees nothing (or black)."},
)
MASK: Input = (
    "MASK",
    {
        "tooltip": "Where in the generated picture the reference acts: white fully, black not at all. Any size, ideally in the "
        "picture's shape."
    },
)
CLIP_VISION: Input = (
    "CLIP_VISION",
    {
        "tooltip": "The image encoder the adapter was made for. Not needed after a unified loader; if connected, it is used "
        "instead of the loader's."
    },
)
INSIGHTFACE: Input = (
    "INSIGHTFACE",
    {"tooltip": "The face recogniser, from the IPAdapter InsightFace Loader. Not needed after the unified FaceID loader."},
)
WEIGHT_TYPE: Input = (
    list(WEIGHT_TYPES),
    {
        "tooltip": "How the weight is spread over the model's layers. 'linear' is even and a good start; 'ease in' is strong in early "
        "layers, 'ease out' in late ones. The other types are for UNets, not for Flux and SD3.5: 'style transfer' takes colours and look "
        "only, 'composition' the layout only; 'weak ...' types hold back one part of the UNet."
    },
)
COMBINE: Input = (
    list(COMBINE_METHODS),
    {
        "tooltip": "What happens with several pictures. 'concat' keeps them side by side (a good start, a little slower); 'average' "
        "blends them; 'norm average' normalises each component across the pictures, then averages; 'add' sums; 'subtract' takes "
        "the others away from the first. No effect with one picture."
    },
)
START_AT: Input = (
    "FLOAT",
    {
        "default": 0.0, "min": 0.0, "max": 1.0, "step": 0.001,
        "tooltip": "When the picture starts to act, as a share of the sampling: 0 is the first step. 0.2 lets the prompt lay out "
        "the scene first."
    },
)
END_AT: Input = (
    "FLOAT",
    {
        "default": 1.0,
        "min": 0.0,
        "max": 1.0,
        "step": 0.001,
        "tooltip": "When the picture stops acting, as a share of the sampling: 1 is the last step. 0.6 to 0.8 leaves the details "
        "to the prompt.",
    },
)
SCALING: Input = (
    list(SCALINGS),
    {
        "tooltip": "What the weight is applied to. 'V only' scales the picture's contribution and is a good start; 'K+V' also how "
        "sharply it is attended to; the 'C penalty' variants hold back narrow layers. 'K+mean(V) w/ C penalty' keeps good "
        "quality at high weights."
    },
)
ENCODE_BATCH_SIZE: Input = (
    "INT",
    {
        "default": 0, "min": 0, "max": 4096, "advanced": True,
        "tooltip": "How many pictures are encoded at a time: smaller needs less memory. 0 lets the pack choose."
    },
)
SHARPENING: Input = (
    "FLOAT",
    {
        "default": 0.0, "min": 0.0, "max": 1.0, "step": 0.05,
        "tooltip": "Sharpens the reference before it is encoded. Try 0.1 to 0.3 for soft pictures."
    },
)
POS_EMBED: Input = ("EMBEDS", {"tooltip": "The encoded reference, from an IPAdapter Encoder, Combine Embeds or Load Embeds."})
NEG_EMBED: Input = (
    "EMBEDS",
    {
        "tooltip": "The encoded negative side, from the second output of an IPAdapter Encoder. Without it the negative side sees "
        "nothing (or black)."
    },
)

IMAGE_TO_FIT: Input = (
    "IMAGE",
    {"tooltip": "The reference picture, of any shape. Several pictures in a batch are treated alike, one by one."},
)
FIT: Input = (
    list(FITS),
    {
        "tooltip": "How the picture becomes the square that the encoder reads. 'center crop' takes the middle, as other nodes do; "
        "'pad' keeps all of it between grey bars; 'stretch' squeezes it; 'tiles' cuts it into squares and averages what is seen in "
        "them. Start with 'center crop' for one subject, 'tiles' for wide pictures."
    },
)
TILES: Input = (
    "INT",
    {
        "default": 2, "min": 1, "max": 4,
        "tooltip": "For 'tiles' only: how many squares lie along the short side. 1 covers a long picture with large squares; 2 or 3 "
        "look closer, at texture rather than layout."
    },
)
PIXELS: Input = (
    "INT",
    {
        "default": 0, "min": 0, "max": 896, "step": 14, "advanced": True,
        "tooltip": "How many pixels wide the encoder sees each square. 0 is the encoder's own size (mostly 224) and a good start; "
        "448 shows finer detail to plus adapters and takes about four times as long to encode."
    },
)
ENCODER_MASK: Input = ("MASK", {"tooltip": "Which part of the reference the encoder sees: white fully, black not at all."})


def weight(maximum: float, name: str = "the picture", minimum: float = -1) -> Input:
    tooltip = f"How strongly {name} acts. 0 is off; 0.6 to 0.8 leaves room for the prompt; above 1 is strong; below 0 pushes away from it."
    return ("FLOAT", {"default": 1.0, "min": minimum, "max": maximum, "step": 0.05, "tooltip": tooltip})


def weight_faceidv2() -> Input:
    tooltip = (
        "How strongly the look of the face crop acts beside the face's identity. Only FaceID Plus v2 files use it. Start at 1, "
        "up to 2 for more likeness."
    )
    return ("FLOAT", {"default": 1.0, "min": -1, "max": 5.0, "step": 0.05, "tooltip": tooltip})


MODEL_OUT = "The model with the picture's influence: connect it to a sampler, or to another IPAdapter node to add another picture."

BASE = {"model": MODEL, "ipadapter": IPADAPTER}
WINDOW_AND_SCALING = {"start_at": START_AT, "end_at": END_AT, "embeds_scaling": SCALING}
OPTIONAL = {"image_negative": IMAGE_NEGATIVE, "attn_mask": MASK, "clip_vision": CLIP_VISION}
