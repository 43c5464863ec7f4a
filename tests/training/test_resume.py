"""Stopped and resumed, shared between processes: the weights of a run that one process did from start to end."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

REPO = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "1"}


def flags(arguments: dict) -> list[str]:
    """Settings as the command line has them."""
    found = []
    for key, value in arguments.items():
        flag = "--" + key.replace("_", "-")
        found += [flag] if value is True else [flag, str(value)]
    return found


def start(arguments: dict, log: Path) -> subprocess.Popen:
    with log.open("ab") as file:
        return subprocess.Popen([sys.executable, "-m", "training", *flags(arguments)], env=ENVIRONMENT, stdout=file, stderr=file)


def wait_for_state(out: Path, after: int, process: subprocess.Popen, log: Path) -> int:
    """The step of the first state later than `after`."""
    end = time.monotonic() + 600
    while time.monotonic() < end and process.poll() is None:
        steps = [int(match[1]) for path in out.glob("*.state") if (match := re.fullmatch(r"ip-adapter_custom_(\d+)\.state", path.name))]
        if steps and max(steps) > after:
            return max(steps)
        time.sleep(0.01)
    raise AssertionError(log.read_text())


def test_stopped_killed_and_resumed_gives_the_same_bits(models, tmp_path):
    """Ctrl+C after one step, kill -9 after another, then to the end: weights, running mean and optimizer as without a break."""
    from training.loop import train

    given = dict(steps=8, save_every=1, ema=0.9, crop="random", min_snr=5.0, noise_offset=0.05, accumulation=1, learning_rate=1e-3)
    whole = train(models.settings(tmp_path / "whole", **{**given, "save_every": 8}))
    out, log = tmp_path / "broken", tmp_path / "log"
    arguments = models.arguments(out, **given, resume=True, workers=1)

    process = start(arguments, log)
    stopped = wait_for_state(out, 0, process, log)
    process.send_signal(signal.SIGINT)
    assert process.wait(600) == 130, log.read_text()
    assert "stopped, go on with --resume at step" in log.read_text() and "Traceback" not in log.read_text()

    process = start(arguments, log)
    killed = wait_for_state(out, stopped + 1, process, log)
    process.kill()
    assert process.wait(600) == -signal.SIGKILL
    assert killed < 8

    resumed = train(models.settings(out, **given, resume=True))
    assert resumed.step == whole.step == 8
    assert resumed.position == whole.position
    for name in ("ip-adapter_custom_8.safetensors", "ip-adapter_custom_8.state"):
        want, got = load_file(tmp_path / "whole" / name), load_file(out / name)
        assert want.keys() == got.keys()
        assert not [key for key in want if not torch.equal(want[key], got[key])]
    assert [path.name for path in out.glob("*.state")] == ["ip-adapter_custom_8.state"]


def test_two_processes_are_one_with_the_same_global_batch(models, tmp_path):
    """gloo on the CPU, started by torchrun: `accelerate launch` starts one process alone there.

    The gradients agree to 7e-6 of their norm; AdamW's first steps go by sign, so weights whose gradient is near its epsilon differ most.
    """
    from training.loop import Run, train

    given = dict(steps=2, learning_rate=5e-5, save_every=2)
    start = {key: value.detach().clone() for key, value in Run(models.settings(tmp_path, **given)).named.items()}
    one = train(models.settings(tmp_path / "one", batch_size=4, **given))
    arguments = models.arguments(tmp_path / "two", batch_size=2, **given)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "training"]
    done = subprocess.run([*launch, *flags(arguments)], env=ENVIRONMENT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    want, got = load_file(one.file), load_file(tmp_path / "two" / one.file.name)
    assert max(float((want[key] - got[key]).abs().max()) for key in want) < 1e-5
    moved = sum(float((want[key] - start[key]).square().sum()) for key in want)
    apart = sum(float((want[key] - got[key]).square().sum()) for key in want)
    assert moved > 0 and (apart / moved) ** 0.5 < 1e-3


def test_other_settings_are_refused(models, tmp_path):
    from ipadapter_core.errors import IPAdapterError
    from training.loop import Run

    Run(models.settings(tmp_path)).save()
    with pytest.raises(IPAdapterError, match="is the state of an earlier run: add --resume"):
        Run(models.settings(tmp_path))
    with pytest.raises(IPAdapterError, match=r"other settings \(learning_rate was 0.0001 and is 0.1\)"):
        Run(models.settings(tmp_path, resume=True, learning_rate=0.1))
