"""2-D ops inside a 3-D network, and ops over channels: every frame is one item of their batch.

MiCT runs 2-D residual blocks on `[T, C, H, W]`, channels-last networks a linear layer and a LayerNorm on
`[1, T, H, W, C]`: with time as a batch dimension, each is the same op on every chunk. Where time is what an op works
on (attention over all positions), the frames are put together before it.
"""

from collections.abc import Sequence
from typing import Any

import torch

from edgeact.lowering._emitter import shape_of
from edgeact.lowering._rules import Lowering, rule
from edgeact.lowering._timed import Timed, map_chunks

__all__ = ["image_op", "last_dims_op", "matrix_product", "over_one_dim"]

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
    if not isinstance(x, Timed):
        return lo.e(lo.op, x, *args, **kwargs)
    if x.axis != 0 or len(x.shape) != 4:
        return lo.e(lo.op, lo.whole(x), *args, **kwargs)
    chunks = tuple(lo.e(lo.op, chunk, *args, **kwargs) for chunk in x.chunks)
    return Timed(chunks, (x.frames, *shape_of(chunks[0])[1:]), 0, x.form)


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


@rule(_aten.matmul.default, _aten.bmm.default, _aten.mm.default, _aten.addmm.default, _aten.baddbmm.default)
def matrix_product(lo: Lowering, *args: Any, **kwargs: Any) -> Any:
    """Products of matrices that are computed: attention over positions. The frames are put together before it."""
    return lo.e(lo.op, *(lo.whole(a) for a in args), **kwargs)
