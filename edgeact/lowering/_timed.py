"""A tensor with a time axis, held as 2-D pieces: what every rule of the lowering works on.

A volumetric tensor of T frames is held as *chunks*, each `[n, *rest]`: n frames, and per frame the tensor's other
dimensions without the batch of one. The two forms differ in nothing but where the frames stand:

    volumetric [1, C, T, H, W]      t0 t1 t2 t3
    unrolled   T chunks, n = 1      [1,C,H,W] [1,C,H,W] [1,C,H,W] [1,C,H,W]
    folded     1 chunk,  n = T      [T,C,H,W]

so an op that treats frames alike is written once, for a chunk. The axis of time moves with the network: after
`permute(0, 2, 1, 3, 4)` the same chunks stand for `[1, T, C, H, W]`, and after a reshape for `[T, C, H, W]`.

A chunk that is None is one frame of zeros which nobody computed: a convolution leaves its tap out.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from edgeact.lowering._emitter import Emitter, dtype_of, shape_of

__all__ = ["Form", "Timed", "filled", "gather", "join", "map_chunks", "move", "relabel", "resized", "split"]

Form = Literal["unrolled", "folded"]

_aten = torch.ops.aten


@dataclass(frozen=True)
class Timed:
    """Chunks that stand for a tensor of `shape` whose dimension `axis` is time."""

    chunks: tuple[Any, ...]
    shape: tuple[int, ...]
    axis: int
    form: Form

    @property
    def frames(self) -> int:
        """T."""
        return self.shape[self.axis]

    @property
    def dtype(self) -> torch.dtype:
        """Element type."""
        return next((dtype_of(chunk) for chunk in self.chunks if chunk is not None), torch.float32)

    @property
    def rest(self) -> list[int]:
        """The tensor's dimensions that a chunk has after its frames: all but time and a leading batch of one."""
        return _rest(self.shape, self.axis)

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """Sizes of `rest`."""
        return tuple(self.shape[dim] for dim in self.rest)

    def chunk_dim(self, dim: int) -> int:
        """Where a chunk has the tensor's dimension `dim`, which is not time nor the batch of one."""
        return 1 + self.rest.index(dim % len(self.shape))


def _rest(shape: Sequence[int], axis: int) -> list[int]:
    return [dim for dim in range(len(shape)) if dim != axis and not (dim == 0 and shape[0] == 1)]


def split(e: Emitter, value: Any, axis: int, form: Form) -> Timed:
    """A whole tensor cut into chunks along `axis`."""
    shape = shape_of(value)
    axis %= len(shape)
    frames, rest = shape[axis], [shape[dim] for dim in _rest(shape, axis)]
    before, after = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
    flat = e.reshape(value, (before, frames, after))  # at most 3-D: what every backend can slice
    if form == "folded":
        return Timed((e.reshape(e.permute(flat, (1, 0, 2)), (frames, *rest)),), shape, axis, form)
    cuts = [flat] if frames == 1 else [e(_aten.slice.Tensor, flat, 1, t, t + 1) for t in range(frames)]
    return Timed(tuple(e.reshape(cut, (1, *rest)) for cut in cuts), shape, axis, form)


def join(e: Emitter, x: Timed, shape: Sequence[int] | None = None) -> Any:
    """The whole tensor again, in `shape` where that is not its own: the inverse of `split`."""
    x = filled(e, x)
    before, after = math.prod(x.shape[: x.axis]), math.prod(x.shape[x.axis + 1 :])
    shape = x.shape if shape is None else tuple(shape)
    if x.frames == 1:
        return e.reshape(x.chunks[0], shape)
    if x.form == "folded":
        flat = e.reshape(x.chunks[0], (x.frames, before, after))
        return e.reshape(e.permute(flat, (1, 0, 2)), shape)
    return e.reshape(e.cat([e.reshape(chunk, (before, 1, after)) for chunk in x.chunks], 1), shape)


def resized(shape: Sequence[int], dim: int, size: int) -> tuple[int, ...]:
    """`shape` with another size of one dimension."""
    return (*shape[:dim], size, *shape[dim + 1 :])


def filled(e: Emitter, x: Timed) -> Timed:
    """`x` with its absent frames as zeros, for the ops that cannot leave them out."""
    if all(chunk is not None for chunk in x.chunks):
        return x
    zeros = torch.zeros((1, *x.frame_shape), dtype=x.dtype)
    return replace(x, chunks=tuple(zeros if chunk is None else chunk for chunk in x.chunks))


def map_chunks(e: Emitter, x: Timed, op: Callable[[Any], Any], shape: Sequence[int] | None = None) -> Timed:
    """`op` on every chunk: an op that treats frames alike. `shape` is the new tensor's, where it changes."""
    chunks = tuple(op(chunk) for chunk in filled(e, x).chunks)
    return replace(x, chunks=chunks, shape=x.shape if shape is None else tuple(shape))


def relabel(e: Emitter, x: Timed, shape: Sequence[int], axis: int) -> Timed:
    """The same frames as a tensor of another shape, in which every frame keeps the order of its values."""
    rest = [shape[dim] for dim in _rest(shape, axis)]
    chunks = (None if chunk is None else e.reshape(chunk, (shape_of(chunk)[0], *rest)) for chunk in x.chunks)
    return replace(x, chunks=tuple(chunks), shape=tuple(shape), axis=axis)


def move(e: Emitter, x: Timed, axis: int) -> Timed:
    """`x` with time on `axis`: as it is, or put together and cut another way."""
    return x if x.axis == axis else split(e, join(e, x), axis, x.form)


def gather(e: Emitter, x: Timed, frames: Sequence[int | None]) -> Timed:
    """The frames at these positions; None is a frame of zeros."""
    shape = resized(x.shape, x.axis, len(frames))
    if x.form == "unrolled":
        chunks = tuple(None if t is None else x.chunks[t] for t in frames)
        if not any(chunk is not None for chunk in chunks):  # none is left to tell the type of the zeros
            chunks = tuple(torch.zeros((1, *x.frame_shape), dtype=x.dtype) for _ in frames)
    else:
        chunks = (e.cat(_runs(e, x, frames), 0) if frames else torch.zeros((0, *x.frame_shape), dtype=x.dtype),)
    return replace(x, chunks=chunks, shape=shape)


def _runs(e: Emitter, x: Timed, frames: Sequence[int | None]) -> list[Any]:
    """Slices of the one chunk of `x`, as few as arithmetic progressions allow, with zeros between."""
    runs: list[Any] = []
    i = 0
    while i < len(frames):
        first = frames[i]
        end = i + 1
        if first is None:
            while end < len(frames) and frames[end] is None:
                end += 1
            runs.append(torch.zeros((end - i, *x.frame_shape), dtype=x.dtype))
        else:
            second = frames[end] if end < len(frames) else None
            step = second - first if second is not None and second > first else 1
            while end < len(frames) and frames[end] == first + (end - i) * step:
                end += 1
            last = first + (end - i - 1) * step
            whole = (first, last + 1, step) == (0, x.frames, 1)
            chunk = x.chunks[0]
            runs.append(chunk if whole else e(_aten.slice.Tensor, chunk, 0, first, last + 1, step))
        i = end
    return runs
