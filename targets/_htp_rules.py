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

__all__ = ["placed", "refused_nodes"]

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
    """The nodes of `model` that compute, all on the NPU; in an int8 network those in float are named as fallbacks."""
    from_levels = {node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    return [
        PlacedOp(
            name=node.name,
            kernel=node.op_type,
            unit="NPU",
            layer=node.name.rpartition("/")[0],
            fallback=_in_float(node, from_levels),
        )
        for node in model.graph.node
        if node.op_type not in _MOVEMENT
    ]


def _in_float(node: "NodeProto", from_levels: set[str]) -> str:
    if not from_levels or node.op_type not in _WEIGHTED or from_levels.issuperset(node.input[:2]):
        return ""
    return "on the HTP" + IN_FLOAT.removesuffix(")")
