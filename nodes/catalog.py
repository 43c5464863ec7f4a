"""How nodes are found in the editor: their folders in the tree, in the order of need, and what else people call them in a search.

ComfyUI reads all of it from the classes: CATEGORY and EXPERIMENTAL at any age, SEARCH_ALIASES in newer cores (older ones ignore it).
None of it belongs to what saved workflows rely on.
"""

from __future__ import annotations

_ROOT = "ipadapter"
_ANY = ("ip-adapter", "ipadapter")
_PICTURE = ("image prompt", "reference image")
_STYLE = ("style reference", "style transfer", "sref")
_FACE = ("face swap", "likeness", "character", "identity", "portrait", "faceid")
_FRAMES = ("animation", "video", "frames", "animatediff")
_SAVED = ("encode image", "image embeds", "save reference")
_MAPS = ("attention map", "heat map", "heatmap", "attribution", "DAAM", "where the image prompt acts")
_ALL = (*_PICTURE, "style reference", "character")

# folder -> node id -> what else it is called, besides IP-Adapter
_FOLDERS: dict[str, dict[str, tuple[str, ...]]] = {
    "image prompt": {
        "ImagePromptLoader": (*_ALL, "load adapter", "model loader"),
        "ImagePromptReference": (*_ALL, *_STYLE, "layout reference", "negative image"),
        "ImagePrompt": (*_ALL, *_STYLE, "apply ipadapter", "variations", "likeness"),
        "ImagePromptFaceReference": (*_FACE, "face reference"),
        "IPAdapterExamplePicture": ("example image", "sample picture", "test image", "demo"),
    },
    "see what happens": {
        "WatchImagePrompt": _MAPS,
        "ImagePromptAttention": _MAPS,
        "ImagePromptLikeness": ("likeness", "similarity", "cosine", "CLIP score", "CLIP-I", "compare images", "face similarity"),
        "IPAdapterReferenceView": ("preview reference", "what the encoder sees", "crop", "reference image"),
        "IPAdapterInspector": ("model info", "which adapter", "what is this file"),
        "IPAdapterPlotWeights": ("weight curve", "graph", *_FRAMES),
        "IPAdapterPlotModel": ("layer weights", "plot layers"),
    },
    "established": {
        "IPAdapterUnifiedLoader": (*_PICTURE, "load adapter", "preset"),
        "IPAdapter": (*_ALL, *_STYLE, "variations"),
        "IPAdapterAdvanced": (*_ALL, *_STYLE, "apply ipadapter", "negative image"),
        "IPAdapterUnifiedLoaderCommunity": ("composition", "kolors", "load adapter"),
        "IPAdapterModelLoader": ("load adapter", "adapter file"),
        "IPAdapterModelLoaderAdvanced": ("load adapter", "adapter version"),
    },
    "established/style and layout": {
        "IPAdapterStyleComposition": (*_STYLE, "composition", "layout reference"),
        "IPAdapterPreciseStyleTransfer": _STYLE,
        "IPAdapterPreciseComposition": ("composition", "layout reference", "structure"),
    },
    "established/faces": {
        "IPAdapterUnifiedLoaderFaceID": (*_FACE, "load adapter"),
        "IPAdapterFaceID": _FACE,
        "IPAdapterFaceIDKolors": (*_FACE, "kolors"),
        "IPAdapterInsightFaceLoader": (*_FACE, "insightface", "face recogniser"),
        "IPAdapterFaceEmbeds": (*_FACE, "face embedding", "read face"),
        "IPAdapterCombineFaceEmbeds": (*_FACE, "average faces", "merge faces"),
        "IPAdapterApplyFaceEmbeds": (*_FACE, "apply face"),
        "IPAdapterSaveFaceEmbeds": (*_FACE, "save face", "save character"),
        "IPAdapterLoadFaceEmbeds": (*_FACE, "load face", "load character"),
    },
    "established/regions": {
        "IPAdapterRegionalConditioning": ("regional prompt", "area", "mask", *_PICTURE),
        "IPAdapterCombineParams": ("regional prompt", "combine regions"),
        "IPAdapterFromParams": ("regional prompt", "apply regions"),
    },
    "established/tiles and detail": {
        "IPAdapterTiled": ("wide reference", "tiles", "large image", *_PICTURE),
        "IPAdapterClipVisionEnhancer": ("fine detail", "high resolution reference", "tiles"),
    },
    "established/animations": {
        "IPAdapterBatch": (*_FRAMES, *_PICTURE),
        "IPAdapterWeights": (*_FRAMES, "weight schedule", "timing", "fade", "keyframes"),
        "IPAdapterCombineWeights": (*_FRAMES, "weight schedule"),
        "IPAAdapterFaceIDBatch": (*_FRAMES, *_FACE),
        "IPAdapterStyleCompositionBatch": (*_FRAMES, *_STYLE),
        "IPAdapterPreciseStyleTransferBatch": (*_FRAMES, *_STYLE),
        "IPAdapterPreciseCompositionBatch": (*_FRAMES, "composition"),
        "IPAdapterTiledBatch": (*_FRAMES, "tiles"),
        "IPAdapterClipVisionEnhancerBatch": (*_FRAMES, "fine detail"),
        "IPAdapterEmbedsBatch": (*_FRAMES, "image embeds"),
        "IPAdapterWeightsFromStrategy": (*_FRAMES, "weight schedule"),
        "IPAdapterPromptScheduleFromWeightsStrategy": (*_FRAMES, "prompt schedule", "prompt travel"),
    },
    "established/encode and save": {
        "IPAdapterEncoder": _SAVED,
        "IPAdapterEncoderAdvanced": (*_SAVED, "pad", "crop", "tiles"),
        "IPAdapterCombineEmbeds": ("merge references", "average images", "image embeds"),
        "IPAdapterEmbeds": ("image embeds", "apply embeds", *_PICTURE),
        "IPAdapterSaveEmbeds": _SAVED,
        "IPAdapterLoadEmbeds": ("load reference", "image embeds"),
    },
    "established/prepare pictures": {
        "PrepImageForClipVision": ("crop reference", "resize reference", "square", "reference image"),
        "IPAdapterNoise": ("negative image", "noise image"),
    },
    "established/for specialists": {
        "IPAdapterMS": ("mad scientist", "layer weights", "block weights"),
        "IPAdapterApply": ("old workflow",),
    },
}
_EXPERIMENTAL = (
    "IPAdapterMS", "IPAdapterModelLoaderAdvanced", "IPAdapterPlotModel", "IPAdapterClipVisionEnhancer", "IPAdapterClipVisionEnhancerBatch",
    "IPAdapterWeightsFromStrategy", "IPAdapterPromptScheduleFromWeightsStrategy",
)  # fmt: skip


def in_order(classes: dict[str, type], titles: dict[str, str]) -> tuple[dict[str, type], dict[str, str]]:
    """The nodes in the catalog's order, which the editor's tree keeps, and their titles; writes on the classes how they are found.

    Raises KeyError for a node that the catalog lacks.
    """
    folders = {node: (folder, aliases) for folder, found in _FOLDERS.items() for node, aliases in found.items()}
    for node, cls in classes.items():
        folder, aliases = folders[node]
        cls.CATEGORY = f"{_ROOT}/{folder}"
        cls.SEARCH_ALIASES = [*_ANY, *dict.fromkeys(aliases)]
        cls.EXPERIMENTAL = node in _EXPERIMENTAL
    return {node: classes[node] for node in folders}, {node: titles[node] for node in folders}
