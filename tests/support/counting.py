"""What one call of a model costs: dispatched operations, and the ways in which the host waits for the device."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from support import lab, synth

SYNCS = ("item", "cpu", "tolist", "numpy", "nonzero", "__bool__", "__float__", "__int__", "__index__")


def model_call(model):
    """One call of the UNet with two chunks of two latents, as the sampler does it."""
    import comfy.patcher_extension

    x, t = synth.noise("x", (4, 4, 8, 12), 1.7), torch.full((4,), 5.0)
    text = torch.cat([lab.cond("sd15", tag=tag)[0][0].expand(2, -1, -1) for tag in ("neg", "pos")])
    options = {**model.model_options["transformer_options"], "cond_or_uncond": [1, 0], "sigmas": t}
    options = comfy.patcher_extension.merge_nested_dicts(options, {"wrappers": model.wrappers})
    with torch.inference_mode():
        return model.model.apply_model(x, t, c_crossattn=text, transformer_options=options)


class Operations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))
