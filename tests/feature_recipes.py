"""Networks for workers: they are built there by what this module says, without PyTorch."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeact.errors import UnknownNameError
from edgeact.features import Extract

__all__ = ["DIGEST", "Brightness"]

DIGEST = "0" * 64


@dataclass(frozen=True)
class Brightness:
    """Means of a clip's frames as features.

    Attributes:
        fault: What is wrong with it: it gives "nan", is "slow", or is an "absent" network or an "other" one.
        mark: A folder that gets a file for each process, with a byte for each clip.
        deadly: The average of the clip that ends the process.
    """

    fault: str | None = None
    mark: str | None = None
    deadly: float | None = None

    def build(self) -> tuple[Extract, str]:
        if self.fault == "absent":
            raise UnknownNameError("model", "c4d", ["c3d"])

        def extract(clip: np.ndarray) -> np.ndarray:
            if self.mark is not None:
                with (Path(self.mark) / str(os.getpid())).open("ab") as file:
                    file.write(b".")
            if self.fault == "slow":
                time.sleep(0.1)
            if self.deadly is not None and clip.mean() == self.deadly:
                os._exit(9)  # as where memory is short
            return clip.mean((2, 3, 4), dtype=np.float32) * (np.nan if self.fault == "nan" else 1)

        return extract, "1" * 64 if self.fault == "other" else DIGEST
