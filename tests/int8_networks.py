"""An int8 network in one call."""

from collections.abc import Iterable
from typing import Any

from torch import fx, nn

from edgeact._capture import fold, quiet_torchao
from edgeact.clip import ClipSpec
from edgeact.quantize.scheme import Scheme

with quiet_torchao():
    from edgeact.quantize.convert import quantize
    from edgeact.quantize.ranges import observe

__all__ = ["calibrated"]


def calibrated(model: nn.Module, clips: Iterable[Any], spec: ClipSpec, scheme: Scheme) -> fx.GraphModule:
    """`model` with BatchNorm folded, in int8, with the ranges of `clips`."""
    graph = fold(model.eval(), spec)
    with quiet_torchao():
        return quantize(graph, observe(graph, clips, spec, scheme)["mse"], scheme)
