"""What a user says of int8."""

from dataclasses import dataclass
from typing import Literal

from edgeact.errors import InputError
from edgeact.quantize.scheme import Observer, check_observer
from edgeact.quantize.state import QuantizedState

__all__ = ["CALIBRATION_CLIPS", "Int8"]

# What one clip of real video exceeds is cut off: 64 clips cost up to 7 dB against all of a training part's 230.
CALIBRATION_CLIPS = 256


@dataclass(frozen=True, kw_only=True)
class Int8:
    """How an int8 network is made.

    Attributes:
        calibration_clips: Most clips of the training part that give activations their ranges, even over the classes,
            at least one of each.
        observer: How a range follows from them: mse, min-max or percentile.
        keep_float: How many layers stay in float, those whose rounding costs most; "auto" takes as few as the gates on
            accuracy need on the validation part; or the layers themselves, as the network calls its modules.
        trained: What quantization-aware training left of the network (`Checkpoint.quantized`): nothing is calibrated.
    """

    calibration_clips: int = CALIBRATION_CLIPS
    observer: Observer = "mse"
    keep_float: int | Literal["auto"] | tuple[str, ...] = 0
    trained: QuantizedState | None = None

    def __post_init__(self) -> None:
        check_observer(self.observer)
        if self.calibration_clips < 1:
            raise InputError(f"calibration_clips is {self.calibration_clips}: int8 needs at least 1")
        if isinstance(self.keep_float, int) and self.keep_float < 0:
            raise InputError(f"keep_float is {self.keep_float}: it is a number of layers, 'auto', or names of layers")

    @property
    def ranks_layers(self) -> bool:
        """Whether layers stay in float that have to be found first."""
        return bool(self.keep_float) and not isinstance(self.keep_float, tuple)
