"""A pooling that QNN 2.51 computes wrongly in float16, written another way.

Max pooling of 2x2 with padding on every side, as C3D's pool5 on a map of even size, gives about 10 dB in QNN's own
library on a PC, and other values each time. One axis after the other it is right.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

__all__ = ["pool_by_axis"]


def pool_by_axis(model: "ModelProto") -> None:
    """Write each such pooling as two, over height and over width; in place, and exact."""
    nodes = [part for node in model.graph.node for part in (_by_axis(node) if _is_wrong(node) else [node])]
    kept = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(kept)


def _is_wrong(node: "NodeProto") -> bool:
    window = _window(node)
    return node.op_type == "MaxPool" and list(window["kernel_shape"]) == [2, 2] and all(window.get("pads", [0]))


def _by_axis(node: "NodeProto") -> "list[NodeProto]":
    from onnx import helper

    window, between = _window(node), f"{node.output[0]}_rows"
    (top, left, bottom, right), strides = window["pads"], window.get("strides", [1, 1])
    rows: dict[str, Any] = {"kernel_shape": [2, 1], "pads": [top, 0, bottom, 0], "strides": [strides[0], 1]}
    columns: dict[str, Any] = {"kernel_shape": [1, 2], "pads": [0, left, 0, right], "strides": [1, strides[1]]}
    return [
        helper.make_node("MaxPool", [node.input[0]], [between], f"{node.name}.rows", **rows),
        helper.make_node("MaxPool", [between], [node.output[0]], node.name, **columns),
    ]


def _window(node: "NodeProto") -> dict[str, list[int]]:
    return {attribute.name: list(attribute.ints) for attribute in node.attribute if attribute.ints}
