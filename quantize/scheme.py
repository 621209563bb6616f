"""The int8 rule that a target demands: what is fixed before any clip is seen."""

from dataclasses import dataclass
from typing import Any, Literal

from edgeact.errors import InputError

__all__ = ["AFFINE", "PORTABLE", "Observer", "Scheme"]

Observer = Literal["mse", "percentile", "min-max"]  # how a range follows from the values seen: see `ranges`


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """Weights are int8, symmetric, with a scale per output channel; activations int8 with a scale per tensor.

    Attributes:
        symmetric: Activations have their zero at 0, as TensorRT wants; otherwise anywhere: one bit more after a ReLU.
        partial_sums: The target adds temporal taps as int8 tensors where its 2-D form does (grouped, large and deep
            kernels), so these sums need a scale of their own; a volumetric target adds them in its accumulator.
    """

    symmetric: bool = False
    partial_sums: bool = False

    def __str__(self) -> str:
        zero = "activations symmetric about zero" if self.symmetric else "a free zero point"
        return f"{zero}, sums of taps {'with' if self.partial_sums else 'without'} scales"

    def serves(self, demanded: "Scheme") -> bool:
        """Whether ranges taken for this scheme hold what a target with the scheme `demanded` needs."""
        return self.symmetric >= demanded.symmetric and self.partial_sums >= demanded.partial_sums

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "Scheme":
        """From `dataclasses.asdict` by way of JSON.

        Raises:
            InputError: Other fields than those of a scheme.
        """
        if {name: type(value) for name, value in fields.items()} != {"symmetric": bool, "partial_sums": bool}:
            raise InputError(f"{fields} is no int8 scheme: it has `symmetric` and `partial_sums`, true or false")
        return cls(**fields)


# Serves every target from one set of ranges.
PORTABLE = Scheme(symmetric=True, partial_sums=True)

# Serves every target that has a free zero point, which is worth 1 to 3 dB of SQNR after training.
AFFINE = Scheme(partial_sums=True)
