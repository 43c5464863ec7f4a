"""Bad input gets one sentence that says what is wrong and what to do."""

import json
import re

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors.torch import load_file

from ipadapter_core.errors import IPAdapterError
from support import synth, tiny_base


def refusal(settings) -> str:
    """The sentence with which a run of these settings is refused."""
    from training.loop import Run

    with pytest.raises(IPAdapterError) as caught:
        Run(settings)
    told = str(caught.value)
    assert "\n" not in told and told.endswith(".")
    return told


def test_an_sdxl_encoder_on_an_sd15_adapter(models, tmp_path, settings):
    """ViT-bigG's projected features, 1280 wide, on an adapter for ViT-H's, 1024 wide."""
    path = tmp_path / "ip-adapter_sd15.safetensors"
    synth.save_adapter(synth.adapter("base", "sd15"), path)
    encoder = tiny_base.image_encoder(tmp_path / "bigG", 1664, 1280)
    told = refusal(settings(continue_from=path, image_encoder=encoder))
    assert told == (f"IP-Adapter for SD1.5 (4 tokens, ViT-H) takes image_embeds 1024 wide (ViT-H), and {encoder} gives 1280: "
                    "choose the image encoder that fits the adapter.")  # fmt: skip


def test_an_adapter_for_another_base(tmp_path, settings):
    path = tmp_path / "ip-adapter_sdxl.safetensors"
    synth.save_adapter(synth.adapter("base", "sdxl"), path)
    told = refusal(settings(continue_from=path))
    assert told == "ip-adapter_sdxl.safetensors is an adapter for SDXL and the base model is SD1.5: choose one that fits the other."


def test_captions_missing(tmp_path, settings):
    data = tiny_base.folder(tmp_path / "data", 3)
    rows = tiny_base.rows(3)
    del rows[1]["text"]
    tiny_base.write_rows(data, rows)
    told = refusal(settings(data=data))
    assert told == f'Line 2 of {data / "metadata.jsonl"} (1.png) has no caption: give each picture a "text" (it may be empty).'
    (data / "metadata.jsonl").unlink()
    assert "has no metadata.jsonl: write a line" in refusal(settings(data=data))


@pytest.mark.parametrize(("width", "told"), [
    (128, "The face_embedding of .* has 128 numbers, and adapters take 512: use InsightFace's embeddings."),
    (0, "has no face_embedding, and this kind of adapter is trained on one for each picture."),
])  # fmt: skip
@pytest.mark.parametrize("workers", [0, 1])
def test_a_face_embedding_of_another_width(tmp_path, settings, width, told, workers):
    from training.loop import train

    data = tiny_base.folder(tmp_path / "data", 2, face=width)
    with pytest.raises(IPAdapterError) as caught:
        train(settings(family="faceid", data=data, workers=workers))
    assert re.search(told, str(caught.value)) and "\n" not in str(caught.value)


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_file(tmp_path, settings):
    """A learning rate so high that the weights overflow after the first step."""
    from training.loop import train

    with pytest.raises(IPAdapterError) as caught:
        train(settings(learning_rate=1e37, steps=6, save_every=1, max_grad_norm=0))
    found = re.fullmatch(
        r"The (?:loss is not a number|gradients are not numbers) at step (\d); (ip-adapter_custom_(\d)\.safetensors) is the last good "
        r"file: go on from it with a lower --learning-rate or another precision\.",
        str(caught.value),
    )
    assert found and int(found[1]) == int(found[3]) + 1
    assert all(torch.isfinite(value).all() for value in load_file(tmp_path / "out" / found[2]).values())


def test_a_loss_that_is_no_number_before_any_file(settings, tmp_path):
    from training.loop import Run

    run = Run(settings())
    with torch.no_grad():
        run.named["image_proj.proj.bias"][0] = torch.nan
    with pytest.raises(IPAdapterError, match="The loss is not a number at step 1; no file was written yet"):
        run.advance(run.batches())
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.parametrize(("given", "told"), [
    (dict(base="/nowhere"), "--base is /nowhere, which does not exist."),
    (dict(data=""), "--data is missing: it names"),
    (dict(steps=0), "--steps is 0: it has to be at least 1."),
    (dict(drop_image=2.0), "--drop-image is 2.0: it has to be between 0 and 1."),
    (dict(drop_image=0.5, drop_text=0.5, drop_both=0.1), "--drop-image, --drop-text and --drop-both are together more than 1"),
    (dict(schedule="linear"), "--schedule is 'linear': use one of constant, cosine."),
    (dict(name="a/b"), "--name is 'a/b': use letters"),
    (dict(plus_width=100), "--plus-width is 100: use a multiple of 64"),
    (dict(base=__file__), "is a single file and does not say how it is configured"),
    (dict(continue_from="/nowhere"), "--continue-from is /nowhere, which is no file."),
])  # fmt: skip
def test_settings(settings, given, told):
    with pytest.raises(IPAdapterError, match=re.escape(told)):
        settings(**given)


def test_models_that_are_none(models, tmp_path, settings):
    data = tmp_path / "empty"
    data.mkdir()
    assert "has no metadata.jsonl" in refusal(settings(data=data))
    assert refusal(settings(data="/nowhere/*.tar")) == "--data is /nowhere/*.tar, and there is no such folder or file."
    assert "--image-encoder is missing" in refusal(settings(image_encoder=""))
    assert "is no CLIP image encoder in transformers' layout" in refusal(settings(image_encoder=models.data))
    assert re.match(r"The unet of .* cannot be loaded \(.*\): check that it is complete\.", refusal(settings(base=models.data)))
    assert "is FaceID" not in refusal(settings(family="faceid-plus-v2", name="myplus"))


def test_a_base_that_is_neither_sd15_nor_sdxl(models, tmp_path, settings):
    config = json.loads((models.sd15 / "unet" / "config.json").read_text())
    config = {key: value for key, value in config.items() if not key.startswith("_")}
    UNet2DConditionModel(**{**config, "cross_attention_dim": 1024}).save_pretrained(tmp_path / "unet")
    assert "has 16 cross-attentions of context width 1024: adapters can be trained for SD1.5 (16 of 768) and SDXL" in refusal(
        settings(base=tmp_path)
    )


def test_an_encoder_whose_width_is_that_of_face_embeddings(tmp_path, settings):
    encoder = tiny_base.image_encoder(tmp_path / "encoder", 512, 64)
    told = refusal(settings(family="plus", image_encoder=encoder))
    assert told.startswith("A plus adapter on an encoder 512 wide has the shapes of IP-Adapter FaceID portrait unnorm")


def test_features_for_another_family(models, tmp_path, settings):
    from training.config import Precompute
    from training.precompute import precompute

    given = models.arguments(tmp_path / "features")
    precompute(Precompute(**{key: value for key, value in given.items() if key in Precompute.__dataclass_fields__}))
    told = refusal(settings(data=tmp_path / "features", family="plus"))
    assert told == f"{tmp_path / 'features'} has image_embeds, and this family takes penultimate_hidden_states."
    assert "has no face embeddings: run precompute with --family faceid." in refusal(settings(data=tmp_path / "features", family="faceid"))


def test_the_command_says_the_sentence_and_ends_with_1(models, tmp_path, caplog):
    from training.__main__ import main

    assert main(["--base", "/nowhere", "--data", "x", "--out", "y"]) == 1
    assert [record.message for record in caplog.records] == ["--base is /nowhere, which does not exist."]
