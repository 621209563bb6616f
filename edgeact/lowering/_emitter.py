"""The 2-D graph while it is written: nodes with known shapes, and constants that fold themselves.

A value is an `fx.Node` (computed at run time), a `torch.Tensor` (a constant: weights, masks), a `QuantizedConstant`, or
a plain Python number. An op over constants alone runs at once and gives a constant, so a kernel that is cut into taps,
or a normalisation that is squeezed, never becomes a node.
"""

import logging
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.node import map_aggregate

__all__ = ["ORIGIN", "Emitter", "QuantizedConstant", "dtype_of", "shape_of"]

_aten = torch.ops.aten
ORIGIN = ("nn_module_stack", "stack_trace")  # what of a node's meta tells the user's layer and line
_ARITHMETIC = (_aten.add.Tensor, _aten.sub.Tensor, _aten.mul.Tensor, _aten.div.Tensor)


@dataclass(frozen=True)
class QuantizedConstant:
    """An int8 weight behind its dequantize op: what cuts the weight cuts the integers, the scales stay.

    Right for scales per tensor, or per output channel (axis 0), as no rule reorders output channels.
    """

    values: torch.Tensor
    dequantize: Any
    arguments: tuple[Any, ...]

    @property
    def shape(self) -> torch.Size:
        """Of the weight."""
        return self.values.shape

    def apply(self, cut: Callable[[torch.Tensor], torch.Tensor]) -> "QuantizedConstant":
        """The constant whose integers are `cut(values)`."""
        return QuantizedConstant(cut(self.values), self.dequantize, self.arguments)


def shape_of(value: Any) -> tuple[int, ...]:
    """Shape of a node, constant or `Timed`; `()` of a number."""
    if isinstance(value, fx.Node):
        return tuple(getattr(value.meta["val"], "shape", ()))
    return tuple(getattr(value, "shape", ()))


def dtype_of(value: Any) -> torch.dtype:
    """Element type of a node or constant; what a quantized constant is dequantized to is float32."""
    if isinstance(value, fx.Node):
        dtype: torch.dtype = value.meta["val"].dtype
        return dtype
    return getattr(value, "dtype", torch.float32)


def _is_run_time(value: Any) -> bool:
    found = False

    def look(item: Any) -> Any:
        nonlocal found
        found = found or isinstance(item, fx.Node | QuantizedConstant)
        return item

    map_aggregate(value, look)
    return found


class Emitter:
    """Writes one graph; `emitter(op, *args)` gives the value of an op."""

    def __init__(self) -> None:
        self._graph = fx.Graph()
        self._root = nn.Module()
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        self._attributes: dict[int, tuple[torch.Tensor, fx.Node]] = {}  # by id; the tensor is kept alive with it
        self._dequantized: dict[int, fx.Node] = {}
        self.source: fx.Node | None = None  # the node of the original graph that is being written anew

    def input(self, name: str, example: Any) -> fx.Node:
        """A placeholder with the shape and type of `example`; of what is no tensor, its value is in the graph."""
        node = self._graph.placeholder(name)
        node.meta["val"] = self._mode.from_tensor(example) if isinstance(example, torch.Tensor) else example
        return node

    def __call__(self, op: Any, *args: Any, **kwargs: Any) -> Any:
        """The value of `op`; a list of values where it returns several."""
        if not _is_run_time((args, kwargs)):
            return op(*args, **kwargs)
        args, kwargs = map_aggregate(args, self._argument), map_aggregate(kwargs, self._argument)
        with self._mode, _unlogged():
            fake = op(*map_aggregate(args, _fake), **map_aggregate(kwargs, _fake))
        if op in _ARITHMETIC and fake.dtype.is_floating_point:
            # an integer would become a tensor of its own type and a cast, which no backend takes
            args = tuple(float(arg) if isinstance(arg, int) else arg for arg in args)
        node = self._graph.call_function(op, args, kwargs)
        node.meta["val"] = fake
        if self.source is not None:
            node.meta["source"] = self.source.name
            node.meta["source_op"] = getattr(self.source.target, "__name__", "").partition(".")[0]
            node.meta |= {name: self.source.meta[name] for name in ORIGIN if name in self.source.meta}
        if isinstance(fake, list | tuple):
            return [self._item(node, i, part) for i, part in enumerate(fake)]
        return node

    def _item(self, node: fx.Node, index: int, fake: Any) -> fx.Node:
        item = self._graph.call_function(operator.getitem, (node, index))
        item.meta["val"] = fake
        return item

    def _argument(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return self._attribute(value)
        if isinstance(value, QuantizedConstant):
            if id(value.values) not in self._dequantized:
                rest = map_aggregate(value.arguments, self._argument)
                node = self(value.dequantize, self._attribute(value.values), *rest)
                self._dequantized[id(value.values)] = node
            return self._dequantized[id(value.values)]
        return value

    def _attribute(self, tensor: torch.Tensor) -> fx.Node:
        """The get_attr node of a constant: one for all its uses."""
        if id(tensor) not in self._attributes:
            name, stored = f"constant_{len(self._attributes)}", tensor.detach().contiguous()
            self._root.register_buffer(name, stored)
            node = self._graph.get_attr(name)
            node.meta["val"] = self._mode.from_tensor(stored)
            self._attributes[id(tensor)] = tensor, node
        return self._attributes[id(tensor)][1]

    def reshape(self, value: Any, shape: Sequence[int]) -> Any:
        """`value` in another shape; a chain of reshapes becomes one, and none where the shape is the same."""
        if isinstance(value, fx.Node) and value.target is _aten.reshape.default:
            value = value.args[0]
        assert math.prod(shape_of(value)) == math.prod(shape), f"{shape_of(value)} into {shape}"
        return value if shape_of(value) == tuple(shape) else self(_aten.reshape.default, value, list(shape))

    def permute(self, value: Any, dims: Sequence[int]) -> Any:
        """`value` with its dimensions in another order."""
        return value if list(dims) == sorted(dims) else self(_aten.permute.default, value, list(dims))

    def cat(self, values: Sequence[Any], dim: int) -> Any:
        """`values` one after another along `dim`."""
        return values[0] if len(values) == 1 else self(_aten.cat.default, list(values), dim)

    def chain(self, op: Any, values: Sequence[Any]) -> Any:
        """`op(op(a, b), c)`: their sum, product or maximum."""
        total = values[0]
        for value in values[1:]:
            total = self(op, total, value)
        return total

    def sum(self, values: Sequence[Any], factor: Any = 1) -> Any:
        """Their sum times `factor`; in float16, whose largest value is 65504, each times `factor` and then the sum."""
        if isinstance(factor, int):
            return self.chain(_aten.add.Tensor, values)
        if dtype_of(values[0]) is torch.float16:
            return self.sum([self(_aten.mul.Tensor, value, factor) for value in values])
        return self(_aten.mul.Tensor, self.sum(values), factor)

    def finish(self, outputs: Any) -> fx.GraphModule:
        """The module that computes `outputs`, without what nothing uses."""
        self._graph.output(map_aggregate(outputs, self._argument))
        self._graph.eliminate_dead_code()
        module = fx.GraphModule(self._root, self._graph)
        module.delete_all_unused_submodules()
        used = {node.target for node in self._graph.nodes if node.op == "get_attr"}
        for name in [name for name, _ in module.named_buffers() if name not in used]:
            delattr(module, name)
        return module


@contextmanager
def _unlogged() -> Iterator[None]:
    """Without torch's own traceback on stderr where it refuses an op: the error that is raised says it."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


def _fake(value: Any) -> Any:
    return value.meta["val"] if isinstance(value, fx.Node) else value
