"""FaceID's LoRA as weight patches: every weight against the arithmetic, and against diffusers' own way of loading the same file."""

import logging
from typing import Any

import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from safetensors.torch import save_file

from support import lab, reference_unet, synth

BASES = {"sd15": "SD1.5", "sdxl": "SDXL"}
STRENGTHS = (1.0, 0.6, -0.5)


@pytest.fixture(scope="module", params=BASES)
def arch(request):
    return request.param


@pytest.fixture(scope="module")
def model(comfy, arch):
    return lab.unet(arch)


@pytest.fixture(scope="session")
def host(pack):
    from ipadapter_pack.nodes.host.load import lora

    return lora


@pytest.fixture(scope="module")
def layers(pack, arch):
    from ipadapter_pack.ipadapter_core.adapter.lora import lora_layers

    return lora_layers(synth.ip_layers(arch, synth.TINY, lora=8), BASES[arch])


def weights(model) -> dict[str, torch.Tensor]:
    """The weights that sampling would run with: patched by ComfyUI, copied, restored."""
    model.patch_model(load_weights=True)
    copied = {key: value.clone() for key, value in model.model.state_dict().items()}
    model.unpatch_model()
    return copied


def diffusers_pipeline(arch, model, adapter):
    """A diffusers pipeline over the model's weights that loaded the FaceID file by itself, LoRA included (strength 1)."""
    unet = reference_unet.unet_like(arch, model)
    parts: dict[str, Any] = dict.fromkeys(("vae", "text_encoder", "tokenizer", "scheduler", "feature_extractor", "image_encoder"))
    if arch == "sd15":
        pipeline = StableDiffusionPipeline(**parts, unet=unet, safety_checker=None, requires_safety_checker=False)  # type: ignore
    else:
        parts |= dict.fromkeys(("text_encoder_2", "tokenizer_2"))
        pipeline = StableDiffusionXLPipeline(**parts, unet=unet, add_watermarker=False)
    pipeline.load_ip_adapter(adapter, subfolder="", weight_name="", image_encoder_folder=None, low_cpu_mem_usage=False)
    return pipeline


@pytest.mark.parametrize("strength", STRENGTHS)
def test_patched_weight_is_base_plus_strength_times_the_product(host, model, layers, strength):
    before = weights(model)
    after = weights(host.with_lora(model, layers, strength))
    changed = {host.weight_key(layer): layer for layer in layers}
    assert len(changed) == len(layers)
    for key, weight in before.items():
        if key in changed:
            want = weight.double() + strength * changed[key].up.double() @ changed[key].down.double()
            assert (after[key] - want).norm() / want.norm() < 1e-6  # float32 rounding of one product and one sum
        else:
            assert torch.equal(after[key], weight)
    assert all(torch.equal(value, before[key]) for key, value in weights(model).items())  # the given model stays as it was


def test_applying_twice_adds_and_both_survive(host, model, layers):
    once = host.with_lora(model, layers, 0.5)
    twice = weights(host.with_lora(once, layers, 0.25))
    at_once = weights(host.with_lora(model, layers, 0.75))
    for key in map(host.weight_key, layers):
        assert (twice[key] - at_once[key]).norm() / at_once[key].norm() < 1e-6


def test_strength_0_gives_the_model_itself(host, model, layers, tmp_path):
    assert host.with_lora(model, layers, 0) is model
    assert host.with_lora(model, (), 1.0) is model
    assert host.with_lora_file(model, str(tmp_path / "not read"), 0.0) is model


def test_same_weights_as_diffusers(host, arch, model, layers):
    """diffusers loads the file through its own IP-Adapter and PEFT code; ComfyUI's table translates the names of the modules."""
    import comfy.utils

    pipeline = diffusers_pipeline(arch, model, synth.adapter("faceid", arch))
    names = comfy.utils.unet_to_diffusers(model.model.model_config.unet_config)
    ours = weights(host.with_lora(model, layers, 1.0))
    compared = 0
    for name, module in pipeline.unet.named_modules():
        if hasattr(module, "get_delta_weight"):
            want = (module.base_layer.weight + module.get_delta_weight("faceid_0")).detach()
            got = ours["diffusion_model." + names[f"{name}.weight"]]
            assert (got - want).norm() / want.norm() < 1e-6
            compared += 1
    assert compared == len(layers)


def test_same_prediction_as_diffusers(host, comfy):
    """A whole forward pass of the SD1.5 layout, LoRA on, image attention at 0. 20 layers of float32 in another order: below 1e-5."""
    from ipadapter_pack.ipadapter_core.adapter.lora import lora_layers

    model, adapter = lab.unet("sd15"), synth.adapter("faceid", "sd15")
    pipeline = diffusers_pipeline("sd15", model, adapter)
    pipeline.set_ip_adapter_scale(0.0)
    x, t, text = synth.noise("x", (2, 4, 8, 8), 1.7), torch.tensor([500.0, 20.0]), synth.noise("text", (2, 7, 768))
    patched = host.with_lora(model, lora_layers(adapter["ip_adapter"], "SD1.5"), 1.0)
    with torch.no_grad():
        plain = model.model.diffusion_model(x, t, context=text)
        patched.patch_model(load_weights=True)
        got = model.model.diffusion_model(x, t, context=text)
        patched.unpatch_model()
        want = pipeline.unet(x, t, text, added_cond_kwargs={"image_embeds": [torch.zeros(2, 1, 512)]}).sample
    assert (got - plain).norm() > 0.1 * plain.norm()
    assert (got - want).norm() / (want - plain).norm() < 1e-5


@pytest.mark.parametrize("layout", ["diffusers", "kohya"])
def test_separate_file_in_both_layouts(host, arch, model, layers, tmp_path, layout, caplog):
    """The published separate files are named in one of these two ways; both end in the same weights as the pairs inside."""
    processors = list(reference_unet.unet(arch).attn_processors)
    inside = synth.ip_layers(arch, synth.TINY, lora=8)
    tensors = {}
    for number, processor in enumerate(processors):
        for name in ("q", "k", "v", "out"):
            for half in ("down", "up"):
                if layout == "diffusers":
                    key = f"unet.{processor}.to_{name}_lora.{half}.weight"
                else:
                    module = processor.removesuffix(".processor") + (".to_out.0" if name == "out" else f".to_{name}")
                    key = f"lora_unet_{module.replace('.', '_')}.lora_{half}.weight"
                tensors[key] = inside[f"{number}.to_{name}_lora.{half}.weight"]
    save_file(tensors, tmp_path / "lora.safetensors")
    with caplog.at_level(logging.WARNING):
        got = weights(host.with_lora_file(model, str(tmp_path / "lora.safetensors"), 0.6))
    assert not caplog.records
    want = weights(host.with_lora(model, layers, 0.6))
    assert all(torch.equal(got[key], value) for key, value in want.items())


def test_a_lora_of_another_base_is_an_error(host, pack, comfy, tmp_path):
    from ipadapter_pack.ipadapter_core.adapter.lora import lora_layers

    inside = synth.ip_layers("sdxl", synth.TINY, lora=8)
    with pytest.raises(ValueError, match="does not fit the connected model"):
        host.with_lora(lab.unet("sd15"), lora_layers(inside, "SDXL"), 1.0)
    path = tmp_path / "lora.safetensors"
    key = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.processor.to_k_lora"
    save_file({f"{key}.up.weight": torch.ones(64, 8), f"{key}.down.weight": torch.ones(8, 2048)}, path)
    with pytest.raises(ValueError, match="does not fit the connected model"):
        host.with_lora_file(lab.unet("sd15"), str(path), 1.0)
    save_file({"te.weight": torch.ones(2, 2)}, path)
    with pytest.raises(ValueError, match="has no LoRA for this model"):
        host.with_lora_file(lab.unet("sd15"), str(path), 1.0)


class Packed(torch.nn.Module):
    """A linear layer as ComfyUI's nvfp4 has it: two weights of four bits in each byte [out, in / 2]; the layer knows its true size."""

    def __init__(self, layer: Any, sizes: bool):
        super().__init__()
        whole = (layer.weight.detach() / 0.01).round().clamp(-8, 7)
        if sizes:
            self.in_features, self.out_features = layer.in_features, layer.out_features
        high, low = (whole + 8).to(torch.uint8).unflatten(1, (-1, 2)).unbind(2)
        self.weight = torch.nn.Parameter(high * 16 + low, requires_grad=False)
        self.patched = None

    def convert_weight(self, weight, inplace=False):
        """Bytes, which ComfyUI has made floats, to weights."""
        high, low = weight // 16, weight % 16
        return (torch.stack([high, low], 2).flatten(1) - 8) * 0.01

    def set_weight(self, weight, inplace_update=False, seed=None):
        self.patched = weight


@pytest.mark.parametrize("sizes", [True, False])
def test_a_packed_weight_counts_by_its_true_shape(host, layers, model, sizes):
    """Half the columns in the state dict, yet the LoRA fits; where nothing tells the shape, ComfyUI is left to patch it."""
    layer = next(layer for layer in layers if layer.linear == "to_q")
    *path, name = host.weight_key(layer).removesuffix(".weight").split(".")
    owner = model.model.get_submodule(".".join(path))
    plain = getattr(owner, name)
    packed = Packed(plain, sizes)
    want = packed.convert_weight(packed.weight.double()) + 0.6 * layer.up.double() @ layer.down.double()
    setattr(owner, name, packed)
    try:
        patched = host.with_lora(model, layers, 0.6)
        patched.patch_weight_to_device(host.weight_key(layer))
        assert packed.patched is not None and (packed.patched - want).norm() / want.norm() < 1e-6  # float32 rounding
        if sizes:
            narrow = layer._replace(down=layer.down[:, ::2])  # as wide as the bytes are many
            with pytest.raises(ValueError, match="does not fit the connected model"):
                host.with_lora(model, [narrow], 0.6)
    finally:
        setattr(owner, name, plain)
