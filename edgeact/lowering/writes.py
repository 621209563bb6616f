"""Writes into a tensor, which torch.export gives as new tensors: `x[:, :-1, :8] = y[:, 1:, :8]` of a temporal shift.

x[:, :, 1:3] = source     frame 0 of x, the frames of source, what stands after: a choice among chunks, as in `cat`
"""

import math
from typing import Any

import torch

from edgeact.lowering._emitter import dtype_of, shape_of
from edgeact.lowering._rules import Lowering, UnsupportedError, any_timed, rank_of, rule
from edgeact.lowering._timed import resized
from edgeact.lowering.movement import cat, index_select, slice_
from edgeact.lowering.pointwise import elementwise, to_dtype
from edgeact.lowering.shapes import expand, reshape, unsqueeze

__all__ = ["slice_scatter"]

_aten = torch.ops.aten


@rule(_aten.full_like.default)
def full_like(lo: Lowering, x: Any, value: float, **_: Any) -> torch.Tensor:
    """A constant of the shape of `x`."""
    assert lo.e.source is not None
    return torch.full(shape_of(x), value, dtype=lo.e.source.meta["val"].dtype)


@rule(_aten.copy.default)
def copy(lo: Lowering, x: Any, source: Any, *_: Any) -> Any:
    """What `x[...] = source` writes: `source`, broadcast to `x` and in its type."""
    source = to_dtype(lo, source, dtype_of(x))
    return source if shape_of(source) == shape_of(x) else expand(lo, source, shape_of(x))


@rule(_aten.slice_scatter.default)
def slice_scatter(
    lo: Lowering, x: Any, source: Any, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Any:
    """`x[:, start:end:step] = source`: what stands before, `source`, and what stands after."""
    dim %= rank_of(x)
    length = shape_of(x)[dim]
    places = range(length)[start:end:step]
    if not places:
        return x
    if step != 1:
        return _replaced(lo, x, source, dim, list(places))
    before = [slice_(lo, x, dim, 0, places[0])] if places[0] else []
    after = [slice_(lo, x, dim, places[-1] + 1, length)] if places[-1] + 1 < length else []
    return cat(lo, [*before, source, *after], dim)


@rule(_aten.select_scatter.default)
def select_scatter(lo: Lowering, x: Any, source: Any, dim: int, index: int) -> Any:
    """`x[:, index] = source`."""
    return slice_scatter(lo, x, unsqueeze(lo, source, dim), dim, index, index + 1 or None)


def _replaced(lo: Lowering, x: Any, source: Any, dim: int, places: list[int]) -> Any:
    """`x` with `source` at these places of a dimension: a choice among the places of both."""
    length = shape_of(x)[dim]
    order = [length + places.index(i) if i in places else i for i in range(length)]
    return index_select(lo, cat(lo, [x, source], dim), dim, torch.tensor(order))


@rule(_aten.index_put.default)
def index_put(lo: Lowering, x: Any, indices: Any, value: Any, accumulate: bool = False) -> Any:
    """`x[mask] = number`, and `x[:, :, [0, 2]] = value` with constant places of one dimension."""
    given = [(dim, places) for dim, places in enumerate(indices) if places is not None]
    value = to_dtype(lo, value, dtype_of(x))
    dim, places = given[0]
    one = len(given) == 1 and not accumulate
    if one and dtype_of(places) is torch.bool and math.prod(shape_of(value)) == 1:
        mask = reshape(lo, places, (*(1,) * dim, *shape_of(places), *(1,) * (rank_of(x) - dim - rank_of(places))))
        return elementwise(lo, _aten.where.self, mask, reshape(lo, value, ()), x)
    if not any_timed([x, *indices, value]):
        return lo.e(lo.op, x, list(indices), value, accumulate)
    if not one or not isinstance(places, torch.Tensor) or places.dtype is torch.bool or places.ndim != 1:
        raise UnsupportedError("a write to places that are computed, or given by several tensors")
    length = shape_of(x)[dim]
    source = expand(lo, value, resized(shape_of(x), dim, len(places)))
    return _replaced(lo, x, source, dim, [int(i) % length for i in places])
