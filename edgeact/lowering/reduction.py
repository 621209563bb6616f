"""Means, sums and extremes over time, pixels or channels.

unrolled   x0 + x1 + x2 + x3 ─► mean over pixels ─► * 1/T       time first: one frame is left to reduce
folded     mean over pixels ─► [T, C] ─► [1, C, 1, T] ─► mean   time becomes a row of pixels: few backends
delegate a mean over the batch
"""

import math
from typing import Any

import torch

from edgeact.lowering._emitter import dtype_of, shape_of
from edgeact.lowering._rules import Lowering, UnsupportedError, normal_dims, rank_of, rule
from edgeact.lowering._timed import Timed, filled, relabel, resized
from edgeact.lowering.pointwise import elementwise, to_dtype, wide
from edgeact.lowering.shapes import squeeze

__all__ = ["reduction"]

_aten = torch.ops.aten
_BINARY = {_aten.amax.default: _aten.maximum.default, _aten.amin.default: _aten.minimum.default}
_FULL = {_aten.mean.default: _aten.mean.dim, _aten.sum.default: _aten.sum.dim_IntList}
_FULL |= {_aten.max.default: _aten.amax.default, _aten.min.default: _aten.amin.default}


@rule(_aten.mean.dim, _aten.sum.dim_IntList, _aten.amax.default, _aten.amin.default)
def reduction(lo: Lowering, x: Any, dims: Any = None, keepdim: bool = False, dtype: Any = None) -> Any:
    """Reduce over `dims`, all where there are none; in `dtype`, where that is given."""
    if dtype is None and lo.op is _aten.sum.dim_IntList:
        dtype = _sum_type(x)
    x = to_dtype(lo, x, dtype)
    shape = shape_of(x)
    if len(shape) == 5 and shape[0] == 1 and (not isinstance(x, Timed) or x.axis == 0):
        x = lo.timed(lo.whole(x), 2)  # one frame alone, whose chunk would be 5-D
    if not isinstance(x, Timed):
        return lo.e(lo.op, x, dims or [], keepdim)
    return _reduce(lo, lo.op, filled(lo.e, x), normal_dims(dims or None, rank_of(x)), keepdim)


def _sum_type(x: Any) -> torch.dtype | None:
    """Torch adds up truth values and integers as int64."""
    return None if dtype_of(x).is_floating_point else torch.int64


@rule(_aten.max.dim, _aten.min.dim)
def extreme(lo: Lowering, x: Any, dim: int, keepdim: bool = False) -> list[Any]:
    """The values; not where they stand."""
    op = _aten.amax.default if lo.op is _aten.max.dim else _aten.amin.default
    return [reduction(lo.using(op), x, [dim], keepdim), None]


@rule(_aten.any.default, _aten.any.dim, _aten.any.dims)
def any_(lo: Lowering, x: Any, dims: Any = None, keepdim: bool = False) -> Any:
    """Whether one of the values is not zero: the largest truth value."""
    dims = [dims] if isinstance(dims, int) else dims
    return reduction(lo.using(_aten.amax.default), elementwise(lo, _aten.ne.Scalar, x, 0), dims, keepdim)


@rule(_aten.var.correction)
def variance(lo: Lowering, x: Any, dims: Any = None, correction: float | None = 1, keepdim: bool = False) -> Any:
    """Mean of the squared distances from the mean, times n / (n - correction)."""
    return variance_and_mean(lo, x, dims, correction, keepdim)[0]


@rule(_aten.var_mean.correction)
def variance_and_mean(
    lo: Lowering, x: Any, dims: Any = None, correction: float | None = 1, keepdim: bool = False
) -> list[Any]:
    """The variance, and the mean that it is computed from."""
    shape, over, mean_of = shape_of(x), normal_dims(dims or None, rank_of(x)), lo.using(_aten.mean.dim)
    count = math.prod(shape[dim] for dim in over)
    divisor = count - (1 if correction is None else correction)
    if divisor <= 0:
        raise UnsupportedError(f"the variance of {count} values with a correction of {correction}: it is not a number")
    values = wide(lo, x)
    mean = reduction(mean_of, values, over, True)
    centred = elementwise(lo, _aten.sub.Tensor, values, mean)
    squares = reduction(mean_of, elementwise(lo, _aten.mul.Tensor, centred, centred), over, keepdim)
    variance = elementwise(lo, _aten.mul.Tensor, squares, count / divisor)
    mean = mean if keepdim else squeeze(lo, mean, over)
    return [to_dtype(lo, value, dtype_of(x)) for value in (variance, mean)]


@rule(_aten.mean.default, _aten.sum.default, _aten.max.default, _aten.min.default)
def full_reduction(lo: Lowering, x: Any, **kwargs: Any) -> Any:
    """Reduce over everything."""
    return reduction(lo.using(_FULL[lo.op]), x, **kwargs)


@rule(_aten.cumsum.default)
def cumulative_sum(lo: Lowering, x: Any, dim: int, *, dtype: Any = None) -> Any:
    """The sum of the frames up to each one; or of what else precedes."""
    x = to_dtype(lo, x, dtype or _sum_type(x))
    if not isinstance(x, Timed) or dim % rank_of(x) not in (*x.rest, x.axis):
        return lo.e(lo.op, lo.whole(x), dim)
    chunks = list(filled(lo.e, x).chunks)
    if dim % rank_of(x) != x.axis or lo.form == "folded":
        at = 0 if dim % rank_of(x) == x.axis else x.chunk_dim(dim)
        chunks = [lo.e(lo.op, chunk, at) for chunk in chunks]
    else:
        for t in range(1, x.frames):
            chunks[t] = lo.e(_aten.add.Tensor, chunks[t - 1], chunks[t])
    return Timed(tuple(chunks), x.shape, x.axis, x.form)


def _reduce(lo: Lowering, op: Any, x: Timed, dims: list[int], keepdim: bool) -> Any:
    over_time = x.axis in dims
    if over_time and x.form == "unrolled":
        scale = 1 / x.frames if op is _aten.mean.dim and x.frames > 1 else 1
        early, late = (scale, 1) if x.dtype is torch.float16 else (1, scale)  # late there are fewer values to scale
        total = lo.e.chain(_BINARY[op], x.chunks) if op in _BINARY else lo.e.sum(x.chunks, early)
        x = _over_rest(lo, op, Timed((total,), resized(x.shape, x.axis, 1), x.axis, x.form), dims)
        x = Timed((lo.e.sum(x.chunks, late),), x.shape, x.axis, x.form)
    else:
        x = _over_rest(lo, op, x, dims)
        if over_time and x.frames > 1:
            values = math.prod(x.frame_shape)
            row = lo.e.permute(lo.e.reshape(x.chunks[0], (x.frames, values)), (1, 0))
            one = lo.e(op, lo.e.reshape(row, (1, values, 1, x.frames)), [2, 3], True)  # XNNPACK takes no other mean
            x = Timed((lo.e.reshape(one, (1, *x.frame_shape)),), resized(x.shape, x.axis, 1), x.axis, x.form)
    if keepdim:
        return x
    kept = [dim for dim in range(len(x.shape)) if dim not in dims]
    shape = [x.shape[dim] for dim in kept]
    return lo.e.reshape(x.chunks[0], shape) if over_time else relabel(lo.e, x, shape, kept.index(x.axis))


def _over_rest(lo: Lowering, op: Any, x: Timed, dims: list[int]) -> Timed:
    """Reduce the dimensions that are not time, keeping them as ones."""
    rest = [dim for dim in dims if dim in x.rest]
    if not rest:
        return x
    chunks = tuple(lo.e(op, chunk, [x.chunk_dim(dim) for dim in rest], True) for chunk in x.chunks)
    shape = tuple(1 if dim in rest else size for dim, size in enumerate(x.shape))
    return Timed(chunks, shape, x.axis, x.form)
