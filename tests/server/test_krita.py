"""The server driven as krita-ai-diffusion drives it: it looks into /object_info for what is installed, then sends API prompts.

Every region of a picture has its own references, encoded one by one with a weight, combined, and applied with the region's mask; the
model of one region goes on to the next. The picture is sampled small, scaled up and sampled again with the same model.
"""

import io

import numpy as np
import pytest
from PIL import Image

from support.convert import without_adapters
from support.graph import Graph, second
from support.rig import adapter_nodes

ADAPTER, ENCODER = "ip-adapter-plus_sd15.safetensors", "CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors"
CHECKPOINT = "v1-5-pruned-emaonly-fp16.safetensors"
SMALL, LARGE = (384, 256), (768, 512)
REGIONS = 3


def region_mask(graph, index):
    """White in the index-th column of the large picture, black elsewhere."""
    width, height = LARGE[0] // REGIONS, LARGE[1]
    black = graph.add("SolidMask", value=0.0, width=LARGE[0], height=height)
    white = graph.add("SolidMask", value=1.0, width=width, height=height)
    return graph.add("MaskComposite", destination=black, source=white, x=index * width, y=0, operation="add")


def regional(graph, model, picture):
    """`model` with two weighted references for each region."""
    adapter = graph.add("IPAdapterModelLoader", ipadapter_file=ADAPTER)
    encoder = graph.add("CLIPVisionLoader", clip_name=ENCODER)
    inverted = graph.add("ImageInvert", image=picture)
    for index in range(REGIONS):
        encoded = [
            graph.add("IPAdapterEncoder", ipadapter=adapter, image=image, weight=weight, clip_vision=encoder)
            for image, weight in ((picture, 1.0 - 0.2 * index), (inverted, 0.4 + 0.2 * index))
        ]
        combined = graph.add("IPAdapterCombineEmbeds", embed1=encoded[0], embed2=encoded[1], method="concat")
        model = graph.add(
            "IPAdapterEmbeds", model=model, ipadapter=adapter, pos_embed=combined, neg_embed=second(encoded[0]), clip_vision=encoder,
            attn_mask=region_mask(graph, index), weight=0.9, weight_type="linear", embeds_scaling="V only", start_at=0.0, end_at=0.9,
        )  # fmt: skip
    return model


def prompt():
    """Two passes, each saved."""
    graph = Graph()
    checkpoint = graph.add("CheckpointLoaderSimple", ckpt_name=CHECKPOINT)
    clip, vae = [checkpoint[0], 1], [checkpoint[0], 2]
    model = regional(graph, checkpoint, graph.add("LoadImage", image="example.png"))
    sampling = dict(model=model, steps=3, cfg=5.0, sampler_name="euler", scheduler="normal", seed=7)
    sampling |= dict(positive=graph.add("CLIPTextEncode", text="a market", clip=clip))
    sampling |= dict(negative=graph.add("CLIPTextEncode", text="blurry", clip=clip))
    latent = graph.add("EmptyLatentImage", width=SMALL[0], height=SMALL[1], batch_size=1)
    latent = graph.add("KSampler", latent_image=latent, denoise=1.0, **sampling)
    graph.add("SaveImage", images=graph.add("VAEDecode", samples=latent, vae=vae), filename_prefix="krita_small")
    latent = graph.add("LatentUpscale", samples=latent, upscale_method="bilinear", width=LARGE[0], height=LARGE[1], crop="disabled")
    latent = graph.add("KSampler", latent_image=latent, denoise=0.7, **sampling)
    graph.add("SaveImage", images=graph.add("VAEDecode", samples=latent, vae=vae), filename_prefix="krita_large")
    return dict(graph)


@pytest.fixture(scope="module")
def sent(rig):
    graph = prompt()
    rig.provide(graph)
    return graph


def saved(rig, graph):
    """The small and the large picture [h, w, 3] of a prompt, and the files they were saved as."""
    entry = rig.server.wait(rig.server.queue(graph))
    files = [image["filename"] for output in entry["outputs"].values() for image in output.get("images", [])]
    arrays = [np.asarray(Image.open(io.BytesIO(picture)), dtype=float) for picture in rig.server.pictures(entry)]
    return sorted(arrays, key=lambda one: one.shape), files


def test_what_it_looks_for_is_there(rig, sent):
    info = rig.server.get("/object_info")
    assert "IPAdapter" in info
    required = info["IPAdapterModelLoader"]["input"]["required"]
    assert ADAPTER in required["ipadapter_file"][0]
    assert ENCODER in info["CLIPVisionLoader"]["input"]["required"]["clip_name"][0]


def test_three_regions_at_two_resolutions(rig, sent):
    with_regions, files = saved(rig, sent)
    without, _ = saved(rig, without_adapters(sent, adapter_nodes()))
    assert {name.split("_0")[0] for name in files} == {"krita_small", "krita_large"}
    for size, steered, plain in zip((SMALL, LARGE), with_regions, without, strict=True):
        assert steered.shape == (size[1], size[0], 3) == plain.shape
        for columns in np.split(np.abs(steered - plain), REGIONS, axis=1):
            assert columns.mean() > 2  # of 255; rounding alone stays below 1


def test_each_region_has_its_reference(rig, sent):
    """Without the last region's references the small picture changes most where that region is."""
    changed = {key: {**node, "inputs": dict(node["inputs"])} for key, node in sent.items()}
    last = [key for key, node in sent.items() if node["class_type"] == "IPAdapterEmbeds"][-1]
    changed[last]["inputs"]["weight"] = 0.0
    before, after = saved(rig, sent)[0][0], saved(rig, changed)[0][0]
    moved = [columns.mean() for columns in np.split(np.abs(before - after), REGIONS, axis=1)]
    assert moved[2] == max(moved) > 0
