"""The volumetric graph made ready: composite ops taken apart, BatchNorm folded, pads given to their convolutions."""

import functools
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import fx
from torch._decomp import decomposition_table

from edgeact.lowering._rules import RULES, is_pointwise
from edgeact.quantize.batch_norm import fold_batch_norm

if TYPE_CHECKING:
    from torch.export import ExportedProgram

__all__ = ["prepare", "quiet"]

_aten = torch.ops.aten


def prepare(program: "ExportedProgram") -> fx.GraphModule:
    """The graph of `program` in ops that have rules or are pointwise, weights as attributes."""
    with quiet(), torch.no_grad():
        module = program.module(check_guards=False)
        if fold_batch_norm(module):
            program = torch.export.export(module, *program.example_inputs)
        module = program.run_decompositions(_table()).module(check_guards=False)
    assert isinstance(module, fx.GraphModule)
    _give_pads_to_convolutions(module.graph)
    return module


def _table() -> Any:
    """Torch's decompositions, less those of ops with rules, or kept whole for backends or for a refusal's words."""
    table: Any = torch.export.default_decompositions()
    table[_aten.linalg_vector_norm.default] = decomposition_table[_aten.linalg_vector_norm.default]
    for op in [*RULES, *_pointwise(), _aten.conv_transpose3d.input]:
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
        convolutions = _readers(node)
        value = node.args[2] if len(node.args) > 2 else 0
        if value or len(sizes) < 4 or any(user.target is not _aten.conv3d.default for user in convolutions):
            continue
        left, right, top, bottom, *time = sizes
        if left != right or top != bottom or min(left, top) < 0:
            continue
        for user in convolutions:
            given: list[Any] = list(user.args)
            defaults: list[Any] = [None, [1, 1, 1], [0, 0, 0]]
            x, weight, bias, stride, padding, *more = given + defaults[len(given) - 2 :]
            t, h, w = padding * 3 if len(padding) == 1 else padding
            user.args = (x, weight, bias, stride, [t, h + top, w + left], *more)
        node.args = (node.args[0], [0, 0, 0, 0, *time], 0.0)


def _readers(pad: fx.Node) -> list[fx.Node]:
    """The ops that use the padded values; of quantized ones, those behind the dequantize ops."""
    readers: list[fx.Node] = []
    for user in pad.users:
        dequantized = "quantize_per_tensor" in str(user.target) and all(
            "dequantize_per_tensor" in str(after.target) and after.args[1:] == user.args[1:] for after in user.users
        )
        readers += [reader for after in user.users for reader in after.users] if dequantized else [user]
    return readers


@contextmanager
def quiet() -> Iterator[None]:
    """Torch 2.13's own use of a class it deprecates, printed at every export."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*treespec, LeafSpec", category=FutureWarning)
        yield
