"""The requests of the soak: small pictures in one step, with every kind of change that people make between one queue and the next."""

import itertools
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from support.graph import Graph, Output, second

CHECKPOINTS = {"sd15": "v1-5-pruned-emaonly-fp16.safetensors", "sdxl": "sd_xl_base_1.0.safetensors"}
ADAPTERS = {
    "sd15": ("ip-adapter_sd15.safetensors", "ip-adapter-plus_sd15.safetensors", "ip_plus_composition_sd15.safetensors"),
    "sdxl": ("ip-adapter-plus_sdxl_vit-h.safetensors",),
}
ENCODER = "CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors"
NODES = ("advanced", "batch", "embeds", "tiled", "face")
MASKS = ("", "left", "picture")
PICTURES = 6
RUNS = {"sd15": 40, "sdxl": 10}  # requests with one base model, before the next is loaded


@dataclass(frozen=True)
class Request:
    """What one queue asks for."""

    base: str = "sd15"
    adapter: str = ADAPTERS["sd15"][0]
    node: str = "advanced"
    picture: int = 0
    mask: str = ""
    weight: float = 0.8
    batch: int = 1
    seed: int = 1


REFERENCES = (  # asked for at the beginning, again and again, and at the end
    Request(),
    Request(adapter=ADAPTERS["sd15"][1], node="batch", picture=1, mask="left", batch=2),
    Request(adapter=ADAPTERS["sd15"][2], node="embeds", picture=2, weight=1.1),
    Request(node="tiled", picture=3, batch=2),
    Request(node="face", picture=4, mask="picture"),
    Request(base="sdxl", adapter=ADAPTERS["sdxl"][0], picture=5, mask="left"),
    Request(base="sdxl", adapter=ADAPTERS["sdxl"][0], node="embeds", picture=1, batch=2),
)


def combinations(base: str, count: int) -> list[tuple[Any, ...]]:
    """`count` of all (adapter, node, picture), in random order: few enough for the pack's caches to have seen all of them soon."""
    nodes = NODES if base == "sd15" else NODES[:-1]
    found = list(itertools.product(ADAPTERS[base], nodes, range(PICTURES)))
    random.Random(base).shuffle(found)
    return found[:count]


COMBINATIONS = {"sd15": combinations("sd15", 40), "sdxl": combinations("sdxl", 12)}


def random_request(chance: random.Random, number: int) -> Request:
    """The `number`-th request of a soak: RUNS of them with one base model, a new weight and seed each time."""
    rounds, place = divmod(number, sum(RUNS.values()))
    base = "sd15" if place < RUNS["sd15"] else "sdxl"
    turn = rounds * RUNS[base] + place % RUNS["sd15"]
    adapter, node, picture = COMBINATIONS[base][turn % len(COMBINATIONS[base])]
    weight, mask, batch = round(chance.uniform(0.1, 1.5), 4), chance.choice(MASKS), chance.choice((1, 1, 2, 3))
    return Request(base, adapter, node, picture, mask, weight, batch, seed=1000 + number)


def write_pictures(folder: Path, source: Path) -> None:
    """Six pictures of other shapes and colours, named as the requests name them."""
    picture = ImageOps.fit(Image.open(source).convert("RGB"), (320, 256))
    changes = (
        lambda p: p, ImageOps.invert, ImageOps.flip, lambda p: p.crop((0, 0, 256, 256)), lambda p: p.rotate(90, expand=True),
        lambda p: ImageOps.solarize(p, 100),
    )  # fmt: skip
    for number, change in enumerate(changes):
        change(picture).save(folder / picture_name(number))


def picture_name(number: int) -> str:
    return f"soak_{number}.png"


def prompt(request: Request, adapter: bool = True) -> dict[str, Any]:
    """The API prompt of a request; without `adapter` the model is sampled as it is. What seldom changes keeps its key."""
    graph = Graph()
    checkpoint = graph.add("CheckpointLoaderSimple", ckpt_name=CHECKPOINTS[request.base])
    clip, vae = second(checkpoint), [checkpoint[0], 2]
    positive, negative = (graph.add("CLIPTextEncode", text=text, clip=clip) for text in ("a market", "blurry"))
    latent = graph.add("EmptyLatentImage", width=64, height=64, batch_size=request.batch)
    model = applied(graph, checkpoint, request) if adapter else checkpoint
    how = dict(seed=request.seed, steps=1, cfg=4.0, sampler_name="euler", scheduler="normal", denoise=1.0)
    sampled = graph.add("KSampler", model=model, positive=positive, negative=negative, latent_image=latent, **how)
    graph.add("PreviewImage", images=graph.add("VAEDecode", samples=sampled, vae=vae))
    return dict(graph)


def applied(graph: Graph, model: Output, request: Request) -> Output:
    """The model with the request's adapter on it."""
    image = graph.add("LoadImage", image=picture_name(request.picture))
    masked = {"attn_mask": mask(graph, image, request.mask)} if request.mask else {}
    window = dict(start_at=0.0, end_at=1.0, embeds_scaling="V only")
    common = dict(weight=request.weight, weight_type="linear", **window, **masked)
    if request.node == "face":
        loader = graph.add("IPAdapterUnifiedLoaderFaceID", model=model, preset="FACEID PLUS V2", lora_strength=0.6, provider="CPU")
        given = dict(model=loader, ipadapter=second(loader), image=image, weight_faceidv2=1.0, combine_embeds="concat")
        return graph.add("IPAdapterFaceID", **given, **common)
    encoder = graph.add("CLIPVisionLoader", clip_name=ENCODER)
    loaded = dict(clip_vision=encoder, ipadapter=graph.add("IPAdapterModelLoader", ipadapter_file=request.adapter))
    given = dict(model=model, **loaded, **common)
    if request.node == "embeds":
        encoded = graph.add("IPAdapterEncoder", image=image, weight=1.0, **loaded)
        return graph.add("IPAdapterEmbeds", **given, pos_embed=encoded, neg_embed=second(encoded))
    if request.node == "batch":
        pictures = graph.add("ImageBatch", image1=image, image2=graph.add("ImageInvert", image=image))
        return graph.add("IPAdapterBatch", **given, image=pictures, encode_batch_size=0)
    if request.node == "tiled":
        return graph.add("IPAdapterTiled", **given, image=image, combine_embeds="concat", sharpening=0.1)
    return graph.add("IPAdapterAdvanced", **given, image=image, combine_embeds="concat")


def mask(graph: Graph, image: Output, kind: str) -> Output:
    if kind == "picture":
        return graph.add("ImageToMask", image=image, channel="red")
    black = graph.add("SolidMask", value=0.0, width=96, height=64)
    white = graph.add("SolidMask", value=1.0, width=48, height=64)
    return graph.add("MaskComposite", destination=black, source=white, x=0, y=0, operation="add")
