"""The world's files mean the same to ComfyUI as to diffusers and transformers, and the reader reads what was drawn."""

import json

import pytest
import torch

from support import proof_table
from support.world_models import MODELS, REPO, reader

CAPTION = "a big red star on the left, blue background, dotted"
# ComfyUI and diffusers do the same sums in another order, on half precision files read as float32
ROUNDING = 2e-4


@pytest.fixture(scope="module")
def diffusers_side(tiny_world):
    from world import layout, text

    tokens = text.tokenizer(MODELS / "tokenizer")
    model, vae = layout.load_checkpoint(MODELS / "checkpoints" / "tiny-world.safetensors", tokens)
    return tokens, model, vae


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool((a.float() - b.float()).norm() < ROUNDING * b.float().norm())


def test_text(tiny_world, diffusers_side):
    from world import text

    tokens, model, _ = diffusers_side
    (found,) = tiny_world.text([CAPTION])
    with torch.no_grad():
        assert close(found[0], model.text(text.ids(tokens, [CAPTION])).last_hidden_state)


def test_unet(tiny_world, diffusers_side):
    import comfy.model_management

    _, model, _ = diffusers_side
    g = torch.Generator().manual_seed(0)
    x, states = torch.randn(2, 4, 8, 8, generator=g), torch.randn(2, 16, 768, generator=g)
    times = torch.tensor([900, 100])
    comfy.model_management.load_models_gpu([tiny_world.model])
    unet = tiny_world.model.model.diffusion_model
    dtype = next(unet.parameters()).dtype
    with torch.no_grad():
        found = unet(x.to(dtype), times, context=states.to(dtype))
        assert close(found, model.unet(x, times, states).sample)


def test_each_half_attends_to_its_own_text(diffusers_side):
    """Of a wide picture with two texts; diffusers' own attention of both says what its halves should be."""
    from diffusers.models.attention_processor import AttnProcessor2_0

    attn = diffusers_side[1].unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2
    g = torch.Generator().manual_seed(2)
    x, states = torch.randn(3, 8 * 16, 64, generator=g), torch.randn(6, 16, 768, generator=g)
    with torch.no_grad():
        found = attn(x, states)
        left, right = (AttnProcessor2_0()(attn, x, part).unflatten(1, (8, 16)) for part in states.chunk(2))
    assert close(found, torch.cat([left[:, :, :8], right[:, :, 8:]], 2).flatten(1, 2))


def test_autoencoder(tiny_world, diffusers_side):
    _, _, vae = diffusers_side
    z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = (vae.decode(z).sample / 2 + 0.5).clamp(0, 1).movedim(1, -1)
    assert close(tiny_world.vae.decode(z / 0.18215), wanted.squeeze(0) if wanted.ndim == 5 else wanted)


def test_image_encoder(tiny_world):
    from ipadapter_core.pictures.preprocess import clip_pixels
    from world import layout

    encoder = layout.load_encoder(MODELS / "clip_vision" / "tiny-world.safetensors")
    _, pictures = tiny_world.references("single", 3)
    with torch.no_grad():
        wanted = encoder(clip_pixels(pictures, 64), output_hidden_states=True)
    found = tiny_world.encoder.encode_image(pictures)
    assert close(found["image_embeds"], wanted.image_embeds)
    assert close(found["penultimate_hidden_states"], wanted.hidden_states[-2])


def test_reader(tiny_world):
    """99 % of fresh pictures are read right, each attribute; 1,000 pictures allow for 98.4 % by chance (three standard errors)."""
    from world.pictures import draw_many
    from world.reader import accuracy, labels

    scenes, drawn = draw_many("reader test", 1000)
    found = accuracy(reader(), labels(scenes), drawn)
    assert min(found.values()) > 0.984, found


def test_files_are_small(tiny_world):
    assert sum(path.stat().st_size for path in MODELS.rglob("*") if path.is_file()) <= 25_000_000


def test_the_readme_has_the_measured_figures():
    figures = json.loads((MODELS / "proof.json").read_text())
    assert proof_table.tables(figures) in proof_table.README.read_text(encoding="utf-8")
    lines = (REPO / "README.md").read_text(encoding="utf-8").splitlines()
    rows = {line for line in lines if any(line.startswith(f"| {name} |") for name in figures)}
    assert len(rows) == 6 and rows <= set(proof_table.tables(figures).splitlines())
