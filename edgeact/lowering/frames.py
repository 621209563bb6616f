"""2-D ops inside a 3-D network, and ops over channels: every frame is one item of their batch.

MiCT runs 2-D residual blocks on `[T, C, H, W]`, channels-last networks a linear layer and a LayerNorm on
`[1, T, H, W, C]`: with time as a batch dimension, each is the same op on every chunk. Where time is what an op works
on (attention over all positions), the frames are put together before it.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from edgeact.lowering._emitter import QuantizedConstant, shape_of
from edgeact.lowering._rules import Lowering, rule
from edgeact.lowering._timed import Timed, filled, map_chunks

__all__ = ["average", "image_op", "last_dims_op", "matrix_product", "over_one_dim"]

_aten = torch.ops.aten
_POOLS = (_aten.max_pool2d.default, _aten.avg_pool2d.default)


@rule(
    *(
        _aten.conv2d.default,
        _aten.conv2d.padding,
        _aten.max_pool2d.default,
        _aten.avg_pool2d.default,
        _aten.adaptive_avg_pool2d.default,
    ),
    *(_aten.upsample_nearest2d.vec, _aten.upsample_bilinear2d.vec, _aten.pixel_shuffle.default),
    *(_aten.conv_transpose2d.input, _aten.replication_pad2d.default, _aten.reflection_pad2d.default),
)
def image_op(lo: Lowering, x: Any, *args: Any, **kwargs: Any) -> Any:
    """An op over `[N, C, H, W]`."""
    if lo.op in _POOLS and not any(args[1:2]):  # the kernel's size is the default, which not every backend knows
        args = (args[0], args[0], *args[2:])
    if lo.op is _aten.avg_pool2d.default:
        args = average(*args)
    if not isinstance(x, Timed):
        return lo.e(lo.op, x, *args, **kwargs)
    if x.axis != 0 or len(x.shape) != 4:
        return lo.e(lo.op, lo.whole(x), *args, **kwargs)
    chunks = tuple(lo.e(lo.op, chunk, *args, **kwargs) for chunk in filled(lo.e, x).chunks)
    return Timed(chunks, (x.frames, *shape_of(chunks[0])[1:]), 0, x.form)


def average(
    kernel: Any,
    stride: Any,
    padding: Any = (0, 0),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor: int | None = None,
) -> tuple[Any, ...]:
    """Arguments of avg_pool2d as XNNPACK's partitioner takes them: padding that is not there is not counted."""
    given = (list(kernel), list(stride), list(padding), ceil_mode, count_include_pad and any(padding))
    return given if divisor is None else (*given, divisor)


@rule(_aten.max_pool2d_with_indices.default, _aten.adaptive_max_pool2d.default)
def max_pool_values(lo: Lowering, x: Any, *args: Any) -> list[Any]:
    """The maxima; not where they stand."""
    if lo.op is _aten.max_pool2d_with_indices.default:
        return [image_op(lo.using(_aten.max_pool2d.default), x, *args), None]
    if not isinstance(x, Timed) or x.axis != 0:
        return [lo.e(lo.op, lo.whole(x), *args)[0], None]
    chunks = tuple(lo.e(lo.op, chunk, *args)[0] for chunk in filled(lo.e, x).chunks)
    return [Timed(chunks, (x.frames, *shape_of(chunks[0])[1:]), 0, x.form), None]


@rule(_aten.conv1d.default)
def conv1d(
    lo: Lowering,
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Sequence[int] = (1,),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    groups: int = 1,
) -> Any:
    """A convolution over features of each frame, `[N, C, T]`, as one over an image of one row."""
    if isinstance(weight, fx.Node):
        raise ValueError("its kernel is computed: 2-D kernels are cut from a constant one")
    n, channels, length = shape_of(x)
    row = lo.e.reshape(lo.whole(x), (n, channels, 1, length))
    cut = weight.apply(lambda w: w.unsqueeze(2)) if isinstance(weight, QuantizedConstant) else weight.unsqueeze(2)
    geometry = ([1, *stride], [0, *padding], [1, *dilation], groups)
    y = lo.e(_aten.conv2d.default, row, cut, bias, *geometry)
    return lo.e.reshape(y, (n, *shape_of(y)[1::2]))


@rule(_aten.linear.default)
def linear(lo: Lowering, x: Any, weight: Any, bias: Any = None) -> Any:
    """A linear layer over the last dimension."""
    if not isinstance(x, Timed) or x.axis == len(x.shape) - 1:
        return lo.e(lo.op, lo.whole(x), weight, bias)
    shape = (*x.shape[:-1], shape_of(weight)[0])
    return map_chunks(lo.e, x, lambda chunk: lo.e(lo.op, chunk, weight, bias), shape)


@rule(_aten.layer_norm.default)
def last_dims_op(lo: Lowering, x: Any, shape: Sequence[int], *args: Any) -> Any:
    """LayerNorm over the last dimensions."""
    if not isinstance(x, Timed) or x.axis >= len(x.shape) - len(shape):
        return lo.e(lo.op, lo.whole(x), list(shape), *args)
    return map_chunks(lo.e, x, lambda chunk: lo.e(lo.op, chunk, list(shape), *args))


@rule(_aten.softmax.int, _aten._softmax.default, _aten.log_softmax.int, _aten._log_softmax.default)
def over_one_dim(lo: Lowering, x: Any, dim: int, *args: Any) -> Any:
    """Softmax over one dimension."""
    if not isinstance(x, Timed) or dim % len(x.shape) not in x.rest:
        return lo.e(lo.op, lo.whole(x), dim, *args)
    return map_chunks(lo.e, x, lambda chunk: lo.e(lo.op, chunk, x.chunk_dim(dim), *args))


@rule(_aten.scaled_dot_product_attention.default)
def attention(
    lo: Lowering,
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    *rest: Any,
    **named: Any,
) -> Any:
    """Attention: frame by frame where frames are its batch, else over the frames put together."""
    if dropout_p:
        raise ValueError("dropout in training mode: call .eval() before the export")
    inputs = (query, key, value)
    if attn_mask is None and all(isinstance(x, Timed) and x.axis == 0 for x in inputs):
        rows = zip(*(filled(lo.e, x).chunks for x in inputs), strict=True)
        chunks = tuple(lo.e(lo.op, *row, None, 0.0, *rest, **named) for row in rows)
        return Timed(chunks, (query.frames, *shape_of(chunks[0])[1:]), 0, query.form)
    return lo.e(lo.op, *(lo.whole(x) for x in inputs), lo.whole(attn_mask), 0.0, *rest, **named)


@rule(_aten.matmul.default, _aten.bmm.default, _aten.mm.default, _aten.addmm.default, _aten.baddbmm.default)
def matrix_product(lo: Lowering, *args: Any, **kwargs: Any) -> Any:
    """Products of matrices that are computed: attention over positions. The frames are put together before it."""
    return lo.e(lo.op, *(lo.whole(a) for a in args), **kwargs)
