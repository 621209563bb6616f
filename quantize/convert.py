"""A float network and the ranges of its activations, as an int8 network (torchao's PT2E).

    x ─ conv ─ relu        x ─ quantize ─ dequantize ─ conv ─ relu ─ quantize ─ dequantize
          ▲                                              ▲
        weight                       int8 weight ─ dequantize

Every arrow into an int8 op is a dequantize op, every arrow out of it a quantize op.
"""

import copy
import operator
from collections.abc import Collection
from typing import Any

import torch
from torch import fx
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from edgeact.errors import InputError
from edgeact.quantize.annotate import SchemeQuantizer, in_float, is_weighted, moves_data, observers, value_names
from edgeact.quantize.ranges import Ranges
from edgeact.quantize.scheme import Scheme

__all__ = ["quantize"]


def quantize(
    graph: fx.GraphModule, ranges: Ranges, scheme: Scheme, *, keep_float: Collection[str] = ()
) -> fx.GraphModule:
    """The int8 network of `graph`.

    Args:
        graph: Float `clip_BCTHW -> logits_BK` with B=1, BatchNorm folded; it is not changed.
        ranges: Of every activation that `scheme` quantizes, as `observe` returns them.
        scheme: What the target demands.
        keep_float: Convolutions and linear layers, by node name, that stay in float, and so does what they read: the
            rounding of activations costs more than that of weights. A layer that gives them what they read is then in
            float, too, where int8 kernels give int8 alone (`in_float`).

    Returns:
        The same network with int8 weights and with quantize and dequantize ops (`quantized_decomposed`), which PyTorch
        runs in float with int8's rounding.

    Raises:
        InputError: `ranges` are those of another network or scheme.
    """
    quantized = _convert(graph, ranges, scheme, keep_float, floats=keep_float)
    if feeding := set(in_float(quantized, scheme)).difference(keep_float):
        quantized = _convert(graph, ranges, scheme, keep_float, floats=feeding.union(keep_float))
    return quantized


def _convert(
    graph: fx.GraphModule, ranges: Ranges, scheme: Scheme, read_float: Collection[str], floats: Collection[str]
) -> fx.GraphModule:
    """With the weights of `floats` in float; those of them that `read_float` read values that were not rounded."""
    prepared = prepare_pt2e(copy.deepcopy(graph), SchemeQuantizer(scheme, keep_float=floats))
    names = {node.name: name for node, name in value_names(graph).items()}
    for watched, observer in observers(prepared):
        if watched.op == "get_attr":
            observer(operator.attrgetter(str(watched.target))(prepared).detach())
        elif names[watched.name] in ranges:
            observer.min_val, observer.max_val = map(torch.tensor, ranges[names[watched.name]])
        else:
            raise InputError(f"there is no range for {names[watched.name]}: these ranges are of another network")
    quantized: fx.GraphModule = convert_pt2e(prepared)
    _give_each_its_bias(quantized)
    for node in quantized.graph.nodes:
        if node.name in read_float:
            _read_float(node)
    quantized.graph.eliminate_dead_code()
    quantized.recompile()
    return quantized


def _give_each_its_bias(quantized: fx.GraphModule) -> None:
    """Runtimes store a bias in steps of its layer's input and weight: a layer that is used twice needs two of them."""
    seen = set()
    for node in quantized.graph.nodes:
        if not is_weighted(node) or len(node.args) < 3 or node.args[2] is None:
            continue
        bias: Any = node.args[2]
        if bias in seen:
            name = f"{node.name}_bias"
            quantized.register_buffer(name, operator.attrgetter(str(bias.target))(quantized).detach().clone())
            with quantized.graph.inserting_before(node):
                own = quantized.graph.get_attr(name)
            own.meta = dict(bias.meta)
            node.update_arg(2, own)
        seen.add(bias)


def _read_float(node: fx.Node) -> None:
    """Let `node` read what stands before the rounding of its inputs, and before ops that move that for it alone."""
    for dequantize in node.all_input_nodes:
        quantize = dequantize.all_input_nodes[0] if dequantize.all_input_nodes else dequantize
        if "quantize_per_tensor" not in str(quantize.target):
            continue
        value = quantize.all_input_nodes[0]
        node.replace_input_with(dequantize, value)
        if moves_data(value) and set(value.users) == {node, quantize} and set(quantize.users) == {dequantize}:
            _read_float(value)
