"""How an adapter is applied: weights, window, mask."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ....ipadapter_core.adapter.attention import SCALINGS
from ....ipadapter_core.adapter.layers import Weight, custom_weights, layer_weights
from ....ipadapter_core.errors import IPAdapterError
from ....ipadapter_core.values import MOST, brief, check_choice, check_number
from ....ipadapter_core.weights.curves import Curve
from ..engine.application import Joined


@dataclass(frozen=True)
class Settings:
    """How an adapter is applied. `per_latent`: entry i of the features, weights and masks goes with latent i.

    by_layer: t -> weight in place of weight and weight_type. curve: what multiplies the weight over the steps. cubic, joined: as in
    Application.
    """

    weight: float | list[float] = 1.0
    weight_type: str = "linear"
    start_at: float = 0.0
    end_at: float = 1.0
    embeds_scaling: str = "V only"
    mask: Tensor | None = None
    weight_composition: float | list[float] = 1.0
    style_boost: float | list[float] | None = None
    composition_boost: float | list[float] | None = None
    layer_weights: str | None = None
    per_latent: bool = False
    middle: bool = False
    by_layer: Mapping[int, float] | None = None
    curve: Curve | None = None
    cubic: bool = False
    joined: Joined | None = None

    def __post_init__(self) -> None:
        check_number(self.start_at, "start_at")
        check_number(self.end_at, "end_at")
        check_choice(self.embeds_scaling, "embeds_scaling", SCALINGS)
        if not isinstance(self.layer_weights, str | None):
            raise IPAdapterError(f"layer_weights must be text such as 3:1.0, 6:0.5, and this is {brief(self.layer_weights)}.")

    @property
    def effective_type(self) -> str:
        if self.style_boost is not None:
            return "style transfer precise"
        if self.composition_boost is not None:
            return "composition precise"
        return self.weight_type

    @property
    def swaps(self) -> bool:
        """Written layer weights take the place of a chosen type, yet not of a boost's swap."""
        return not self.custom or self.style_boost is not None or self.composition_boost is not None

    @property
    def listed(self) -> bool:
        """Whether one of the weights is a list of several."""
        boosts = (boost for boost in (self.style_boost, self.composition_boost) if boost is not None)
        return any(len(weights_of(weight)) > 1 for weight in (self.weight, self.weight_composition, *boosts))

    @property
    def custom(self) -> bool:
        return bool(self.layer_weights and self.layer_weights.strip())

    def weights(self, base: str) -> dict[int, Weight]:
        """t -> weight, one for all latents or one for each; lists of different lengths go on with their last weight."""
        if self.by_layer is not None:
            return dict(self.by_layer)
        boost = self.style_boost if self.style_boost is not None else self.composition_boost
        boosts: list[Any] = [None] if boost is None else weights_of(boost)
        lists = [weights_of(self.weight), weights_of(self.weight_composition), boosts]
        count = max(map(len, lists)) if self.per_latent else 1
        each = [self._scalar_weights(base, *(one[min(i, len(one) - 1)] for one in lists)) for i in range(count)]
        if len(each) == 1:
            return dict(each[0])
        return {t: tuple(one[t] for one in each) for t in each[0]}

    def _scalar_weights(self, base: str, weight: float, weight_composition: float, boost: float | None) -> dict[int, float]:
        if self.custom:
            return custom_weights(base, self.layer_weights or "", weight)
        return layer_weights(base, self.effective_type, weight, weight_composition=weight_composition, boost=boost)


def weights_of(weight: Any) -> list[float]:
    """A weight, or a list, array or tensor of them, as a list. Raises IPAdapterError for an empty one and for what is no number."""
    given = weight.tolist() if hasattr(weight, "tolist") else weight
    try:
        listed = [float(one) for one in (given if isinstance(given, list | tuple) else [given])]
    except (TypeError, ValueError, OverflowError):
        raise IPAdapterError(f"The weight must be a number, or a list with a number for each frame; this is {brief(given)}.") from None
    if not listed:
        raise IPAdapterError("The list of weights is empty: give one weight at least.")
    if not all(map(math.isfinite, listed)):
        raise IPAdapterError("The weights hold a value that is not a number (NaN or infinite): look at the node that made them.")
    if max(map(abs, listed)) > MOST:
        raise IPAdapterError(f"The weights hold {max(listed, key=abs):g}, and none may be beyond {MOST:g}: look at their node.")
    return listed
