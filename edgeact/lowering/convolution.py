"""conv3d: a kernel of kt temporal taps, as 2-D convolutions.

A 3-D convolution (cross-correlation, as in `torch.nn.Conv3d`) is a sum over taps k of 2-D convolutions, each over the
frame that the tap falls on:

    y[t] = b + sum_k W[:, :, k] * x[s t - p + d k]           s, p, d: stride, padding, dilation in time

    kt = 3, s = 1, p = 1:       x     .  0  1  2  3  .       . is padding: zeros, so its tap is left out
                                y[0]  ^--^--^                y[0] = b + W1 x0 + W2 x1
                                y[1]     ^--^--^             y[1] = b + W0 x0 + W1 x1 + W2 x2
                                y[3]           ^--^--^       y[3] = b + W0 x2 + W1 x3

`stack`: one 2-D convolution over the frames laid side by side as channels, its kernel the taps side by side: one
accumulation over all of them; more than five taps are two such convolutions and their sum. `sum`: one 2-D convolution
per tap and their sum, the only way where channels are in groups, since groups of a stack would mix frames. The bias
stands on one tap of every frame.
"""

from typing import Any

import torch
from torch import fx

from edgeact.lowering._emitter import Emitter, QuantizedConstant, dtype_of
from edgeact.lowering._rules import Conv, Lowering, rule
from edgeact.lowering._timed import Timed, gather
from edgeact.lowering.movement import pad

__all__ = ["MOST_STACKED", "conv3d"]

_aten = torch.ops.aten
MOST_STACKED = 5  # LiteRT's XNNPACK delegate concatenates no more, and its converter merges what is nested


def _triple(value: Any) -> tuple[int, int, int]:
    values = tuple(value) if isinstance(value, list | tuple) else (value,)
    a, b, c = values * 3 if len(values) == 1 else values
    return a, b, c


def _cut(weight: Any, taps: list[int]) -> Any:
    """The 2-D kernel of these taps: `[O, I, kt, kh, kw] -> [O, taps * I, kh, kw]`, one tap's channels after another."""

    def cut(w: torch.Tensor) -> torch.Tensor:
        chosen = w[:, :, taps].transpose(1, 2)
        return chosen.reshape(w.shape[0], len(taps) * w.shape[1], *w.shape[3:]).contiguous()

    return weight.apply(cut) if isinstance(weight, QuantizedConstant) else cut(weight)


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
) -> Timed:
    """Conv3d of any kernel, stride, padding (in numbers, or by name), dilation and groups."""
    if isinstance(weight, fx.Node):
        raise ValueError("its kernel is computed: 2-D kernels are cut from a constant one")
    stride, dilation = _triple(stride), _triple(dilation)
    x = lo.volume(x)
    if isinstance(padding, str):
        x, padding = _pad_by_name(lo, x, padding, tuple(weight.shape[2:]), dilation)
    padding = _triple(padding)
    out, kernel = weight.shape[0], tuple(weight.shape[2:])
    frames = (x.frames + 2 * padding[0] - dilation[0] * (kernel[0] - 1) - 1) // stride[0] + 1
    conv = Conv(
        in_channels=x.shape[1],
        out_channels=out,
        groups=groups,
        kernel=kernel,
        frames_in=x.frames,
        frames_out=frames,
    )
    taps = "sum" if groups > 1 or kernel[0] == 1 else lo.taps(conv)
    # For every output frame, the taps that fall on a frame which is there: {tap: input frame}
    absent = {t for t, chunk in enumerate(x.chunks) if chunk is None} if lo.form == "unrolled" else set()
    windows = []
    for t in range(frames):
        places = {k: t * stride[0] - padding[0] + k * dilation[0] for k in range(kernel[0])}
        windows.append({k: j for k, j in places.items() if 0 <= j < x.frames and j not in absent})
    write = _Writer(lo.e, weight, bias, (list(stride[1:]), list(padding[1:]), list(dilation[1:]), groups), taps)
    if lo.form == "folded":
        chunks = [_folded(write, x, windows)]
    else:
        chunks = [write(window, [x.chunks[j] for j in window.values()]) if window else None for window in windows]
    present = next((chunk for chunk in chunks if chunk is not None), None)
    if present is None:
        raise ValueError("a conv3d all of whose frames lie in its padding")
    height_width = present.meta["val"].shape[2:]
    if any(chunk is None for chunk in chunks):  # the bias alone
        constant = torch.zeros(out, dtype=dtype_of(present)) if bias is None else bias
        alone = constant.view(1, -1, 1, 1).expand(1, -1, *height_width).contiguous()
        chunks = [alone if chunk is None else chunk for chunk in chunks]
    return Timed(tuple(chunks), (1, out, frames, *height_width), 2, lo.form)


def _pad_by_name(
    lo: Lowering, x: Timed, name: str, kernel: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[Timed, tuple[int, ...]]:
    """Padding "valid" (none) or "same" in numbers; where a side is odd, the larger part comes after, as in torch."""
    sides = [d * (k - 1) if name == "same" else 0 for d, k in zip(dilation, kernel, strict=True)]
    if any(side % 2 for side in sides):
        return pad(lo, x, [size for side in reversed(sides) for size in (side // 2, side - side // 2)]), (0, 0, 0)
    return x, tuple(side // 2 for side in sides)


def _folded(write: "_Writer", x: Timed, windows: list[dict[int, int]]) -> Any:
    """All output frames at once: per tap, the input frames that it falls on, zeros where that is padding."""
    taps = sorted({k for window in windows for k in window})
    frames = [gather(write.e, x, [window.get(k) for window in windows]).chunks[0] for k in taps]
    return write(dict.fromkeys(taps), frames)


class _Writer:
    """Writes the 2-D convolutions of one conv3d; kernels of the same taps are one constant."""

    def __init__(self, e: Emitter, weight: Any, bias: Any, geometry: tuple[Any, ...], taps: str) -> None:
        self.e, self.weight, self.bias, self.geometry, self.taps = e, weight, bias, geometry, taps
        self._kernels: dict[tuple[int, ...], Any] = {}

    def __call__(self, taps: Any, frames: list[Any]) -> Any:
        """`taps` over their `frames`, and the bias."""
        taps = list(taps)
        if self.taps == "stack":
            groups = -(-len(taps) // MOST_STACKED)
            parts = [(taps[i::groups], frames[i::groups]) for i in range(groups)]
            stacked = [
                self._conv(some, self.e.cat(of, 1), None if i else self.bias) for i, (some, of) in enumerate(parts)
            ]
            return self.e.sum(stacked)
        # The bias goes on the middle tap where that is there, so that a kernel has one bias in most frames.
        middle = min(range(len(taps)), key=lambda i: abs(taps[i] - self.weight.shape[2] // 2))
        biases = [self.bias if i == middle else None for i in range(len(taps))]
        return self.e.sum([self._conv([k], *rest) for k, *rest in zip(taps, frames, biases, strict=True)])

    def _conv(self, taps: list[int], x: Any, bias: Any) -> Any:
        key = tuple(taps)
        if key not in self._kernels:
            self._kernels[key] = _cut(self.weight, taps)
        stride, padding, dilation, groups = self.geometry
        return self.e(_aten.conv2d.default, x, self._kernels[key], bias, stride, padding, dilation, groups)
