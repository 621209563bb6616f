"""Post-training quantization: ranges from real clips, then int8 in the graph (torchao's PT2E).

folded graph ─► observers where `annotate` says ─► clips through it ─► quantize and dequantize ops, int8 weights
"""

import copy
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from edgeact.clip import ClipSpec, normalize
from edgeact.errors import InputError
from edgeact.quantize.annotate import SchemeQuantizer, adds_taps
from edgeact.quantize.scheme import Scheme

__all__ = ["calibrate"]

# Pixels are quantized once more, at nearly their own step. A little wider, the two grids do not fall on ties, which
# every runtime rounds its own way, and OpenVINO does not take the one for the other (a level lost, silently).
_PIXEL_ROOM = 1.02


def calibrate(
    graph: fx.GraphModule, clips: Iterable[NDArray[np.uint8]], spec: ClipSpec, scheme: Scheme
) -> fx.GraphModule:
    """The int8 network of `graph`.

    Args:
        graph: Float `clip_BCTHW -> logits_BK` with B=1, BatchNorm folded; it is not changed.
        clips: uint8 clips `[1, T, H, W, 3]` of the kind that the device will see.
        spec: How they are normalised.
        scheme: What the target demands.

    Returns:
        The same network with int8 weights and with quantize and dequantize ops (`quantized_decomposed`), which PyTorch
        runs in float with int8's rounding.

    Raises:
        InputError: No clips, or an activation that is not finite, or constant, on all of them.
    """
    prepared = prepare_pt2e(copy.deepcopy(graph), SchemeQuantizer(scheme))
    summed = {node.name for node in graph.graph.nodes if scheme.partial_sums and adds_taps(node)}
    observe = _Observe(prepared, summed)
    _observe_pixels(prepared, spec)
    count = 0
    with torch.no_grad():
        for clip in clips:
            observe.run(torch.from_numpy(normalize(clip, spec)))
            count += 1
    if not count:
        raise InputError("no clips to calibrate on: int8 takes the range of every activation from real clips")
    _check_ranges(prepared, count)
    quantized: fx.GraphModule = convert_pt2e(prepared)
    return quantized


class _Observe(fx.Interpreter):
    """Runs the prepared graph, and shows the observers of the convolutions `summed` the parts of their sums, too."""

    def __init__(self, prepared: fx.GraphModule, summed: set[str]) -> None:
        super().__init__(prepared)
        self._summed = summed

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.name in self._summed:
            observe: Any = self.fetch_attr(str(next(iter(n.users)).target))
            x, weight, *rest = self.fetch_args_kwargs_from_env(n)[0]
            every = range(weight.shape[2])
            for taps in [slice(0, None, 2), slice(1, None, 2), *(slice(i, k + 1) for k in every for i in {0, k})]:
                kernel = torch.zeros_like(weight)
                kernel[:, :, taps] = weight[:, :, taps]
                observe(torch.ops.aten.conv3d.default(x, kernel, *rest))
        return value


def _observe_pixels(prepared: fx.GraphModule, spec: ClipSpec) -> None:
    """The network's input is a normalised pixel, whose range needs no clips."""
    clip = next(node for node in prepared.graph.nodes if node.op == "placeholder")
    extremes = [normalize(np.full((1, *spec.clip_shape), value, np.uint8), spec) for value in (0, 255)]
    for node in (user for user in clip.users if user.op == "call_module"):
        for extreme in extremes:
            prepared.get_submodule(str(node.target))(torch.from_numpy(extreme) * _PIXEL_ROOM)


def _check_ranges(prepared: fx.GraphModule, count: int) -> None:
    for node in prepared.graph.nodes:
        if node.op != "call_module":
            continue
        observer: Any = prepared.get_submodule(str(node.target))
        low, high = float(observer.min_val.min()), float(observer.max_val.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            found = "not finite (NaN or infinity)"
        elif low == high:
            found = f"always {low:g}"
        else:
            continue
        raise InputError(
            f"{_layer(node.args[0])} is {found} on the {count} calibration clips: int8 cannot hold it; look at the "
            "weights, and calibrate on clips like those that the device will see"
        )


def _layer(node: Any) -> str:
    """What a person calls the value of `node`."""
    stack = node.meta.get("nn_module_stack") or {}
    path = list(stack.values())[-1][0] if stack else ""
    if node.op == "get_attr":
        return f"the weight {node.target}"
    return f"the activation {node.name}" + (f" (module {path})" if path else "")
