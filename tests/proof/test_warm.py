"""Where plus begins: after a minute the tokens of pictures that no step saw are nearer to their own caption's states than to others'."""

import torch

from support.world_models import MODELS, import_world

PICTURES, FRESH, STEPS = 600, 32, 60


def test_tokens_come_to_say_what_the_caption_says(tmp_path):
    import_world()
    from ipadapter_core.adapter.projection import build_projection
    from ipadapter_core.files.checkpoint import read_checkpoint
    from world import layout, pictures, text, warm

    tokens = text.tokenizer(MODELS / "tokenizer")
    model = layout.load_checkpoint(MODELS / "checkpoints" / "tiny-world.safetensors", tokens)[0]
    encoder = layout.load_encoder(MODELS / "clip_vision" / "tiny-world.safetensors")
    seen = pictures.draw_many("warm", PICTURES)
    file = warm.train(model, tokens, encoder, *seen, tmp_path, STEPS)
    checkpoint = read_checkpoint(file)
    projection = build_projection("resampler", {name: value.float() for name, value in checkpoint.image_proj.items()})
    scenes, drawn = pictures.draw_many("warm, fresh", FRESH)
    with torch.no_grad():
        found = projection(warm.features(encoder, drawn).float()).flatten(1)
    wanted = warm.states(model, tokens, scenes).float().flatten(1)
    own = (torch.cdist(found, wanted).argmin(1) == torch.arange(FRESH)).sum()
    assert own >= 6, f"{own} of {FRESH}; by chance 1"
    text_keys = model.unet.get_parameter("down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight")
    assert torch.equal(checkpoint.ip_adapter["1.to_k_ip.weight"].float(), text_keys)
