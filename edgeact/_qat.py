"""What quantization-aware training trains: the int8 simulation of a float network, which stays its teacher.

    float network ──┬─► teacher: the logits to follow, and the reference of every export
                    └─► folded graph ─► FakeQuantized, the module that the optimizer sees
                             ▲                │ weights, before every epoch until the ranges are frozen
                             └── ranges ◄─────┘ from the calibration clips

Taking the ranges anew from the same clips, instead of averaging them over batches, gives every process the same ones,
and holds the partial sums that the volumetric graph never computes (`edgeact.quantize.ranges`).
"""

import copy
import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeact._capture import fold, quiet_torchao
from edgeact.clip import ClipSpec
from edgeact.errors import MissingDependencyError
from edgeact.evaluate import EvaluationSet
from edgeact.quantize.state import QuantizedState

if TYPE_CHECKING:
    import torch
    from torch import nn

    from edgeact.train import QatConfig

__all__ = ["QuantizationAware", "fingerprint"]


class QuantizationAware:
    """The int8 simulation of `model`.

    Args:
        model: The float network, trained.
        spec: Its ClipSpec.
        config: Scheme, calibration and freezing.
        clips: What the ranges are taken from.
        device: Where to train.

    Raises:
        ToolchainError: torch.export cannot capture the network with a free batch.
        MissingDependencyError: torchao is not installed.
    """

    def __init__(
        self, model: "nn.Module", spec: ClipSpec, config: "QatConfig", clips: EvaluationSet, device: "torch.device"
    ) -> None:
        self._spec, self._config, self._clips, self._device = spec, config, clips, device
        self._observer = config.calibration.observer
        # Its weights are those that are trained: the teacher keeps its own.
        self._float = fold(copy.deepcopy(model), spec, int8=True)
        with quiet_torchao():
            try:
                from edgeact.quantize.training import FakeQuantized
            except ImportError as exc:
                raise MissingDependencyError("torchao", "export", "quantization-aware training") from exc
            self.module = FakeQuantized(fold(model, spec, any_batch=True, int8=True), config.scheme).to(device)
        self.teacher = model.to(device).eval().requires_grad_(False)

    def start_epoch(self, share: float) -> None:
        """Take the ranges anew, unless this `share` of the training is over that they are frozen after."""
        from edgeact.quantize.calibrate import calibrate
        from edgeact.quantize.ranges import observe

        if share and share >= self._config.freeze_after:
            return
        how = (self._spec, self._config.scheme)
        with quiet_torchao():
            if self._observer == "auto":  # of the network as it was given: the same when the run is resumed
                self._observer = calibrate(self._float, self._arrays(), *how).observer
            self._float.load_state_dict(dict(self.module.weights()))
            ranges = observe(self._float.cpu(), self._arrays(), *how)[self._observer]
        self.module.set_ranges(ranges)

    def _arrays(self) -> Iterator[NDArray[np.uint8]]:
        return (clip for _, clip in self._clips)

    def parts(self) -> dict[str, Any]:
        """`state` and `quantized` of the checkpoint."""
        weights, ranges = dict(self.module.weights()), self.module.ranges()
        quantized = QuantizedState(scheme=self._config.scheme, spec=self._spec, ranges=ranges, weights=weights)
        return {"state": self.teacher.state_dict(), "quantized": quantized}


def fingerprint(model: "nn.Module") -> str:
    """SHA-256 of the weights: a run that follows another network is another run."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(tensor.dtype).numpy().tobytes())
    return digest.hexdigest()
