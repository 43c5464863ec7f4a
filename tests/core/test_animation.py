"""Weights, pictures and prompts frame by frame, against the curves in numpy and animations spelled out."""

import json
import math
import random

import numpy as np
import pytest
import torch

from ipadapter_core.errors import IPAdapterError
from ipadapter_core.weights.animation import METHODS, TIMINGS, Strategy, animate, join_weights, parse_weights, prompt_schedule, weight_curve

X = np.linspace(0, 1, 7)
SHAPES = {
    "linear": X,
    "ease_in_out": (1 - np.cos(np.pi * X)) / 2,
    "ease_in": np.sin(np.pi * X / 2),
    "ease_out": 1 - np.cos(np.pi * X / 2),
}


def pictures(count: int) -> torch.Tensor:
    """Picture i is i / 10 all over."""
    return torch.arange(count).view(-1, 1, 1, 1).expand(-1, 2, 3, 3) / 10


def numbers(images: torch.Tensor | None) -> str:
    """Which picture each frame shows, as digits."""
    assert images is not None
    assert images.shape[1:] == (2, 3, 3)
    return "".join(str(round(image.mean().item() * 10)) for image in images)


def linear(weights: str = "0, 1", frames: int = 3, **kw) -> Strategy:
    return Strategy(weights, "linear", frames, **kw)


@pytest.mark.parametrize(
    ("text", "want"),
    [("0.1, 0.5\n0.9,\n 0.3", [0.1, 0.5, 0.9, 0.3]), ("1", [1.0]), ("", []), (" ,\n, ", []), ("-0.5,1e-1\r\n2", [-0.5, 0.1, 2.0])],
)
def test_parse_weights(text, want):
    assert parse_weights(text) == want


@pytest.mark.parametrize("text", ["a, b", "1; 2", "0.5 0.6", "1, two", "nan", "1, inf"])
@pytest.mark.parametrize("timing", ["custom", "linear"])
def test_weights_that_are_no_numbers_are_refused(text, timing):
    with pytest.raises(IPAdapterError, match=r"weights cannot be read.*Write numbers with commas"):
        weight_curve(Strategy(text, timing, 5))


@pytest.mark.parametrize("timing", SHAPES)
@pytest.mark.parametrize(("start", "end"), [(1.0, 0.2), (-0.5, 2.0), (0.3, 0.3)])
def test_curves(timing, start, end):
    got = weight_curve(Strategy(f"{start}, 99, {end}", timing, 7))
    assert got == pytest.approx(list(start + (end - start) * SHAPES[timing]), abs=1e-12)
    assert (got[0], got[-1]) == (start, end)


@pytest.mark.parametrize(
    ("frames", "start_frame", "end_frame", "want"),
    [
        (8, 2, 5, [0, 0, 0, 0.5, 1, 1, 1, 1]),
        (4, 0, 9999, [0, 1 / 3, 2 / 3, 1]),
        (4, 3, 9999, [0, 0, 0, 1]),  # one step: no division by zero, and it is the end
        (4, 1, 2, [0, 1, 1, 1]),
        (4, 2, 2, [0, 0, 1, 1]),  # no step
        (4, 3, 1, [0, 0, 0, 1]),
        (4, 9, 9999, [0, 0, 0, 0]),
        (1, 0, 9999, [0, 1]),  # at least two frames
        (0, 0, 9999, [0, 1]),
        (2, 0, 1, [1, 1]),
    ],
)
def test_curves_between_two_frames(frames, start_frame, end_frame, want):
    got = weight_curve(Strategy("0, 1", "linear", frames, start_frame, end_frame))
    assert got == pytest.approx(want, abs=1e-12)


def test_lists_too_short_for_a_curve():
    assert weight_curve(Strategy("", "linear", 3)) == [0, 0.5, 1]
    assert weight_curve(Strategy("0.4", "ease_in", 3)) == [0.4, 0.4, 0.4]
    assert weight_curve(Strategy("", "custom", 3)) == [0.0]
    assert weight_curve(Strategy("0.4", "custom", 3)) == [0.4]


def test_random_weights_lie_between_the_ends_and_come_again():
    state, torch_state = random.getstate(), torch.get_rng_state()
    strategy = Strategy("0.8, 0.2", "random", 400, start_frame=10)
    curve = weight_curve(strategy)
    assert random.getstate() == state
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert curve == weight_curve(strategy)
    assert curve != weight_curve(Strategy("0.8, 0.2", "random", 400, start_frame=11))
    assert curve[:10] == [0.8] * 10
    assert curve[-1] == 0.2
    assert len(curve) == 400
    assert all(0.2 <= w <= 0.8 for w in curve)
    assert len(set(curve[10:])) == 390
    assert abs(np.mean(curve[10:-1]) - 0.5) < 4 * 0.6 / math.sqrt(12 * 389)


def test_full_batch_runs_the_curve_for_every_picture():
    weights, image_1, image_2 = animate(linear(method="full batch"), pictures(3))
    assert weights == [0, 0.5, 1] * 3
    assert numbers(image_1) == "000111222"
    assert image_2 is None


def test_shift_batches_fade_each_picture_into_the_next():
    weights, image_1, image_2 = animate(linear(method="shift batches"), pictures(4))
    assert weights == [0, 0.5, 1] * 3
    assert numbers(image_1) == "000111222"
    assert numbers(image_2) == "111222333"


@pytest.mark.parametrize(
    ("count", "first", "second"), [(2, "00", "11"), (3, "0022", "1111"), (4, "002222", "111133"), (5, "00222244", "11113333")]
)
def test_alternate_batches_keep_even_pictures_in_image_1(count, first, second):
    weights, image_1, image_2 = animate(Strategy("0.2, 1", "linear", 2, method="alternate batches"), pictures(count))
    assert weights == pytest.approx(([0.2, 1.0, 1.0, 0.2] * count)[: 2 * (count - 1)])
    assert numbers(image_1) == first
    assert numbers(image_2) == second


def test_the_mirror_turns_over_the_range_that_the_curve_has():
    weights = animate(Strategy("0.1, 0.5, 0.2", "custom", method="alternate batches"), pictures(3)).weights
    assert weights == pytest.approx([0.1, 0.5, 0.2, 0.5, 0.1, 0.4])


@pytest.mark.parametrize(
    ("method", "first", "second"),
    [
        ("full batch", "00000111222222", None),
        ("shift batches", "00000111222", "00111222222"),
        ("alternate batches", "00000222222", "00111111222"),
    ],
)
def test_frames_added_before_and_after(method, first, second):
    strategy = linear(add_starting_frames=2, add_ending_frames=3, method=method)
    weights, image_1, image_2 = animate(strategy, pictures(3))
    inner = animate(linear(method=method), pictures(3)).weights
    assert weights == inner[:1] * 2 + inner + inner[-1:] * 3
    assert numbers(image_1) == first
    assert (image_2 is None) if second is None else numbers(image_2) == second
    assert len(weights) == len(first)


@pytest.mark.parametrize("method", METHODS)
def test_without_pictures_there_are_weights_alone(method):
    assert animate(linear(add_starting_frames=1, add_ending_frames=1, method=method)) == ([0, 0, 0.5, 1, 1], None, None)


def test_one_picture():
    assert numbers(animate(linear(), pictures(1)).image_1) == "000"
    for method in METHODS[1:]:
        with pytest.raises(IPAdapterError, match=f"{method} fades between pictures, but there is only one"):
            animate(linear(method=method), pictures(1))


def test_what_is_no_picture_timing_or_method_is_refused():
    with pytest.raises(IPAdapterError, match="is empty"):
        animate(linear(), pictures(2)[:0])
    with pytest.raises(IPAdapterError, match=r"no timing 'sine'.*custom, linear"):
        weight_curve(Strategy("0, 1", "sine", 3))
    with pytest.raises(IPAdapterError, match=r"no method 'zip'.*full batch"):
        animate(linear(method="zip"))


def test_every_timing_gives_as_many_frames_as_asked():
    for timing in TIMINGS[1:]:
        assert [len(weight_curve(Strategy("0, 1", timing, frames))) for frames in (2, 3, 16)] == [2, 3, 16]


def schedule(prompt: str, **kw) -> dict[int, str]:
    """The schedule read as the JSON it becomes between braces."""
    text = prompt_schedule(linear(frames=kw.pop("frames", 5), **kw), prompt)
    return {int(frame): line for frame, line in json.loads("{" + text.rstrip(",\n") + "}").items()}


def test_prompts_change_with_the_pictures():
    assert prompt_schedule(linear(frames=5, frame_count=2), "a cat\n\na dog\n") == '"0": "a cat",\n"5": "a dog",\n'
    assert schedule("a\n \nb\nc", frame_count=2) == {0: "a", 5: "b"}
    assert schedule("a\nb", frame_count=4) == {0: "a", 5: "b", 10: "b", 15: "b"}
    assert schedule("a\nb", frame_count=2, add_starting_frames=1) == {0: "a", 1: "a", 6: "b"}
    assert schedule("a\nb", frame_count=2, add_ending_frames=3) == {0: "a", 5: "b", 10: "b"}


def test_prompts_without_pictures_lines_or_frames():
    assert schedule("a\nb") == {0: "a"}
    assert schedule("", frame_count=2) == {0: "", 5: ""}
    assert schedule("a\nb", frame_count=2, frames=0) == {0: "a", 2: "b"}
    assert prompt_schedule(Strategy("1, 0.5, 0", "custom", frame_count=2), "a\nb") == '"0": "a",\n"3": "b",\n'


def test_quotes_and_backslashes_in_prompts_stay_readable():
    prompt = 'a "red" cat \\(tabby\\), caf\u00e9'
    assert schedule(prompt, frame_count=1) == {0: prompt}
    assert "caf\u00e9" in prompt_schedule(linear(frame_count=1), prompt)


def test_strategy_from_the_wire():
    wire = {"weights": "0, 1", "timing": "linear", "frames": 3, "frame_count": 2, "from another pack": 1}
    assert Strategy.from_wire(wire) == linear(frame_count=2)
    for broken in (None, {}, [1.0], "linear"):
        with pytest.raises(IPAdapterError, match="weights_strategy is not what IPAdapter Weights gives"):
            Strategy.from_wire(broken)


def test_join_weights():
    assert join_weights([0.1, 0.2], 0.5) == [0.1, 0.2, 0.5]
    assert join_weights(1.0, (0.0,)) == [1.0, 0.0]
