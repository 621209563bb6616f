"""The range of every activation, from real clips: all that int8 needs beside the weights.

    folded graph ─► observers where `annotate` says ─► clips through it ─► {"relu_0": (0.0, 6.1), …}

An observer says how a range follows from the values seen:

    mse           what loses least when it is rounded: the L2 error over a histogram (torchao's HistogramObserver)
    percentile    what leaves out 0.01 % of them at either end: for networks with outliers
    min-max       their extremes: where no clip has outliers
"""

import copy
from collections.abc import Iterable, Mapping
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx
from torchao.quantization.pt2e import HistogramObserver
from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e

from edgeact.clip import ClipSpec, normalize
from edgeact.errors import InputError
from edgeact.quantize.annotate import SchemeQuantizer, adds_taps, is_weighted, observers, value_names
from edgeact.quantize.scheme import Observer, Scheme

__all__ = ["Ranges", "observe", "range_of"]

Ranges = Mapping[str, tuple[float, float]]  # smallest and largest value by the name that `value_names` gives

# Pixels are quantized once more, at nearly their own step. A little wider, the two grids do not fall on ties, which
# every runtime rounds its own way, and OpenVINO does not take the one for the other (a level lost, silently).
_PIXEL_ROOM = 1.02
_LEFT_OUT = 1e-4
_SAMPLED = 1 << 14


def observe(
    graph: fx.GraphModule,
    clips: Iterable[NDArray[np.uint8]],
    spec: ClipSpec,
    scheme: Scheme,
) -> dict[Observer, Ranges]:
    """The ranges of the activations that `scheme` quantizes, as every observer sees them.

    Args:
        graph: Float `clip_BCTHW -> logits_BK` with B=1, BatchNorm folded; it is not changed.
        clips: uint8 clips `[1, T, H, W, 3]` of the kind that the device will see.
        spec: How they are normalised.
        scheme: What the target demands.

    Raises:
        InputError: No clips, an activation or a weight that is not finite, an activation that is the same on all of
            them, or a weight that is computed anew for every clip.
    """
    for node in graph.graph.nodes:
        if is_weighted(node) and (weight := node.all_input_nodes[1]).op != "get_attr":
            raise InputError(
                f"the weight of {_called(node)} is computed for every clip ({weight.name}): int8 stores weights; fold "
                "what computes it, as torch.nn.utils.parametrize.remove_parametrizations does"
            )
    prepared = prepare_pt2e(copy.deepcopy(graph), SchemeQuantizer(scheme, watch=_SampledHistogram))
    run = _Observe(prepared, {node.name for node in graph.graph.nodes if scheme.partial_sums and adds_taps(node)})
    count = 0
    with torch.no_grad():
        for clip in clips:
            run.run(torch.from_numpy(normalize(clip, spec)))
            count += 1
    if not count:
        raise InputError("no clips to calibrate on: int8 takes the range of every activation from real clips")
    names = {node.name: name for node, name in value_names(graph).items()}
    watched = list(observers(prepared))
    pixels = {seen for value, seen in watched if value.op == "placeholder"}  # and what moves them has their observer
    for value, seen in watched:
        _check(value, seen, count)
    activations = {names[value.name]: seen for value, seen in watched if value.op != "get_attr"}

    def ranges(observer: Observer) -> Ranges:
        return {n: _pixels(spec) if seen in pixels else _range(seen, observer) for n, seen in activations.items()}

    return {observer: ranges(observer) for observer in get_args(Observer)}


def range_of(rows: Iterable[NDArray[np.float32]], observer: Observer, *, symmetric: bool) -> tuple[float, float]:
    """The range of an activation that a network does not have, from its values, clip by clip."""
    scheme = torch.per_tensor_symmetric if symmetric else torch.per_tensor_affine
    seen = _SampledHistogram(dtype=torch.int8, quant_min=-128, quant_max=127, qscheme=scheme)
    for row in rows:
        seen(torch.from_numpy(row))
    return _range(seen, observer)


class _SampledHistogram(HistogramObserver):  # type: ignore[misc]
    """Of every n-th value and the extremes: of whole activations it would take most of the calibration's time."""

    finite = True

    def forward(self, x_orig: torch.Tensor) -> torch.Tensor:
        flat = x_orig.detach().flatten()
        extremes = torch.stack(flat.aminmax())
        self.finite = self.finite and bool(extremes.isfinite().all())
        if self.finite:
            step = flat.numel() // _SAMPLED | 1  # odd, so that it does not fall on one column of frames
            super().forward(torch.cat([flat[::step], extremes]))
        else:
            self.min_val = self.max_val = torch.tensor(torch.nan)
        return x_orig


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


def _pixels(spec: ClipSpec) -> tuple[float, float]:
    """The network's input is a normalised pixel, whose range needs no clips."""
    extremes = [normalize(np.full((1, *spec.clip_shape), value, np.uint8), spec) for value in (0, 255)]
    return _PIXEL_ROOM * float(np.min(extremes)), _PIXEL_ROOM * float(np.max(extremes))


def _range(seen: Any, observer: Observer) -> tuple[float, float]:
    low, high = seen.min_val, seen.max_val
    if observer == "mse":
        low, high = seen._non_linear_param_search()
    elif observer == "percentile":
        share = seen.histogram.cumsum(0) / seen.histogram.sum()
        edges = torch.linspace(float(low), float(high), seen.bins + 1)
        low = edges[int((share <= _LEFT_OUT).sum())]
        high = edges[int((share < 1 - _LEFT_OUT).sum()) + 1]
    return float(low), float(high)


def _check(watched: fx.Node, seen: Any, count: int) -> None:
    low, high = float(seen.min_val.min()), float(seen.max_val.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        found = "not finite (NaN or infinity)"
    elif low == high and watched.op != "get_attr":
        found = f"always {low:g}"
    else:
        return
    raise InputError(
        f"{_called(watched)} is {found} on the {count} calibration clips: int8 cannot hold it; look at the weights, "
        "and calibrate on clips like those that the device will see"
    )


def _called(node: fx.Node) -> str:
    """What a person calls the value of `node`."""
    stack = node.meta.get("nn_module_stack") or {}
    path = list(stack.values())[-1][0] if stack else ""
    if node.op == "get_attr":
        return f"the weight {node.target}"
    return f"the activation {node.name}" + (f" (module {path})" if path else "")
