"""The mean of a clip in integers: a lowering writes it as float sums of its frames, which a Hexagon HTP takes as float.

    dq ─┐                                        dq ─┐
    dq ─┴ add ─ mean ─ ×1/T ─ reshape ─ q        dq ─┴ concat ─ q ─ dq ─ mean ─ q ─ dq ─ reshape ─ q

Chips without float16 have no kernel for the left one. Rounded once, to the grid that the network has for it.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

__all__ = ["mean_in_integers"]

_NEW = "htp_mean"  # begins the names of what is added


def mean_in_integers(model: "ModelProto") -> None:
    """Rewrite each mean whose frames are on one grid; in place. Others stay as they are."""
    graph = _Graph(model)
    dropped: set[str] = set()
    written: dict[str, list[NodeProto]] = {}
    for mean in model.graph.node:
        if found := graph.mean(mean):
            frames, gone, reshape, grid = found
            dropped |= gone
            written[mean.name] = _in_integers(mean, frames, reshape, grid)
    kept = []
    for node in model.graph.node:
        kept += written.get(node.name, [] if node.name in dropped else [node])
    copies = [type(node).FromString(node.SerializeToString()) for node in kept]
    del model.graph.node[:], model.graph.value_info[:]
    model.graph.node.extend(copies)


def _in_integers(
    mean: "NodeProto", frames: "list[NodeProto]", reshape: "NodeProto", grid: Sequence[str]
) -> "list[NodeProto]":
    """The nodes in place of a mean: every result is rounded, that of `reshape` by who reads it."""
    from onnx import helper

    nodes: list[NodeProto] = []

    def rounded(node: "NodeProto", grid: Sequence[str]) -> str:
        out = node.output[0]
        levels, values = f"{out}_levels", f"{out}_rounded"
        nodes.append(node)
        nodes.append(helper.make_node("QuantizeLinear", [out, *grid], [levels], name=levels))
        nodes.append(helper.make_node("DequantizeLinear", [levels, *grid], [values], name=values))
        return values

    x = frames[0].output[0]
    if len(frames) > 1:
        name, inputs = f"{_NEW}_{mean.output[0]}_frames", [frame.output[0] for frame in frames]
        x = rounded(helper.make_node("Concat", inputs, [name], name=name, axis=2), frames[0].input[1:])
    whole = helper.make_node("ReduceMean", [x, *mean.input[1:]], [f"{_NEW}_{mean.output[0]}"], name=mean.name)
    whole.attribute.extend(mean.attribute)
    last = type(reshape).FromString(reshape.SerializeToString())
    last.input[0] = rounded(whole, grid)
    return [*nodes, last]


class _Graph:
    """Nodes by what they make and who reads it."""

    def __init__(self, model: "ModelProto") -> None:
        from onnx import numpy_helper

        self.maker = {name: node for node in model.graph.node for name in node.output}
        self.readers: dict[str, list[NodeProto]] = {}
        for node in model.graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}

    def mean(self, mean: "NodeProto") -> "tuple[list[NodeProto], set[str], NodeProto, list[str]] | None":
        """The frames of a mean, the names of what computed it, the Reshape behind it, and the grid of its result."""
        if mean.op_type != "ReduceMean":
            return None
        attributes = {each.name: each for each in mean.attribute}
        if list(attributes["axes"].ints if "axes" in attributes else ()) != [2, 3]:
            return None
        gone = {mean.name}
        frames = self._frames(mean.input[0], gone)
        if not frames or len({tuple(each.input[1:]) for each in frames}) != 1:
            return None
        after, share = self._next(mean), 1.0
        if after is not None and after.op_type == "Mul" and after.input[1] in self.constants:
            share = float(self.constants[after.input[1]].reshape(-1)[0])
            gone.add(after.name)
            after = self._next(after)
        if after is None or after.op_type != "Reshape" or not np.isclose(share * len(frames), 1.0, rtol=1e-5):
            return None
        end = self._next(after)
        if end is None or end.op_type != "QuantizeLinear":
            return None
        return frames, gone | {after.name}, after, list(end.input[1:])

    def _frames(self, name: str, gone: set[str]) -> "list[NodeProto]":
        """What is added up to `name`: dequantized frames; none where anything else is."""
        node = self.maker.get(name)
        if node is None or node.op_type == "DequantizeLinear":
            return [node] if node is not None else []
        if node.op_type != "Add" or len(self.readers[name]) != 1:
            return []
        gone.add(node.name)
        sides = [self._frames(each, gone) for each in node.input]
        return sides[0] + sides[1] if all(sides) else []

    def _next(self, node: "NodeProto") -> "NodeProto | None":
        found = self.readers.get(node.output[0], [])
        return found[0] if len(found) == 1 else None
