"""The table of rules: which function lowers which ATen op, and what a rule gets to work with."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from edgeact.lowering._emitter import Emitter, shape_of
from edgeact.lowering._timed import Form, Timed, join, move, split

__all__ = [
    "DATA_DEPENDENT",
    "RULES",
    "Conv",
    "Lowering",
    "Rule",
    "Taps",
    "TapsRule",
    "UnsupportedError",
    "default_taps",
    "rule",
]

_aten = torch.ops.aten

Taps = Literal["stack", "padded", "sum"]

_MANY_WEIGHTS = 1 << 20  # 4 MB in float: a second copy of such a kernel for the borders of a clip is not free


@dataclass(frozen=True, kw_only=True)
class Conv:
    """A convolution for which taps are chosen: all that such a choice may depend on."""

    in_channels: int
    out_channels: int
    groups: int
    kernel: tuple[int, int, int]
    frames_in: int
    frames_out: int
    int8: bool = False

    @property
    def weights(self) -> int:
        """Values of the kernel."""
        kt, kh, kw = self.kernel
        return self.out_channels * self.in_channels // self.groups * kt * kh * kw


TapsRule = Callable[[Conv], Taps]


def default_taps(conv: Conv) -> Taps:
    """Grouped convolutions: `sum`. Dense ones: `stack`, unless the kernel is large.

    A stacked kernel is stored once more, shorter, for each kind of border frame; a large one is not worth that, and
    belongs to a deep layer whose activations, which `sum` adds up, are small. In int8, parts of a sum are rounded:
    `padded` costs C3D 6 % of its speed there and gives 4.6 dB (in float 40 %).
    """
    if conv.groups > 1:
        return "sum"
    if conv.weights <= _MANY_WEIGHTS:
        return "stack"
    return "padded" if conv.int8 else "sum"


DATA_DEPENDENT = "the size of its result depends on values: an edge graph has static shapes"


class UnsupportedError(Exception):
    """An op that a rule cannot serve, in words; `lower` adds which op it is and where it stands."""


@dataclass
class Lowering:
    """One graph on its way from 3-D to 2-D."""

    e: Emitter
    form: Form
    taps: TapsRule = default_taps
    op: Any = None  # the op that is being lowered, for a rule that serves several

    def using(self, op: Any) -> "Lowering":
        """For a rule that lowers its op by another rule."""
        return replace(self, op=op)

    def timed(self, value: Any, axis: int) -> Timed:
        """`value` with its time on `axis`."""
        return move(self.e, value, axis) if isinstance(value, Timed) else split(self.e, value, axis, self.form)

    def volume(self, value: Any) -> Timed:
        """`value` as `[1, C, T, H, W]` with its time on axis 2.

        Raises:
            UnsupportedError: It has other dimensions, or another batch.
        """
        shape = shape_of(value)
        if len(shape) != 5 or shape[0] != 1:
            raise UnsupportedError(
                f"a tensor of shape {tuple(shape)}: volumes are [1, C, T, H, W] here, with a batch of 1"
            )
        return self.timed(value, 2)

    def whole(self, value: Any) -> Any:
        """`value` as one tensor."""
        return join(self.e, value) if isinstance(value, Timed) else value


Rule = Callable[..., Any]  # (lowering, *arguments of the op) -> value, Timed or whole
RULES: dict[Any, Rule] = {}


def rule(*ops: Any) -> Callable[[Rule], Rule]:
    """Register a function as the rule of these op overloads; a second rule for one is a mistake."""

    def register(function: Rule) -> Rule:
        for op in ops:
            assert op not in RULES, f"two rules for {op}"
            RULES[op] = function
        return function

    return register


def normal_dims(dims: int | Sequence[int] | None, rank: int) -> list[int]:
    """Dimensions counted from the front; None means all."""
    if dims is None:
        return list(range(rank))
    return [dim % rank for dim in ([dims] if isinstance(dims, int) else dims)]


def is_pointwise(op: Any) -> bool:
    """Whether each output value depends on one value of each input, broadcast: torch's own tag, and hardswish."""
    return isinstance(op, torch._ops.OpOverload) and (torch.Tag.pointwise in op.tags or op == _aten.hardswish.default)


def any_timed(values: Any) -> bool:
    """Whether an argument list holds a Timed, also inside of lists."""
    return any(isinstance(v, Timed) or (isinstance(v, list | tuple) and any_timed(v)) for v in values)


def triple(value: Any) -> tuple[int, int, int]:
    """A setting for time, height and width, given as three numbers or as one for all."""
    values = tuple(value) if isinstance(value, list | tuple) else (value,)
    a, b, c = values * 3 if len(values) == 1 else values
    return a, b, c


def rank_of(value: Any) -> int:
    """Number of dimensions."""
    return len(shape_of(value))
