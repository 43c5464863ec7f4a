"""The picture and animation nodes, called as ComfyUI and other packs call them."""

import inspect
import json
import random
from pathlib import Path

import pytest
import torch

from support import lab

NODES = ("PrepImageForClipVision", "IPAdapterNoise", "IPAdapterWeights", "IPAdapterWeightsFromStrategy",
         "IPAdapterPromptScheduleFromWeightsStrategy", "IPAdapterCombineWeights")  # fmt: skip
SURFACE = json.loads((Path(lab.__file__).parent / "nodes.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("node", NODES)
def test_every_input_and_output_is_explained(pack, node):
    cls = pack[node]
    sections = cls.INPUT_TYPES()
    assert cls.DESCRIPTION
    assert len(cls.OUTPUT_TOOLTIPS) == len(cls.RETURN_TYPES)
    assert all(cls.OUTPUT_TOOLTIPS)
    for section in sections.values():
        for name, declared in section.items():
            assert declared[1]["tooltip"], name


@pytest.mark.parametrize("node", NODES)
def test_methods_take_the_established_keywords_in_order(pack, node):
    cls = pack[node]
    assert cls.FUNCTION == SURFACE[node]["function"]
    assert list(inspect.signature(getattr(cls(), cls.FUNCTION)).parameters) == SURFACE[node]["method_keywords"]


def test_random_choices_do_not_disturb_the_global_state(pack):
    states = torch.get_rng_state(), random.getstate()
    for kind in pack["IPAdapterNoise"].INPUT_TYPES()["required"]["type"][0]:
        lab.call(pack["IPAdapterNoise"], type=kind, strength=0.7, blur=2, image_optional=lab.images(1, 40, 50))
    weights = [lab.call(pack["IPAdapterWeights"], weights="0, 1", timing="random", frames=9)[0] for _ in range(2)]
    assert weights[0] == weights[1]
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]


def test_weights_are_plain_lists_that_count_and_turn_round(pack):
    images = lab.images(3, 8, 8)
    weights, inverted, frames, first, second, strategy = lab.call(
        pack["IPAdapterWeights"], weights="1.0, 0.0", timing="linear", frames=4, method="shift batches", image=images
    )
    assert isinstance(weights, list)
    assert inverted == weights[::-1]
    assert frames == len(weights) == first.shape[0] == second.shape[0] == 8
    assert strategy == {
        "weights": "1.0, 0.0", "timing": "linear", "frames": 4, "start_frame": 0, "end_frame": 9999, "add_starting_frames": 0,
        "add_ending_frames": 0, "method": "shift batches", "frame_count": 3,
    }  # fmt: skip


def test_a_strategy_carries_the_weights_to_other_pictures(pack):
    given = lab.call(pack["IPAdapterWeights"], weights="1, 0", timing="random", frames=5, image=lab.images(3, 8, 8))
    others = lab.images(3, 16, 8, "other")
    again = lab.call(pack["IPAdapterWeightsFromStrategy"], weights_strategy=given[5], image=others)
    assert again[:3] == given[:3]
    assert again[5] == given[5]
    assert torch.equal(again[3][::5], others)
    assert lab.call(pack["IPAdapterWeightsFromStrategy"], weights_strategy=given[5])[5] == given[5]
    fewer = lab.call(pack["IPAdapterWeightsFromStrategy"], weights_strategy=given[5], image=others[:2])
    assert fewer[2] == 10
    assert fewer[5]["frame_count"] == 2


def test_combined_weights(pack):
    assert lab.call(pack["IPAdapterCombineWeights"], weights_1=[0.1, 0.2], weights_2=0.5) == ([0.1, 0.2, 0.5], 3)


@pytest.mark.parametrize(("node", "inputs", "words"), [
    ("PrepImageForClipVision", {"image": torch.full((1, 4, 4, 3), float("nan"))}, "not numbers"),
    ("PrepImageForClipVision", {"image": torch.zeros(0, 4, 4, 3)}, "is empty"),
    ("IPAdapterNoise", {"type": "fade", "strength": 1.0, "blur": 0, "image_optional": torch.zeros(4, 4, 3)}, "not a picture"),
    ("IPAdapterWeights", {"weights": "a, b", "timing": "linear", "frames": 5}, "weights cannot be read"),
    ("IPAdapterWeights", {"weights": "1, 0", "method": "shift batches", "image": torch.zeros(1, 4, 4, 3)}, "only one: connect more"),
    ("IPAdapterWeightsFromStrategy", {"weights_strategy": {}}, "weights_strategy output"),
    ("IPAdapterPromptScheduleFromWeightsStrategy", {"weights_strategy": 3, "prompt": "x"}, "weights_strategy output"),
])  # fmt: skip
def test_what_cannot_work_is_said_in_a_sentence(pack, node, inputs, words):
    with pytest.raises(ValueError, match=words) as error:
        lab.call(pack[node], **inputs)
    assert type(error.value).__name__ == "IPAdapterError"
