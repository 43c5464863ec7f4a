"""IPAdapter Encoder Advanced: the picture's shape and the encoder's size, against transformers and ComfyUI's own encoding."""

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from ipadapter_core.pictures.preprocess import clip_pixels
from support import lab, plain
from support.world import AdapterFiles


@pytest.fixture(scope="module")
def small(pack, comfy):
    return plain.Small(pack, comfy)


@pytest.fixture(scope="module")
def plus(pack, comfy):
    """A plus adapter for a narrow encoder: it reads every token of the encoder, however many there are."""
    name = AdapterFiles(comfy / "models" / "ipadapter")["plus", "sd15"]
    return lab.call(pack["IPAdapterModelLoader"], ipadapter_file=name)[0]


@pytest.fixture(scope="module")
def vit_h(comfy):
    return lab.clip_vision()


def encode(pack, adapter, encoder, image, fit="center crop", tiles=2, size=0, weight=1.0, **kw):
    return lab.call(
        pack["IPAdapterEncoderAdvanced"],
        ipadapter=adapter, clip_vision=encoder, image=image, weight=weight, fit=fit, tiles=tiles, size=size, **kw,
    )  # fmt: skip


def transformers_encoder(encoder, size=224, hidden=1280, proj=1024):
    """transformers' model with the weights of a ComfyUI encoder of lab.clip_vision."""
    config = CLIPVisionConfig(
        hidden_size=hidden, projection_dim=proj, intermediate_size=2 * hidden, num_hidden_layers=2, num_attention_heads=16,
        image_size=size, patch_size=14, hidden_act="gelu", layer_norm_eps=1e-5,
    )  # fmt: skip
    model = CLIPVisionModelWithProjection(config).eval()
    state = {key: value.float() for key, value in encoder.model.state_dict().items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert [key for key in missing if "position_ids" not in key] == [] and unexpected == []
    return model


def test_plain_settings_are_the_plain_encoder(small):
    """Bit for bit, the mask included."""
    image, mask = lab.images(2, 90, 130), lab.images(1, 90, 130)[..., 0]
    for kw in ({}, {"mask": mask}):
        ours = encode(small.pack, small.adapter, small.encoder, image, weight=0.7, **kw)
        plainly = lab.call(
            small.pack["IPAdapterEncoder"], ipadapter=small.adapter, clip_vision=small.encoder, image=image, weight=0.7, **kw
        )
        assert all(torch.equal(a, b) for a, b in zip(ours, plainly, strict=True))


@pytest.mark.parametrize("size", [336, 448])
def test_448_pixels_as_transformers_sees_them(pack, plus, vit_h, size):
    """transformers with interpolate_pos_encoding=True. Both sides; two attention implementations in fp32: a few 1e-6 of the norm."""
    image = lab.images(1, 500, 500)
    positive, negative = encode(pack, plus, vit_h, image, size=size)
    model = transformers_encoder(vit_h)
    assert model.vision_model.embeddings.position_embedding.weight.std() > 0.01  # or any interpolation would do
    for got, picture in ((positive, image), (negative, torch.zeros(1, 224, 224, 3))):
        pixels = clip_pixels(picture, size)
        with torch.no_grad():
            expected = model(pixels, output_hidden_states=True, interpolate_pos_encoding=True).hidden_states[-2]
        assert got.shape == expected.shape == (1, 1 + (size // 14) ** 2, 1280)
        assert (got - expected).norm() < 1e-5 * expected.norm()


def test_another_size_leaves_the_encoder_as_it_was(pack, plus, vit_h):
    image = lab.images(1, 300, 300, tag="left")
    before = {key: value.clone() for key, value in vit_h.model.state_dict().items()}
    first, _ = encode(pack, plus, vit_h, image)
    finer, _ = encode(pack, plus, vit_h, image, size=448)
    after = vit_h.model.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    again = vit_h.encode_image(image)["penultimate_hidden_states"].float()
    assert torch.equal(first, again) and first.shape != finer.shape


def test_the_encoders_own_size_written_out_is_its_own_size(pack, plus, vit_h):
    image = lab.images(1, 300, 200)
    assert torch.equal(encode(pack, plus, vit_h, image, size=224)[0], encode(pack, plus, vit_h, image)[0])


def test_stretch_is_comfyuis_uncropped_encoding(small):
    """CLIP Vision Encode with crop "none", which squeezes the picture."""
    image = lab.images(2, 90, 130)
    got, _ = encode(small.pack, small.adapter, small.encoder, image, fit="stretch")
    expected = small.encoder.encode_image(image, crop=False)["image_embeds"].float()
    assert (got - expected).norm() < 1e-6 * expected.norm()


def test_tiles_are_the_mean_of_tiles_encoded_one_by_one(small):
    """60 x 120 at one tile along the short side: the left and the right square."""
    image = lab.images(1, 60, 120)
    got, _ = encode(small.pack, small.adapter, small.encoder, image, fit="tiles", tiles=1)
    expected = torch.stack([small.features(image[:, :, :60]), small.features(image[:, :, 60:])]).mean(0)
    assert (got - expected).norm() < 1e-6 * expected.norm()


def test_tiles_outside_the_mask_do_not_count(small):
    image, mask = lab.images(1, 60, 120), torch.zeros(1, 60, 120)
    mask[:, :, :60] = 1
    got, _ = encode(small.pack, small.adapter, small.encoder, image, fit="tiles", tiles=1, mask=mask)
    expected = small.features(image[:, :, :60])
    assert (got - expected).norm() < 1e-6 * expected.norm()


@pytest.mark.parametrize("fit", ["center crop", "pad", "stretch", "tiles"])
def test_the_embeds_steer_a_model(small, fit):
    positive, negative = encode(small.pack, small.adapter, small.encoder, lab.images(1, 80, 140), fit=fit, size=112)
    model = lab.call(
        small.pack["IPAdapterEmbeds"],
        model=small.unet, ipadapter=small.adapter, pos_embed=positive, neg_embed=negative,
        weight=1.0, weight_type="linear", start_at=0.0, end_at=1.0, embeds_scaling="V only",
    )[0]  # fmt: skip
    effect = small.out(model) - small.out(small.unet)
    assert torch.isfinite(effect).all() and effect.norm() > 1e-3


def test_448_pixels_reach_the_picture(pack, plus, vit_h, small):
    """The resampler takes 1025 tokens as it takes 257, and gives as many tokens of its own."""
    positive, negative = encode(pack, plus, vit_h, lab.images(1, 300, 300), size=448)
    model = lab.call(
        pack["IPAdapterEmbeds"],
        model=small.unet, ipadapter=plus, pos_embed=positive, neg_embed=negative,
        weight=1.0, weight_type="linear", start_at=0.0, end_at=1.0, embeds_scaling="V only",
    )[0]  # fmt: skip
    assert (small.out(model) - small.out(small.unet)).norm() > 1e-3


def test_pictures_are_encoded_once(small, monkeypatch):
    """Another weight asks the encoder nothing; another size does."""
    calls = []
    run = type(small.encoder.model).forward
    monkeypatch.setattr(type(small.encoder.model), "forward", lambda self, *a, **kw: (calls.append(1), run(self, *a, **kw))[1])
    image = lab.images(1, 70, 140, tag="once")
    for weight, size, expected in ((1.0, 0, 1), (0.5, 0, 1), (1.0, 112, 2), (0.3, 112, 2), (1.0, 0, 2)):
        encode(small.pack, small.adapter, small.encoder, image, fit="pad", size=size, weight=weight)
        assert len(calls) == expected


def sentence(call) -> str:
    with pytest.raises(ValueError) as caught:
        call()
    assert type(caught.value).__name__ == "IPAdapterError"
    return str(caught.value)


def test_errors_say_what_to_do(small, pack, comfy):
    image = lab.images(1, 60, 60)
    assert "set size to 98 or 112" in sentence(lambda: encode(pack, small.adapter, small.encoder, image, size=100))
    assert "Lower tiles" in sentence(lambda: encode(pack, small.adapter, small.encoder, lab.images(1, 8, 800), fit="tiles", tiles=1))
    assert "set size to 0 or 14" in sentence(lambda: encode(pack, small.adapter, small.encoder, image, size=7))
    assert "no image encoder" in sentence(lambda: encode(pack, small.adapter, None, image))
    name = AdapterFiles(comfy / "models" / "ipadapter")["faceid", "sd15"]
    face = lab.call(pack["IPAdapterModelLoader"], ipadapter_file=name)[0]
    assert "face recogniser" in sentence(lambda: encode(pack, face, small.encoder, image))


class Other:
    """An image encoder of another pack: it can do no more than encode whole pictures."""

    def encode_image(self, image):
        return {"image_embeds": image.mean((1, 2)).repeat(1, 400)[:, :1024]}


def test_encoders_of_other_packs_work_at_their_own_size(small):
    """The squares are made as for 224 pixels with CLIP's colours; what needs the encoder's inside is refused in a sentence."""
    image, other, sizes = lab.images(1, 60, 120), Other(), []
    encode_image = other.encode_image
    other.encode_image = lambda pictures: (sizes.append(len(pictures)), encode_image(pictures))[1]
    for fit in ("center crop", "pad", "stretch", "tiles"):
        assert encode(small.pack, small.adapter, other, image, fit=fit)[0].shape == (1, 1024)
    assert sizes == [1, 1, 1, 8]  # the tiles of a picture go together
    for kw in ({"mask": torch.ones(1, 60, 120)}, {"size": 448}):
        assert "comes from another pack" in sentence(lambda kw=kw: encode(small.pack, small.adapter, Other(), image, **kw))


def test_many_tiled_pictures_are_encoded_a_few_at_a_time(small, monkeypatch):
    """16 squares of 224 pixels at most, fewer of larger ones; each picture's tiles stay with it, and its mask."""
    from ipadapter_pack.nodes.host.pictures import encoder

    sizes = []
    original = encoder._run
    monkeypatch.setattr(encoder, "_run", lambda clip, images, *rest: (sizes.append(len(images)), original(clip, images, *rest))[1])
    images, masks = lab.images(10, 60, 120, tag="many"), torch.ones(10, 60, 120)
    masks[3, :, :60] = 0
    together, _ = encode(small.pack, small.adapter, small.encoder, images, fit="tiles", tiles=2, mask=masks)
    assert max(sizes) <= 16 and sum(sizes) == 80
    third, _ = encode(small.pack, small.adapter, small.encoder, images[3:4], fit="tiles", tiles=2, mask=masks[3:4])
    assert torch.equal(together[3:4], third)
    sizes.clear()
    encode(small.pack, small.adapter, small.encoder, images, fit="stretch", size=448)
    assert max(sizes) == 4 and sum(sizes) == 10


def test_embeds_of_two_sizes_cannot_be_combined(pack, plus, vit_h):
    image = lab.images(1, 60, 60)
    pair = [encode(pack, plus, vit_h, image, size=size)[0] for size in (0, 448)]
    told = sentence(lambda: lab.call(pack["IPAdapterCombineEmbeds"], embed1=pair[0], embed2=pair[1], method="average"))
    assert "other sizes" in told
