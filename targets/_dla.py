"""A network's head in ops that a DLA has: a mean over an image as a pooling, a linear layer as a convolution of 1 x 1.

ReduceMean [2, 3]  [1, C, H, W] ─► [1, C, 1, 1]      GlobalAveragePool
Gemm               [1, C] ─► [1, K]                  Reshape [1, C, 1, 1], Conv, Reshape [1, K]
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

__all__ = ["for_dla"]


def for_dla(model: "ModelProto") -> None:
    """Rewrite what a DLA does not have and can be had otherwise; equal to the bit, in place."""
    from onnx import numpy_helper, shape_inference

    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    ranks = {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in shape_inference.infer_shapes(model).graph.value_info
    }
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        if node.op_type == "ReduceMean" and _over_an_image(node, ranks):
            node.op_type = "GlobalAveragePool"
            del node.attribute[:], node.input[1:]
        if node.op_type == "Gemm" and node.input[1] in constants and not _is_scaled(node):
            weight = numpy_helper.to_array(constants[node.input[1]])
            nodes += _as_convolution(model, node, weight if _attribute(node, "transB") else weight.T)
        else:
            nodes.append(node)
    copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)


def _over_an_image(node: "NodeProto", ranks: dict[str, int]) -> bool:
    axes = _attribute(node, "axes") or []
    return ranks.get(node.input[0]) == 4 and sorted(axis % 4 for axis in axes) == [2, 3] and _keeps(node)


def _keeps(node: "NodeProto") -> bool:
    return _attribute(node, "keepdims") in (None, 1)


def _is_scaled(node: "NodeProto") -> bool:
    scales = [_attribute(node, name) for name in ("alpha", "beta")]
    return _attribute(node, "transA") == 1 or any(scale not in (None, 1.0) for scale in scales)


def _as_convolution(model: "ModelProto", node: "NodeProto", weight: Any) -> "list[NodeProto]":
    """The nodes of a linear layer `weight [K, C]` over an image of one pixel."""
    import numpy as np
    from onnx import helper, numpy_helper

    k, c = weight.shape
    names = [f"{node.name}.{part}" for part in ("kernel", "pixel_shape", "logits_shape", "pixel", "convolved")]
    kernel, pixel_shape, row_shape, pixel, convolved = names
    arrays = {kernel: np.ascontiguousarray(weight).reshape(k, c, 1, 1)}
    arrays |= {pixel_shape: np.array([1, c, 1, 1]), row_shape: np.array([1, k])}
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    return [
        helper.make_node("Reshape", [node.input[0], pixel_shape], [pixel], name=f"{node.name}.Reshape"),
        helper.make_node("Conv", [pixel, kernel, *node.input[2:]], [convolved], name=node.name, kernel_shape=[1, 1]),
        helper.make_node("Reshape", [convolved, row_shape], [node.output[0]], name=f"{node.name}.Reshape_1"),
    ]


def _attribute(node: "NodeProto", name: str) -> Any:
    from onnx import helper

    return next((helper.get_attribute_value(each) for each in node.attribute if each.name == name), None)
