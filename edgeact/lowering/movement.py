"""Ops that move data: the frames are chosen or put one after another, the values stay.

slice, select, flip in time     a choice among the chunks
cat in time                     the chunks of one, then of the other
pad with zeros in time          absent frames
"""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from edgeact.lowering._emitter import dtype_of, shape_of
from edgeact.lowering._rules import DATA_DEPENDENT, Lowering, UnsupportedError, any_timed, normal_dims, rank_of, rule
from edgeact.lowering._timed import Timed, filled, gather, join, map_chunks, relabel, resized
from edgeact.lowering.pointwise import to_dtype
from edgeact.lowering.shapes import per_channel, reshape, squeeze, unsqueeze

__all__ = ["cat", "index_select", "pad", "slice_"]

_aten = torch.ops.aten


@rule(_aten.repeat.default)
def repeat(lo: Lowering, x: Any, counts: Sequence[int]) -> Any:
    """Copies one after another, along each dimension."""
    x = reshape(lo, x, [*(1,) * (len(counts) - rank_of(x)), *shape_of(x)])
    for dim, count in enumerate(counts):
        x = cat(lo, [x] * count, dim) if count != 1 else x
    return x


@rule(_aten.slice.Tensor)
def slice_(lo: Lowering, x: Any, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> Any:
    """Every `step`-th from `start` to `end`."""
    if not isinstance(x, Timed):
        return lo.e(_aten.slice.Tensor, x, dim, start, end, step)
    dim %= rank_of(x)
    chosen = list(range(x.shape[dim]))[start:end:step]
    return _take(lo, x, dim, chosen, lambda chunk, at: lo.e(_aten.slice.Tensor, chunk, at, start, end, step))


def _take(lo: Lowering, x: Timed, dim: int, chosen: list[int], op: Any) -> Any:
    """The places `chosen` of dimension `dim`: frames, or by `op(chunk, chunk_dim)` in every chunk."""
    if chosen == list(range(x.shape[dim])):
        return x
    if dim == x.axis:
        return gather(lo.e, x, chosen)
    if dim not in x.rest:
        raise UnsupportedError(f"the batch of 1 cannot give the places {chosen}")
    taken = map_chunks(lo.e, x, lambda chunk: op(chunk, x.chunk_dim(dim)), resized(x.shape, dim, len(chosen)))
    return relabel(lo.e, taken, taken.shape, taken.axis)  # one of a batch: chunks lose the dimension


@rule(_aten.select.int)
def select(lo: Lowering, x: Any, dim: int, index: int) -> Any:
    """One place of a dimension, which goes."""
    if not isinstance(x, Timed):
        return lo.e(_aten.select.int, x, dim, index)
    dim %= rank_of(x)
    return squeeze(lo, slice_(lo, x, dim, index, index + 1 or None), dim)


@rule(_aten.index_select.default)
def index_select(lo: Lowering, x: Any, dim: int, index: torch.Tensor) -> Any:
    """The places named by a constant."""
    if not isinstance(x, Timed):
        return lo.e(_aten.index_select.default, x, dim, index)
    chosen = [int(i) for i in index]
    return _take(lo, x, dim % rank_of(x), chosen, lambda chunk, at: lo.e(_aten.index_select.default, chunk, at, index))


@rule(_aten.index.Tensor)
def index(lo: Lowering, x: Any, indices: Sequence[Any]) -> Any:
    """`x[:, :, [0, 2, 5]]`: constant places of one dimension."""
    if not isinstance(x, Timed):
        return lo.e(_aten.index.Tensor, x, list(indices))
    given = [(dim, places) for dim, places in enumerate(indices) if places is not None]
    if any(dtype_of(places) is torch.bool and not isinstance(places, torch.Tensor) for _, places in given):
        raise UnsupportedError(DATA_DEPENDENT)
    if len(given) != 1 or not isinstance(given[0][1], torch.Tensor) or given[0][1].ndim != 1:
        raise UnsupportedError("indexing a volume by several tensors, or by one that is computed")
    return index_select(lo, x, given[0][0], torch.arange(x.shape[given[0][0]])[given[0][1]])


@rule(_aten.flip.default)
def flip(lo: Lowering, x: Any, dims: Sequence[int]) -> Any:
    """The other way round; time by naming the frames backwards."""
    if not isinstance(x, Timed):
        return lo.e(_aten.flip.default, x, list(dims))
    every = normal_dims(list(dims), rank_of(x))
    if x.axis in every:
        x = gather(lo.e, x, list(reversed(range(x.frames))))
    rest = [x.chunk_dim(dim) for dim in every if dim in x.rest]
    return map_chunks(lo.e, x, lambda chunk: lo.e(_aten.flip.default, chunk, rest)) if rest else x


@rule(_aten.cat.default)
def cat(lo: Lowering, tensors: Sequence[Any], dim: int = 0) -> Any:
    """One after another: in time the chunks follow each other, else every frame is concatenated with its like."""
    if not any_timed(tensors):
        return lo.e.cat(list(tensors), dim)
    axis = next(t.axis for t in tensors if isinstance(t, Timed))
    dtype = functools.reduce(torch.promote_types, map(dtype_of, tensors))
    parts = [to_dtype(lo, lo.timed(t, axis), dtype) for t in tensors if shape_of(t) != (0,)]  # torch skips these
    dim %= len(parts[0].shape)
    if len(parts) == 1:
        return parts[0]
    if dim == axis:
        return _cat_in_time(lo, [part for part in parts if part.frames])
    if dim == 0 and any(part.shape[0] == 1 for part in parts):  # as in stack(dim=0): the chunks get the dimension
        return lo.timed(lo.e.cat([join(lo.e, part) for part in parts], 0), axis)
    at = parts[0].chunk_dim(dim)
    rows = zip(*(filled(lo.e, part).chunks for part in parts), strict=True)
    shape = resized(parts[0].shape, dim, sum(part.shape[dim] for part in parts))
    return Timed(tuple(lo.e.cat(list(row), at) for row in rows), shape, axis, lo.form)


def _cat_in_time(lo: Lowering, parts: list[Timed]) -> Timed:
    """The frames of one, then of the other; frames of constant zeros, as causal padding has them, are absent."""
    first = parts[0]
    shape = resized(first.shape, first.axis, sum(part.frames for part in parts))
    chunks = [chunk for part in parts for chunk in part.chunks]
    if lo.form == "folded":
        return Timed((lo.e.cat(chunks, 0),), shape, first.axis, lo.form)
    if any(isinstance(chunk, fx.Node) for chunk in chunks):
        chunks = [None if isinstance(chunk, torch.Tensor) and not chunk.any() else chunk for chunk in chunks]
    return Timed(tuple(chunks), shape, first.axis, lo.form)


@rule(_aten.stack.default)
def stack(lo: Lowering, tensors: Sequence[Any], dim: int = 0) -> Any:
    """`cat` along a new dimension."""
    dim %= rank_of(tensors[0]) + 1
    return cat(lo, [unsqueeze(lo, t, dim) for t in tensors], dim)


@rule(_aten.split_with_sizes.default)
def split_with_sizes(lo: Lowering, x: Any, sizes: Sequence[int], dim: int = 0) -> list[Any]:
    """Consecutive parts of these sizes."""
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return [slice_(lo, x, dim, end - size, end) for size, end in zip(sizes, ends, strict=True)]


@rule(_aten.split.Tensor)
def split(lo: Lowering, x: Any, size: int, dim: int = 0) -> list[Any]:
    """Consecutive parts of one size, the last one perhaps shorter."""
    length = shape_of(x)[dim]
    return [slice_(lo, x, dim, start, min(start + size, length)) for start in range(0, length, size)]


@rule(_aten.chunk.default)
def chunk(lo: Lowering, x: Any, count: int, dim: int = 0) -> list[Any]:
    """At most `count` parts."""
    parts: list[Any] = split(lo, x, -(-shape_of(x)[dim] // count), dim)
    return parts


@rule(_aten.unbind.int)
def unbind(lo: Lowering, x: Any, dim: int = 0) -> list[Any]:
    """Every place of a dimension."""
    return [select(lo, x, dim, place) for place in range(shape_of(x)[dim])]


@rule(_aten.constant_pad_nd.default)
def pad(lo: Lowering, x: Any, sizes: Sequence[int], value: float = 0.0) -> Any:
    """Pad with a constant (negative sizes cut): pairs count from the last dimension, as in `F.pad`."""
    if len(sizes) == 6 and rank_of(x) == 5 and shape_of(x)[0] == 1 and (not isinstance(x, Timed) or x.axis == 0):
        x = lo.volume(x)  # one frame alone, which is whole or stands on dimension 0; its time is what grows
    if not isinstance(x, Timed):
        return lo.e(_aten.constant_pad_nd.default, x, list(sizes), value)
    pairs = {rank_of(x) - 1 - i // 2: (sizes[i], sizes[i + 1]) for i in range(0, len(sizes), 2)}
    before, after = pairs.pop(x.axis, (0, 0))
    kept = list(range(max(0, -before), x.frames - max(0, -after)))
    rest = [pairs.get(dim, (0, 0)) for dim in x.rest]
    flat = [size for pair in reversed(rest) for size in pair]
    if any(flat):
        shape = [size + sum(pairs.get(dim, (0, 0))) for dim, size in enumerate(x.shape)]
        x = map_chunks(lo.e, x, lambda c: lo.e(_aten.constant_pad_nd.default, c, flat, value), shape)
    if value and max(before, after) > 0:
        frame = torch.full((1, *x.frame_shape), value, dtype=x.dtype)
        constant = Timed((frame,), resized(x.shape, x.axis, 1), x.axis, x.form)
        parts = [gather(lo.e, constant, [0] * n) if n > 0 else None for n in (before, after)]
        return cat(lo, [part for part in (parts[0], gather(lo.e, x, kept), parts[1]) if part], x.axis)
    frames = [*[None] * max(0, before), *kept, *[None] * max(0, after)]
    return x if frames == list(range(x.frames)) else gather(lo.e, x, frames)


@rule(_aten.replication_pad3d.default)
@per_channel
def replication_pad3d(lo: Lowering, x: Any, sizes: Sequence[int]) -> Timed:
    """Pad with the nearest frame and pixel."""
    x = lo.volume(x)
    x = gather(lo.e, x, [min(max(t, 0), x.frames - 1) for t in range(-sizes[4], x.frames + sizes[5])])
    shape = [*x.shape[:3], x.shape[3] + sizes[2] + sizes[3], x.shape[4] + sizes[0] + sizes[1]]
    return map_chunks(lo.e, x, lambda c: lo.e(_aten.replication_pad2d.default, c, list(sizes[:4])), shape)
