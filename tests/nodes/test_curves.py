"""A weight over the steps in samplings whose noise does not only fall, beside the equation at each model call."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from support import lab, plain, synth

CURVE = "0.1:1, 0.4:-0.5, 0.75:0.25"
ROUNDING = 5e-5  # of float32 through a UNet and several steps, beside the size of the effect


@pytest.fixture(scope="module")
def small(pack, comfy):
    return plain.Small(pack, comfy)


@pytest.fixture(scope="module")
def prompted(small):
    picture = dict(image=lab.images(1), weight=1.0, role="everything", fit="center crop", tiles=2)
    (reference,) = lab.call(small.pack["ImagePromptReference"], **picture)
    given = dict(weight=0.8, join="side by side", method="as IPAdapter Plus", ipadapter=small.adapter, clip_vision=small.encoder)
    return lambda **curves: lab.call(small.pack["ImagePrompt"], model=small.unet, reference=reference, **given, **curves)[0]


@pytest.fixture(scope="module")
def prompt(prompted):
    return prompted(weight_over_steps=CURVE)


def test_a_curve_stands_in_for_the_text_and_an_even_one_does_not(prompted, prompt):
    text, even, drawn = (restarted(model) for model in (
        prompt,
        prompted(weight_over_steps=CURVE, curve={"points": [[0, 1], [1, 1]], "interpolation": "linear"}),
        prompted(weight_over_steps=CURVE, curve={"points": [[0, 1], [1, 0]], "interpolation": "linear"}),
    ))  # fmt: skip
    assert torch.equal(text, even) and not torch.equal(text, drawn)
    assert torch.equal(drawn, restarted(prompted(weight_over_steps="0:1, 1:0")))


def restart(model, x, sigmas, extra_args, callback=None, disable=None):
    """Euler's steps, and twice back up from the fourth sigma to the second with fresh noise (Restart, arXiv 2306.14878)."""
    steps = [*range(3), *range(1, 3), *range(1, len(sigmas) - 1)]
    for number, step in enumerate(steps):
        here, there = sigmas[step], sigmas[step + 1]
        if number and step <= steps[number - 1]:
            x = x + synth.noise(f"restart {number}", tuple(x.shape), 1.0) * (here**2 - sigmas[3] ** 2) ** 0.5
        x = x + (x - model(x, here * x.new_ones(len(x)), **extra_args)) / here * (there - here)
    return x


def restarted(model):
    import comfy.sample
    import comfy.samplers

    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "karras", 6)
    noise, latent = synth.noise("restart", (1, 4, 8, 8), 1.7), torch.zeros(1, 4, 8, 8)
    prompts = lab.cond("sd15"), lab.cond("sd15", tag="neg")
    sampler = comfy.samplers.KSAMPLER(restart)
    return comfy.sample.sample_custom(model, noise, 4.0, sampler, sigmas, *prompts, latent, disable_pbar=True, seed=1)


def in_two_passes(model):
    """Small, then enlarged and sampled once more from the middle on, as a hires fix does."""
    import comfy.sample

    first = lab.sample(model, "sd15", steps=4, hw=(8, 8))
    large = F.interpolate(first, size=(12, 10), mode="bilinear")
    prompts = lab.cond("sd15"), lab.cond("sd15", tag="neg")
    noise = synth.noise("second pass", tuple(large.shape), 1.7)
    how = dict(denoise=0.6, disable_pbar=True, seed=2)
    return comfy.sample.sample(model, noise, 4, 4.0, "euler", "normal", *prompts, large, **how)


@pytest.mark.parametrize("sampled, calls", [(restarted, 10), (in_two_passes, 8)])
def test_a_curve_where_the_noise_comes_back(small, prompt, sampled, calls):
    """The weight follows the share of the sampling, by the noise at the call: up again where a sampler goes back up, and in a second
    pass from where that starts, as start_at and end_at do."""
    want, seen = small.with_curve(lambda x: np.interp(x, (0.1, 0.4, 0.75), (1, -0.5, 0.25)))
    expected = sampled(want)
    of_calls = seen[:: len(plain.KEYS)]
    assert len(of_calls) == calls
    assert any(later > sooner for sooner, later in itertools.pairwise(of_calls))
    got = sampled(prompt)
    assert plain.error(got, expected, sampled(small.unet)) < ROUNDING
