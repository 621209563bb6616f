"""The volumetric graph made ready: composite ops taken apart, BatchNorm folded, pads given to their convolutions."""

import functools
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import fx
from torch._decomp import decomposition_table
from torch.utils._pytree import tree_unflatten

from edgeact.errors import InputError
from edgeact.lowering._rules import RULES, is_pointwise
from edgeact.quantize.batch_norm import fold_batch_norm

if TYPE_CHECKING:
    from torch.export import ExportedProgram

__all__ = ["example", "prepare", "quiet"]

_aten = torch.ops.aten


def prepare(program: "ExportedProgram") -> fx.GraphModule:
    """The graph of `program` with weights as attributes, in torch's core ops and those that have rules.

    Raises:
        InputError: Shapes are dynamic, or the batch is not 1.
    """
    with quiet(), torch.no_grad():
        module = program.module(check_guards=False)
        clips = [example(node) for node in module.graph.find_nodes(op="placeholder")]
        if fold_batch_norm(module):
            args, kwargs = tree_unflatten(clips, program.call_spec.in_spec)
            program = torch.export.export(module, args, kwargs)
        module = program.run_decompositions(_table()).module(check_guards=False)
    assert isinstance(module, fx.GraphModule)
    _give_pads_to_convolutions(module.graph)
    return module


def example(node: fx.Node) -> Any:
    """Zeros of the shape and type of an input; an input that is no tensor has its value in the graph."""
    fake = node.meta["val"]
    if not isinstance(fake, torch.Tensor):
        return fake
    if any(not isinstance(size, int) for size in fake.shape):
        raise InputError(f"input {node.name!r} has the dynamic shape {tuple(fake.shape)}: export with static shapes")
    if fake.ndim == 5 and fake.shape[0] != 1:
        raise InputError(f"input {node.name!r} has a batch of {fake.shape[0]}: a graph is lowered for a batch of 1")
    return torch.zeros(tuple(fake.shape), dtype=fake.dtype)


def _table() -> Any:
    """Torch's decompositions, less those of ops with rules, or kept whole for backends or for a refusal's words."""
    table: Any = torch.export.default_decompositions()
    table[_aten.linalg_vector_norm.default] = decomposition_table[_aten.linalg_vector_norm.default]
    for op in [*RULES, *_pointwise()]:
        table.pop(op, None)
    return table


@functools.cache
def _pointwise() -> list[Any]:
    return [op for op in torch.export.default_decompositions() if is_pointwise(op)]


def _give_pads_to_convolutions(graph: fx.Graph) -> None:
    """`F.pad` with zeros before a conv3d: its even sides become the convolution's own padding, as in MiCT.

    Padding in time that differs before and after stays a pad, and leaves out taps. In an int8 graph a quantize and a
    dequantize op stand between the two, to which a zero is a zero.
    """
    for node in graph.find_nodes(op="call_function", target=_aten.constant_pad_nd.default):
        sizes: Any = node.args[1]
        readers = _readers(node)
        value = node.args[2] if len(node.args) > 2 else 0
        if value or len(sizes) < 4 or not all(_convolves(user, volume) for user, volume in readers):
            continue
        left, right, top, bottom, *time = sizes
        if left != right or top != bottom or min(left, top) < 0:
            continue
        for user, _ in readers:
            given: list[Any] = list(user.args)
            defaults: list[Any] = [None, [1, 1, 1], [0, 0, 0]]
            x, weight, bias, stride, padding, *more = given + defaults[len(given) - 2 :]
            t, h, w = padding * 3 if len(padding) == 1 else padding
            user.args = (x, weight, bias, stride, [t, h + top, w + left], *more)
        node.args = (node.args[0], [0, 0, 0, 0, *time], 0.0)


def _readers(pad: fx.Node) -> list[tuple[fx.Node, fx.Node]]:
    """The ops that use the padded volume, and what they know it by: of a quantized one, the dequantized."""
    readers: list[tuple[fx.Node, fx.Node]] = []
    for user in pad.users:
        dequantized = "quantize_per_tensor" in str(user.target) and all(
            "dequantize_per_tensor" in str(after.target) and after.args[1:] == user.args[1:] for after in user.users
        )
        readers += [(reader, after) for after in user.users for reader in after.users] if dequantized else [(user, pad)]
    return readers


def _convolves(user: fx.Node, volume: fx.Node) -> bool:
    """Whether `user` is a conv3d of `volume`, which is not also its kernel."""
    return user.target is _aten.conv3d.default and user.args[0] is volume and volume not in user.args[1:]


@contextmanager
def quiet() -> Iterator[None]:
    """Torch 2.13's own use of a class it deprecates, printed at every export."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*treespec, LeafSpec", category=FutureWarning)
        yield
