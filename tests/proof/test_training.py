"""A minute of training on the world's base: the loss on a fixed batch falls, and results come to agree with their references."""

import logging

import pytest
import torch

from support.world_models import MODELS, import_world

STEPS, BATCH = 60, 16


@pytest.fixture
def run(tmp_path):
    import_world()
    from training.config import Settings
    from training.loop import Run
    from world import adapters, layout

    layout.restore(MODELS, tmp_path)
    adapters.write_data(tmp_path / "data", 200)
    return Run(Settings(
        base=str(tmp_path / "base"), image_encoder=str(tmp_path / "encoder"), data=str(tmp_path / "data"), out=str(tmp_path / "out"),
        name="minute", family="standard", resolution=64, batch_size=BATCH, steps=STEPS, learning_rate=2e-3, warmup=10, min_snr=5.0,
        validate_every=STEPS, validation_count=6, validation_steps=10,
    ))  # fmt: skip


def test_a_minute(run, caplog):
    caplog.set_level(logging.INFO)
    batches = run.batches()
    features, _ = next(batches)
    places = list(range(10_000, 10_000 + BATCH))  # noise and time steps that no step of this run draws

    def state() -> tuple[float, float]:
        loss, _ = run.backward(features, places)
        run.optimizer.zero_grad()
        run.validate()
        return loss, run.figures["agreement"]

    torch.manual_seed(0)
    (loss, agreement), _ = state(), run.position
    for _ in range(STEPS):
        run.advance(batches)
    later, agreed = state()
    assert later < loss, (loss, later)
    assert agreed > agreement, (agreement, agreed)
    assert agreed > run.figures["agreement_without"], run.figures
