"""An int8 network in one call, and a network whose BatchNorms cannot be folded."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn

from edgeact._capture import fold, quiet_torchao
from edgeact.clip import ClipSpec
from edgeact.quantize.scheme import Scheme

with quiet_torchao():
    from edgeact.quantize.convert import quantize
    from edgeact.quantize.ranges import observe

__all__ = ["Dense", "calibrated"]


def calibrated(model: nn.Module, clips: Iterable[Any], spec: ClipSpec, scheme: Scheme) -> fx.GraphModule:
    """`model` with BatchNorm folded, in int8, with the ranges of `clips`."""
    graph = fold(model.eval(), spec)
    with quiet_torchao():
        return quantize(graph, observe(graph, clips, spec, scheme)["mse"], scheme)


class Dense(nn.Module):
    """As in a DenseNet: a BatchNorm of two layers' outputs, and one of an output that is read twice."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.fc = nn.Conv3d(3, 8, 3), nn.Linear(16, classes)
        self.norm, self.other = nn.BatchNorm3d(16), nn.BatchNorm3d(8)
        for norm in (self.norm, self.other):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            nn.init.uniform_(norm.running_var, 0.2, 2)
            nn.init.normal_(norm.running_mean)

    def forward(self, clip: Tensor) -> Tensor:
        """`clip_BCTHW -> logits_BK`."""
        x = self.stem(clip).relu()
        x = self.norm(torch.cat([x, self.other(x).relu()], 1)).relu()
        logits: Tensor = self.fc(x.mean((2, 3, 4)))
        return logits
