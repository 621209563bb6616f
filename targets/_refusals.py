"""The ops of an ATen graph that fast kernels do not take, by one judge per backend."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from edgeact.targets._target import Refusal

if TYPE_CHECKING:
    from torch import fx

__all__ = ["MOVES", "refuse"]

_MOVEMENT = """
_assert_tensor_metadata _to_copy alias cat clone constant_pad_nd contiguous detach expand flatten flip getitem
index index_select permute reshape select slice split split_with_sizes squeeze stack t transpose unsqueeze view
"""
# Ops that move or retype data: outside of a delegate they cost a copy, and nothing is computed there.
MOVES = frozenset(_MOVEMENT.split())


def refuse(
    graph: "fx.GraphModule", judge: "Callable[[str, fx.Node], str | None]", *, source: str, volumetric: str
) -> "Mapping[fx.Node, Refusal]":
    """Every op of `graph` that computes and is refused.

    Args:
        graph: ATen ops with `meta["val"]`.
        judge: Why an op of this name is refused, or None.
        source: Where the backend states its rules.
        volumetric: What becomes of a 3-D op.
    """
    found = {}
    for node in graph.graph.nodes:
        if node.op != "call_function":
            continue
        name = getattr(node.target, "__name__", "").partition(".")[0]
        if "3d" in name:
            found[node] = Refusal(f"{name}: {volumetric}", runs=False)
        elif name not in MOVES and (why := judge(name, node)):
            found[node] = Refusal(f"{name}: {why} ({source})", runs=True)
    return found
