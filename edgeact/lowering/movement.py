"""Ops that move data: what they do to the axis of time decides everything, the values stay.

permute(0, 2, 1, 3, 4)      [1, C, T, H, W] -> [1, T, C, H, W]      the same chunks, time on axis 1
reshape(T, C, H, W)         [1, T, C, H, W] -> [T, C, H, W]         the same chunks, time on axis 0
slice, select, flip in time                                        a choice among the chunks
cat in time                                                        the chunks of one, then of the other
pad with zeros in time                                             absent frames
reshape(1, C, T*H*W)        time is mixed with pixels: the frames are put together, and cut again when needed
"""

import math
from collections.abc import Sequence
from typing import Any

import torch

from edgeact.lowering._emitter import shape_of
from edgeact.lowering._rules import Lowering, any_timed, normal_dims, rank_of, rule
from edgeact.lowering._timed import Timed, filled, gather, join, map_chunks, relabel

__all__ = ["cat", "pad", "permute", "reshape", "slice_"]

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
        raise ValueError(f"expand of the batch to {shape[0]}: an edge graph has a batch of 1")
    rest = [shape[dim] for dim in x.rest]
    return map_chunks(lo.e, x, lambda chunk: lo.e(_aten.expand.default, chunk, [shape_of(chunk)[0], *rest]), shape)


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
    shape = [*x.shape[:dim], len(chosen), *x.shape[dim + 1 :]]
    if dim not in x.rest:
        raise ValueError(f"the batch of 1 cannot give the places {chosen}")
    return map_chunks(lo.e, x, lambda chunk: op(chunk, x.chunk_dim(dim)), shape)


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
    if len(given) != 1 or not isinstance(given[0][1], torch.Tensor) or given[0][1].ndim != 1:
        raise ValueError("indexing a volume by several tensors, or by one that is computed")
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
    first = next(t for t in tensors if isinstance(t, Timed))
    dim %= rank_of(first)
    parts = [lo.timed(t, first.axis) for t in tensors]
    if dim == first.axis:
        parts = [part for part in parts if part.frames]
    sizes = [part.shape[dim] for part in parts]
    shape = (*first.shape[:dim], sum(sizes), *first.shape[dim + 1 :])
    if dim == first.axis:
        chunks = tuple(chunk for part in parts for chunk in part.chunks)
        if lo.form == "folded":
            chunks = (lo.e.cat(chunks, 0),)
        return Timed(chunks, shape, first.axis, lo.form)
    if dim == 0 and first.shape[0] == 1:  # a batch of one, as in stack(dim=0): the chunks get the dimension
        joined = lo.e.cat([join(lo.e, part) for part in parts], 0)
        return lo.timed(joined, first.axis)
    at = first.chunk_dim(dim)
    rows = zip(*(filled(lo.e, part).chunks for part in parts), strict=True)
    return Timed(tuple(lo.e.cat(list(row), at) for row in rows), shape, first.axis, lo.form)


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
    length = shape_of(x)[dim]
    return [
        slice_(lo, x, dim, s, min(s + size, length)) for size in [-(-length // count)] for s in range(0, length, size)
    ]


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
        constant = Timed((frame,), _with(x.shape, x.axis, 1), x.axis, x.form)
        parts = [gather(lo.e, constant, [0] * n) if n > 0 else None for n in (before, after)]
        return cat(lo, [part for part in (parts[0], gather(lo.e, x, kept), parts[1]) if part], x.axis)
    frames = [*[None] * max(0, before), *kept, *[None] * max(0, after)]
    return x if frames == list(range(x.frames)) else gather(lo.e, x, frames)


def _with(shape: tuple[int, ...], axis: int, size: int) -> tuple[int, ...]:
    return (*shape[:axis], size, *shape[axis + 1 :])


@rule(_aten.replication_pad3d.default)
def replication_pad3d(lo: Lowering, x: Any, sizes: Sequence[int]) -> Timed:
    """Pad with the nearest frame and pixel."""
    x = lo.volume(x)
    x = gather(lo.e, x, [min(max(t, 0), x.frames - 1) for t in range(-sizes[4], x.frames + sizes[5])])
    shape = [*x.shape[:3], x.shape[3] + sizes[2] + sizes[3], x.shape[4] + sizes[0] + sizes[1]]
    return map_chunks(lo.e, x, lambda c: lo.e(_aten.replication_pad2d.default, c, list(sizes[:4])), shape)
