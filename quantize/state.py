"""What quantization-aware training leaves behind: enough to write the int8 network again, without a clip."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edgeact.clip import ClipSpec
from edgeact.errors import InputError
from edgeact.quantize.scheme import Scheme

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["QuantizedState"]


@dataclass(frozen=True, kw_only=True)
class QuantizedState:
    """Weights and ranges of the int8 network.

    Attributes:
        scheme: The rule under which they were trained.
        spec: Of the clips that they were trained on.
        ranges: Smallest and largest value of every activation (`edgeact.quantize.ranges`).
        weights: State dict of the folded graph (`fold_batch_norm`), in float as the optimizer left it.

    Raises:
        InputError: A range is empty or not finite, or a weight is not finite.
    """

    scheme: Scheme
    spec: ClipSpec
    ranges: Mapping[str, tuple[float, float]]
    weights: Mapping[str, "Tensor"] = field(repr=False)

    def __post_init__(self) -> None:
        for name, (low, high) in self.ranges.items():
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise InputError(f"the int8 range of {name} is {low} to {high}: it must be finite, and not empty")
        for name, weight in self.weights.items():
            if not weight.isfinite().all():
                raise InputError(f"the int8 weight {name} is not finite (NaN or infinity)")
