"""Ops that give the same values another shape: what they do to the axis of time decides everything.

permute(0, 2, 1, 3, 4)      [1, C, T, H, W] -> [1, T, C, H, W]      the same chunks, time on axis 1
reshape(T, C, H, W)         [1, T, C, H, W] -> [T, C, H, W]         the same chunks, time on axis 0
reshape(1, C, T*H*W)        time is mixed with pixels: the frames are put together, and cut again when needed
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch

from edgeact.lowering._emitter import shape_of
from edgeact.lowering._rules import Lowering, Rule, UnsupportedError, normal_dims, rank_of, rule
from edgeact.lowering._timed import Timed, gather, join, map_chunks, relabel

__all__ = ["expand", "per_channel", "permute", "reshape", "squeeze", "unsqueeze"]

_aten = torch.ops.aten


@rule(_aten.view.default, _aten.reshape.default, _aten._unsafe_view.default)
def reshape(lo: Lowering, x: Any, size: Sequence[int]) -> Any:
    """Reshape: time stays an axis where as many values lie before and after it as did."""
    shape = list(size)
    if -1 in shape:
        known = math.prod(s for s in shape if s != -1)
        shape[shape.index(-1)] = math.prod(shape_of(x)) // max(known, 1)
    if not isinstance(x, Timed):
        return lo.e.reshape(x, shape)
    before = math.prod(x.shape[: x.axis])
    for axis, length in enumerate(shape):
        if length == x.frames and math.prod(shape[:axis]) == before:
            return relabel(lo.e, x, shape, axis)
    return join(lo.e, x, shape)


def per_channel(of_a_volume: Rule) -> Rule:
    """For rules that treat the channels of `[1, C, T, H, W]` alike: `[C, T, H, W]`, or several volumes, are as one."""

    @functools.wraps(of_a_volume)
    def lowered(lo: Lowering, x: Any, *args: Any, **kwargs: Any) -> Any:
        *lead, t, h, w = shape_of(x)
        if len(lead) == 2 and lead[0] == 1:
            return of_a_volume(lo, x, *args, **kwargs)
        y = of_a_volume(lo, reshape(lo, x, (1, math.prod(lead), t, h, w)), *args, **kwargs)
        return reshape(lo, y, (*lead, *y.shape[2:]))

    return lowered


@rule(_aten.flatten.using_ints)
def flatten(lo: Lowering, x: Any, start: int = 0, end: int = -1) -> Any:
    """Reshape that merges the dimensions from `start` to `end`."""
    shape = shape_of(x)
    start, end = start % len(shape), end % len(shape)
    return reshape(lo, x, [*shape[:start], math.prod(shape[start : end + 1]), *shape[end + 1 :]])


@rule(_aten.unsqueeze.default)
def unsqueeze(lo: Lowering, x: Any, dim: int) -> Any:
    """A new dimension of one."""
    shape = list(shape_of(x))
    dim %= len(shape) + 1
    new = [*shape[:dim], 1, *shape[dim:]]
    if not isinstance(x, Timed):
        return lo.e.reshape(x, new)
    return relabel(lo.e, x, new, x.axis + (dim <= x.axis))


@rule(_aten.squeeze.default, _aten.squeeze.dim, _aten.squeeze.dims)
def squeeze(lo: Lowering, x: Any, dims: Any = None) -> Any:
    """Without those of the dimensions `dims`, all where there are none, that are one."""
    shape = shape_of(x)
    gone = [dim for dim in normal_dims(dims, len(shape)) if shape[dim] == 1]
    new = [size for dim, size in enumerate(shape) if dim not in gone]
    if not isinstance(x, Timed):
        return lo.e.reshape(x, new)
    if x.axis in gone:
        return join(lo.e, x, new)
    return relabel(lo.e, x, new, x.axis - sum(dim < x.axis for dim in gone))


@rule(_aten.permute.default)
def permute(lo: Lowering, x: Any, dims: Sequence[int]) -> Any:
    """Another order of dimensions: time moves with it, the chunks permute what they have of the others."""
    dims = normal_dims(list(dims), rank_of(x))
    if not isinstance(x, Timed):
        return lo.e.permute(x, dims)
    shape = [x.shape[dim] for dim in dims]
    order = [0, *(x.chunk_dim(dim) for dim in dims if dim in x.rest)]
    moved = map_chunks(lo.e, x, lambda chunk: lo.e.permute(chunk, order))
    return relabel(lo.e, moved, shape, dims.index(x.axis))


@rule(_aten.transpose.int)
def transpose(lo: Lowering, x: Any, a: int, b: int) -> Any:
    """Two dimensions change places."""
    dims = list(range(rank_of(x)))
    dims[a], dims[b] = dims[b], dims[a]
    return permute(lo, x, dims)


@rule(_aten.expand.default)
def expand(lo: Lowering, x: Any, size: Sequence[int], **_: Any) -> Any:
    """Repeat dimensions of one; a frame is repeated by naming it again."""
    if not isinstance(x, Timed):
        return lo.e(_aten.expand.default, x, list(size))
    lead = len(size) - rank_of(x)
    shape = [*size[:lead], *(own if asked == -1 else asked for asked, own in zip(size[lead:], x.shape, strict=True))]
    x = relabel(lo.e, x, [*(1,) * lead, *x.shape], x.axis + lead)
    if shape[x.axis] != x.frames:
        x = gather(lo.e, x, [0] * shape[x.axis])
    if tuple(shape) == x.shape:
        return x
    if x.shape[0] == 1 and shape[0] > 1 and x.axis != 0:
        raise UnsupportedError(f"expand of the batch to {shape[0]}: an edge graph has a batch of 1")
    rest = [shape[dim] for dim in x.rest]
    return map_chunks(lo.e, x, lambda chunk: lo.e(_aten.expand.default, chunk, [shape_of(chunk)[0], *rest]), shape)
