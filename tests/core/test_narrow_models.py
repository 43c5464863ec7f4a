"""The narrow models that stand in for published ones are random, and never what lay in memory before."""

import pytest
import torch

from support import models, synth


@pytest.mark.parametrize("fill", [models.fill, synth.fill], ids=["models", "synth"])
def test_everything_that_was_unset_is_filled(fill):
    module = torch.nn.Linear(4, 3)
    module.register_buffer("pos_embed", torch.empty(1, 5, 3))
    module.register_buffer("counted", torch.zeros((), dtype=torch.int))
    with torch.no_grad():
        for tensor in (module.weight, module.bias, module.pos_embed):
            tensor.fill_(torch.nan)
        fill(module, 1)
    assert all(torch.isfinite(tensor).all() for tensor in module.state_dict().values())
    assert module.pos_embed.std() > 0.1
