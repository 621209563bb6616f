"""What a user says of int8."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from edgeact.errors import InputError, UnknownNameError
from edgeact.quantize.scheme import Observer
from edgeact.quantize.state import QuantizedState

__all__ = ["Calibration", "Int8"]


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What gives activations their ranges.

    Attributes:
        clips: Most clips of the training part, even over the classes, at least one of each. Values beyond all that
            they show are cut off on the device: 64 clips cost up to 7 dB against all of a training part's 230.
        observer: How a range follows from them: mse, percentile or min-max; auto takes the one whose int8 network is
            closest to the float one on some of them.
    """

    clips: int = 256
    observer: Observer | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        if self.clips < 1:
            raise InputError(f"calibration takes {self.clips} clips: int8 needs at least 1")
        if self.observer not in (known := ("auto", *get_args(Observer))):
            raise UnknownNameError("observer", self.observer, known)


@dataclass(frozen=True, kw_only=True)
class Int8:
    """How an int8 network is made.

    Attributes:
        calibration: What gives activations their ranges.
        keep_float: How many layers stay in float, those whose rounding costs most; "auto" takes as few as the gates on
            accuracy need on the validation part; or the layers themselves, as the network calls its modules.
        trained: What quantization-aware training left of the network (`Checkpoint.quantized`): nothing is calibrated.
    """

    calibration: Calibration = field(default_factory=Calibration)
    keep_float: int | Literal["auto"] | tuple[str, ...] = 0
    trained: QuantizedState | None = None

    def __post_init__(self) -> None:
        keep = self.keep_float
        named = isinstance(keep, tuple) and all(isinstance(name, str) for name in keep)
        if not (named or keep == "auto" or (isinstance(keep, int) and keep >= 0)):
            raise InputError(f"keep_float is {keep!r}: it is a number of layers, 'auto', or names of layers in a tuple")

    @property
    def ranks_layers(self) -> bool:
        """Whether layers stay in float that have to be found first."""
        return bool(self.keep_float) and not isinstance(self.keep_float, tuple)
