"""The main job: the workflow files run on a real server, and the adapter steers the picture."""

import io
import json

import numpy as np
import pytest
from PIL import Image, ImageSequence

from support.convert import to_prompt, without_adapters
from support.rig import PACK, adapter_nodes, example, examples
from support.server import ServerError

WORKFLOWS = examples()
SIMPLE = example("01")


def pixels(picture: bytes) -> np.ndarray:
    """[frames, height, width, 3] of a picture or an animation."""
    return np.stack([np.asarray(frame.convert("RGB"), dtype=float) for frame in ImageSequence.Iterator(Image.open(io.BytesIO(picture)))])


def quick(prompt):
    """The prompt with fewer steps, and a small picture for the transformers, which have 38 or 57 blocks; the first example is run in full
    in the browser."""
    steps = 2 if any(node["class_type"] == "EmptySD3LatentImage" for node in prompt.values()) else 3
    return with_values(with_values(prompt, {"steps": steps}, {"KSampler"}), {"width": 128, "height": 128}, {"EmptySD3LatentImage"})


def with_values(prompt, values, kinds):
    """The prompt with other values in the nodes of these kinds."""
    changed = {key: {**node, "inputs": {**node["inputs"], **values}} for key, node in prompt.items() if node["class_type"] in kinds}
    return {**prompt, **changed}


def test_the_server_starts_without_a_complaint_about_the_pack(rig):
    told = [line for line in rig.server.log_text().splitlines() if PACK in line]
    assert any("seconds" in line for line in told)  # ComfyUI's list of what it loaded, and how long that took
    assert [line for line in told if "FAILED" in line or "Cannot import" in line] == []


@pytest.fixture(scope="module")
def prompts(rig):
    """Every workflow as a prompt, all models made at once."""
    found = {path: to_prompt(json.loads(path.read_text(encoding="utf-8")), rig.info) for path in WORKFLOWS}
    rig.provide(*found.values())
    return found


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.stem)
def test_the_adapter_changes_the_picture(path, rig, prompts):
    """Every output node gives something, others may show what they took; saved pictures are other ones without the adapters."""
    prompt = quick(prompts[path])
    entry = rig.server.wait(rig.server.queue(prompt))
    assert set(entry["outputs"]) >= {key for key, node in prompt.items() if rig.info[node["class_type"]]["output_node"]}
    if not any(node["class_type"] == "KSampler" for node in prompt.values()):
        return  # what these save or show, test_examples.py looks at
    with_adapter = rig.server.pictures(entry)
    plain = without_adapters(prompt, adapter_nodes())
    if not any(rig.info[node["class_type"]]["output_node"] for node in plain.values()):
        return  # it shows what the adapter did alone
    without = rig.server.run(plain)
    for one, other in zip(map(pixels, with_adapter), map(pixels, without), strict=True):
        assert one.shape == other.shape
        assert one.std() > 5  # a picture, not one grey
        assert np.abs(one - other).mean() > 2  # of 255; rounding alone stays below 1


@pytest.mark.parametrize(
    ("number", "loader", "inputs"),
    [
        ("34", "IPAdapterUnifiedLoader", {"preset": "STANDARD (medium strength)"}),
        ("36", "ImagePromptLoader", {"adapter": "auto", "lora_strength": 0.0, "provider": "CPU"}),
    ],
)
def test_loaders_find_what_a_transformer_needs(number, loader, inputs, rig):
    """The picture is the one that comes of the files named one by one."""
    prompt = quick(rig.prompt(example(number)))
    (apply,) = (key for key, node in prompt.items() if node["class_type"] == "IPAdapterAdvanced")
    given = {name: value for name, value in prompt[apply]["inputs"].items() if name != "clip_vision"}
    found = {
        **prompt,
        "loader": {"class_type": loader, "inputs": {"model": given["model"], **inputs}},
        apply: {**prompt[apply], "inputs": {**given, "model": ["loader", 0], "ipadapter": ["loader", 1]}},
    }
    one, other = (pixels(rig.server.run(each)[0]) for each in (prompt, found))
    assert one.std() > 5 and (one == other).all()


def test_the_same_seed_gives_the_same_picture_again(rig):
    """Sampled three times on cached loaders: seed 1, seed 2, seed 1 again; nothing piles up on the cached model."""
    prompt = rig.prompt(SIMPLE)
    first, other, again = (rig.server.run(with_values(prompt, {"seed": seed}, {"KSampler"}))[0] for seed in (1, 2, 1))
    assert (pixels(first) == pixels(again)).all()
    assert (pixels(first) != pixels(other)).any()


def test_weight_zero_is_the_picture_without_the_adapter(rig):
    prompt = rig.prompt(SIMPLE)
    off = with_values(prompt, {"weight": 0.0}, {"IPAdapterAdvanced"})
    without = without_adapters(prompt, adapter_nodes())
    assert (pixels(rig.server.run(off)[0]) == pixels(rig.server.run(without)[0])).all()


def test_an_error_arrives_as_a_sentence(rig):
    """An SDXL adapter on an SD 1.5 model: the message names both, and is no traceback."""
    workflow = json.loads(example("10").read_text())
    prompt = to_prompt(workflow, rig.info)
    loader = next(node for node in prompt.values() if node["class_type"] == "IPAdapterModelLoader")
    loader["inputs"]["ipadapter_file"] = "ip-adapter-plus_sdxl_vit-h.safetensors"
    rig.provide(prompt)
    with pytest.raises(ServerError, match=r"SDXL.*SD1\.5|SD1\.5.*SDXL") as caught:
        rig.server.run(prompt)
    message = caught.value.details["exception_message"].strip()
    assert message.endswith(".") and "\n" not in message and "size mismatch" not in message
