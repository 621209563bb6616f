"""Q/DQ where TensorRT fuses: between a convolution and the add behind it nothing is rounded.

    dq ─ conv ─ q ─ dq ─┐                     dq ─ conv ─┐
    dq ─────────────────┴ add ─ relu ─ q      dq ────────┴ add ─ relu ─ q     one int8 kernel

Of a residual block's two branches the convolution gives float to the add, and the other one int8 (NVIDIA, "Working with
Quantized Types", Q/DQ placement recommendations: "quantize the residual input in skip connections"). A grouped
convolution keeps its rounding: int8 depthwise kernels exist with nothing or a ReLU behind them (NVIDIA/TensorRT#3385).
"""

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

__all__ = ["float_weights", "fuse_adds", "groups_of"]


def fuse_adds(model: "ModelProto") -> None:
    """Remove the rounding between each add and the last dense convolution that it alone reads; in place."""
    nodes = list(model.graph.node)
    order = {node.output[0]: i for i, node in enumerate(nodes)}
    uses = Counter(name for node in nodes for name in node.input)
    dropped = set()
    for add in nodes:
        if add.op_type != "Add":
            continue
        rounded = [found for name in add.input if (found := _rounded(name, nodes, order, uses))]
        if rounded:
            conv, quantize, dequantize = max(rounded, key=lambda found: order[found[0].output[0]])
            add.input[list(add.input).index(dequantize.output[0])] = conv.output[0]
            dropped |= {order[node.output[0]] for node in (quantize, dequantize)}
    _keep(model, [node for i, node in enumerate(nodes) if i not in dropped])


def _rounded(
    name: str, nodes: list["NodeProto"], order: dict[str, int], uses: Counter[str]
) -> "tuple[NodeProto, NodeProto, NodeProto] | None":
    """The dense convolution, the quantize and the dequantize node that end in `name`, where nothing else reads them."""
    chain = []
    for op in ("DequantizeLinear", "QuantizeLinear", "Conv"):
        if name not in order or uses[name] != 1 or nodes[order[name]].op_type != op:
            return None
        chain.append(nodes[order[name]])
        name = chain[-1].input[0]
    dequantize, quantize, conv = chain
    return (conv, quantize, dequantize) if groups_of(conv) == 1 else None


def float_weights(model: "ModelProto") -> None:
    """Give int8 constants in float behind a QuantizeLinear, which returns them to the bit; in place.

    TensorRT 8 takes no others: "Weights of Q/DQ models must be specified using FP32 data type" (Developer Guide,
    Explicit Quantization, Quantized Weights). The file is four times as large, the engine is not.
    """
    from onnx import helper, numpy_helper

    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = []
    for node in model.graph.node:
        tensor = constants.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if tensor is not None:
            values, scale = (numpy_helper.to_array(constants[name]) for name in node.input[:2])
            wide = scale.reshape(-1, *(1,) * (values.ndim - 1)) if scale.size > 1 else scale
            name = f"{tensor.name}_{node.name}"
            model.graph.initializer.append(numpy_helper.from_array(values * wide, f"{name}_float"))
            inputs = [f"{name}_float", *node.input[1:]]
            quantize = helper.make_node("QuantizeLinear", inputs, [f"{name}_int8"], name=f"{node.name}.QuantizeLinear")
            quantize.attribute.extend(node.attribute)
            nodes.append(quantize)
            node.input[0] = f"{name}_int8"
        nodes.append(node)
    _keep(model, nodes)


def _keep(model: "ModelProto", nodes: "list[NodeProto]") -> None:
    """Leave these nodes and the constants that they read."""
    read = {name for node in nodes for name in node.input}
    constants = [tensor for tensor in model.graph.initializer if tensor.name in read]
    kept = [type(node).FromString(node.SerializeToString()) for node in nodes]  # what is deleted next is emptied
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(kept)
    model.graph.initializer.extend(constants)


def groups_of(conv: "NodeProto") -> int:
    """Of a Conv."""
    return next((attribute.i for attribute in conv.attribute if attribute.name == "group"), 1)
