"""What quantization-aware training leaves behind: enough to write the int8 network again, without a clip."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edgeact.clip import ClipSpec
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
    """

    scheme: Scheme
    spec: ClipSpec
    ranges: Mapping[str, tuple[float, float]]
    weights: Mapping[str, "Tensor"] = field(repr=False)
