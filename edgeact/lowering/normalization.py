"""Norms: BatchNorm that follows no convolution, GroupNorm, InstanceNorm, LayerNorm.

BatchNorm in inference     x * s + t                            constants per channel
GroupNorm                  x ─► mean over time and pixels ─► [1, C] ─► mean over the channels of a group ─► [1, C]
                           the same of (x - mean)^2, and both applied to every frame
InstanceNorm               GroupNorm with a group for each channel
LayerNorm                  the same op on every frame, as long as it does not normalise over time
"""

from collections.abc import Sequence
from typing import Any

import torch

from edgeact.lowering._emitter import dtype_of, shape_of
from edgeact.lowering._rules import Lowering, UnsupportedError, rank_of, rule
from edgeact.lowering._timed import Timed, map_chunks
from edgeact.lowering.pointwise import elementwise, to_dtype, wide
from edgeact.lowering.reduction import reduction

__all__ = ["batch_norm", "group_norm", "instance_norm"]

_aten = torch.ops.aten


@rule(_aten._native_batch_norm_legit_no_training.default)
def batch_norm(
    lo: Lowering, x: Any, weight: Any, bias: Any, mean: Any, var: Any, momentum: float, eps: float
) -> list[Any]:
    """BatchNorm in inference where it follows no convolution: one multiply and one add per channel.

    y = x * s + (beta - mu * s)        s = gamma / sqrt(var + eps)          (Ioffe and Szegedy 2015, section 3.1)
    """
    scale = torch.rsqrt(var + eps) if weight is None else weight * torch.rsqrt(var + eps)
    shift = -mean * scale if bias is None else bias - mean * scale
    shape = (-1, *(1,) * (rank_of(x) - 2))
    scaled = elementwise(lo, _aten.mul.Tensor, x, scale.view(shape))
    return [to_dtype(lo, elementwise(lo, _aten.add.Tensor, scaled, shift.view(shape)), dtype_of(x)), None, None]


@rule(_aten.native_group_norm.default)
def group_norm(
    lo: Lowering, x: Any, weight: Any, bias: Any, n: int, channels: int, pixels: int, groups: int, eps: float
) -> list[Any]:
    """Y = gamma * (x - mu) / sqrt(var + eps) + beta, mu and var of a group of channels  (Wu and He 2018, eq. 1-3)."""
    if not isinstance(x, Timed) and rank_of(x) == 5 and n == 1:
        x = lo.timed(x, 2)
    shape = (channels, *(1,) * (rank_of(x) - 2))
    dtype, x = dtype_of(x), wide(lo, x)
    centred = elementwise(lo, _aten.sub.Tensor, x, _group_mean(lo, x, groups))
    variance = _group_mean(lo, elementwise(lo, _aten.mul.Tensor, centred, centred), groups)
    scale = lo.e(_aten.rsqrt.default, lo.e(_aten.add.Tensor, variance, eps))
    if weight is not None:
        scale = lo.e(_aten.mul.Tensor, scale, weight.view(shape))
    y = elementwise(lo, _aten.mul.Tensor, centred, scale)
    y = y if bias is None else elementwise(lo, _aten.add.Tensor, y, bias.view(shape))
    return [to_dtype(lo, y, dtype), None, None]


@rule(_aten._native_batch_norm_legit.no_stats)
def instance_norm(
    lo: Lowering, x: Any, weight: Any, bias: Any, training: bool, momentum: float, eps: float
) -> list[Any]:
    """Every channel by its own mean and variance in this clip."""
    n, channels = shape_of(x)[:2]
    if n != 1:
        raise UnsupportedError("a norm by the statistics of a batch: an edge graph has a batch of 1")
    normalized: list[Any] = group_norm(lo, x, weight, bias, n, channels, 0, channels, eps)
    return normalized


def _group_mean(lo: Lowering, x: Any, groups: int) -> Any:
    """Mean of each group for each of its channels, `[N, C, 1, ...]` whole."""
    rank = rank_of(x)
    pixels = list(range(2, rank))  # none in a vector of features
    mean = lo.whole(reduction(lo.using(_aten.mean.dim), x, pixels, True) if pixels else x)
    n, channels = shape_of(mean)[:2]
    if groups == channels:
        return mean
    # a grouped 1x1 convolution; broadcasting a group's mean to its channels would be a copy outside of XNNPACK
    weight = torch.full((channels, channels // groups, 1, 1), groups / channels, dtype=dtype_of(mean))
    pixel = lo.e.reshape(mean, (n, channels, 1, 1))
    spread = lo.e(_aten.conv2d.default, pixel, weight, None, [1, 1], [0, 0], [1, 1], groups)
    return lo.e.reshape(spread, (n, channels, *(1,) * (rank - 2)))


@rule(_aten.layer_norm.default)
def layer_norm(lo: Lowering, x: Any, shape: Sequence[int], *args: Any) -> Any:
    """LayerNorm over the last dimensions."""
    if not isinstance(x, Timed) or x.axis >= len(x.shape) - len(shape):
        return lo.e(lo.op, lo.whole(x), list(shape), *args)
    return map_chunks(lo.e, x, lambda chunk: lo.e(lo.op, chunk, list(shape), *args))


@rule(_aten.native_layer_norm.default)
def layer_norm_values(lo: Lowering, *args: Any) -> list[Any]:
    """LayerNorm of a program that is decomposed already: its values alone."""
    return [layer_norm(lo.using(_aten.layer_norm.default), *args), None, None]
