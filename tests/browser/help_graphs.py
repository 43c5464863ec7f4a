"""The small graphs on the pictures of the help pages: picture -> nodes by name, each (column, type, widgets and links[, size]).

A value "@name.output" is a link. Columns stand from left to right, their nodes below each other; those left of column 0 only send their
links into the picture. RUN names the pictures whose graphs are run, since they show what a node gives.
"""

from typing import Any

Graph = dict[str, tuple[Any, ...]]

RUN = (
    "IPAdapterReferenceView", "IPAdapterPlotModel", "IPAdapterPlotWeights", "IPAdapterInspector", "IPAdapterMS", "IPAdapterCombineWeights",
    "IPAdapterNoise", "PrepImageForClipVision",
)  # fmt: skip
SD15, ADAPTER = "v1-5-pruned-emaonly-fp16.safetensors", "ip-adapter-plus_sd15.safetensors"
ENCODER = "CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors"
FACEID = "ip-adapter-faceid-plusv2_sd15"


def picture(column: int = 0, file: str = "lighthouse.png", size: tuple[int, int] = (230, 230)) -> tuple[Any, ...]:
    return column, "LoadImage", {"image": file}, size


def unified(column: int = 0, kind: str = "", preset: str = "PLUS (high strength)") -> tuple[Any, ...]:
    return column, f"IPAdapterUnifiedLoader{kind}", {"model": "@checkpoint.MODEL", "preset": preset}


def applied(kind: str, column: int = 1, **values: Any) -> tuple[Any, ...]:
    """An apply node behind the node `loader`, with the picture of the node `picture`."""
    sources = {"model": "@loader.model", "ipadapter": "@loader.ipadapter", "image": "@picture.IMAGE"}
    return column, kind, {name: value for name, value in {**sources, **values}.items() if value is not None}


def sampler(column: int = 2) -> tuple[Any, ...]:
    return column, "KSampler", {"model": "@apply.MODEL", "steps": 20, "seed": 42, "control_after_generate": "fixed"}


CHECKPOINT: Graph = {"checkpoint": (-1, "CheckpointLoaderSimple", {"ckpt_name": SD15})}
START: Graph = {**CHECKPOINT, "loader": unified(), "picture": picture()}
FILES: Graph = {
    **CHECKPOINT,
    "adapter": (0, "IPAdapterModelLoader", {"ipadapter_file": ADAPTER}),
    "encoder": (0, "CLIPVisionLoader", {"clip_name": ENCODER}),
    "picture": picture(),
}


def plain(kind: str, **values: Any) -> Graph:
    return {**START, "apply": applied(kind, **values), "sampler": sampler()}


def referred(column: int = 1, image: str = "@picture.IMAGE", **values: Any) -> tuple[Any, ...]:
    return column, "ImagePromptReference", {"image": image, **values}


def prompted(column: int, **values: Any) -> tuple[Any, ...]:
    """An Image Prompt behind the nodes `loader` and `reference`."""
    sources = {"model": "@loader.model", "ipadapter": "@loader.ipadapter", "reference": "@reference.reference"}
    return column, "ImagePrompt", {**sources, **values}, (330, 0)


def found(column: int) -> tuple[Any, ...]:
    return column, "ImagePromptLoader", {"model": "@checkpoint.MODEL"}, (330, 0)


REFERRED: Graph = {**CHECKPOINT, "picture": picture(-1), "loader": found(-1), "reference": referred(-1)}

GRAPHS: dict[str, Graph] = {
    "ImagePrompt": {
        **START,
        "reference": referred(),
        "apply": prompted(2, weight=0.8, weight_over_steps="0:1, 0.6:1, 0.9:0"),
        "sampler": sampler(3),
    },
    "ImagePromptReference": {
        **CHECKPOINT,
        "loader": unified(-1),
        "picture": picture(),
        "second": picture(file="portrait.png"),
        "first": referred(role="layout"),
        "reference": referred(2, "@second.IMAGE", role="style", more="@first.reference"),
        "apply": prompted(3),
    },
    "ImagePromptFaceReference": {
        **CHECKPOINT,
        "loader": unified(0, "FaceID", "FACEID PLUS V2"),
        "load": (0, "IPAdapterLoadFaceEmbeds", {"face_embeds": "portrait_00001.faces.safetensors"}, (350, 0)),
        "reference": (1, "ImagePromptFaceReference", {"face_embeds": "@load.face_embeds"}),
        "apply": prompted(2, model="@loader.MODEL"),
    },
    "ImagePromptLoader": {
        "checkpoint": (0, "CheckpointLoaderSimple", {"ckpt_name": SD15}),
        "picture": picture(size=(270, 230)),
        "loader": found(1),
        "reference": referred(1),
        "apply": prompted(2),
    },
    "WatchImagePrompt": {
        **REFERRED,
        "apply": prompted(0),
        "watch": (1, "WatchImagePrompt", {"model": "@apply.MODEL"}),
        "sampler": (2, "KSampler", {"model": "@watch.model", "steps": 20, "seed": 42, "control_after_generate": "fixed"}),
        "maps": (3, "ImagePromptAttention", {"record": "@watch.record", "latent": "@sampler.LATENT"}, (330, 0)),
    },
    "ImagePromptAttention": {
        **REFERRED,
        "apply": prompted(-1),
        "watch": (0, "WatchImagePrompt", {"model": "@apply.MODEL"}),
        "sampler": (1, "KSampler", {"model": "@watch.model", "steps": 20, "seed": 42, "control_after_generate": "fixed"}),
        "decode": (2, "VAEDecode", {"samples": "@sampler.LATENT", "vae": "@checkpoint.VAE"}),
        "maps": (3, "ImagePromptAttention", {"record": "@watch.record", "latent": "@sampler.LATENT", "image": "@decode.IMAGE"}, (330, 0)),
    },
    "ImagePromptLikeness": {
        **REFERRED,
        "apply": prompted(-1),
        "picture": picture(),
        "sampler": (-1, "KSampler", {"model": "@apply.MODEL"}),
        "decode": (0, "VAEDecode", {"samples": "@sampler.LATENT", "vae": "@checkpoint.VAE"}),
        "likeness": (1, "ImagePromptLikeness", {
            "image": "@decode.IMAGE", "reference": "@picture.IMAGE", "ipadapter": "@loader.ipadapter",
        }, (330, 0)),
    },
    "IPAdapter": {
        "checkpoint": (0, "CheckpointLoaderSimple", {"ckpt_name": SD15}),
        "picture": picture(size=(270, 230)),
        "loader": unified(1),
        "apply": applied("IPAdapter", 2, weight=0.8),
        "sampler": sampler(3),
    },
    "IPAdapterAdvanced": {
        **START,
        "mask": (0, "LoadImageMask", {"image": "left.png", "channel": "red"}),
        "apply": applied("IPAdapterAdvanced", attn_mask="@mask.MASK", weight=0.8),
        "sampler": sampler(),
    },
    "IPAdapterModelLoader": {
        **FILES,
        "apply": applied(
            "IPAdapterAdvanced", model="@checkpoint.MODEL", ipadapter="@adapter.IPADAPTER", clip_vision="@encoder.CLIP_VISION"
        ),
        "sampler": sampler(),
    },
    "IPAdapterUnifiedLoaderCommunity": {
        **START,
        "loader": unified(0, "Community", "Composition"),
        "apply": applied("IPAdapter", weight=0.9),
        "sampler": sampler(),
    },
    "IPAdapterFaceID": {
        **CHECKPOINT,
        "loader": unified(0, "FaceID", "FACEID PLUS V2"),
        "picture": picture(file="portrait.png"),
        "apply": applied("IPAdapterFaceID", model="@loader.MODEL", weight=0.8),
        "sampler": sampler(),
    },
    "IPAdapterInsightFaceLoader": {
        **CHECKPOINT,
        "lora": (0, "LoraLoaderModelOnly", {"model": "@checkpoint.MODEL", "lora_name": f"{FACEID}_lora.safetensors"}),
        "adapter": (0, "IPAdapterModelLoader", {"ipadapter_file": f"{FACEID}.bin"}),
        "encoder": (0, "CLIPVisionLoader", {"clip_name": ENCODER}),
        "recogniser": (0, "IPAdapterInsightFaceLoader", {"model_name": "buffalo_l"}),
        "picture": picture(-1, "portrait.png"),
        "apply": applied(
            "IPAdapterFaceID", 1, model="@lora.MODEL", ipadapter="@adapter.IPADAPTER", clip_vision="@encoder.CLIP_VISION",
            insightface="@recogniser.INSIGHTFACE",
        ),
    },
    "IPAdapterEmbeds": {
        **START,
        "second": picture(file="portrait.png"),
        "one": (1, "IPAdapterEncoder", {"ipadapter": "@loader.ipadapter", "image": "@picture.IMAGE", "weight": 1.0}),
        "two": (1, "IPAdapterEncoder", {"ipadapter": "@loader.ipadapter", "image": "@second.IMAGE", "weight": 0.5}),
        "both": (2, "IPAdapterCombineEmbeds", {"embed1": "@one.pos_embed", "embed2": "@two.pos_embed", "method": "average"}),
        "apply": applied("IPAdapterEmbeds", 3, image=None, pos_embed="@both.EMBEDS", neg_embed="@one.neg_embed"),
    },
    "IPAdapterSaveEmbeds": {
        **START,
        "encode": (1, "IPAdapterEncoder", {"ipadapter": "@loader.ipadapter", "image": "@picture.IMAGE"}),
        "save": (2, "IPAdapterSaveEmbeds", {"embeds": "@encode.pos_embed", "filename_prefix": "lighthouse"}),
    },
    "IPAdapterLoadEmbeds": {
        **CHECKPOINT,
        "loader": unified(),
        "load": (0, "IPAdapterLoadEmbeds", {"embeds": "lighthouse_00001.ipadpt"}, (320, 0)),
        "apply": applied("IPAdapterEmbeds", image=None, pos_embed="@load.EMBEDS"),
        "sampler": sampler(),
    },
    "IPAdapterEncoderAdvanced": {
        **START,
        "encode": (1, "IPAdapterEncoderAdvanced", {
            "ipadapter": "@loader.ipadapter", "image": "@picture.IMAGE", "fit": "tiles", "size": 448,
        }),
        "apply": applied("IPAdapterEmbeds", 2, image=None, pos_embed="@encode.pos_embed", neg_embed="@encode.neg_embed"),
    },
    "IPAdapterRegionalConditioning": {
        **CHECKPOINT,
        "loader": unified(-1),
        "here": (-1, "LoadImageMask", {"image": "left.png"}),
        "there": (-1, "InvertMask", {"mask": "@here.MASK"}),
        "prompt": (-1, "CLIPTextEncode", {}),
        "picture": picture(size=(210, 260)),
        "second": picture(file="portrait.png", size=(210, 260)),
        "left": (1, "IPAdapterRegionalConditioning", {
            "image": "@picture.IMAGE", "mask": "@here.MASK", "positive": "@prompt.CONDITIONING",
        }),
        "right": (1, "IPAdapterRegionalConditioning", {
            "image": "@second.IMAGE", "mask": "@there.MASK", "positive": "@prompt.CONDITIONING",
        }),
        "both": (2, "IPAdapterCombineParams", {"params_1": "@left.IPADAPTER_PARAMS", "params_2": "@right.IPADAPTER_PARAMS"}),
        "texts": (2, "ConditioningCombine", {"conditioning_1": "@left.POSITIVE", "conditioning_2": "@right.POSITIVE"}),
        "apply": applied("IPAdapterFromParams", 3, image=None, ipadapter_params="@both.IPADAPTER_PARAMS"),
    },
    "IPAdapterTiled": plain("IPAdapterTiled", weight=0.7),
    "IPAdapterClipVisionEnhancer": plain("IPAdapterClipVisionEnhancer", enhance_tiles=2),
    "IPAdapterPreciseStyleTransfer": plain("IPAdapterPreciseStyleTransfer"),
    "IPAdapterPreciseComposition": plain("IPAdapterPreciseComposition"),
    "IPAdapterStyleComposition": {
        **START,
        "second": picture(file="portrait.png"),
        "apply": applied("IPAdapterStyleComposition", image=None, image_style="@picture.IMAGE", image_composition="@second.IMAGE"),
        "sampler": sampler(),
    },
    "IPAdapterFaceEmbeds": {
        **CHECKPOINT,
        "loader": unified(-1, "FaceID", "FACEID PLUS V2"),
        "recogniser": (-1, "IPAdapterInsightFaceLoader", {}),
        "picture": picture(file="portrait.png", size=(210, 230)),
        "second": picture(file="portrait.png", size=(210, 230)),
        "one": (1, "IPAdapterFaceEmbeds", {"insightface": "@recogniser.INSIGHTFACE", "image": "@picture.IMAGE"}),
        "two": (1, "IPAdapterFaceEmbeds", {"insightface": "@recogniser.INSIGHTFACE", "image": "@second.IMAGE"}),
        "both": (2, "IPAdapterCombineFaceEmbeds", {"face_embeds_1": "@one.face_embeds", "face_embeds_2": "@two.face_embeds"}),
        "apply": applied("IPAdapterApplyFaceEmbeds", 3, model="@loader.MODEL", image=None, face_embeds="@both.face_embeds"),
    },
    "IPAdapterSaveFaceEmbeds": {
        "recogniser": (-1, "IPAdapterInsightFaceLoader", {}),
        "picture": picture(file="portrait.png"),
        "read": (1, "IPAdapterFaceEmbeds", {"insightface": "@recogniser.INSIGHTFACE", "image": "@picture.IMAGE"}),
        "save": (2, "IPAdapterSaveFaceEmbeds", {"face_embeds": "@read.face_embeds", "filename_prefix": "portrait"}),
    },
    "IPAdapterLoadFaceEmbeds": {
        **CHECKPOINT,
        "loader": unified(0, "FaceID", "FACEID PLUS V2"),
        "load": (0, "IPAdapterLoadFaceEmbeds", {"face_embeds": "portrait_00001.faces.safetensors"}, (350, 0)),
        "apply": applied("IPAdapterApplyFaceEmbeds", model="@loader.MODEL", image=None, face_embeds="@load.face_embeds"),
        "sampler": sampler(),
    },
    "IPAdapterWeights": {
        **CHECKPOINT,
        "loader": unified(-1),
        "pictures": (-1, "ImageBatch", {}),
        "weights": (0, "IPAdapterWeights", {"weights": "0.0, 1.0", "frames": 16, "image": "@pictures.IMAGE"}),
        "apply": applied("IPAdapterBatch", image="@weights.image_1", weight="@weights.weights"),
        "latent": (2, "EmptyLatentImage", {"batch_size": "@weights.total_frames"}),
        "sampler": (2, "KSampler", {"model": "@apply.MODEL", "latent_image": "@latent.LATENT"}),
    },
    "IPAdapterWeightsFromStrategy": {
        "pictures": (-1, "ImageBatch", {}),
        "weights": (0, "IPAdapterWeights", {
            "weights": "0.0, 1.0", "frames": 16, "method": "alternate batches", "image": "@pictures.IMAGE",
        }),
        "again": (1, "IPAdapterWeightsFromStrategy", {"weights_strategy": "@weights.weights_strategy", "image": "@pictures.IMAGE"}),
        "prompts": (1, "IPAdapterPromptScheduleFromWeightsStrategy", {
            "weights_strategy": "@weights.weights_strategy", "prompt": "a lighthouse at dawn\na portrait in the rain",
        }, (330, 170)),
    },
    "IPAdapterCombineWeights": {
        "up": (0, "IPAdapterWeights", {"weights": "0.0, 1.0", "frames": 12, "timing": "ease_in_out"}),
        "down": (0, "IPAdapterWeights", {"weights": "1.0, 0.0", "frames": 24, "timing": "ease_in_out"}),
        "all": (1, "IPAdapterCombineWeights", {"weights_1": "@up.weights", "weights_2": "@down.weights"}),
        "plot": (1, "IPAdapterPlotWeights", {"weights": "@all.weights"}, (520, 270)),
    },
    "IPAdapterPlotWeights": {
        "weights": (0, "IPAdapterWeights", {"weights": "0.0, 1.0", "frames": 24, "timing": "ease_in_out"}),
        "plot": (1, "IPAdapterPlotWeights", {"weights": "@weights.weights", "weights_2": "@weights.weights_invert"}, (620, 320)),
    },
    "IPAdapterPlotModel": {
        **START,
        "picture": picture(-1),
        "loader": unified(-1),
        "apply": applied("IPAdapterAdvanced", 0, weight=0.8, weight_type="ease in", start_at=0.2, end_at=0.8),
        "plot": (1, "IPAdapterPlotModel", {"model": "@apply.MODEL", "steps": 20, "scheduler": "karras"}, (620, 520)),
    },
    "IPAdapterMS": {
        **START,
        "picture": picture(-1),
        "loader": unified(-1),
        "apply": applied("IPAdapterMS", 0, layer_weights="0:0.4, 1:0.4, 2:0.4, 3:0.4,\n9:1.0, 10:1.0, 11:0.8, 12:0.8, 13:0.5"),
        "plot": (1, "IPAdapterPlotModel", {"model": "@apply.MODEL", "steps": 20, "scheduler": "karras"}, (620, 520)),
    },
    "IPAdapterReferenceView": {
        "picture": picture(size=(330, 260)),
        "middle": (1, "IPAdapterReferenceView", {"image": "@picture.IMAGE", "fit": "center crop"}, (560, 330)),
        "tiles": (1, "IPAdapterReferenceView", {"image": "@picture.IMAGE", "fit": "tiles", "tiles": 2}, (560, 330)),
    },
    "IPAdapterInspector": {
        "inspect": (0, "IPAdapterInspector", {"ipadapter_file": ADAPTER}, (560, 200)),
    },
    "PrepImageForClipVision": {
        "picture": picture(file="portrait.png", size=(210, 330)),
        "square": (1, "PrepImageForClipVision", {"image": "@picture.IMAGE", "crop_position": "top", "sharpening": 0.1}),
        "shown": (2, "PreviewImage", {"images": "@square.IMAGE"}, (240, 270)),
    },
    "IPAdapterNoise": {
        **CHECKPOINT,
        "loader": unified(-1),
        "picture": picture(),
        "noise": (1, "IPAdapterNoise", {"image_optional": "@picture.IMAGE", "type": "shuffle", "strength": 0.8, "blur": 4}),
        "shown": (1, "PreviewImage", {"images": "@noise.IMAGE"}, (230, 230)),
        "apply": applied("IPAdapterAdvanced", 2, image_negative="@noise.IMAGE"),
    },
}
