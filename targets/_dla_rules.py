"""What a Jetson's DLA documents that it takes; the GPU runs the rest, silently where it may.

Source of every limit: NVIDIA TensorRT, "DLA Supported Layers and Restrictions" (inference-library/
dla-layer-restrictions.html); TensorRT 10.7 was the last release with a DLA on Jetson ("Working with DLA").
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnx import NodeProto

__all__ = ["dla_reason"]

_SOURCE = "NVIDIA, DLA Supported Layers and Restrictions"
_LAYERS = """
Add AveragePool BatchNormalization Clip Conv ConvTranspose Div GlobalAveragePool GlobalMaxPool LeakyRelu Max MaxPool
Min Mul Pow ReduceMax Relu Resize Sigmoid Softmax Sub Tanh
"""
_TAKEN = frozenset(_LAYERS.split())
# Least and most of each attribute, along each of two spatial dimensions.
_CONV = {"kernel_shape": (1, 32), "pads": (0, 31), "strides": (1, 8), "dilations": (1, 32)}
_POOL = {"kernel_shape": (1, 8), "pads": (0, 7), "strides": (1, 16)}
_DECONV = {"kernel_shape": (1, 32), "pads": (0, 0), "strides": (1, 32), "dilations": (1, 1), "group": (1, 1)}
_LIMITS = {"Conv": _CONV, "ConvTranspose": _DECONV, "MaxPool": _POOL, "AveragePool": _POOL}


def dla_reason(
    node: "NodeProto", shape_of: Callable[[str], tuple[int, ...]], array_of: Callable[[str], Any]
) -> str | None:
    """Why the DLA leaves a node that computes, or that takes images of a batch apart, to the GPU; or None."""
    if node.op_type in ("Concat", "Slice"):
        axes = [_attribute(node, "axis")] if node.op_type == "Concat" else array_of(node.input[3])
        if len(shape_of(node.output[0])) != 4 or axes is None or 0 not in [axis % 4 for axis in axes]:
            return None
        return f"it parts or joins a batch, which the DLA does along channels alone ({_SOURCE})"
    if node.op_type not in _TAKEN:
        return f"not among the DLA's layers, so the GPU runs it ({_SOURCE})"
    shape = shape_of(node.output[0])
    if len(shape) != 4:
        return f"its output has {len(shape)} dimensions, and the DLA computes on [N, C, H, W] ({_SOURCE})"
    if shape[0] > 4096 or max(shape[1:]) > 8192:
        return f"{shape} is more than 4096 images or 8192 along a dimension ({_SOURCE})"
    for name, (least, most) in _LIMITS.get(node.op_type, {}).items():
        values = _attribute(node, name) or []
        values = values if isinstance(values, list) else [values]
        if any(not least <= value <= most for value in values):
            return f"its {name} {list(values)} are not all within {least} to {most} ({_SOURCE})"
    return None


def _attribute(node: "NodeProto", name: str) -> Any:
    from onnx import helper

    return next((helper.get_attribute_value(each) for each in node.attribute if each.name == name), None)
