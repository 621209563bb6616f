"""The int8 rung: a folded network calibrated on clips of the training part, as the target's scheme demands.

folded graph ─► ranges from the training part ─► int8 graph, which PyTorch simulates
 folded rung                                       quantized rung
"""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from edgeact._capture import quiet_torchao
from edgeact.errors import MissingDependencyError

if TYPE_CHECKING:
    from torch.fx import GraphModule

    from edgeact.evaluate import EvaluationSet
    from edgeact.quantize.scheme import Scheme

__all__ = ["quantize"]


def quantize(
    folded: "GraphModule", calibration: "EvaluationSet", scheme: "Scheme | None"
) -> tuple["GraphModule", Mapping[str, Any]]:
    """The int8 network of `folded`, and the facts of its calibration.

    Raises:
        InputError: The clips cannot calibrate it; see `calibrate`.
        MissingDependencyError: torchao is not installed.
    """
    assert scheme is not None, "a target with int8 has a scheme"
    with quiet_torchao():
        try:
            from edgeact.quantize.annotate import in_float
            from edgeact.quantize.calibrate import calibrate
        except ImportError as exc:
            raise MissingDependencyError("torchao", "export", "exporting in int8") from exc
        network = calibrate(folded, (clip for _, clip in calibration), calibration.spec, scheme)
    samples = calibration.dataset.samples
    counts = {
        "clips": len(samples) - len(calibration.skipped),
        "classes": len({sample.label for sample in samples}),
        "in_float": in_float(network),
    }
    return network, counts | dataclasses.asdict(scheme)
