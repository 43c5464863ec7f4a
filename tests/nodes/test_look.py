"""The nodes that show: what they show is what the engine does."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from ipadapter_core.adapter.layers import layer_weights
from ipadapter_core.pictures.preprocess import clip_pixels
from support import lab, onnx_faces, plain, shapes
from support.world import AdapterFiles


@pytest.fixture(scope="module")
def small(pack, comfy):
    return plain.Small(pack, comfy)


def run(cls, **kw):
    """(outputs, what the node shows) of an output node."""
    given = getattr(cls(), cls.FUNCTION)(**kw)
    return given["result"], given["ui"]


def panels(model, steps=20, scheduler="normal"):
    from ipadapter_pack.nodes.host.look.panels import panels

    return panels(model, steps, scheduler)


def test_pictures_are_shown_in_the_node(pack, comfy):
    """Kept by ComfyUI's own preview in its temporary folder, as the picture that the output gives."""
    (squares, view), ui = run(pack["IPAdapterReferenceView"], image=lab.images(2, 60, 90), fit="tiles", tiles=1, size=0)
    assert squares.shape == (4, 224, 224, 3) and len(view) == 2
    assert len(ui["images"]) == 2
    shown = ui["images"][0]
    assert shown["type"] == "temp"
    import folder_paths

    saved = np.asarray(Image.open(f"{folder_paths.get_temp_directory()}/{shown['filename']}"))
    assert np.abs(saved / 255 - view[0].numpy()).max() < 1 / 255 + 1e-6


@pytest.mark.parametrize("fit", ["center crop", "pad", "stretch", "tiles"])
def test_the_squares_are_what_the_encoder_gets(small, fit, monkeypatch):
    """The pixels that arrive at the encoder of IPAdapter Encoder Advanced, mask and all, are the squares that are shown."""
    image, mask = lab.images(1, 100, 150, tag="view"), torch.zeros(1, 100, 150)
    mask[:, :, 30:110] = 1
    seen = []
    forward = type(small.encoder.model).forward

    def watched(self, pixel_values, **kw):
        seen.append(pixel_values)
        return forward(self, pixel_values, **kw)

    monkeypatch.setattr(type(small.encoder.model), "forward", watched)
    lab.call(
        small.pack["IPAdapterEncoderAdvanced"],
        ipadapter=small.adapter, clip_vision=small.encoder, image=image, weight=1.0, fit=fit, tiles=2, size=112, mask=mask,
    )  # fmt: skip
    view = small.pack["IPAdapterReferenceView"]
    (squares, _), _ = run(view, image=image, fit=fit, tiles=2, size=112, mask=mask, clip_vision=small.encoder)
    got = clip_pixels(squares, 112)
    assert torch.cat(seen).shape == got.shape
    # clip_pixels rounds the shown squares to 8 bits, half a level of the smallest deviation; bicubic masks overshoot 0 and 1 a little
    assert (torch.cat(seen) - got).abs().mean() < 0.5 / 255 / 0.26


def test_the_squares_can_be_connected_to_any_node(small):
    image = lab.images(1, 100, 150)
    (squares, _), _ = run(small.pack["IPAdapterReferenceView"], image=image, fit="center crop", tiles=2, size=0)
    a, b = (small.features(picture) for picture in (squares, image))
    assert (a - b).norm() < 1e-6 * b.norm()


def test_the_plot_of_a_model_has_the_weights_of_its_layers(small):
    """By the engine's own table of weight types; the middle block, which these nodes leave out, is 0."""
    model = small.apply(weight=0.8, weight_type="ease in")
    model = small.apply(model, weight=-0.5, weight_type="style transfer")
    over_layers, over_steps = panels(model)
    expected = [layer_weights("SD1.5", "ease in", 0.8), layer_weights("SD1.5", "style transfer", -0.5)]
    assert over_layers.kind == "bars" and len(over_layers.labels) == 16
    assert over_layers.labels[0] == "in 1" and over_layers.labels[6] == "mid 0" and over_layers.labels[-1] == "out 11"
    for series, weights in zip(over_layers.series, expected, strict=True):
        assert series.name.endswith(small.file.removesuffix(".safetensors"))
        assert list(series.values) == pytest.approx([0.0 if t == 6 else weights.get(t, 0.0) for t in range(16)], abs=0)
    assert [max(series.values, key=abs) for series in over_steps.series] == [pytest.approx(max(expected[0].values())), -0.5]


def test_layers_that_push_the_picture_away_are_below_zero(small):
    """The precise types put the picture on the negative side there (transformers 4 and 5 of SD1.5 hold the composition)."""
    (bars,) = panels(small.apply(weight=0.8, weight_type="style transfer precise"))[0].series
    weights = layer_weights("SD1.5", "style transfer precise", 0.8)
    assert {t for t, value in enumerate(bars.values) if value < 0} == {4, 5}
    assert list(bars.values) == [weights.get(t, 0.0) * (-1 if t in (4, 5) else 1) for t in range(16)]


@pytest.mark.parametrize(("scheduler", "steps"), [("normal", 20), ("karras", 12), ("ddim_uniform", 30)])
def test_the_plot_of_the_steps_is_where_the_sampler_has_the_adapter_on(small, scheduler, steps, monkeypatch):
    """Watched while sampling: whether the window is open in each step, by the sigma of the step (ddim_uniform adds one to 30)."""
    from ipadapter_pack.nodes.host.engine.windows import Window

    model = small.apply(weight=0.6, start_at=0.2, end_at=0.7)
    watched = []
    is_open = Window.is_open
    monkeypatch.setattr(Window, "is_open", lambda self, *args: (watched.append(is_open(self, *args)), watched[-1])[1])
    small.out(model, steps=steps, scheduler=scheduler)
    sampled, watched[:] = list(watched), []
    (over_steps,) = panels(model, steps, scheduler)[1:]
    assert len(sampled) == len(over_steps.labels) and True in sampled and False in sampled
    assert f"over {len(sampled)} steps" in over_steps.title
    assert list(over_steps.series[0].values) == [0.6 if one else 0.0 for one in sampled]


def test_the_plot_of_frames_has_each_latents_weight(small):
    model = lab.call(
        small.pack["IPAdapterBatch"],
        model=small.unet, ipadapter=small.adapter, clip_vision=small.encoder, image=lab.images(3), weight=[0.1, 0.5, 0.9],
        weight_type="linear", start_at=0.0, end_at=1.0, embeds_scaling="V only",
    )[0]  # fmt: skip
    frames = panels(model)[2]
    assert frames.kind == "line" and list(frames.labels) == ["1", "2", "3"]
    assert list(frames.series[0].values) == [0.1, 0.5, 0.9]
    assert panels(model)[0].series[0].values[0] == pytest.approx(0.5)  # their mean over layers


def batch(small, model, **kw):
    given = dict(ipadapter=small.adapter, clip_vision=small.encoder, image=lab.images(2), weight=[0.5, 1.0], weight_type="linear")
    return lab.call(small.pack["IPAdapterBatch"], model=model, **{**given, **kw}, start_at=0.0, end_at=1.0, embeds_scaling="V only")[0]


def test_only_layers_that_the_adapter_is_on_count(small):
    """'strong middle' at full weight stands on the middle block, which these nodes leave out."""
    over_layers, over_steps, over_frames = panels(batch(small, small.unet, weight_type="strong middle"))
    assert list(over_frames.series[0].values) == [0.1, 0.2]
    assert set(over_steps.series[0].values) == {0.2}
    assert max(over_layers.series[0].values) == pytest.approx(0.15) and "mean of all frames" in over_layers.title


def test_every_adapter_is_in_every_panel_in_its_order(small):
    """One weight for all frames beside a list: a level line beside a curve, under the same names and so in the same colours."""
    found = panels(batch(small, small.apply(weight=0.8)))
    assert [[series.name[:2] for series in panel.series] for panel in found] == [["1:", "2:"]] * 3
    assert [list(series.values) for series in found[2].series] == [[0.8, 0.8], [0.5, 1.0]]


def test_away_is_below_zero_in_every_panel(small):
    """Of layers that are as strong, one that draws near counts."""
    node = small.pack["IPAdapterPreciseCompositionBatch"]
    given = dict(ipadapter=small.adapter, clip_vision=small.encoder, image=lab.images(2))
    model = lab.call(node, model=small.unet, **given, weight=[0.5, 1.0], composition_boost=[2.0])[0]
    _, over_steps, over_frames = panels(model)
    assert list(over_frames.series[0].values) == [-2.0, -2.0] and set(over_steps.series[0].values) == {-2.0}
    _, over_steps = panels(small.apply(weight=0.8, weight_type="composition precise"))
    assert set(over_steps.series[0].values) == {0.8}


def test_the_plot_node_draws_all_panels(small, pack):
    from ipadapter_core.look.plot import HEIGHT, WIDTH

    (image,), ui = run(pack["IPAdapterPlotModel"], model=small.apply(), steps=20, scheduler="karras")
    assert image.shape == (1, 2 * HEIGHT, WIDTH, 3) and len(ui["images"]) == 1


def test_a_model_without_an_adapter_is_told(small, pack):
    for model in (small.unet, small.apply(weight=0.0)):
        with pytest.raises(ValueError, match="There is no adapter on this model"):
            run(pack["IPAdapterPlotModel"], model=model, steps=20, scheduler="normal")


def test_looking_at_a_model_changes_nothing(small):
    model = small.apply(weight=0.7)
    first = small.out(model)
    panels(model)
    assert torch.equal(small.out(model), first)


def test_weights_are_plotted_one_or_two_or_a_single_number(pack):
    node = pack["IPAdapterPlotWeights"]
    one, _ = run(node, weights=[0.0, 0.5, 1.0])
    two, _ = run(node, weights=[0.0, 0.5, 1.0], weights_2=[1.0, 0.5])
    assert not torch.equal(one[0], two[0])
    assert run(node, weights=0.5)[0][0].shape == one[0].shape
    for like in (torch.tensor([0.0, 0.5, 1.0]), np.array([0.0, 0.5, 1.0]), (0, 0.5, 1)):
        assert torch.equal(run(node, weights=like)[0][0], one[0])


@pytest.mark.parametrize(("weights", "words"), [
    ([], "list of weights is empty"), ([0.5, float("nan")], "not a number"), ([float("inf")], "not a number"),
    ([None], "must be a number"), ([[0.1]], "must be a number"), ("0.5, 1", "must be a number"),
])  # fmt: skip
def test_weights_that_are_none_are_told(small, pack, weights, words):
    """By the plot and by the nodes that apply them."""
    with pytest.raises(ValueError, match=words):
        run(pack["IPAdapterPlotWeights"], weights=weights)
    with pytest.raises(ValueError, match=words):
        batch(small, small.unet, weight=weights)


@pytest.fixture
def folder(comfy, request):
    """models/ipadapter; files that the test puts into the models folder are taken away again."""
    models = comfy / "models"
    for name in ("ipadapter", "clip_vision"):
        (models / name).mkdir(exist_ok=True)
    before = set(models.rglob("*"))
    yield models / "ipadapter"
    for path in sorted(set(models.rglob("*")) - before, reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


def lines(pack, name) -> dict[str, str]:
    (text,), ui = run(pack["IPAdapterInspector"], ipadapter_file=name)
    assert ui["text"] == [text]
    first, *rest = text.split("\n")
    assert first == name
    return dict(line.split(": ", 1) for line in rest)


def test_the_inspector_says_what_a_file_is_and_that_its_encoder_is_missing(pack, comfy, folder):
    told = lines(pack, AdapterFiles(folder)["plus", "sd15"])
    assert told["is"].startswith("IP-Adapter plus for SD1.5 (16 tokens, ViT-H")
    assert (told["for models"], told["tokens per picture"], told["preset"]) == ("SD1.5", "16", "PLUS (high strength)")
    assert told["image encoder"].startswith("ViT-H, MISSING. No image encoder ViT-H")
    assert "https://huggingface.co/" in told["image encoder"]
    assert "LoRA" not in told and "face recogniser" not in told


def test_the_inspector_finds_the_encoder(pack, comfy, folder):
    """By its widths, under any name: only the header of the file is written here."""
    shapes.write_header(comfy / "models" / "clip_vision" / "my encoder.safetensors", shapes.vision(1280, 1024, 257))
    assert lines(pack, AdapterFiles(folder)["plus", "sd15"])["image encoder"] == "ViT-H, here: my encoder.safetensors"


def test_the_inspector_tells_what_a_face_needs(pack, folder, tmp_path, monkeypatch):
    """The recogniser's models are missing first, then there; the LoRA lies in the file, as in the published ones."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    name = AdapterFiles(folder)["faceid_plusv2", "sd15"]
    told = lines(pack, name)
    assert told["preset"] == "FACEID PLUS V2" and told["LoRA"] == "inside the file"
    assert told["face recogniser"].startswith("insightface, MISSING. insightface is installed, but its models are missing")
    onnx_faces.write_models(tmp_path / "insightface" / "models" / "buffalo_l", "buffalo_l")
    assert lines(pack, name)["face recogniser"] == "insightface, here: buffalo_l"


def test_the_inspector_tells_why_a_file_cannot_be_used(pack, comfy, folder):
    """A page of the web, a LoRA, a file cut off, one of another family: a sentence each, and no error."""
    from safetensors.torch import save_file

    (folder / "page.safetensors").write_text("<!DOCTYPE html><html>not found</html>")
    save_file({"lora_unet_x.lora_up.weight": torch.zeros(2, 2)}, folder / "lora.safetensors")
    whole = (folder / AdapterFiles(folder)["plus", "sd15"]).read_bytes()
    (folder / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    save_file({"image_proj.proj.weight": torch.zeros(4, 4), "ip_adapter.0.to_k_ip.bias": torch.zeros(4)}, folder / "flux.safetensors")
    for name, words in {"page": "web page", "lora": "LoRA", "cut": "cut", "flux": "Flux"}.items():
        told = lines(pack, f"{name}.safetensors")
        assert words in told["problem"], told["problem"]
        assert told["problem"].endswith("."), told["problem"]
        assert "preset" not in told


def test_the_inspector_looks_again_each_time(pack):
    changed = pack["IPAdapterInspector"].IS_CHANGED("any")
    assert changed != changed  # NaN: ComfyUI runs the node again


def test_two_files_of_one_shape_are_told_apart_by_name(pack, comfy, folder):
    """plus and plus-face have the same shapes: a name that says neither fits both presets."""
    name = AdapterFiles(folder)["plus", "sd15"]
    for other, presets in {"plus-face.safetensors": {"PLUS FACE (portraits)"}, "a.safetensors": {
        "PLUS (high strength)", "PLUS FACE (portraits)", "Composition"}}.items():  # fmt: skip
        (folder / other).write_bytes((folder / name).read_bytes())
        assert set(lines(pack, other)["preset"].split(", ")) == presets


def test_json_of_the_shown_is_plain(pack, comfy):
    """What goes to the browser."""
    _, ui = run(pack["IPAdapterPlotWeights"], weights=[0.0, 1.0])
    assert json.loads(json.dumps(ui)) == ui
