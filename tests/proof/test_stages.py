"""The making of the world, in small: every stage once, and nothing again when it goes on after its end."""

import json
import os
import random
from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from support.lines import fail, meet
from support.world_models import MODELS, import_world

FILES = [
    "checkpoints/tiny-world", "clip_vision/tiny-world", "ipadapter/tiny-world_plus", "ipadapter/tiny-world_standard",
    "loras/tiny-world-outlined", "reader",
]  # fmt: skip


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A world of 64 pictures, each part of which is trained for a step or two, in this process."""
    import_world()
    from world import adapters, pictures, reader, stages

    monkeypatch.setattr(stages, "PICTURES", 64)
    monkeypatch.setattr(stages, "FRESH", 16)
    write, draw = adapters.write_data, pictures.draw_many
    monkeypatch.setattr(adapters, "write_data", lambda folder: write(folder, 32))
    monkeypatch.setattr(reader, "draw_many", lambda split, count: draw(split, 64))
    monkeypatch.setattr(stages, "beside", lambda *lines: [line() for line in lines])
    return stages.World(0.0005, tmp_path / "work", tmp_path / "models")


def test_every_stage(world):
    world.run()
    made = {name: load_file(world.models / f"{name}.safetensors") for name in FILES}
    for name, tensors in made.items():
        committed = load_file(MODELS / f"{name}.safetensors")
        assert {key: value.shape for key, value in tensors.items()} == {key: value.shape for key, value in committed.items()}, name
        assert all(value.float().isfinite().all() for value in tensors.values()), name
    figures = json.loads((world.models / "figures.json").read_text())
    assert figures.keys() == json.loads((MODELS / "figures.json").read_text()).keys()
    assert (world.work / "tiny-world-outlined.safetensors").exists()

    random.seed(1)
    torch.manual_seed(1)
    world.run()
    for name, tensors in made.items():
        again = load_file(world.models / f"{name}.safetensors")
        assert all(torch.equal(again[key].float(), value.float()) for key, value in tensors.items()), name


def test_the_side_of_the_text_is_settled_before_the_rest(tmp_path):
    """At the end of training the file's 8 bits have it as the UNet learned with it; the rest has gone on learning."""
    import_world()
    from world import pictures, text, unet

    tokens, scenes = text.tokenizer(MODELS / "tokenizer"), pictures.draw_many("train", 64)[0]
    latents = torch.randn(64, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    found, new = unet.train(scenes, latents, tokens, tmp_path, 6), unet.Model(tokens)
    in_eight_bits = {name for name, value in found.named_parameters() if torch.equal(value.to(unet.EIGHT_BITS).float(), value)}
    of_text = {name for name, value in found.named_parameters() if name.startswith("text.") and value.ndim == 2}
    of_text |= {name for name, _ in found.named_parameters() if name.endswith(unet.OF_TEXT)}
    learned = {name for name, value in found.named_parameters() if not torch.equal(value, new.get_parameter(name))}
    assert len(of_text) > 32 and of_text <= in_eight_bits and of_text <= learned
    assert not [name for name in in_eight_bits if name.endswith((".conv.weight", "attn1.to_q.weight", "attn2.to_q.weight"))]


def test_lines_run_beside_each_other_with_a_thread_each_and_fail_with_one(tmp_path):
    import_world()
    from world.beside import beside

    a, b = tmp_path / "a", tmp_path / "b"
    with pytest.raises(ValueError, match="this line fails"):
        beside(partial(meet, a, b), partial(meet, b, a), fail)
    processes, threads = zip(*(path.read_text().split() for path in (a, b)), strict=True)
    assert len({*processes, str(os.getpid())}) == 3 and threads == ("1", "1")
