"""What XNNPACK takes of an ATen graph: the rules that ExecuTorch's partitioner and LiteRT's delegate share."""

from collections.abc import Mapping
from typing import Any

from torch import fx

from edgeact.targets._refusals import refuse
from edgeact.targets._target import Refusal

__all__ = ["refusals"]

_COMPUTE = """
abs add addmm avg_pool2d baddbmm bmm ceil clamp conv2d div exp floor gelu hardsigmoid hardswish
hardtanh leaky_relu linear log matmul max_pool2d maximum mean minimum mm mul neg pow relu relu6 rsqrt
scaled_dot_product_attention sigmoid silu softmax sqrt sub tanh
"""


def refusals(graph: fx.GraphModule, *, more: str, source: str, volumetric: str) -> Mapping[fx.Node, Refusal]:
    """The ops of `graph` that XNNPACK does not take.

    Args:
        graph: ATen ops with `meta["val"]`.
        more: Names of ops that this runtime brings to XNNPACK beside the common ones, whatever their arguments.
        source: Where this runtime states its rules.
        volumetric: What becomes of a 3-D op here.
    """
    conditional, always = frozenset(_COMPUTE.split()), frozenset(more.split())

    def judge(name: str, node: fx.Node) -> str | None:
        if name in always:
            return None
        return _condition(name, node) if name in conditional else "not among its ops"

    return refuse(graph, judge, source=source, volumetric=volumetric)


def _condition(name: str, node: fx.Node) -> str | None:
    """What keeps XNNPACK from this use of an op that it has."""
    args: Any = node.args
    rank = len(args[0].meta["val"].shape) if isinstance(args[0], fx.Node) and "val" in args[0].meta else 0
    if name in ("conv2d", "linear") and args[1].op != "get_attr":
        return "its weights must be constants"
    if name == "mean":
        dims = sorted(dim % rank for dim in args[1]) if len(args) > 1 and args[1] else []
        return None if (rank, dims) == (4, [2, 3]) and args[2:3] == (True,) else "a mean is over height and width alone"
    if name == "pow" and args[1:2] != (2,):
        return "a power is a square alone"
    if name == "softmax" and args[1] % rank != rank - 1:
        return "softmax is over the last dimension alone"
    if name == "avg_pool2d" and (any(args[4:5]) or len(args) < 6 or args[5]):
        return "average pooling neither rounds up nor counts its padding"
    return None
