"""The lowered int8 graph as integer runtimes read it: every op between a dequantize and a quantize.

Volumetric ops became several 2-D ones, and only what enters and leaves them all has a scale:

    dq ─ slice ─ cat ─ conv ─ q                  dq ─ slice ─ q ─ dq ─ cat ─ q ─ dq ─ conv ─ q
    dq ─ max_pool ─┐
    dq ─ max_pool ─┴ maximum ─ q                 what moves or compares values keeps their scale: nothing is rounded

    dq ─ conv ─┐                                 the taps of a grouped convolution and their sums have the scale that
    dq ─ conv ─┴ add ─ q ─ dq ─ relu ─ q         `Scheme.partial_sums` measured for them; the last sum has the relu's
"""

from typing import Any

import torch
from torch import fx

from edgeact.lowering._emitter import ORIGIN

__all__ = ["settle_scales"]

_aten = torch.ops.aten
_quantized = torch.ops.quantized_decomposed
_KEEPS_SCALE = {
    "cat",
    "clone",
    "constant_pad_nd",
    "expand",
    "flip",
    "index_select",
    "max_pool2d",
    "maximum",
    "permute",
    "reshape",
    "slice",
}


def settle_scales(module: fx.GraphModule) -> None:
    """Write the quantize and dequantize ops that the lowering left out; in place. Nothing happens to a float graph."""
    if not any(str(node.target).startswith("quantized_decomposed.") for node in module.graph.nodes):
        return  # and the ops may not even be registered: torchao does that
    for node in list(module.graph.nodes):
        if _is_quantize(node) and _is_sum_of_taps(node.args[0]):
            _quantize_taps(module.graph, node)
    for node in list(module.graph.nodes):
        scale = _common_scale(module, node)
        if scale is None:
            continue
        for constant in (argument for argument in node.all_input_nodes if argument.op == "get_attr"):
            node.replace_input_with(constant, _int8_zeros(module, constant, scale))
        if not any(_is_quantize(user) for user in node.users):
            _quantize(module.graph, node, scale)
    module.graph.eliminate_dead_code()
    for node in list(module.graph.nodes):
        if _scale_of(node) is not None:
            _one_for_each_use(module.graph, node)
    module.recompile()


def _is_quantize(node: Any) -> bool:
    return bool(node.target is _quantized.quantize_per_tensor.default)


def _scale_of(node: Any) -> tuple[Any, ...] | None:
    """Scale, zero-point, bounds and type of a dequantized value; None of any other."""
    if isinstance(node, fx.Node) and node.target is _quantized.dequantize_per_tensor.default:
        return tuple(node.args[1:6])
    return None


def _common_scale(module: fx.GraphModule, node: fx.Node) -> tuple[Any, ...] | None:
    """The scale that all inputs of an op that keeps scales have; zeros have any."""
    if getattr(node.target, "__name__", "").partition(".")[0] not in _KEEPS_SCALE:
        return None
    constants = [argument for argument in node.all_input_nodes if argument.op == "get_attr"]
    if any(module.get_buffer(str(constant.target)).any() for constant in constants):
        return None
    scales = {_scale_of(argument) for argument in node.all_input_nodes if argument not in constants}
    return scales.pop() if len(scales) == 1 else None


def _quantize(graph: fx.Graph, node: fx.Node, scale: tuple[Any, ...]) -> None:
    """Every use of `node` gets it quantized and dequantized."""
    with graph.inserting_after(node):
        quantize = graph.call_function(_quantized.quantize_per_tensor.default, (node, *scale))
    with graph.inserting_after(quantize):
        dequantize = graph.call_function(_quantized.dequantize_per_tensor.default, (quantize, *scale))
    for new in (quantize, dequantize):
        new.meta = {name: node.meta[name] for name in ("val", "source", *ORIGIN) if name in node.meta}
    node.replace_all_uses_with(dequantize, delete_user_cb=lambda user: user is not quantize)


def _int8_zeros(module: fx.GraphModule, constant: fx.Node, scale: tuple[Any, ...]) -> fx.Node:
    """The constant zeros, dequantized from int8."""
    zeros = module.get_buffer(str(constant.target))
    name = f"{constant.target}_int8_{len(list(module.buffers()))}"
    module.register_buffer(name, torch.full_like(zeros, scale[1], dtype=scale[4]))
    with module.graph.inserting_after(constant):
        stored = module.graph.get_attr(name)
    stored.meta["val"] = constant.meta["val"].to(scale[4])
    with module.graph.inserting_after(stored):
        dequantize = module.graph.call_function(_quantized.dequantize_per_tensor.default, (stored, *scale))
    dequantize.meta = dict(constant.meta)
    return dequantize


def _one_for_each_use(graph: fx.Graph, dequantize: fx.Node) -> None:
    """What reads an int8 value dequantizes it anew, so that an op and its dequantize ops are a pattern of their own.

    ExecuTorch's passes write between one op and the dequantize op before it (another memory layout), and what they
    write reaches every other reader of that, which then computes other values: nothing says so.
    """
    for user in list(dequantize.users)[1:]:
        with graph.inserting_before(user):
            own = graph.node_copy(dequantize)
        user.replace_input_with(dequantize, own)


def _is_sum_of_taps(node: Any) -> bool:
    """Whether it adds 2-D convolutions, and nothing else."""
    return bool(node.target is _aten.add.Tensor) and all(
        argument.target is _aten.conv2d.default or _is_sum_of_taps(argument) for argument in node.all_input_nodes
    )


def _quantize_taps(graph: fx.Graph, last: fx.Node) -> None:
    """Give the scale of `last`, a quantize op, to the taps before it, and leave it out where an activation follows."""
    scale = tuple(last.args[1:6])
    total: Any = last.args[0]
    inner = list(total.all_input_nodes)
    while inner:
        part = inner.pop()
        if part.target is _aten.add.Tensor:
            inner += part.all_input_nodes
        _quantize(graph, part, scale)
    users = [user for dequantize in last.users for user in dequantize.users]
    if users and all(user.target in (_aten.relu.default, _aten.hardtanh.default) for user in users):
        for dequantize in list(last.users):
            dequantize.replace_all_uses_with(total)
