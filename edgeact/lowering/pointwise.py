"""Ops that treat every position alike: activations, sums and products with broadcasting, quantize nodes.

[1, C, T, H, W]  *  [1, C, 1, 1, 1]        squeeze-excitation: the second operand has one frame for all
[1, C, T, H, W]  +  [C, 1, 1, 1]           a constant loses its axis of time and is one for all frames
[1, C, T, H, W]  +  [1, C, T, 1, 1]        frame by frame
"""

import math
from typing import Any

import torch

from edgeact.lowering._emitter import dtype_of, shape_of
from edgeact.lowering._rules import Lowering, any_timed, rank_of, rule
from edgeact.lowering._timed import Timed, filled, map_chunks

__all__ = ["elementwise", "pointwise", "to_dtype", "wide"]

_aten = torch.ops.aten


def pointwise(lo: Lowering, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Timed:
    """A pointwise op of which at least one argument is Timed, with torch's broadcasting."""
    tensors = [a for a in _flat(args) if isinstance(a, Timed) or len(shape_of(a))]
    rank = max(rank_of(a) for a in tensors)
    lead = max((a for a in tensors if isinstance(a, Timed)), key=lambda a: (a.frames, rank_of(a)))
    from_end = rank_of(lead) - lead.axis  # time, counted from the right, where broadcasting aligns
    shapes = [shape_of(a) for a in tensors]
    shape = tuple(torch.broadcast_shapes(*shapes))  # type: ignore[no-untyped-call]
    axis = rank - from_end
    frames = shape[axis]  # of a constant of T frames where every Timed has one
    kwargs = {name: value for name, value in kwargs.items() if name != "memory_format"}

    def aligned(argument: Any) -> list[Any]:
        if isinstance(argument, Timed) or len(shape_of(argument)):
            return _aligned(lo, argument, rank, axis, frames, shape)
        return [argument] * (frames if lo.form == "unrolled" else 1)

    rows = [
        list(zip(*(aligned(item) for item in argument), strict=True))
        if isinstance(argument, list | tuple)
        else aligned(argument)
        for argument in args
    ]
    chunks = tuple(
        lo.e(op, *(list(a) if isinstance(a, tuple) else a for a in row), **kwargs) for row in zip(*rows, strict=True)
    )
    return Timed(chunks, shape, axis, lo.form)


def _flat(args: Any) -> list[Any]:
    return [b for a in args for b in (_flat(a) if isinstance(a, list | tuple) else [a])]


def _aligned(lo: Lowering, value: Any, rank: int, axis: int, frames: int, out: tuple[int, ...]) -> list[Any]:
    """The chunks of an operand, one for each chunk of the result, with as many dimensions."""
    own = shape_of(value)
    shape = (*(1,) * (rank - len(own)), *own)
    rest = [size for dim, size in enumerate(shape) if dim != axis and not (dim == 0 and out[0] == 1)]
    if isinstance(value, Timed) and value.axis + rank - len(own) == axis:
        chunks = filled(lo.e, value).chunks
    elif shape[axis] == 1:
        chunks = (lo.e.reshape(lo.whole(value), (1, *rest)),)
    else:
        chunks = lo.timed(lo.e.reshape(lo.whole(value), shape), axis).chunks
    fitted = [lo.e.reshape(chunk, (math.prod(shape_of(chunk)) // math.prod(rest), *rest)) for chunk in chunks]
    return fitted * frames if lo.form == "unrolled" and len(fitted) == 1 else fitted


def elementwise(lo: Lowering, op: Any, *args: Any) -> Any:
    """`op(*args)`, Timed or whole."""
    return pointwise(lo, op, args, {}) if any_timed(args) else lo.e(op, *args)


@rule(_aten._prelu_kernel.default)
def prelu(lo: Lowering, x: Any, weight: Any) -> Any:
    """relu(x) - a * relu(-x): torch's own `where(x > 0, x, a * x)` falls back on mobile runtimes (He et al. 2015)."""
    below = elementwise(lo, _aten.relu.default, elementwise(lo, _aten.neg.default, x))
    above = elementwise(lo, _aten.relu.default, x)
    return elementwise(lo, _aten.sub.Tensor, above, elementwise(lo, _aten.mul.Tensor, below, weight))


@rule(_aten.clone.default, _aten.contiguous.default, _aten.detach.default, _aten.alias.default)
def identity(lo: Lowering, x: Any, **_: Any) -> Any:
    """The same values."""
    return x


@rule(_aten._assert_tensor_metadata.default)
def nothing(lo: Lowering, *_: Any, **__: Any) -> None:
    """A check that torch.export makes of its own tracing."""


@rule(_aten._to_copy.default, _aten.to.dtype)
def to_dtype(lo: Lowering, x: Any, dtype: Any = None, *_: Any, **kwargs: Any) -> Any:
    """Another element type; memory formats and devices mean nothing to a graph for another machine."""
    dtype = kwargs.get("dtype", dtype)
    if dtype in (None, dtype_of(x)):
        return x

    def cast(value: Any) -> Any:
        return lo.e(_aten._to_copy.default, value, dtype=dtype)

    return map_chunks(lo.e, x, cast) if isinstance(x, Timed) else cast(x)


def wide(lo: Lowering, x: Any) -> Any:
    """`x`, but half precision as float32: what statistics are computed in, as in torch; squares leave float16 soon."""
    return to_dtype(lo, x, torch.float32) if dtype_of(x) in (torch.float16, torch.bfloat16) else x
