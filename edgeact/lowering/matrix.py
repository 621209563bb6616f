"""Products of matrices: linear layers, and attention with its softmax.

A linear layer works on each frame by itself. Attention does where the frames are its batch; where it looks from frame
to frame, they are put together before it.
"""

from typing import Any

import torch

from edgeact.lowering._emitter import shape_of
from edgeact.lowering._rules import Lowering, UnsupportedError, rank_of, rule
from edgeact.lowering._timed import Timed, filled, map_chunks

__all__ = ["attention", "linear", "over_one_dim", "product"]

_aten = torch.ops.aten


@rule(_aten.linear.default)
def linear(lo: Lowering, x: Any, weight: Any, bias: Any = None) -> Any:
    """A linear layer over the last dimension."""
    weight, bias = lo.whole(weight), lo.whole(bias)
    if not isinstance(x, Timed) or x.axis == len(x.shape) - 1:
        return lo.e(lo.op, lo.whole(x), weight, bias)
    shape = (*x.shape[:-1], shape_of(weight)[0])
    return map_chunks(lo.e, x, lambda chunk: lo.e(lo.op, chunk, weight, bias), shape)


@rule(_aten.softmax.int, _aten._softmax.default, _aten.log_softmax.int, _aten._log_softmax.default)
def over_one_dim(lo: Lowering, x: Any, dim: int, *args: Any) -> Any:
    """Softmax over one dimension."""
    if not isinstance(x, Timed) or dim % len(x.shape) not in x.rest:
        return lo.e(lo.op, lo.whole(x), dim, *args)
    return map_chunks(lo.e, x, lambda chunk: lo.e(lo.op, chunk, x.chunk_dim(dim), *args))


@rule(_aten.scaled_dot_product_attention.default)
def attention(
    lo: Lowering,
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    *rest: Any,
    **named: Any,
) -> Any:
    """Attention: frame by frame where frames are its batch, else over the frames put together."""
    if dropout_p:
        raise UnsupportedError("dropout in training mode: call .eval() before the export")
    inputs = (query, key, value)
    if attn_mask is None and all(_is_batch_of_frames(x, query) for x in inputs):
        rows = zip(*(filled(lo.e, x).chunks for x in inputs), strict=True)
        chunks = tuple(lo.e(lo.op, *row, None, 0.0, *rest, **named) for row in rows)
        return Timed(chunks, (query.frames, *shape_of(chunks[0])[1:]), 0, query.form)
    return lo.e(lo.op, *(lo.whole(x) for x in inputs), lo.whole(attn_mask), 0.0, *rest, **named)


def _is_batch_of_frames(x: Any, query: Any) -> bool:
    """Whether it is `[T, …, L, E]` of as many frames as the query: `[L, E]` has no batch, and may have time for L."""
    return isinstance(x, Timed) and x.axis == 0 and rank_of(x) >= 3 and shape_of(x)[0] == shape_of(query)[0]


@rule(_aten.matmul.default, _aten.bmm.default, _aten.mm.default, _aten.addmm.default, _aten.baddbmm.default)
def product(lo: Lowering, *args: Any, **kwargs: Any) -> Any:
    """Products of matrices that are computed: attention over positions. The frames are put together before it."""
    return lo.e(lo.op, *(lo.whole(a) for a in args), **kwargs)
