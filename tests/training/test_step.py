"""One step against the same thing written out: diffusers' own IP-Adapter, the paper's equations, plain torch."""

import math
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.training_utils import compute_snr
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer, CLIPVisionModelWithProjection

from support import tiny_base

RELATIVE = 1e-5
# the projection's parameters in the published files -> in diffusers' modules
NAMES = {
    "standard": {"proj.weight": "image_embeds.weight", "proj.bias": "image_embeds.bias", "norm.weight": "norm.weight"},
    "plus": {"latents": "latents", "proj_in.weight": "proj_in.weight", "norm_out.bias": "norm_out.bias",
             "layers.0.0.to_q.weight": "layers.0.attn.to_q.weight", "layers.3.1.3.weight": "layers.3.ff.1.net.2.weight"},
    "full-face": {"proj.0.weight": "ff.net.0.proj.weight", "proj.2.bias": "ff.net.2.bias", "proj.3.weight": "norm.weight"},
    "faceid": {"proj.0.weight": "ff.net.0.proj.weight", "proj.2.weight": "ff.net.2.weight", "norm.weight": "norm.weight"},
    "faceid-plus-v2": {"proj.0.weight": "proj.net.0.proj.weight", "norm.weight": "norm.weight",
                       "perceiver_resampler.proj_in.weight": "proj_in.weight"},
}  # fmt: skip


@pytest.fixture
def first_step(settings):
    """first_step(**settings) -> (run, samples, features, places) with the gradients of the first step in run.named."""
    from training.data import Stream
    from training.loop import Run

    def make(**given):
        run = Run(settings(**given))
        features, places = next(run.batches())
        samples = [Stream(run.source, run.settings.seed)[place][0] for place in places]
        run.loss = run.backward(features, places)[0]
        return run, samples, features, places

    return make


def pipeline(base, sdxl, file):
    """diffusers' UNet of the base with the adapter's file on it, through diffusers' own loader, its weights trainable."""
    unet = UNet2DConditionModel.from_pretrained(base / "unet")
    parts: dict[str, Any] = dict.fromkeys(("vae", "text_encoder", "tokenizer", "scheduler", "feature_extractor", "image_encoder"))
    if sdxl:
        parts |= dict.fromkeys(("text_encoder_2", "tokenizer_2"))
        pipe = StableDiffusionXLPipeline(**parts, unet=unet, add_watermarker=False)
    else:
        pipe = StableDiffusionPipeline(**parts, unet=unet, safety_checker=None, requires_safety_checker=False)  # type: ignore[arg-type]
    pipe.load_ip_adapter(str(file.parent), subfolder="", weight_name=file.name, image_encoder_folder=None, low_cpu_mem_usage=False)
    return pipe.unet.requires_grad_(True)


@torch.no_grad()
def text_of(base, captions, sdxl):
    """Text states and pooled text by transformers alone."""
    states = []
    for suffix, kind in (("", CLIPTextModel), ("_2", CLIPTextModelWithProjection))[: 2 if sdxl else 1]:
        words = CLIPTokenizer.from_pretrained(base / f"tokenizer{suffix}")
        tokens = words(captions, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
        found = kind.from_pretrained(base / f"text_encoder{suffix}")(tokens, output_hidden_states=True)
        states.append(found.hidden_states[-2] if sdxl else found.last_hidden_state)
    return torch.cat(states, -1), found.text_embeds if sdxl else None


def written_out(unet, base, encoder, samples, draws, run):
    """The loss of the first step from pictures and captions on: arXiv 2308.06721 and 2006.11239, diffusers' modules."""
    given, sdxl, family = run.settings, "sdxl" in str(base), run.info.family
    vae = AutoencoderKL.from_pretrained(base / "vae")
    vision = CLIPVisionModelWithProjection.from_pretrained(encoder)
    lost_image, lost_text = draws.share < given.drop_image, (draws.share >= given.drop_image) & (draws.share < 2 * given.drop_image)
    with torch.no_grad():
        posterior = vae.encode(torch.stack([s["pixels"] for s in samples])).latent_dist
        latents = (posterior.mean + posterior.std * draws.posterior) * 0.18215
        text, pooled = text_of(base, ["" if lost else s["text"] for s, lost in zip(samples, lost_text, strict=True)], sdxl)
        image = face = None
        if family != "faceid":
            pixels = torch.stack([s["clip"] for s in samples])
            if family == "standard":
                image = vision(pixels).image_embeds * ~lost_image[:, None]
            else:
                pixels = pixels * ~lost_image[:, None, None, None]
                image = vision(pixels, output_hidden_states=True).hidden_states[-2]
        if "face" in family:
            face = torch.stack([s["face"] for s in samples]) * ~lost_image[:, None] if family != "full-face" else None
    alpha = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 0)[draws.timesteps][:, None, None, None]
    noise = draws.noise + given.noise_offset * draws.offset
    noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
    target = alpha.sqrt() * noise - (1 - alpha).sqrt() * latents if "velocity" in str(base) else noise
    projection = unet.encoder_hid_proj.image_projection_layers[0]
    if family == "faceid-plus-v2":
        projection.clip_embeds, projection.shortcut = image.unsqueeze(1), True
    added = {"image_embeds": [(image if face is None else face).unsqueeze(1)]}
    if sdxl:
        added |= {"text_embeds": pooled, "time_ids": torch.stack([s["time_ids"] for s in samples])}
    predicted = unet(noisy, draws.timesteps, text, added_cond_kwargs=added).sample
    return ((predicted - target) ** 2).mean()


@pytest.mark.parametrize(("base", "family"), [
    ("sd15", "standard"), ("sd15", "plus"), ("sd15", "full-face"), ("sd15", "faceid"), ("sd15", "faceid-plus-v2"),
    ("velocity", "standard"), ("sdxl", "standard"),
])  # fmt: skip
def test_gradients_of_the_first_step_are_those_of_diffusers_own_adapter(models, first_step, base, family):
    """All gradients together to 1e-5 of their norm; those of the deepest layers by themselves are small and rounded more."""
    from training.loss import draw

    folder = models.root / base
    if not folder.exists():
        tiny_base.base(folder, "sdxl" if base == "sdxl" else "sd15", "v_prediction" if base == "velocity" else "epsilon")
    given = dict(drop_image=0.2, drop_text=0.2, drop_both=0.0, noise_offset=0.1, seed=1)  # one sample loses the picture, one the text
    run, samples, _, places = first_step(family=family, base=folder, plus_width=128, **given)
    draws = draw(1, places, (4, 8, 8), 1000)
    assert (draws.share < 0.2).tolist() == [False, True] and draws.share[0] < 0.4
    unet = pipeline(folder, base == "sdxl", run.save())
    loss = written_out(unet, folder, models.encoder, samples, draws, run)
    loss.backward()
    assert run.loss == pytest.approx(loss.item(), rel=1e-5)
    order = [processor for name, processor in unet.attn_processors.items() if name.endswith("attn2.processor")]
    layers = unet.encoder_hid_proj.image_projection_layers[0]
    pairs = {f"image_proj.{ours}": layers.get_parameter(theirs) for ours, theirs in NAMES[family].items()}
    for i, processor in enumerate(order):
        pairs[f"ip_adapter.{2 * i + 1}.to_k_ip.weight"] = processor.to_k_ip[0].weight
        pairs[f"ip_adapter.{2 * i + 1}.to_v_ip.weight"] = processor.to_v_ip[0].weight
    assert set(pairs) >= {name for name in run.named if name.startswith("ip_adapter.")}
    error = norm = 0.0
    for name, theirs in pairs.items():
        got, want = run.named[name].grad, theirs.grad
        assert want.norm() > 0, name
        assert (got - want).norm() / want.norm() < 20 * RELATIVE, name
        error, norm = error + float((got - want).norm()) ** 2, norm + float(want.norm()) ** 2
    assert math.sqrt(error / norm) < RELATIVE


def test_gradient_checkpointing_changes_no_gradient(first_step, settings):
    plain, again = (first_step(checkpointing=on, out=settings().out + str(on))[0] for on in (False, True))
    assert plain.loss == again.loss
    for name, value in plain.named.items():
        assert torch.equal(value.grad, again.named[name].grad), name


def test_k_and_v_start_as_the_texts(first_step, models):
    run, *_ = first_step()
    unet = UNet2DConditionModel.from_pretrained(models.sd15 / "unet")
    names = [name.removesuffix(".processor") for name in unet.attn_processors]
    for number in range(1, 32, 2):
        for part in "kv":
            text = unet.get_submodule(f"{names[number]}.to_{part}").weight
            assert torch.equal(run.named[f"ip_adapter.{number}.to_{part}_ip.weight"], text)


def test_only_the_adapter_changes(settings):
    from training.loop import Run

    run = Run(settings())
    models = [run.base.unet, run.encoders.vae, run.encoders.encoder, *run.encoders.text_encoders]
    before = [{key: value.clone() for key, value in model.state_dict().items()} for model in models]
    adapter = {key: value.clone() for key, value in run.named.items()}
    batches = run.batches()
    for _ in range(2):
        run.advance(batches)
    for model, kept in zip(models, before, strict=True):
        assert all(torch.equal(value, kept[key]) for key, value in model.state_dict().items())
    assert not [key for key, value in run.named.items() if torch.equal(value, adapter[key])]


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_min_snr_weights(prediction):
    """As diffusers' own training scripts compute them."""
    from training.loss import loss_weights

    scheduler = DDPMScheduler(**tiny_base.SCHEDULE, prediction_type=prediction)  # type: ignore[arg-type]
    t = torch.arange(0, 1000, 37)
    snr = compute_snr(scheduler, t)
    want = torch.stack([snr, torch.full_like(snr, 5.0)]).amin(0) / (snr + (prediction == "v_prediction"))
    assert torch.allclose(loss_weights(scheduler, t, 5.0), want, rtol=1e-4)


def test_min_snr_weighs_each_sample(first_step):
    from training.loss import draw, loss_weights

    run, _, features, places = first_step(min_snr=5.0, drop_image=0, drop_text=0, drop_both=0)
    draws, weighted = draw(run.settings.seed, places, (4, 8, 8), 1000), 0.0
    for i, place in enumerate(places):
        plain, *_ = _one(run, {k: v[i : i + 1] for k, v in features.items()}, [place])
        weighted += plain * float(loss_weights(run.base.scheduler, draws.timesteps[i : i + 1], 5.0)) / len(places)
    assert run.loss == pytest.approx(weighted, rel=1e-5)


def _one(run, features, places):
    """The unweighted loss of one sample."""
    from dataclasses import replace

    kept, run.settings = run.settings, replace(run.settings, min_snr=0.0)
    try:
        return run.backward(features, places)
    finally:
        run.settings = kept


def test_shares_of_what_is_dropped(settings):
    from training.loss import draw, drop

    given = settings(drop_image=0.05, drop_text=0.1, drop_both=0.2)
    n = 4000
    share = draw(0, range(n), (1, 1, 1), 1000).share
    none = {name: torch.zeros(1, 2) for name in ("image", "text", "pooled", "face")}
    found = drop({name: torch.ones(n, 2) for name in (*none, "time_ids")}, none, share, given)
    image, text = found["image"][:, 0] == 0, found["text"][:, 0] == 0
    for got, want in ((image & ~text, 0.05), (text & ~image, 0.1), (image & text, 0.2)):
        assert abs(float(got.float().mean()) - want) < 4 * math.sqrt(want * (1 - want) / n)
    assert torch.equal(found["image"], found["face"]) and torch.equal(found["text"], found["pooled"])
    assert found["time_ids"].all()


def test_learning_rates(settings):
    from training.loop import rate

    cosine = settings(schedule="cosine", warmup=10, steps=110, learning_rate=1.0)
    assert [rate(cosine, step) for step in (0, 4, 9, 10, 60, 110)] == pytest.approx([0.1, 0.5, 1.0, 1.0, 0.5, 0.0])
    assert rate(settings(learning_rate=0.3), 999) == 0.3


def test_the_running_mean(settings):
    from training.loop import Run

    run = Run(settings(ema=0.5))
    name, batches = "image_proj.norm.weight", run.batches()
    mean = run.named[name].detach().clone()
    for step in (1, 2):
        run.advance(batches)
        decay = min(0.5, (1 + step) / (10 + step))
        mean = decay * mean + (1 - decay) * run.named[name].detach()
    assert torch.allclose(run.weights()[name], mean, atol=1e-7)
    assert not torch.equal(run.weights()[name], run.named[name])


def test_accumulated_batches_are_one_large_batch(settings):
    from training.loop import Run

    grads = []
    for given in (dict(batch_size=4), dict(batch_size=2, accumulation=2)):
        run = Run(settings(**given))
        batches = run.batches()
        run.update = lambda run=run: grads.append({key: value.grad.clone() for key, value in run.named.items()})  # type: ignore
        run.advance(batches)
        assert run.position == 4
    for name, want in grads[0].items():
        assert (grads[1][name] - want).norm() <= 1e-5 * want.norm(), name
