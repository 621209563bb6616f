"""Resizing a volume: the pixels of each frame with the 2-D op, time by repeating frames or mixing two of them.

nearest      y[t] = x[floor(t * r)],  r = T_in / T_out, or 1 / scale where that is given
trilinear    y[t] = (1 - w) x[i] + w x[i + 1],  i + w = max(r (t + 1/2) - 1/2, 0)
             i + w = t (T_in - 1) / (T_out - 1) with align_corners

as `area_pixel_compute_source_index` in ATen's `UpSample.h` has it.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch

from edgeact.lowering._rules import Lowering, rule
from edgeact.lowering._timed import Timed, gather, map_chunks

__all__ = ["nearest", "trilinear"]

_aten = torch.ops.aten


def _sizes(x: Timed, size: Sequence[int] | None, scales: Sequence[float] | None) -> tuple[list[int], list[float]]:
    """Output sizes, and input places per output place, of time, height and width."""
    if size is None:
        assert scales is not None, "torch gives one of the two"
        size = [math.floor(length * scale) for length, scale in zip(x.shape[2:], scales, strict=True)]
    if scales is None:
        return list(size), [given / asked for given, asked in zip(x.shape[2:], size, strict=True)]
    return list(size), [1 / scale for scale in scales]


def _frames(lo: Lowering, x: Timed, op: Any, size: list[int], *rest: Any) -> Timed:
    """Every frame resized to the height and width of `size`."""
    if list(x.shape[3:]) == size[1:]:
        return x
    return map_chunks(lo.e, x, lambda chunk: lo.e(op, chunk, *rest), (*x.shape[:3], *size[1:]))


@rule(_aten.upsample_nearest3d.vec)
def nearest(lo: Lowering, x: Any, size: Sequence[int] | None, scales: Sequence[float] | None) -> Timed:
    """The nearest frame and pixel of `[1, C, T, H, W]`."""
    x = lo.volume(x)
    sizes, ratio = _sizes(x, size, scales)
    x = gather(lo.e, x, [min(math.floor(t * ratio[0]), x.frames - 1) for t in range(sizes[0])])
    two = (sizes[1:], None) if scales is None else (None, list(scales[1:]))
    return _frames(lo, x, _aten.upsample_nearest2d.vec, sizes, *two)


@rule(_aten.upsample_trilinear3d.vec)
def trilinear(
    lo: Lowering, x: Any, size: Sequence[int] | None, align_corners: bool, scales: Sequence[float] | None
) -> Timed:
    """Linear in time, height and width of `[1, C, T, H, W]`."""
    x = lo.volume(x)
    sizes, ratio = _sizes(x, size, scales)
    two = (sizes[1:], align_corners, None) if scales is None else (None, align_corners, list(scales[1:]))
    x = _frames(lo, x, _aten.upsample_bilinear2d.vec, sizes, *two)
    if align_corners:
        step = (x.frames - 1) / (sizes[0] - 1) if sizes[0] > 1 else 0.0
        places = [t * step for t in range(sizes[0])]
    else:
        places = [max(ratio[0] * (t + 0.5) - 0.5, 0.0) for t in range(sizes[0])]
    first = [min(math.floor(place), x.frames - 1) for place in places]
    weights = [place - i for place, i in zip(places, first, strict=True)]
    before, after = gather(lo.e, x, first), gather(lo.e, x, [min(i + 1, x.frames - 1) for i in first])
    if not any(weights):
        return before
    return _mixed(lo, before, after, weights)


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
