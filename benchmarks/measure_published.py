"""Applying the published adapters' sizes, with random weights, to transformers of the published sizes: seconds, and the memory it takes."""

from typing import Any

import torch
from calls import seconds
from measure_blocks import OTHERS, WEIGHT, Kind

from support import whole_transformer as whole
from support import wide_transformer as wide
from support.held import Peak, tensor_bytes


class Published:
    """A transformer all of whose blocks are there and none does anything, and an adapter; both in bf16."""

    def __init__(self, kind: Kind):
        self.family, self.host = kind.family, whole.parts()
        self.model = wide.transformer(whole.ADAPTERS[kind.family][0])
        self.adapter = self.host.as_adapter(wide.adapter(kind.family))

    def apply(self, weight: float = WEIGHT, picture: str = "a") -> Any:
        """A patched model; where K and V depend on the timestep, with those of one timestep made."""
        from ipadapter_pack.nodes.host.engine.layer_patch import applications

        features = wide.features(self.family, picture)
        with torch.inference_mode():
            how = self.host.Settings(weight=weight)
            patched = self.host.apply(self.model, self.adapter, (features,), (torch.zeros_like(features),), how)
            (application,) = applications(patched.model_options["transformer_options"])
            if application.timed is not None:
                blocks = self.model.model.diffusion_model.joint_blocks
                application.at(500.0, application.timed.settle(blocks, torch.device("cpu"), torch.bfloat16))
        return patched

    def measure(self) -> dict[str, float]:
        with Peak() as peak:
            first = seconds(self.apply)
        return {
            "first": first,
            "peak": peak.grown,
            "second": min(seconds(lambda weight=weight: self.apply(weight)) for weight in OTHERS),
            "picture": seconds(lambda: self.apply(picture="b")),
            "adapter": sum(part.nbytes for part in self.adapter.module.parameters()),
            "held": tensor_bytes(self.apply().model_options) - tensor_bytes(self.model.model_options),
        }
