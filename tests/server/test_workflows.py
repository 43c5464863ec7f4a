"""The main job: the workflow files run on a real server, and the adapter steers the picture."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from support.convert import to_prompt, without_adapters
from support.rig import PACK, REPO, adapter_nodes
from support.server import ServerError

WORKFLOWS = sorted((REPO / "workflows").glob("*.json"))
SIMPLE = REPO / "workflows" / "simple.json"


def pixels(picture: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(picture)), dtype=float)


def reseeded(prompt, seed):
    """The prompt with another seed in every sampler, so that the server samples instead of taking the picture from its cache."""
    return {
        key: {**node, "inputs": {**node["inputs"], **({"seed": seed} if "seed" in node["inputs"] else {})}} for key, node in prompt.items()
    }


def test_the_server_starts_without_a_complaint_about_the_pack(rig):
    told = [line for line in rig.server.log_text().splitlines() if PACK in line]
    assert any("seconds" in line for line in told)  # ComfyUI's list of what it loaded, and how long that took
    assert [line for line in told if "FAILED" in line or "Cannot import" in line] == []


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.stem)
def test_the_adapter_changes_the_picture(path, rig):
    prompt = rig.prompt(path)
    with_adapter = pixels(rig.server.run(prompt)[0])
    without = pixels(rig.server.run(without_adapters(prompt, adapter_nodes()))[0])
    assert with_adapter.shape == without.shape
    assert with_adapter.std() > 5  # a picture, not one grey
    assert np.abs(with_adapter - without).mean() > 2  # of 255; rounding alone stays below 1


def test_the_same_seed_gives_the_same_picture_again(rig):
    """Sampled three times on cached loaders: seed 1, seed 2, seed 1 again; nothing piles up on the cached model."""
    prompt = rig.prompt(SIMPLE)
    first, other, again = (rig.server.run(reseeded(prompt, seed))[0] for seed in (1, 2, 1))
    assert (pixels(first) == pixels(again)).all()
    assert (pixels(first) != pixels(other)).any()


def test_weight_zero_is_the_picture_without_the_adapter(rig):
    prompt = rig.prompt(SIMPLE)
    node = next(key for key, node in prompt.items() if node["class_type"] == "IPAdapter")
    off = {**prompt, node: {**prompt[node], "inputs": {**prompt[node]["inputs"], "weight": 0.0}}}
    without = without_adapters(prompt, adapter_nodes())
    assert (pixels(rig.server.run(off)[0]) == pixels(rig.server.run(without)[0])).all()


def test_an_error_arrives_as_a_sentence(rig):
    """An SDXL adapter on an SD 1.5 model: the message names both, and is no traceback."""
    workflow = json.loads((REPO / "workflows" / "advanced.json").read_text())
    prompt = to_prompt(workflow, rig.info)
    loader = next(node for node in prompt.values() if node["class_type"] == "IPAdapterModelLoader")
    loader["inputs"]["ipadapter_file"] = "ip-adapter-plus_sdxl_vit-h.safetensors"
    rig.provide(prompt)
    with pytest.raises(ServerError, match=r"SDXL.*SD1\.5|SD1\.5.*SDXL") as caught:
        rig.server.run(prompt)
    message = caught.value.details["exception_message"].strip()
    assert message.endswith(".") and "\n" not in message and "size mismatch" not in message
