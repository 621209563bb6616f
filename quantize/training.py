"""Quantization-aware training: the forward pass rounds as int8 does, the gradient passes straight through the rounding.

    x ─ fake_quantize ─ conv ◄ fake_quantize ◄ weight           Jacob et al. 2018, section 3; BatchNorm is folded

Scales of weights follow the weights at every step (their extremes); ranges of activations are given from outside, and
values beyond them are cut off, as on the device.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn
from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e

from edgeact.quantize.annotate import SchemeQuantizer, observers, value_names
from edgeact.quantize.ranges import Ranges
from edgeact.quantize.scheme import Scheme

__all__ = ["FakeQuantized"]


class FakeQuantized(nn.Module):
    """`clip_BCTHW -> logits_BK` in int8's rounding, to be trained; `set_ranges` comes first.

    It has no dropout: the graph is that of inference.

    Args:
        graph: Float, with a free batch, BatchNorm folded; it is not changed.
        scheme: What the targets demand.
    """

    def __init__(self, graph: fx.GraphModule, scheme: Scheme) -> None:
        super().__init__()
        quantizer = SchemeQuantizer(scheme, training=True)
        self._names = tuple(graph.state_dict())
        self.network: fx.GraphModule = prepare_qat_pt2e(copy.deepcopy(graph), quantizer).requires_grad_(True)
        names = {node.name: name for node, name in value_names(graph).items()}
        self._activations: dict[str, Any] = {}
        for value, rounding in observers(self.network):
            if value.op != "get_attr":
                rounding.disable_observer()
                self._activations[names[value.name]] = rounding

    def forward(self, clip_BCTHW: torch.Tensor) -> torch.Tensor:
        """Logits `[B, K]`."""
        logits_BK: torch.Tensor = self.network(clip_BCTHW)
        return logits_BK

    def train(self, mode: bool = True) -> "FakeQuantized":
        """Changes nothing: an exported graph has one mode."""
        self.training = mode
        return self

    def set_ranges(self, ranges: Ranges) -> None:
        """Round activations within `ranges` from now on."""
        for name, rounding in self._activations.items():
            observer = rounding.activation_post_process
            for bound, value in zip((observer.min_val, observer.max_val), ranges[name], strict=True):
                bound.fill_(value)
            for part, value in zip((rounding.scale, rounding.zero_point), rounding.calculate_qparams(), strict=True):
                part.copy_(value)

    def ranges(self) -> dict[str, tuple[float, float]]:
        """What `set_ranges` was given last."""
        seen = {name: rounding.activation_post_process for name, rounding in self._activations.items()}
        return {name: (float(observer.min_val), float(observer.max_val)) for name, observer in seen.items()}

    def weights(self) -> Mapping[str, torch.Tensor]:
        """State dict of `graph`, with the weights as trained."""
        state = self.network.state_dict()
        return {name: state[name] for name in self._names}
