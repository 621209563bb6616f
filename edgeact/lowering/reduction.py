"""Means, sums and extremes over time, pixels or channels.

unrolled   x0 + x1 + x2 + x3 ─► mean over pixels ─► * 1/T       time first: one frame is left to reduce
folded     mean over pixels ─► [T, C] ─► [1, C, 1, T] ─► mean   time becomes a row of pixels: few backends
delegate a mean over the batch
"""

import math
from typing import Any

import torch

from edgeact.lowering._emitter import shape_of
from edgeact.lowering._rules import Lowering, normal_dims, rank_of, rule
from edgeact.lowering._timed import Timed, filled, relabel
from edgeact.lowering.pointwise import binary

__all__ = ["reduction"]

_aten = torch.ops.aten
_BINARY = {_aten.mean.dim: _aten.add.Tensor, _aten.sum.dim_IntList: _aten.add.Tensor}
_FULL = {_aten.mean.default: _aten.mean.dim, _aten.sum.default: _aten.sum.dim_IntList}
_FULL |= {_aten.max.default: _aten.amax.default, _aten.min.default: _aten.amin.default}
_BINARY |= {_aten.amax.default: _aten.maximum.default, _aten.amin.default: _aten.minimum.default}


@rule(_aten.mean.dim, _aten.sum.dim_IntList, _aten.amax.default, _aten.amin.default)
def reduction(lo: Lowering, x: Any, dims: Any = None, keepdim: bool = False, **kwargs: Any) -> Any:
    """Reduce over `dims`, all where there are none."""
    shape = shape_of(x)
    if len(shape) == 5 and shape[0] == 1 and (not isinstance(x, Timed) or x.axis == 0):
        x = lo.timed(lo.whole(x), 2)  # one frame alone, whose chunk would be 5-D
    if not isinstance(x, Timed):
        return lo.e(lo.op, x, dims, keepdim, **kwargs)
    return _reduce(lo, lo.op, filled(lo.e, x), normal_dims(dims or None, rank_of(x)), keepdim)


@rule(_aten.max.dim, _aten.min.dim)
def extreme(lo: Lowering, x: Any, dim: int, keepdim: bool = False) -> list[Any]:
    """The values; not where they stand."""
    op = _aten.amax.default if lo.op is _aten.max.dim else _aten.amin.default
    return [reduction(lo.using(op), x, [dim], keepdim), None]


@rule(_aten.var.correction)
def variance(lo: Lowering, x: Any, dims: Any = None, correction: float | None = 1, keepdim: bool = False) -> Any:
    """Mean of the squared distances from the mean, times n / (n - correction)."""
    mean = lo.using(_aten.mean.dim)
    centred = binary(lo, _aten.sub.Tensor, x, reduction(mean, x, dims, True))
    squares = reduction(mean, binary(lo, _aten.mul.Tensor, centred, centred), dims, keepdim)
    shape = shape_of(x)
    count = math.prod(shape[dim] for dim in normal_dims(dims or None, len(shape)))
    divisor = count - (1 if correction is None else correction)
    if divisor <= 0:
        raise ValueError(f"the variance of {count} values with a correction of {correction}: it is not a number")
    return binary(lo, _aten.mul.Tensor, squares, count / divisor)


@rule(_aten.mean.default, _aten.sum.default, _aten.max.default, _aten.min.default)
def full_reduction(lo: Lowering, x: Any, **kwargs: Any) -> Any:
    """Reduce over everything."""
    if not isinstance(x, Timed):
        return lo.e(lo.op, x, **kwargs)
    return _reduce(lo, _FULL[lo.op], filled(lo.e, x), list(range(rank_of(x))), False)


def _reduce(lo: Lowering, op: Any, x: Timed, dims: list[int], keepdim: bool) -> Any:
    over_time = x.axis in dims
    if over_time and x.form == "unrolled":
        total = x.chunks[0]
        for chunk in x.chunks[1:]:
            total = lo.e(_BINARY[op], total, chunk)
        scale = 1 / x.frames if op is _aten.mean.dim and x.frames > 1 else 1
        x = _over_rest(lo, op, Timed((total,), _ones(x.shape, [x.axis]), x.axis, x.form), dims)
        if scale != 1:
            x = Timed((lo.e(_aten.mul.Tensor, x.chunks[0], scale),), x.shape, x.axis, x.form)
    else:
        x = _over_rest(lo, op, x, dims)
        if over_time and x.frames > 1:
            values = math.prod(x.frame_shape)
            row = lo.e.permute(lo.e.reshape(x.chunks[0], (x.frames, values)), (1, 0))
            one = lo.e(op, lo.e.reshape(row, (1, values, 1, x.frames)), [2, 3], True)  # XNNPACK takes no other mean
            x = Timed((lo.e.reshape(one, (1, *x.frame_shape)),), _ones(x.shape, [x.axis]), x.axis, x.form)
    if keepdim:
        return x
    kept = [dim for dim in range(len(x.shape)) if dim not in dims]
    shape = [x.shape[dim] for dim in kept]
    return lo.e.reshape(x.chunks[0], shape) if over_time else relabel(lo.e, x, shape, kept.index(x.axis))


def _ones(shape: tuple[int, ...], dims: list[int]) -> tuple[int, ...]:
    return tuple(1 if dim in dims else size for dim, size in enumerate(shape))


def _over_rest(lo: Lowering, op: Any, x: Timed, dims: list[int]) -> Timed:
    """Reduce the dimensions that are not time, keeping them as ones."""
    rest = [dim for dim in dims if dim in x.rest]
    if not rest:
        return x
    chunks = tuple(lo.e(op, chunk, [x.chunk_dim(dim) for dim in rest], True) for chunk in x.chunks)
    return Timed(chunks, _ones(x.shape, rest), x.axis, x.form)
