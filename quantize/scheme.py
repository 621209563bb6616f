"""The int8 rule that a target demands: what is fixed before any clip is seen."""

from dataclasses import dataclass
from typing import Literal

__all__ = ["Observer", "Scheme"]

Observer = Literal["min-max", "histogram"]


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """Weights are int8, symmetric, with a scale per output channel; activations int8 with a scale per tensor.

    Attributes:
        symmetric: Activations have their zero at 0, as TensorRT wants; otherwise anywhere: one bit more after a ReLU.
        partial_sums: The target adds temporal taps as int8 tensors where its 2-D form does (grouped, large and deep
            kernels), so these sums need a scale of their own; a volumetric target adds them in its accumulator.
        observer: How a range follows from what was seen: its extremes, or the range of the histogram that loses least
            (torchao's HistogramObserver).
    """

    symmetric: bool = False
    partial_sums: bool = False
    observer: Observer = "min-max"
