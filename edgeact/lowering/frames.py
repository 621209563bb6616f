"""2-D ops inside a 3-D network: every frame is one image of their batch.

MiCT runs 2-D residual blocks on `[T, C, H, W]`: with time as the batch, each is the same op on every chunk.
"""

from typing import Any

import torch

from edgeact.lowering._emitter import shape_of
from edgeact.lowering._rules import Lowering, rule
from edgeact.lowering._timed import Timed, filled

__all__ = ["average", "image_op"]

_aten = torch.ops.aten
_POOLS = (_aten.max_pool2d.default, _aten.avg_pool2d.default)


@rule(
    *(
        _aten.conv2d.default,
        _aten.conv2d.padding,
        _aten.max_pool2d.default,
        _aten.avg_pool2d.default,
        _aten.adaptive_avg_pool2d.default,
    ),
    *(_aten.upsample_nearest2d.vec, _aten.upsample_bilinear2d.vec, _aten.pixel_shuffle.default),
    *(_aten.conv_transpose2d.input, _aten.replication_pad2d.default, _aten.reflection_pad2d.default),
)
def image_op(lo: Lowering, x: Any, *args: Any, **kwargs: Any) -> Any:
    """An op over `[N, C, H, W]`; its kernel may be computed."""
    args = tuple(lo.whole(argument) for argument in args)
    if lo.op in _POOLS and not any(args[1:2]):  # the kernel's size is the default, which not every backend knows
        args = (args[0], args[0], *args[2:])
    if lo.op is _aten.avg_pool2d.default:
        args = average(*args)
    if not isinstance(x, Timed):
        return lo.e(lo.op, x, *args, **kwargs)
    if x.axis != 0 or len(x.shape) != 4:
        return lo.e(lo.op, lo.whole(x), *args, **kwargs)
    chunks = tuple(lo.e(lo.op, chunk, *args, **kwargs) for chunk in filled(lo.e, x).chunks)
    return Timed(chunks, (x.frames, *shape_of(chunks[0])[1:]), 0, x.form)


def average(
    kernel: Any,
    stride: Any,
    padding: Any = (0, 0),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor: int | None = None,
) -> tuple[Any, ...]:
    """Arguments of avg_pool2d as XNNPACK's partitioner takes them: padding that is not there is not counted."""
    given = (list(kernel), list(stride), list(padding), ceil_mode, count_include_pad and any(padding))
    return given if divisor is None else (*given, divisor)


@rule(_aten.max_pool2d_with_indices.default, _aten.adaptive_max_pool2d.default)
def max_pool_values(lo: Lowering, x: Any, *args: Any) -> list[Any]:
    """The maxima; not where they stand."""
    if lo.op is _aten.max_pool2d_with_indices.default:
        return [image_op(lo.using(_aten.max_pool2d.default), x, *args), None]
    if not isinstance(x, Timed) or x.axis != 0:
        return [lo.e(lo.op, lo.whole(x), *args)[0], None]
    chunks = tuple(lo.e(lo.op, chunk, *args)[0] for chunk in filled(lo.e, x).chunks)
    return [Timed(chunks, (x.frames, *shape_of(chunks[0])[1:]), 0, x.form), None]
