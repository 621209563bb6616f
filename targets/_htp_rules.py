"""Which ONNX nodes ONNX Runtime's QNN provider hands to a Hexagon HTP, by its own tables; nothing is compiled.

Sources: op_builder_factory.cc of onnxruntime-qnn (the ops it has builders for), pool_op_builder.cc, and what the
validation of QNN 2.51 says of networks in the volumetric form.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from edgeact.placement import IN_FLOAT, PlacedOp
from edgeact.targets._target import Refusal

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

__all__ = ["FLOAT", "placed", "refused_nodes"]

FLOAT = " in float"  # ends the kernel of an op of an int8 network that HTP computes in float

_TABLE = "onnxruntime-qnn, op_builder_factory.cc"
_BUILDERS = """
Abs Add And ArgMax ArgMin Asin Atan AveragePool BatchNormalization Cast Ceil Clip Concat Conv ConvTranspose Cos
CumSum DepthToSpace DequantizeLinear Div Einsum Elu Equal Exp Expand Flatten Floor FusedMatMul Gather GatherElements
GatherND Gelu Gemm GlobalAveragePool GlobalMaxPool Greater GreaterOrEqual GridSample GroupNormalization GRU
HardSigmoid HardSwish Identity If InstanceNormalization Inverse IsNaN LayerNormalization LeakyRelu Less LessOrEqual
Log LogSoftmax LpNormalization LRN LSTM MatMul MatMulNBits Max MaxPool Mean Min Mod Mul Neg NonZero Not Or Pad Pow
PRelu QuantizeLinear QuickGelu RandomNormalLike RandomUniformLike Reciprocal ReduceL2 ReduceMax ReduceMean ReduceMin
ReduceProd ReduceSum Relu Reshape Resize RMSNormalization RoiAlign RotaryEmbedding Round ScatterElements ScatterND
Selu Sigmoid Sign SimplifiedLayerNormalization Sin Slice Softmax Softplus SpaceToDepth Split Sqrt Squeeze STFT Sub
Sum Tan Tanh ThresholdedRelu Tile TopK Transpose Unsqueeze Upsample Where Xor
"""
_OPS = frozenset(_BUILDERS.split())
# Ops that move or retype data.
_MOVED = """
Cast Concat Constant ConstantOfShape DequantizeLinear Expand Flatten Gather Identity Pad QuantizeLinear Reshape
Shape Slice Split Squeeze Tile Transpose Unsqueeze
"""
_MOVEMENT = frozenset(_MOVED.split())
_POOLS = ("AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool")
_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_ACTIVATIONS = ("Clip", "Relu")
_BINARY = ("Add", "Div", "Max", "Min", "Mul", "Sub", "Sum")


def refused_nodes(model: "ModelProto") -> Mapping[str, Refusal]:
    """By name the computing nodes of `model` that HTP would not get, and the rule."""
    ranks = _ranks(model)
    found = {}
    for node in model.graph.node:
        if node.op_type in _MOVEMENT:
            continue
        if node.op_type not in _OPS or node.domain not in ("", "ai.onnx", "com.microsoft"):
            found[node.name] = Refusal(f"{node.op_type}: not among the ops of QNN's provider ({_TABLE})", runs=False)
        elif node.op_type in _POOLS and ranks.get(node.input[0]) == 5:
            why = 'HTP has no 3-D pooling ("QNN NPU does not support PoolMax3d"): export in a 2-D form'
            found[node.name] = Refusal(f"{node.op_type}: {why}", runs=False)
    return found


def _ranks(model: "ModelProto") -> dict[str, int]:
    from onnx import shape_inference

    graph = shape_inference.infer_shapes(model).graph
    return {value.name: len(value.type.tensor_type.shape.dim) for value in (*graph.value_info, *graph.input)}


def placed(model: "ModelProto") -> list[PlacedOp]:
    """The nodes of `model` that compute, all on the NPU, as ONNX has them: what HTP makes of them is its own.

    In an int8 network those that ONNX Runtime cannot give in integers say so: layers with weights as fallbacks, others,
    such as a mean over frames, in their kernel.
    """
    in_float = _in_float(model)
    return [
        PlacedOp(
            name=node.name,
            kernel=node.op_type + FLOAT if node.name in in_float else node.op_type,
            unit="NPU",
            layer=node.name.rpartition("/")[0],
            fallback=_FALLBACK if node.name in in_float and node.op_type in _WEIGHTED else "",
        )
        for node in model.graph.node
        if node.op_type not in _MOVEMENT
    ]


_FALLBACK = "on the HTP" + IN_FLOAT.removesuffix(")")


def _in_float(model: "ModelProto") -> set[str]:
    """Names of the computing nodes of an int8 network that read what is not on a grid, or give what is not put on one.

    ONNX Runtime makes an integer op of a node between Q/DQ alone; a ReLU may follow within. None in a float network.
    """
    nodes = list(model.graph.node)
    levels = {node.output[0] for node in nodes if node.op_type == "DequantizeLinear"}
    if not levels:
        return set()
    maker = {name: node for node in nodes for name in node.output}
    readers: dict[str, list[NodeProto]] = {}
    for node in nodes:
        for name in node.input:
            readers.setdefault(name, []).append(node)

    def reads_levels(node: "NodeProto") -> bool:
        if node.op_type in _ACTIVATIONS and (made := maker.get(node.input[0])) and made.op_type in (*_WEIGHTED, "Add"):
            return reads_levels(made)
        if node.op_type in _WEIGHTED:
            return levels.issuperset(node.input[:2])
        given = node.input[:1] if node.op_type not in _BINARY else node.input
        return levels.issuperset(given)

    def gives_levels(node: "NodeProto") -> bool:
        after = readers.get(node.output[0], [])
        if len(after) == 1 and after[0].op_type in _ACTIVATIONS and node.op_type in (*_WEIGHTED, "Add"):
            return gives_levels(after[0])
        return bool(after) and all(reader.op_type == "QuantizeLinear" for reader in after)

    computing = (node for node in nodes if node.op_type not in _MOVEMENT)
    return {node.name for node in computing if not (reads_levels(node) and gives_levels(node))}
