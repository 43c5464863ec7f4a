"""What a run writes: accepted as it is by the pack in a real ComfyUI, by diffusers and by the published shapes; whole or not there."""

import json
import resource
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from ipadapter_core.errors import IPAdapterError
from support import lab, reference_unet, shapes, synth, tiny_base

PUBLISHED = {  # family -> the published file of that family for SD1.5
    "standard": "ip-adapter_sd15.safetensors", "plus": "ip-adapter-plus_sd15.safetensors",
    "full-face": "ip-adapter-full-face_sd15.safetensors", "faceid": "ip-adapter-faceid_sd15.bin",
    "faceid-plus-v2": "ip-adapter-faceid-plusv2_sd15.bin",
}  # fmt: skip


@pytest.fixture(scope="module")
def written(models, tmp_path_factory):
    """written[family]: the file of a run of one step, fp16 as it is by default."""
    from training.loop import train

    class Files(dict):
        def __missing__(self, family: str):
            given = dict(family=family, steps=1, save_dtype="float16", image_encoder=models.vit_h)
            self[family] = train(models.settings(tmp_path_factory.mktemp(family), **given)).file
            return self[family]

    return Files()


def shapes_in(path) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in load_file(path).items()}


@pytest.mark.parametrize("family", PUBLISHED)
def test_the_shapes_are_the_published_ones(written, family):
    """The UNet is a tenth of SD1.5's width, and with it K and V; all else is as published. The LoRA of FaceID is not trained."""
    want = {key: shape for key, shape in shapes.SUPPORTED[PUBLISHED[family]][0].items() if "_lora." not in key}
    narrow = {key: (shape[0] // 10, *shape[1:]) if key.startswith("ip_adapter.") else shape for key, shape in want.items()}
    assert shapes_in(written[family]) == narrow
    assert {value.dtype for value in load_file(written[family]).values()} == {torch.float16}


def test_metadata_says_what_it_is(written, models):
    with safe_open(written["plus"], framework="pt") as file:
        told = file.metadata()
    assert (told["family"], told["base"], told["steps"], told["data_count"], told["samples_seen"]) == ("plus", "SD1.5", "1", "6", "2")
    assert told["encoder"] == "ViT-H, penultimate_hidden_states 1280 wide" and told["base_model"] == "sd15"
    assert json.loads(told["settings"])["learning_rate"] == 1e-4


@pytest.mark.parametrize("family", PUBLISHED)
def test_the_pack_loads_and_applies_it(written, pack, family):
    from ipadapter_pack.nodes.host.apply.project import Settings, apply_features
    from ipadapter_pack.nodes.host.load.adapter import load_adapter

    adapter = load_adapter(str(written[family]))
    assert (adapter.info.family, adapter.info.base, adapter.info.supported) == (family, "SD1.5", True)
    shape = {"standard": (1, 1024), "faceid": (1, 512)}.get(family, (1, 17, 1280))
    sides = [(synth.noise(tag, shape, 1.5),) for tag in ("positive", "negative")]
    if family == "faceid-plus-v2":
        sides = [(synth.noise(f"face {i}", (1, 512), 1.0), *side) for i, side in enumerate(sides)]
    model = lab.unet("sd15")
    plain = lab.sample(model, "sd15", steps=1)
    found = lab.sample(apply_features(model, adapter, *sides, Settings(weight=1.0)), "sd15", steps=1)
    assert torch.isfinite(found).all() and (found - plain).norm() > 1e-3 * plain.norm()


def test_the_loader_node_takes_it_by_name(written, pack, comfy):
    target = comfy / "models" / "ipadapter" / written["standard"].name
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(written["standard"].read_bytes())
    (adapter,) = lab.call(pack["IPAdapterModelLoader"], ipadapter_file=target.name)
    encoder = lab.clip_vision(hidden=64, proj=1024, heads=4)
    given = dict(model=lab.unet("sd15"), ipadapter=adapter, clip_vision=encoder, image=lab.images(1), weight=1.0)
    given |= dict(weight_type="linear", start_at=0.0, end_at=1.0, embeds_scaling="V only", combine_embeds="concat")
    model = lab.call(pack["IPAdapterAdvanced"], **given)[0]
    assert torch.isfinite(lab.sample(model, "sd15", steps=1)).all()


def test_sdxls_layout(models, tmp_path, pack):
    """diffusers takes SDXL's file in test_step; here the pack, and the keys of all 70 layers."""
    from ipadapter_pack.nodes.host.load.adapter import load_adapter

    from training.loop import Run

    base = models.root / "sdxl"
    if not base.exists():
        tiny_base.base(base, "sdxl")
    path = Run(models.settings(tmp_path, base=base, family="plus", save_dtype="float16", image_encoder=models.vit_h)).save()
    want = shapes.SUPPORTED["ip-adapter-plus_sdxl_vit-h.safetensors"][0]
    narrow = {key: (shape[0] // 10, *shape[1:]) if key.startswith("ip_adapter.") else shape for key, shape in want.items()}
    assert shapes_in(path) == narrow
    assert load_adapter(str(path)).info.base == "SDXL"


def test_key_numbers_are_those_of_diffusers_order():
    from ipadapter_core.adapter.layers import layers
    from training.adapter import place

    for arch, base in (("sd15", "SD1.5"), ("sdxl", "SDXL")):
        with torch.device("meta"):
            order = list(reference_unet.unet(arch).attn_processors)
        assert [f"{place(layer)}.processor" for layer in layers(base)] == order[1::2]


def test_continued_from_a_file(models, tmp_path, written):
    """From a published-layout file in another dtype, with its weights as they are, and on to a new file."""
    from training.loop import Run, train

    run = Run(models.settings(tmp_path, continue_from=written["plus"], image_encoder=models.vit_h))
    assert run.info.family == "plus"
    for key, value in load_file(written["plus"]).items():
        assert torch.equal(run.named[key], value.float()), key
    state = tmp_path / "other.bin"
    synth.save_adapter(synth.adapter("base", "sd15"), state)
    done = train(models.settings(tmp_path, continue_from=state, steps=1, image_encoder=models.vit_h))
    assert done.file == tmp_path / "ip-adapter_custom_1.safetensors"


def test_the_lora_of_a_faceid_file_is_part_of_the_base_and_kept(models, tmp_path):
    """As diffusers' loader has it: the base with up @ down added, by its own PEFT code; the tensors come out as they went in."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    from training.loop import Run

    state = synth.adapter("faceid", "sd15")
    path = tmp_path / "ip-adapter-faceid.safetensors"
    synth.save_adapter(state, path)
    run = Run(models.settings(tmp_path, data=models.faces, continue_from=path))
    plain = UNet2DConditionModel.from_pretrained(models.sd15 / "unet")
    names = list(plain.attn_processors)
    for number in (0, 1, 12, 31):
        for part, linear in (("q", "to_q"), ("v", "to_v"), ("out", "to_out.0")):
            up, down = (state["ip_adapter"][f"{number}.to_{part}_lora.{way}.weight"] for way in ("up", "down"))
            module = f"{names[number].removesuffix('.processor')}.{linear}"
            want = plain.get_submodule(module).weight + up @ down
            assert torch.allclose(run.base.unet.get_submodule(module).weight, want, atol=1e-6), module
    found = load_file(run.save())
    for key, value in state["ip_adapter"].items():
        if "_lora." in key:
            assert torch.equal(found[f"ip_adapter.{key}"], value)


def test_a_full_disk_leaves_the_last_good_file(models, tmp_path):
    """Writing fails for real, at a limit of the process on a file's size; then the run goes on from where it was."""
    from training.loop import Run, train

    settings = models.settings(tmp_path, steps=2)
    run = Run(settings)
    batches = run.batches()
    run.advance(batches)
    good = run.save()
    content = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    run.advance(batches)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(IPAdapterError, match=r"custom_2.safetensors could not be written \(.+\): free .*_1.safetensors is the last"):
            run.save()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == content
    assert good.name in content
    again = train(models.settings(tmp_path, steps=2, resume=True))
    want = {key: value.detach() for key, value in run.named.items()}
    assert again.step == 2
    for key, value in load_file(again.file).items():
        assert torch.equal(value, want[key]), key


def test_others_may_read_a_file_as_any_new_one(written, tmp_path):
    plain = tmp_path / "plain"
    plain.touch()
    adapter = Path(written["standard"])
    assert {path.stat().st_mode for path in (adapter, adapter.with_suffix(".state"))} == {plain.stat().st_mode}


def test_what_the_disk_says_is_told(tmp_path):
    from training.output import whole

    with pytest.raises(IPAdapterError, match=r"x.safetensors could not be written \(No space left on device\): free some space"):
        with whole(tmp_path / "x.safetensors", "free some space") as part:
            part.write_bytes(b"half")
            raise OSError(28, "No space left on device")
    assert not list(tmp_path.iterdir())


def test_the_archive_for_users_has_no_trainer():
    ignored = (Path(__file__).resolve().parents[2] / ".comfyignore").read_text().split()
    assert "training/" in ignored


def test_a_single_file_is_the_same_base(models, tmp_path, pack):
    """A UNet in the original layout, as ComfyUI's own table of names translates it."""
    import comfy.utils
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from safetensors.torch import save_file

    from training.base import Base

    unet = UNet2DConditionModel.from_pretrained(models.sd15 / "unet")
    names = comfy.utils.unet_to_diffusers(lab.unet("sd15").model.model_config.unet_config)
    path = tmp_path / "model.safetensors"
    save_file({f"model.diffusion_model.{names[key]}": value.contiguous() for key, value in unet.state_dict().items()}, path)
    given = SimpleNamespace(base=str(path), base_config=str(models.sd15))
    found = Base(given, torch.device("cpu"), torch.float32).unet.state_dict()  # type: ignore[arg-type]
    assert found.keys() == unet.state_dict().keys()
    assert all(torch.equal(value, found[key]) for key, value in unet.state_dict().items())
