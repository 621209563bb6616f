"""Convolutions: one of kt temporal taps as 2-D convolutions, one over features as one over an image of one row.

A 3-D convolution (cross-correlation, as in `torch.nn.Conv3d`) is a sum over taps k of 2-D convolutions, each over the
frame that the tap falls on:

    y[t] = b + sum_k W[:, :, k] * x[s t - p + d k]           s, p, d: stride, padding, dilation in time

    kt = 3, s = 1, p = 1:       x     .  0  1  2  3  .       . is padding: zeros, so its tap is left out
                                y[0]  ^--^--^                y[0] = b + W1 x0 + W2 x1
                                y[1]     ^--^--^             y[1] = b + W0 x0 + W1 x1 + W2 x2
                                y[3]           ^--^--^       y[3] = b + W0 x2 + W1 x3

`stack`: one 2-D convolution over the frames laid side by side as channels, its kernel the taps side by side: one
accumulation over all of them; more than five taps are two such convolutions and their sum. `padded`: the same, with
zeros for the taps on padding, so that every frame has the same kernel. `sum`: one 2-D convolution
per tap and their sum, the only way where channels are in groups, since groups of a stack would mix frames. The bias
stands on one tap of every frame.

A transposed convolution is the same sum with the frames the other way round: y[s t - p + d k] gets W[:, :, k] * x[t].
"""

import math
from collections.abc import Sequence
from typing import Any

import torch

from edgeact.lowering._emitter import Emitter, QuantizedConstant, shape_of
from edgeact.lowering._rules import RULES, Conv, Lowering, rank_of, rule, triple
from edgeact.lowering._timed import Timed, gather
from edgeact.lowering.movement import cat, pad, slice_
from edgeact.lowering.shapes import reshape, squeeze, unsqueeze

__all__ = ["MOST_STACKED", "conv3d"]

_aten = torch.ops.aten
MOST_STACKED = 5  # LiteRT's XNNPACK delegate concatenates no more, and its converter merges what is nested

Windows = list[dict[int, int]]  # for every output frame, the taps that fall on an input frame: {tap: frame}


@rule(_aten.conv3d.default, _aten.conv3d.padding)
def conv3d(
    lo: Lowering,
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    """Conv3d of any kernel, stride, padding (in numbers, or by name), dilation and groups."""
    if shape_of(x)[:-4] != (1,):
        return _batch(lo, x, weight, bias, stride, padding, dilation, groups)
    x, stride, dilation = lo.volume(x), triple(stride), triple(dilation)
    out, _, *kernel = shape_of(weight)
    if isinstance(padding, str):
        x, padding = _pad_by_name(lo, x, padding, kernel, dilation)
    padding = triple(padding)
    sizes = [
        (size + 2 * p - d * (k - 1) - 1) // s + 1
        for size, k, s, p, d in zip(x.shape[2:], kernel, stride, padding, dilation, strict=True)
    ]
    conv = Conv(
        in_channels=x.shape[1],
        out_channels=out,
        groups=groups,
        kernel=triple(kernel),
        frames_in=x.frames,
        frames_out=sizes[0],
        int8=isinstance(weight, QuantizedConstant),
    )
    taps = "sum" if groups > 1 or kernel[0] == 1 else lo.taps(conv)
    geometry = (list(stride[1:]), list(padding[1:]), list(dilation[1:]), groups)
    write = _Writer(lo, _aten.conv2d.default, weight, bias, geometry, taps)
    starts = [t * stride[0] - padding[0] for t in range(sizes[0])]
    windows = [{k: start + k * dilation[0] for k in range(kernel[0])} for start in starts]
    return _over_time(lo, x, write, windows, (1, out, *sizes))


@rule(_aten.conv_transpose3d.input)
def conv_transpose3d(
    lo: Lowering,
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Timed:
    """ConvTranspose3d: for every output frame the taps that reach it, each a transposed 2-D convolution."""
    stride, padding, dilation, more = (triple(value) for value in (stride, padding, dilation, output_padding))
    x = lo.volume(x)
    _, out, *kernel = shape_of(weight)
    sizes = [
        (size - 1) * s - 2 * p + d * (k - 1) + extra + 1
        for size, k, s, p, d, extra in zip(x.shape[2:], kernel, stride, padding, dilation, more, strict=True)
    ]
    geometry = (list(stride[1:]), list(padding[1:]), list(more[1:]), groups, list(dilation[1:]))
    write = _Writer(lo, _aten.conv_transpose2d.input, weight, bias, geometry, "sum")
    windows: Windows = [{} for _ in range(sizes[0])]
    for k in range(kernel[0]):
        for t in range(x.frames):
            reached = t * stride[0] - padding[0] + k * dilation[0]
            if 0 <= reached < sizes[0]:
                windows[reached][k] = t
    return _over_time(lo, x, write, windows, (1, out * groups, *sizes))


def _batch(lo: Lowering, x: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, groups: int) -> Any:
    """One volume without a batch; or several, as of the heads of an attention that pools its keys.

    Depthwise, `[N, C, T, H, W]` are N * C channels of one volume; else each volume is a convolution of its own.
    """
    geometry = (stride, padding, dilation)
    if rank_of(x) == 4:
        return squeeze(lo, conv3d(lo, unsqueeze(lo, x, 0), weight, bias, *geometry, groups), 0)
    n, channels, *volume = shape_of(x)
    if channels != groups or isinstance(weight, QuantizedConstant):
        volumes = [slice_(lo, x, 0, i, i + 1) for i in range(n)]
        return cat(lo, [conv3d(lo, volume, weight, bias, *geometry, groups) for volume in volumes], 0)
    weight = lo.e(_aten.repeat.default, lo.whole(weight), [n, 1, 1, 1, 1])
    bias = None if bias is None else lo.e(_aten.repeat.default, lo.whole(bias), [n])
    y = conv3d(lo, reshape(lo, x, (1, n * channels, *volume)), weight, bias, *geometry, n * groups)
    return reshape(lo, y, (n, y.shape[1] // n, *y.shape[2:]))


def _pad_by_name(
    lo: Lowering, x: Timed, name: str, kernel: Sequence[int], dilation: tuple[int, ...]
) -> tuple[Timed, tuple[int, ...]]:
    """Padding "valid" (none) or "same" in numbers; where a side is odd, the larger part comes after, as in torch."""
    sides = [d * (k - 1) if name == "same" else 0 for d, k in zip(dilation, kernel, strict=True)]
    if any(side % 2 for side in sides):
        return pad(lo, x, [size for side in reversed(sides) for size in (side // 2, side - side // 2)]), (0, 0, 0)
    return x, tuple(side // 2 for side in sides)


def _over_time(lo: Lowering, x: Timed, write: "_Writer", windows: Windows, shape: tuple[int, ...]) -> Timed:
    """An output frame for each window, without the taps on padding and on absent frames; without any, the bias."""
    there = {t for t in range(x.frames) if lo.form == "folded" or x.chunks[t] is not None}
    windows = [{k: t for k, t in window.items() if t in there} for window in windows]
    every = sorted({k for window in windows for k in window})
    if lo.form == "unrolled":
        inputs = x.chunks
        if write.taps == "padded":
            inputs += (torch.zeros((1, *x.frame_shape), dtype=x.dtype),)
            windows = [dict.fromkeys(every, x.frames) | window if window else window for window in windows]
        chunks = [write(list(window), [inputs[t] for t in window.values()]) if window else None for window in windows]
    elif every:  # all output frames at once: per tap, the input frames that it falls on, zeros where that is padding
        frames = [gather(lo.e, x, [window.get(k) for window in windows]).chunks[0] for k in every]
        chunks = [write(every, frames)]
    else:
        chunks = [None]
    if any(chunk is None for chunk in chunks):
        out = shape[1]
        constant = torch.zeros(out, dtype=x.dtype) if write.bias is None else write.bias
        frame = (len(windows) if lo.form == "folded" else 1, out, *shape[3:])
        alone = lo.e(_aten.expand.default, lo.e.reshape(constant, (1, out, 1, 1)), list(frame))
        chunks = [alone if chunk is None else chunk for chunk in chunks]
    return Timed(tuple(chunks), shape, 2, lo.form)


class _Writer:
    """Writes the 2-D convolutions of one over time; kernels of the same taps are one constant."""

    def __init__(self, lo: Lowering, op: Any, weight: Any, bias: Any, geometry: tuple[Any, ...], taps: str) -> None:
        self.e, self.op, self.geometry, self.taps = lo.e, op, geometry, taps
        self.weight, self.bias = lo.whole(weight), lo.whole(bias)
        self._kernels: dict[tuple[int, ...], Any] = {}

    def __call__(self, taps: list[int], frames: list[Any]) -> Any:
        """`taps` over their `frames`, and the bias."""
        if self.taps != "sum":
            groups = -(-len(taps) // MOST_STACKED)
            parts = [(taps[i::groups], frames[i::groups]) for i in range(groups)]
            stacked = [
                self._conv(some, self.e.cat(of, 1), None if i else self.bias) for i, (some, of) in enumerate(parts)
            ]
            return self.e.sum(stacked)
        # The bias goes on the middle tap where that is there, so that a kernel has one bias in most frames.
        middle = min(range(len(taps)), key=lambda i: abs(taps[i] - shape_of(self.weight)[2] // 2))
        biases = [self.bias if i == middle else None for i in range(len(taps))]
        return self.e.sum([self._conv([k], *rest) for k, *rest in zip(taps, frames, biases, strict=True)])

    def _conv(self, taps: list[int], x: Any, bias: Any) -> Any:
        key = tuple(taps)
        if key not in self._kernels:
            self._kernels[key] = _cut(self.e, self.weight, taps)
        return self.e(self.op, x, self._kernels[key], bias, *self.geometry)


def _cut(e: Emitter, weight: Any, taps: list[int]) -> Any:
    """The 2-D kernel of these taps: `[O, I, kt, kh, kw] -> [O, taps * I, kh, kw]`, one tap's channels after another."""

    def cut(w: Any) -> Any:
        return e.cat([e(_aten.select.int, w, 2, tap) for tap in taps], 1)

    return weight.apply(cut) if isinstance(weight, QuantizedConstant) else cut(weight)


@rule(_aten.conv1d.default)
def conv1d(
    lo: Lowering,
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Sequence[int] = (1,),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    groups: int = 1,
) -> Any:
    """A convolution over features of each frame, `[N, C, T]` or `[C, T]`, as one over an image of one row."""
    geometry = ([1, *stride], [0, *padding], [1, *dilation], groups)
    return _over_a_row(lo, _aten.conv2d.default, x, weight, bias, geometry)


@rule(_aten.conv_transpose1d.default)
def conv_transpose1d(
    lo: Lowering,
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Sequence[int] = (1,),
    padding: Sequence[int] = (0,),
    output_padding: Sequence[int] = (0,),
    groups: int = 1,
    dilation: Sequence[int] = (1,),
) -> Any:
    """ConvTranspose1d, likewise."""
    geometry = ([1, *stride], [0, *padding], [0, *output_padding], groups, [1, *dilation])
    return _over_a_row(lo, _aten.conv_transpose2d.input, x, weight, bias, geometry)


def _over_a_row(lo: Lowering, op: Any, x: Any, weight: Any, bias: Any, geometry: tuple[Any, ...]) -> Any:
    *batch, channels, length = shape_of(x)
    row = lo.e.reshape(lo.whole(x), (math.prod(batch), channels, 1, length))

    def cut(w: Any) -> Any:
        return lo.e(_aten.unsqueeze.default, w, 2)

    kernel = weight.apply(cut) if isinstance(weight, QuantizedConstant) else cut(lo.whole(weight))
    y = lo.e(op, row, kernel, lo.whole(bias), *geometry)
    return lo.e.reshape(y, (*batch, *shape_of(y)[1::2]))


_BY_RANK = {3: _aten.conv1d.default, 4: _aten.conv2d.default, 5: _aten.conv3d.default}
_TRANSPOSED = {3: _aten.conv_transpose1d.default, 4: _aten.conv_transpose2d.input, 5: _aten.conv_transpose3d.input}


@rule(_aten.convolution.default)
def convolution(
    lo: Lowering,
    x: Any,
    weight: Any,
    bias: Any,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Any:
    """What torch's decompositions make of every convolution."""
    op = (_TRANSPOSED if transposed else _BY_RANK)[rank_of(weight)]
    geometry = (output_padding, groups, dilation) if transposed else (dilation, groups)
    return RULES[op](lo.using(op), x, weight, bias, stride, padding, *geometry)
