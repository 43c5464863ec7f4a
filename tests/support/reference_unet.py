"""diffusers' UNets of SD1.5's and SDXL's layout in the width of `lab.unet`, as an independent source for what belongs where."""

from typing import Any

from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

_CONF: dict[str, dict[str, Any]] = {
    "sd15": dict(
        block_out_channels=(32, 64, 128, 128),
        cross_attention_dim=768,
        attention_head_dim=8,  # the number of heads: diffusers named it so
    ),
    "sdxl": dict(
        block_out_channels=(32, 64, 128),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(4, 8, 16),
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    ),
}


def unet(arch: str) -> UNet2DConditionModel:
    """A UNet with random weights."""
    return UNet2DConditionModel(layers_per_block=2, sample_size=8, **_CONF[arch]).eval()


def unet_like(arch: str, model) -> UNet2DConditionModel:
    """A UNet with the weights of a ComfyUI ModelPatcher, whose keys ComfyUI itself translates."""
    import comfy.utils

    reference = unet(arch)
    weights = model.model.diffusion_model.state_dict()
    names = comfy.utils.unet_to_diffusers(model.model.model_config.unet_config)
    reference.load_state_dict({name: weights[names[name]].clone() for name in reference.state_dict()})
    return reference
