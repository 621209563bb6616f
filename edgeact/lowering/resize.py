"""Resizing a volume: the pixels of each frame with the 2-D op, time by repeating frames or mixing two of them.

nearest      y[t] = x[i]                           which frames, and how much of each, torch's own 1-D op says:
linear       y[t] = (1 - w) x[i] + w x[i + 1]      resizing 0, 1, 2 … gives i, resizing the unit vectors the weights
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from edgeact.lowering._emitter import shape_of
from edgeact.lowering._rules import Lowering, rule
from edgeact.lowering._timed import Timed, gather, map_chunks
from edgeact.lowering.movement import index_select
from edgeact.lowering.shapes import per_channel

__all__ = ["nearest", "trilinear"]

_aten = torch.ops.aten
_NEAREST = {
    _aten.upsample_nearest3d.vec: (_aten.upsample_nearest2d.vec, _aten.upsample_nearest1d.vec),
    _aten._upsample_nearest_exact3d.vec: (_aten._upsample_nearest_exact2d.vec, _aten._upsample_nearest_exact1d.vec),
}


def _frames(lo: Lowering, x: Timed, op: Any, size: Any, scales: Any, *rest: Any) -> Timed:
    """Every frame resized by the 2-D `op` to the height and width that `size` or `scales` ask for."""
    of_frame = (None if size is None else list(size[1:]), *rest, None if scales is None else list(scales[1:]))
    y = map_chunks(lo.e, x, lambda chunk: lo.e(op, chunk, *of_frame))
    return replace(y, shape=(*x.shape[:3], *shape_of(y.chunks[0])[2:]))


def _type(x: Timed) -> torch.dtype:
    """What torch computes places in."""
    return torch.float64 if x.dtype is torch.float64 else torch.float32


@rule(*_NEAREST)
@per_channel
def nearest(lo: Lowering, x: Any, size: Sequence[int] | None, scales: Sequence[float] | None) -> Any:
    """The nearest frame and pixel of `[1, C, T, H, W]`."""
    x = lo.volume(x)
    op_2d, op_1d = _NEAREST[lo.op]
    settings = [[None if given is None else [given[i]] for given in (size, scales)] for i in range(3)]
    places = [
        op_1d(torch.arange(length, dtype=_type(x)).view(1, 1, -1), *setting).flatten().long()
        for length, setting in zip(x.shape[2:], settings, strict=True)
    ]
    same = x.shape[3:] == (len(places[1]), len(places[2]))  # then the 2-D op is a copy, whatever the scale; not the 3-D
    for dim in (2, 3, 4) if same else (2,):
        x = index_select(lo, x, dim, places[dim - 2])
    return x if same else _frames(lo, x, op_2d, size, scales)


@rule(_aten.upsample_trilinear3d.vec)
@per_channel
def trilinear(
    lo: Lowering, x: Any, size: Sequence[int] | None, align_corners: bool, scales: Sequence[float] | None
) -> Timed:
    """Linear in time, height and width of `[1, C, T, H, W]`."""
    x = lo.volume(x)
    two = _frames(lo, x, _aten.upsample_bilinear2d.vec, size, scales, align_corners)
    x = x if two.shape == x.shape else two  # an equal size is a copy, whatever the scale
    units = torch.eye(x.frames, dtype=_type(x)).unsqueeze(0)
    of_time = [None if given is None else [given[0]] for given in (size, scales)]
    rows = _aten.upsample_linear1d.vec(units, of_time[0], align_corners, of_time[1])[0].T
    mixed = [row.nonzero().flatten().tolist() for row in rows]
    before, after = (gather(lo.e, x, [places[end] for places in mixed]) for end in (0, -1))
    weights = [float(row[places[-1]]) if len(places) > 1 else 0.0 for row, places in zip(rows, mixed, strict=True)]
    return _mixed(lo, before, after, weights) if any(weights) else before


def _mixed(lo: Lowering, a: Timed, b: Timed, weights: list[float]) -> Timed:
    """`(1 - w) a + w b`, a weight for each frame."""
    every: list[Any] = list(weights)
    if lo.form == "folded":
        every = [torch.tensor(weights, dtype=a.dtype).view(-1, 1, 1, 1)]
    scaled = (
        [lo.e(_aten.mul.Tensor, chunk, factor) for chunk, factor in zip(x.chunks, factors, strict=True)]
        for x, factors in ((a, [1 - w for w in every]), (b, every))
    )
    chunks = tuple(lo.e(_aten.add.Tensor, *pair) for pair in zip(*scaled, strict=True))
    return Timed(chunks, a.shape, a.axis, a.form)
