"""One UNet in two implementations, diffusers' and ComfyUI's, and what each of them predicts."""

from functools import cached_property
from typing import Any

import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline

from support import lab, reference_unet, synth

STEP = 500
SIZE = (8, 8)


def comfyui_noise(model, arch, size=SIZE) -> dict[str, torch.Tensor]:
    """ComfyUI's prediction for a positive and a negative prompt, by the code that its samplers call."""
    import comfy.sampler_helpers
    import comfy.samplers

    x = synth.noise("x", (1, 4, *size), 3.0)
    sampling = model.get_model_object("model_sampling")
    sigma = sampling.sigmas[STEP].view(1)
    conds = {side: comfy.sampler_helpers.convert_cond(lab.cond(arch, tag=side, tokens=7)) for side in ("positive", "negative")}
    conds = comfy.samplers.process_conds(model.model, x, conds, x.device, latent_image=torch.zeros_like(x), seed=0)
    model.pre_run()
    with torch.no_grad():
        denoised = comfy.samplers.calc_cond_batch(model.model, [conds["positive"], conds["negative"]], x, sigma, model.model_options)
    model.cleanup()
    return {side: (x - found) / sigma for side, found in zip(conds, denoised, strict=True)}


def diffusers_noise(reference, model, arch, images=(), masks=None) -> dict[str, torch.Tensor]:
    """diffusers' prediction of the same; images: for each adapter (positive, negative) features; masks: for each [1, count, H, W]."""
    sigma = model.get_model_object("model_sampling").sigmas[STEP]
    x = synth.noise("x", (1, 4, *SIZE), 3.0) / (1 + sigma**2) ** 0.5
    prompts = [lab.cond(arch, tag=side, tokens=7)[0] for side in ("positive", "negative")]
    added: dict[str, Any] = {"image_embeds": [torch.stack(pair) for pair in images]}
    if arch == "sdxl":
        height, width = 8 * SIZE[0], 8 * SIZE[1]
        added["text_embeds"] = torch.cat([options["pooled_output"] for _, options in prompts])
        added["time_ids"] = torch.tensor([[height, width, 0, 0, height, width]]).expand(2, -1)
    text = torch.cat([text for text, _ in prompts])
    given = None if masks is None else {"ip_adapter_masks": masks}
    with torch.no_grad():
        found = reference.unet(x.expand(2, -1, -1, -1), STEP, text, added_cond_kwargs=added, cross_attention_kwargs=given).sample
    return {"positive": found[:1], "negative": found[1:]}


def load(reference, files):
    """Adapters through diffusers' own loader, from state dicts in the published layout."""
    names = [""] * len(files)
    reference.load_ip_adapter(files, subfolder=names, weight_name=names, image_encoder_folder=None, low_cpu_mem_usage=False)


def error(got, want, without):
    """Beside the size of what the adapter changes, for each side."""
    return max(float((got[side] - want[side]).norm() / (want[side] - without[side]).norm()) for side in want)


class Pair:
    """Both UNets of a layout and their adapters, each made when it is first asked for."""

    def __init__(self, arch):
        self.arch = arch
        self.files = {}

    @cached_property
    def model(self):
        patcher = lab.unet(self.arch)
        with torch.no_grad():  # a prediction of unit size, so that little of it is lost when it is taken from the latent and back
            patcher.model.diffusion_model.out[2].weight.div_(0.03)
        return patcher

    @cached_property
    def reference(self):
        """A diffusers pipeline over a UNet with the ComfyUI model's weights."""
        unet = reference_unet.unet_like(self.arch, self.model).requires_grad_(False)
        parts: dict[str, Any] = dict.fromkeys(("vae", "text_encoder", "tokenizer", "scheduler", "feature_extractor", "image_encoder"))
        if self.arch == "sd15":
            return StableDiffusionPipeline(**parts, unet=unet, safety_checker=None, requires_safety_checker=False)  # type: ignore
        parts |= dict.fromkeys(("text_encoder_2", "tokenizer_2"))
        return StableDiffusionXLPipeline(**parts, unet=unet, add_watermarker=False)

    def file(self, family):
        if family not in self.files:
            self.files[family] = synth.adapter(family, self.arch)
        return self.files[family]

    @cached_property
    def plain(self):
        return comfyui_noise(self.model, self.arch)
