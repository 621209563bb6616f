"""What LiteRT's compilers for NPUs take of an ATen graph: by their rules for the ops of TFLite that come of it."""

from collections.abc import Mapping
from typing import Any

from torch import fx

from edgeact.targets._litert_npu_rules import refused
from edgeact.targets._refusals import refuse
from edgeact.targets._target import Refusal

__all__ = ["refusals"]

# Ops of TFLite's schema by the ATen op that litert-torch writes them for; others keep their name.
_OPS = {
    "adaptive_avg_pool2d": "AVERAGE_POOL_2D",
    "addmm": "FULLY_CONNECTED",
    "amax": "REDUCE_MAX",
    "amin": "REDUCE_MIN",
    "avg_pool2d": "AVERAGE_POOL_2D",
    "bmm": "BATCH_MATMUL",
    "clamp": "MINIMUM",
    "conv2d": "CONV_2D",
    "eq": "EQUAL",
    "ge": "GREATER_EQUAL",
    "gt": "GREATER",
    "hardsigmoid": "MUL",
    "hardswish": "HARD_SWISH",
    "hardtanh": "MINIMUM",
    "le": "LESS_EQUAL",
    "linear": "FULLY_CONNECTED",
    "lt": "LESS",
    "matmul": "BATCH_MATMUL",
    "max_pool2d": "MAX_POOL_2D",
    "mm": "BATCH_MATMUL",
    "rsub": "SUB",
    "sigmoid": "LOGISTIC",
    "silu": "LOGISTIC",
    "upsample_bilinear2d": "RESIZE_BILINEAR",
    "upsample_nearest2d": "RESIZE_NEAREST_NEIGHBOR",
    "where": "SELECT_V2",
}


def refusals(graph: fx.GraphModule, npu: str) -> Mapping[fx.Node, Refusal]:
    """The ops of `graph` that the compiler for `npu` leaves to the CPU."""

    def judge(name: str, node: fx.Node) -> str | None:
        values: list[Any] = [each.meta.get("val") for each in (node, *node.all_input_nodes) if each.op != "get_attr"]
        shapes = [tuple(value.shape) for value in values if hasattr(value, "shape")]
        return refused(npu, _OPS.get(name, name.upper()), shapes) or None

    volumetric = "LiteRT has no grouped CONV_3D, no int8 one and no MAX_POOL_3D (tensorflow/lite/kernels/conv3d.cc)"
    return refuse(graph, judge, source=f"--npu {npu}", volumetric=volumetric)
