"""What Vela leaves to the CPU, by the constraints that it documents; nothing is compiled.

`vela --supported-ops-report` of ethos-u-vela 5.2.0 writes them down (SUPPORTED_OPS.md): of TFLite ops, for Ethos-U55
and U65 on one side and U85 on the other. Here they are asked of the ATen ops that become those. An op that the
converter writes in float parts, such as ELU, stays on the CPU whatever Vela takes; so do two ops in a row for which the
int8 network has no rule, as nothing is rounded between them.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import fx

from edgeact._capture import quiet_torchao
from edgeact.targets._ethos_u_configs import family
from edgeact.targets._refusals import MOVES, refuse
from edgeact.targets._target import Refusal

__all__ = ["refusals"]

# ATen ops that become one int8 op, or several, of Vela's table.
_INT8 = """
    abs add amax avg_pool2d clamp conv2d exp gelu hardsigmoid hardswish hardtanh leaky_relu linear max_pool2d maximum
    mean mul neg pow relu relu6 sigmoid silu softmax sub sum tanh
"""
_U85_ONLY = frozenset(["div"])
_REPORT = "Vela 5.2.0, SUPPORTED_OPS.md"
_LONGEST_AXIS = 4096  # that a MEAN reduces
_LARGEST_STRIDE = 3  # of U55 and U65
_DEPTHWISE = f"DEPTHWISE_CONV_2D: kernel stride must be in the range (1, {_LARGEST_STRIDE})"
# Vela does not leave it to the CPU: it ends with "Non-passthrough operation (Conv2D) could not run on NPU".
_STOPS_VELA = "a stride above 3 is only supported without dilation and padding"
_IN_FLOAT = "in float here, having no int8 rule, and an Ethos-U computes in integers alone"


def refusals(graph: fx.GraphModule, config: str) -> Mapping[fx.Node, Refusal]:
    """The ops of `graph`, ATen with `meta["val"]`, that Vela does not put on the NPU of `config`."""
    known = frozenset(_INT8.split())

    def judge(name: str, node: fx.Node) -> str | None:
        small = family(config) != "ethos-u85"
        if name in _U85_ONLY:
            return "not among the ops of Ethos-U55 and U65" if small else None
        return _condition(name, node, small=small) if name in known else "not among its int8 ops"

    found = refuse(graph, judge, source=_REPORT, volumetric=f"no CONV_3D or MAX_POOL_3D among its ops ({_REPORT})")
    floats = {node: Refusal(_IN_FLOAT, runs=True) for node in _in_float(graph)}
    return {
        node: replace(refusal, runs=False) if _STOPS_VELA in refusal.reason else refusal
        for node, refusal in {**floats, **found}.items()
    }


def _in_float(graph: fx.GraphModule) -> list[fx.Node]:
    """The ops for which the int8 network has no rule, as for a neighbour that they read or that reads them.

    Alone between others such an op is int8. What a lowering writes for one is in float, too, where it is several ops.
    """
    with quiet_torchao():
        from edgeact.quantize.annotate import has_rule

    origin = {node: node.meta.get("source_op", "") for node in graph.graph.nodes}
    ruleless = [node for node, op in origin.items() if op and op not in MOVES and not has_rule(op)]
    return [
        node
        for node in ruleless
        if _name(node) not in MOVES and not set(ruleless).isdisjoint((*node.all_input_nodes, *node.users))
    ]


def _name(node: fx.Node) -> str:
    return getattr(node.target, "__name__", "").partition(".")[0]


def _condition(name: str, node: fx.Node, *, small: bool) -> str | None:
    """What keeps it from this use of an op that it has; `small` NPUs are U55 and U65."""
    args: Any = node.args
    shape = tuple(args[0].meta["val"].shape) if isinstance(args[0], fx.Node) and "val" in args[0].meta else ()
    if name == "conv2d" and small:
        return _strides(args, shape)
    if name == "avg_pool2d" and small:  # the converter writes a depthwise convolution (`_litert_kernels`)
        kernel, *stride = args[1:3]
        return _DEPTHWISE if max((stride and stride[0]) or kernel) > _LARGEST_STRIDE else None
    if name == "mean":
        dims = [dim % len(shape) for dim in args[1]] if len(args) > 1 and args[1] else list(range(len(shape)))
        if shape[0] != 1 and 0 not in dims:
            return "MEAN: batch must be 1"
        if any(shape[dim] >= _LONGEST_AXIS for dim in dims):
            return f"MEAN: a reduced axis must be less than {_LONGEST_AXIS}"
    return None


def _strides(args: Any, shape: tuple[int, ...]) -> str | None:
    defaults: Any = (None, None, None, [1, 1], [0, 0], [1, 1], 1)
    strides, padding, dilation, groups = (args + defaults[len(args) :])[3:]
    if max(strides) <= _LARGEST_STRIDE:
        return None
    if groups > 1 and groups == shape[1]:
        return _DEPTHWISE
    if any(padding):
        return f"CONV_2D: {_STOPS_VELA}"
    return "CONV_2D: stride > 3 is only supported without dilation" if max(dilation) > 1 else None
