"""Q/DQ where TensorRT wants it: nothing is rounded between what it makes one kernel.

    dq ─ conv ─ q ─ dq ─┐                     dq ─ conv ─┐
    dq ─────────────────┴ add ─ relu ─ q      dq ────────┴ add ─ relu ─ q     one int8 kernel
    dq ─ conv ─ q ─ dq ─ relu ─ q             dq ─ conv ─ relu ─ q            one int8 kernel
    dq ─ gemm ─ q ─ dq ─ logits               dq ─ gemm ─ logits

Of a residual block's two branches the convolution gives float to the add, and the other one int8 (NVIDIA, "Working with
Quantized Types", Q/DQ placement recommendations: "quantize the residual input in skip connections"). In front of an add
a grouped convolution keeps its rounding: int8 depthwise kernels exist with nothing or a ReLU behind them
(NVIDIA/TensorRT#3385).
"""

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

__all__ = ["float_weights", "fuse", "fuse_activations", "groups_of"]


def fuse(model: "ModelProto") -> None:
    """Remove the rounding within what TensorRT fuses, and that of the logits; in place."""
    graph = _Graph(model)
    for node in graph.nodes:
        if node.op_type == "Add":
            rounded = [found for name in node.input if (found := graph.rounded(name)) and _is_dense(found[0])]
            if rounded:  # the one that is computed last
                graph.join(node, max(rounded, key=lambda found: graph.order[found[0].output[0]]))
        else:
            graph.join_activation(node)
    logits = model.graph.output[0].name
    if found := graph.rounded(logits, readers=0):
        last, quantize, dequantize = found
        last.output[0] = logits
        graph.dropped |= {id(quantize), id(dequantize)}
    _keep(model, [node for node in graph.nodes if id(node) not in graph.dropped])


def fuse_activations(model: "ModelProto") -> None:
    """Remove the rounding between a ReLU and the convolution or sum that it reads; in place."""
    graph = _Graph(model)
    for node in graph.nodes:
        graph.join_activation(node)
    _keep(model, [node for node in graph.nodes if id(node) not in graph.dropped])


def _is_dense(node: "NodeProto") -> bool:
    return node.op_type == "Conv" and groups_of(node) == 1


class _Graph:
    """Nodes by what they compute and who reads it, while roundings are dropped."""

    def __init__(self, model: "ModelProto") -> None:
        self.nodes = list(model.graph.node)
        self.order = {node.output[0]: i for i, node in enumerate(self.nodes)}
        self.uses = Counter(name for node in self.nodes for name in node.input)
        self.dropped: set[int] = set()

    def rounded(self, name: str, readers: int = 1) -> "tuple[NodeProto, NodeProto, NodeProto] | None":
        """The node whose rounded value `name` is, its quantize and dequantize nodes, where nothing else reads them."""
        chain = []
        for op in ("DequantizeLinear", "QuantizeLinear", None):
            if name not in self.order or self.uses[name] != readers:
                return None
            chain.append(self.nodes[self.order[name]])
            if op is None:
                break
            if chain[-1].op_type != op:
                return None
            name, readers = chain[-1].input[0], 1
        dequantize, quantize, source = chain
        return source, quantize, dequantize

    def join(self, node: "NodeProto", found: "tuple[NodeProto, NodeProto, NodeProto]") -> None:
        """Let `node` read the value as it was computed."""
        source, quantize, dequantize = found
        node.input[list(node.input).index(dequantize.output[0])] = source.output[0]
        self.dropped |= {id(quantize), id(dequantize)}

    def join_activation(self, node: "NodeProto") -> None:
        """Let a ReLU read what a convolution or a sum computed."""
        if node.op_type in ("Relu", "Clip") and (found := self.rounded(node.input[0])):
            if found[0].op_type in ("Conv", "Add"):
                self.join(node, found)


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
