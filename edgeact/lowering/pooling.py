"""3-D pooling: over the pixels of each frame with the 2-D op, over time by maximum or sum.

Both poolings separate, max(t, h, w) = max_t max_hw and likewise for sums, so a frame is pooled once however many
windows it lies in:

    k = 3, s = 2, p = 1     x    .  0  1  2  3  .
                            y0   ^--^--^                 max(p0, p1)         p_t = max_pool2d(x_t)
                            y1         ^--^--^           max(p1, p2, p3)

Output sizes and divisors follow `pool_shape.h` and `AveragePool3d.cpp` of ATen.
"""

from typing import Any

import torch

from edgeact.lowering._emitter import shape_of
from edgeact.lowering._rules import Lowering, UnsupportedError, rule, triple
from edgeact.lowering._timed import Timed, filled, gather, map_chunks
from edgeact.lowering.frames import average
from edgeact.lowering.shapes import per_channel

__all__ = ["adaptive_avg_pool3d", "adaptive_max_pool3d", "avg_pool3d", "max_pool3d"]

_aten = torch.ops.aten


def _windows(size: int, kernel: int, stride: int, padding: int, dilation: int, ceil: bool) -> list[list[int]]:
    """The places, padding included, that each output looks at; outside of `-padding … size + padding` with `ceil`."""
    room = size + 2 * padding - dilation * (kernel - 1) - 1
    count = -(-room // stride) + 1 if ceil else room // stride + 1
    if ceil and (count - 1) * stride >= size + padding:  # the last window must begin inside
        count -= 1
    return [[t * stride - padding + k * dilation for k in range(kernel)] for t in range(count)]


def _ceil_matters(shape: tuple[int, ...], geometry: list[list[int]]) -> bool:
    """Whether ceil_mode changes the height or width; backends take the plain mode more often."""
    return any(
        len(_windows(size, k, s, p, d, True)) != len(_windows(size, k, s, p, d, False))
        for size, k, s, p, d in zip(shape, *geometry, strict=True)
    )


def _over_time(lo: Lowering, x: Timed, windows: list[list[int]], op: Any) -> Timed:
    """Combines, for each output, the frames of its window with a binary op for which repeating one is harmless."""
    length = max(len(window) for window in windows)
    taps = [gather(lo.e, x, [window[min(k, len(window) - 1)] for window in windows]) for k in range(length)]
    total = list(taps[0].chunks)
    for k, tap in enumerate(taps[1:], 1):
        for i, chunk in enumerate(tap.chunks):
            if lo.form == "folded" or k < len(windows[i]):  # a frame alone is not combined with itself
                total[i] = lo.e(op, total[i], chunk)
    return Timed(tuple(total), taps[0].shape, taps[0].axis, x.form)


@rule(_aten.max_pool3d.default)
@per_channel
def max_pool3d(
    lo: Lowering, x: Any, kernel: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
) -> Timed:
    """MaxPool3d of `[1, C, T, H, W]`; padding is minus infinity, so a window holds the frames that are there."""
    kernel, padding, dilation = triple(kernel), triple(padding), triple(dilation)
    stride = triple(stride) if stride else kernel
    x = filled(lo.e, lo.volume(x))
    hw = [list(triple[1:]) for triple in (kernel, stride, padding, dilation)]
    if hw != [[1, 1], [1, 1], [0, 0], [1, 1]]:
        ceil = ceil_mode and _ceil_matters(x.shape[3:], hw)
        x = _sized(map_chunks(lo.e, x, lambda chunk: lo.e(_aten.max_pool2d.default, chunk, *hw, ceil)))
    windows = _windows(x.frames, kernel[0], stride[0], padding[0], dilation[0], ceil_mode)
    inside = [[t for t in window if 0 <= t < x.frames] for window in windows]
    if not all(inside):
        raise UnsupportedError("a window that lies in the padding alone: its maximum is minus infinity")
    return _over_time(lo, x, inside, _aten.maximum.default)


@rule(_aten.max_pool3d_with_indices.default)
def max_pool3d_values(lo: Lowering, *args: Any) -> list[Any]:
    """MaxPool3d with `return_indices=True`, of which the maxima are used."""
    return [max_pool3d(lo, *args), None]


def _sized(x: Timed) -> Timed:
    """`x` with the height and width that its chunks have now."""
    return Timed(x.chunks, (*x.shape[:3], *shape_of(x.chunks[0])[2:]), x.axis, x.form)


@rule(_aten.avg_pool3d.default)
@per_channel
def avg_pool3d(
    lo: Lowering,
    x: Any,
    kernel: Any,
    stride: Any = (),
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Timed:
    """AvgPool3d of `[1, C, T, H, W]`: the divisor is a product of one factor per dimension, or given."""
    kernel, padding = triple(kernel), triple(padding)
    stride = triple(stride) if stride else kernel
    x = lo.volume(x)
    hw = [list(triple[1:]) for triple in (kernel, stride, padding)]
    flat_divisor = None if divisor_override is None else 1
    if hw != [[1, 1], [1, 1], [0, 0]]:
        ceil = ceil_mode and _ceil_matters(x.shape[3:], [*hw, [1, 1]])
        flat = average(hw[0], hw[1], hw[2], ceil, count_include_pad, flat_divisor)
        x = _sized(map_chunks(lo.e, x, lambda chunk: lo.e(_aten.avg_pool2d.default, chunk, *flat)))
    windows = _windows(x.frames, kernel[0], stride[0], padding[0], 1, ceil_mode)
    inside = [[t for t in window if 0 <= t < x.frames] for window in windows]
    bounded = [sum(t < x.frames + padding[0] for t in window) for window in windows]  # ceil_mode looks further
    counts = bounded if count_include_pad else [len(window) for window in inside]
    divisors = counts if divisor_override is None else [divisor_override] * len(windows)
    return _mean_over_time(lo, x, inside, divisors)


def _mean_over_time(lo: Lowering, x: Timed, windows: list[list[int]], divisors: list[int]) -> Timed:
    """The sum of each window's frames over its divisor."""
    e = lo.e
    if lo.form == "folded":
        length = max(len(window) for window in windows)
        taps = [gather(e, x, [w[k] if k < len(w) else None for w in windows]) for k in range(length)]
        each = torch.tensor([1 / d for d in divisors], dtype=x.dtype).view(-1, 1, 1, 1)
        factor = each if len(set(divisors)) > 1 else _one_over(divisors[0])
        chunks: tuple[Any, ...] = (e.sum([tap.chunks[0] for tap in taps], factor),)
    else:
        frames = filled(e, x).chunks
        chunks = tuple(
            e.sum([frames[t] for t in window], _one_over(divisor))
            for window, divisor in zip(windows, divisors, strict=True)
        )
    return Timed(chunks, (*x.shape[:2], len(windows), *x.shape[3:]), 2, x.form)


def _one_over(divisor: int) -> float:
    return 1 if divisor == 1 else 1 / divisor


def _bins(size: int, bins: int) -> list[list[int]]:
    """The places of each bin of an adaptive pooling: from floor(i n / b) to ceil((i + 1) n / b)."""
    return [list(range(i * size // bins, -(-(i + 1) * size // bins))) for i in range(bins)]


def _asked(x: Timed, size: Any) -> tuple[int, ...]:
    """Output sizes; None keeps the input's."""
    sizes = list(size) if isinstance(size, list | tuple) else [size] * 3
    return tuple(x.shape[2 + i] if s is None else s for i, s in enumerate(sizes))


@rule(_aten.adaptive_avg_pool3d.default, _aten._adaptive_avg_pool3d.default)
@per_channel
def adaptive_avg_pool3d(lo: Lowering, x: Any, size: Any) -> Timed:
    """AdaptiveAvgPool3d of `[1, C, T, H, W]`; time first, so that one frame is left to average over its pixels."""
    x = lo.volume(x)
    frames, height, width = _asked(x, size)
    windows = _bins(x.frames, frames)
    mean = _mean_over_time(lo, x, windows, [len(window) for window in windows])
    if (height, width) == mean.shape[3:]:
        return mean
    if (height, width) == (1, 1):
        return _sized(map_chunks(lo.e, mean, lambda chunk: lo.e(_aten.mean.dim, chunk, [2, 3], True)))
    if mean.shape[3] % height == 0 and mean.shape[4] % width == 0:  # equal bins: what every backend takes
        bin_ = [mean.shape[3] // height, mean.shape[4] // width]
        return _sized(map_chunks(lo.e, mean, lambda chunk: lo.e(_aten.avg_pool2d.default, chunk, *average(bin_, bin_))))
    return _sized(map_chunks(lo.e, mean, lambda chunk: lo.e(_aten.adaptive_avg_pool2d.default, chunk, [height, width])))


@rule(_aten.adaptive_max_pool3d.default)
def adaptive_max_pool3d(lo: Lowering, x: Any, size: Any) -> list[Any]:
    """AdaptiveMaxPool3d of `[1, C, T, H, W]`, without the indices."""
    return [_adaptive_max(lo, x, size), None]


@per_channel
def _adaptive_max(lo: Lowering, x: Any, size: Any) -> Timed:
    x = filled(lo.e, lo.volume(x))
    frames, height, width = _asked(x, size)
    x = _over_time(lo, x, _bins(x.frames, frames), _aten.maximum.default)
    pooled = map_chunks(lo.e, x, lambda chunk: lo.e(_aten.adaptive_max_pool2d.default, chunk, [height, width])[0])
    return _sized(pooled)
