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

__all__ = ["fuse_adds", "groups_of"]


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
    kept = [node for i, node in enumerate(nodes) if i not in dropped]
    read = {name for node in kept for name in node.input}
    constants = [tensor for tensor in model.graph.initializer if tensor.name in read]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(kept)
    model.graph.initializer.extend(constants)


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


def groups_of(conv: "NodeProto") -> int:
    """Of a Conv."""
    return next((attribute.i for attribute in conv.attribute if attribute.name == "group"), 1)
