"""What XNNPACK has no int8 kernels for, in ops for which it has some; each equal up to the rounding of its result.

    max(a, b)                a + (b - a), the difference cut off below zero
    hard_swish(x)            x / 6 * relu6(x + 3) in float
    avg_pool2d(x)            a depthwise convolution of equal weights

tensorflow/lite/delegates/xnnpack/README.md lists the int8 ops. This works on a lowered program, before conversion.
"""

from typing import Any

import torch
from torch import fx

__all__ = ["replace"]

_aten = torch.ops.aten
_quantized = torch.ops.quantized_decomposed


def replace(module: fx.GraphModule) -> None:
    """Write the ops of the table in their other form where int8 enters them; in place."""
    for op, rewrite in _REWRITES.items():
        for node in module.graph.find_nodes(op="call_function", target=op):
            with module.graph.inserting_before(node):
                other = rewrite(module, node) if all(map(_is_int8, node.all_input_nodes)) else None
            if other is not None:
                node.replace_all_uses_with(other)
                module.graph.erase_node(node)
    module.recompile()


def _is_int8(node: fx.Node) -> bool:
    return node.target is _quantized.dequantize_per_tensor.default


def _maximum(module: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """Exact where both have one scale: sums of equal scales round nothing, and 255 steps hold every difference."""
    a, b = node.all_input_nodes
    if a.args[1:] != b.args[1:]:
        return None
    scale, _, least, *rest = a.args[1:]
    call = module.graph.call_function
    difference = call(_aten.sub.Tensor, (b, a))
    stored = call(_quantized.quantize_per_tensor.default, (difference, scale, least, least, *rest))
    above = call(_quantized.dequantize_per_tensor.default, (stored, scale, least, least, *rest))
    return call(_aten.add.Tensor, (a, above))


def _hard_swish(module: fx.GraphModule, node: fx.Node) -> fx.Node:
    call, (x,) = module.graph.call_function, node.args
    gate = call(_aten.hardtanh.default, (call(_aten.add.Tensor, (x, 3.0)), 0.0, 6.0))
    return call(_aten.mul.Tensor, (call(_aten.mul.Tensor, (x, 1 / 6)), gate))


def _average(module: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """With weights of one value int8 holds them exactly; the sum is rounded once, to the scale of the result."""
    given: Any = node.args
    x, kernel, stride, padding, ceil_mode, count_padding, divisor = given + _DEFAULTS[len(given) :]
    if ceil_mode or divisor or (any(padding) and not count_padding):
        return None
    channels, name = x.meta["val"].shape[1], f"{node.name}_weight"
    module.register_buffer(name, torch.full((channels, 1, *kernel), 1 / (kernel[0] * kernel[1])))
    module.register_buffer(f"{name}_scale", getattr(module, name)[:, 0, 0, 0] / 127)
    module.register_buffer(f"{name}_zero", torch.zeros(channels, dtype=torch.int64))
    call = module.graph.call_function
    weight, scale, zero = (module.graph.get_attr(f"{name}{part}") for part in ("", "_scale", "_zero"))
    limits = (scale, zero, 0, -127, 127, torch.int8)
    weight = call(_quantized.quantize_per_channel.default, (weight, *limits))
    weight = call(_quantized.dequantize_per_channel.default, (weight, *limits))
    return call(_aten.conv2d.default, (x, weight, None, stride or kernel, padding, [1, 1], channels))


_DEFAULTS: Any = (None, None, [], [0, 0], False, True, None)
_REWRITES = {_aten.maximum.default: _maximum, _aten.hardswish.default: _hard_swish, _aten.avg_pool2d.default: _average}
