"""What LiteRT's kernels, or XNNPACK's, do not take in int8, in ops that they do; equal up to roundings to int8.

    max(a, b)                a + (b - a), the difference cut off below zero
    hard_swish(x)            x / 6 * relu6(x + 3) in float
    sigmoid, softmax, tanh   the same, rounded first to the scale that LiteRT's specification of int8 gives it
    avg_pool2d(x)            a depthwise convolution of equal weights
    (x0 + x1 + …) / T        frames under each other, and a mean, or a depthwise convolution, over them: one rounding

Where there are integers alone, on NPUs, a gate is rounded before it is multiplied with, which XNNPACK is spared; a
hard_swish has a table there.

    silu(x)                  x * sigmoid(x)
    hard_sigmoid(x)          relu6(x + 3) / 6

tensorflow/lite/delegates/xnnpack/README.md lists XNNPACK's int8 ops; the "LiteRT 8-bit quantization specification" says
which op has a scale of its own. This works on a lowered program, before conversion.
"""

from typing import Any

import torch
from torch import fx

__all__ = ["drop_idle_moves", "replace", "replace_means_of_frames"]

_aten = torch.ops.aten
_quantized = torch.ops.quantized_decomposed


def replace(module: fx.GraphModule, *, integers: bool) -> None:
    """Write the ops of the tables in their other form where they read and give int8; in place.

    Args:
        module: Of a lowered program.
        integers: There are integers alone where it will run.
    """
    for op, rewrite in (_REWRITES | (_OF_INTEGERS if integers else _OF_XNNPACK)).items():
        for node in module.graph.find_nodes(op="call_function", target=op):
            int8 = all(map(_is_int8, node.all_input_nodes)) and all(map(_is_quantize, node.users))
            with module.graph.inserting_before(node):
                other = rewrite(module, node) if int8 else None
            if other is not None:
                node.replace_all_uses_with(other)
                module.graph.erase_node(node)
    module.recompile()


def replace_means_of_frames(module: fx.GraphModule) -> None:
    """Write means over time, unrolled to sums of frames that no scale was measured for, in int8 throughout; in place.

    x0 + x1 ─► mean over pixels ─► * 1/2 ─► quantize        the sum is in float
    cat of x0, x1 along the height ─► mean over pixels      every value is int8, and the frames have one scale
    cat of x0, x1 along the height ─► conv2d                where the pixels stay: a kernel of 2x1, dilated by height
    """
    for mul in module.graph.find_nodes(op="call_function", target=_aten.mul.Tensor):
        before: Any = mul.args[0]
        given: Any = mul.args[1]
        after = next(iter(mul.users)) if len(mul.users) == 1 else mul
        frames = _frames(before.args[0] if _is_over_pixels(before) else before)
        if len(frames) < 2 or isinstance(given, fx.Node) or abs(given * len(frames) - 1) > 1e-6:
            continue
        last = after if _is_over_pixels(after) else mul
        with module.graph.inserting_before(last):
            mean = _mean(module, frames, _is_over_pixels(before) or last is not mul)
        mean.meta = dict(last.meta)
        if not all(map(_is_quantize, last.users)):
            with module.graph.inserting_before(last):
                mean = _rounded(module, mean, frames[0].args[1:])  # no mean is out of the range of what it is of
        last.replace_all_uses_with(mean)
    module.graph.eliminate_dead_code()
    module.recompile()


def drop_idle_moves(module: fx.GraphModule) -> None:
    """Have a mean over pixels read what was there before moves that together change nothing; in place.

    [1, C, H, W] ─ reshape ─ [1, 1, C, H, W] ─ permute ─ [1, C, 1, H, W] ─ reshape ─ [1, C, H, W] ─ mean

    So one frame is cut off and put together again. The converter would transpose there, to channels first, and take the
    mean over what Vela has for depth.
    """
    for node in module.graph.find_nodes(op="call_function", target=_aten.reshape.default):
        same, before = None, node
        while (source := _before_move(before)) is not None:
            before = source
            same = before if _shape(before) == _shape(node) else same
        if same is None:
            continue
        for again in [reader for user in node.users for reader in user.users if _is_int8(reader)]:
            for mean in [user for user in again.users if _is_over_pixels(user)]:
                if again.args[1:] == same.args[1:]:
                    mean.replace_input_with(again, same)
    module.graph.eliminate_dead_code()
    module.recompile()


def _before_move(node: fx.Node) -> fx.Node | None:
    """What `node` gives on in the same order of values: a reshape, a permutation of ones, int8 dequantized again."""
    source: Any = node.args[0] if node.args else None
    if node.target is _aten.reshape.default:
        return node.all_input_nodes[0]
    if node.target is _aten.permute.default:
        dims: Any = node.args[1]
        if not (shape := _shape(source)):
            return None
        longer = [dim % len(shape) for dim in dims if shape[dim] > 1]
        return source if longer == sorted(longer) else None
    if _is_int8(node) and source.target is _quantized.quantize_per_tensor.default:
        inner = source.args[0]
        same = source.args[1:] == node.args[1:]
        return inner if same and inner.target in (_aten.reshape.default, _aten.permute.default) else None
    return None


def _shape(node: fx.Node) -> tuple[int, ...]:
    return tuple(node.meta["val"].shape) if "val" in node.meta else ()


def _is_over_pixels(node: fx.Node) -> bool:
    return node.target is _aten.mean.dim and node.args[1:] == ([2, 3], True)


def _frames(total: Any) -> list[fx.Node]:
    """What the adds behind `total` add up; nothing where that is not int8 maps `[1, C, H, W]` of one scale."""
    found, wanted = [], [total]
    while wanted:
        node = wanted.pop()
        if _is_int8(node):
            found.append(node)
        elif node.target is _aten.add.Tensor and len(node.users) == 1 and len(node.all_input_nodes) == 2:
            wanted += reversed(node.all_input_nodes)
        else:
            return []
    same = all(frame.args[1:] == found[0].args[1:] for frame in found)
    return found if same and found[0].meta["val"].ndim == 4 else []


def _rounded(module: fx.GraphModule, x: fx.Node, scale: tuple[Any, ...]) -> fx.Node:
    """`x` quantized to `scale` and dequantized."""
    stored = module.graph.call_function(_quantized.quantize_per_tensor.default, (x, *scale))
    real = module.graph.call_function(_quantized.dequantize_per_tensor.default, (stored, *scale))
    real.meta = dict(x.meta)
    return real


def _mean(module: fx.GraphModule, frames: list[fx.Node], over_pixels: bool) -> fx.Node:
    call, scale = module.graph.call_function, frames[0].args[1:]
    column = _rounded(module, call(_aten.cat.default, (frames, 2)), scale)
    if over_pixels:
        return call(_aten.mean.dim, (column, [2, 3], True))
    _, channels, height, _ = frames[0].meta["val"].shape
    weight = _equal_weights(module, f"{frames[0].name}_mean", channels, [len(frames), 1])
    return call(_aten.conv2d.default, (column, weight, None, [1, 1], [0, 0], [height, 1], channels))


def _is_int8(node: fx.Node) -> bool:
    return node.target is _quantized.dequantize_per_tensor.default


def _is_quantize(node: fx.Node) -> bool:
    return node.target is _quantized.quantize_per_tensor.default


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


def _hard_sigmoid(module: fx.GraphModule, node: fx.Node) -> fx.Node:
    call, (x,) = module.graph.call_function, node.args
    moved = call(_aten.add.Tensor, (x, _constant(module, node, "three", 3.0)))
    clamped = _rounded(module, call(_aten.hardtanh.default, (moved, 0.0, 6.0)), (6 / 255, *_FROM_ZERO))
    return call(_aten.mul.Tensor, (clamped, _constant(module, node, "sixth", 1 / 6)))


def _silu(module: fx.GraphModule, node: fx.Node) -> fx.Node:
    call, (x,) = module.graph.call_function, node.args
    return call(_aten.mul.Tensor, (x, _rounded(module, call(_aten.sigmoid.default, (x,)), _SCALES["sigmoid"])))


def _at_own_scale(module: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """Read at that scale where any will do; else times one, as of two scales in a row the converter drops the first."""
    op: Any = node.target
    scale = _SCALES[op.__name__.partition(".")[0].lstrip("_")]
    read = [dequantize for quantize in node.users for dequantize in quantize.users]
    if all(reader.target in _OF_ANY_SCALE for dequantize in read for reader in dequantize.users):
        for rounding in (*node.users, *read):
            rounding.args = (rounding.args[0], *scale)
        return None
    result = _rounded(module, module.graph.call_function(op, node.args, node.kwargs), scale)
    return module.graph.call_function(_aten.mul.Tensor, (result, _constant(module, node, "one", 1.0)))


def _constant(module: fx.GraphModule, node: fx.Node, name: str, value: float) -> fx.Node:
    """`value`, which int8 holds exactly, behind its quantize and dequantize ops."""
    module.register_buffer(f"{node.name}_{name}", torch.full([1] * node.meta["val"].ndim, value))
    return _rounded(module, module.graph.get_attr(f"{node.name}_{name}"), (value / 127, 0, -128, 127, torch.int8))


def _average(module: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """With weights of one value int8 holds them exactly; the sum is rounded once, to the scale of the result."""
    given: Any = node.args
    x, kernel, stride, padding, ceil_mode, count_padding, divisor = given + _DEFAULTS[len(given) :]
    if ceil_mode or divisor or (any(padding) and not count_padding):
        return None
    channels = x.meta["val"].shape[1]
    weight = _equal_weights(module, f"{node.name}_weight", channels, kernel)
    call = module.graph.call_function
    return call(_aten.conv2d.default, (x, weight, None, stride or kernel, padding, [1, 1], channels))


def _equal_weights(module: fx.GraphModule, name: str, channels: int, kernel: list[int]) -> fx.Node:
    """Depthwise weights that average, behind their quantize and dequantize ops."""
    module.register_buffer(name, torch.full((channels, 1, *kernel), 1 / (kernel[0] * kernel[1])))
    module.register_buffer(f"{name}_scale", getattr(module, name)[:, 0, 0, 0] / 127)
    module.register_buffer(f"{name}_zero", torch.zeros(channels, dtype=torch.int64))
    call = module.graph.call_function
    weight, scale, zero = (module.graph.get_attr(f"{name}{part}") for part in ("", "_scale", "_zero"))
    limits = (scale, zero, 0, -127, 127, torch.int8)
    weight = call(_quantized.quantize_per_channel.default, (weight, *limits))
    return call(_quantized.dequantize_per_channel.default, (weight, *limits))


_FROM_ZERO = (-128, -128, 127, torch.int8)  # the zero point at the least integer
_SCALES: dict[str, Any] = {
    "sigmoid": (1 / 256, *_FROM_ZERO),
    "softmax": (1 / 256, *_FROM_ZERO),
    "tanh": (1 / 128, 0, -128, 127, torch.int8),
}
_OF_ANY_SCALE = {_aten.mul.Tensor, _aten.add.Tensor, _aten.sub.Tensor, _aten.conv2d.default, _aten.linear.default}
_DEFAULTS: Any = (None, None, [], [0, 0], False, True, None)
_REWRITES = {
    _aten.maximum.default: _maximum,
    _aten.sigmoid.default: _at_own_scale,
    _aten.softmax.int: _at_own_scale,
    _aten._softmax.default: _at_own_scale,
    _aten.tanh.default: _at_own_scale,
    _aten.avg_pool2d.default: _average,
}
_OF_XNNPACK = {_aten.hardswish.default: _hard_swish}
_OF_INTEGERS = {_aten.silu.default: _silu, _aten.hardsigmoid.default: _hard_sigmoid}
