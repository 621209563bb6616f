"""Writes into a tensor, which torch.export gives as new tensors: `x[:, :-1, :8] = y[:, 1:, :8]` of a temporal shift.

x[:, :, 1:3] = source     frame 0 of x, the frames of source, what stands after: a choice among chunks, as in `cat`
"""

from typing import Any

import torch

from edgeact.lowering._emitter import shape_of
from edgeact.lowering._rules import Lowering, rank_of, rule
from edgeact.lowering.movement import cat, expand, index_select, slice_, unsqueeze

__all__ = ["slice_scatter"]

_aten = torch.ops.aten


@rule(_aten.full_like.default)
def full_like(lo: Lowering, x: Any, value: float, **_: Any) -> torch.Tensor:
    """A constant of the shape of `x`."""
    assert lo.e.source is not None
    return torch.full(shape_of(x), value, dtype=lo.e.source.meta["val"].dtype)


@rule(_aten.copy.default)
def copy(lo: Lowering, x: Any, source: Any, *_: Any) -> Any:
    """What `x[...] = source` writes: `source`, broadcast to `x`."""
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
        order = [length + places.index(i) if i in places else i for i in range(length)]
        return index_select(lo, cat(lo, [x, source], dim), dim, torch.tensor(order))
    before = [slice_(lo, x, dim, 0, places[0])] if places[0] else []
    after = [slice_(lo, x, dim, places[-1] + 1, length)] if places[-1] + 1 < length else []
    return cat(lo, [*before, source, *after], dim)


@rule(_aten.select_scatter.default)
def select_scatter(lo: Lowering, x: Any, source: Any, dim: int, index: int) -> Any:
    """`x[:, index] = source`."""
    return slice_scatter(lo, x, unsqueeze(lo, source, dim), dim, index, index + 1 or None)
