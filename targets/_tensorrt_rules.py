"""What TensorRT documents that it takes, asked of an ONNX model: nothing is built, no GPU is needed.

An op that TensorRT's parser or builder would refuse cannot run; one that it would run outside of the precision or the
accelerator that was asked for falls back. Every rule names its source.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgeact.targets._dla_rules import dla_reason
from edgeact.targets._qdq import groups_of
from edgeact.targets._target import Refusal

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

__all__ = ["COMPUTE", "RELEASES", "Graph", "Release", "compute_ops", "refused_nodes"]


@dataclass(frozen=True)
class Release:
    """What of a JetPack matters here: its TensorRT, and the newest opset that its parser reads."""

    tensorrt: str
    opset: int


# NVIDIA's JetPack release notes; onnx-tensorrt, docs/operators.md of release/8.5-GA, 8.6-GA and 9.2 (10.3 reads more)
RELEASES = {
    "6.2": Release("10.3", 19),
    "6.1": Release("10.3", 19),
    "6.0": Release("8.6.2", 17),
    "5.1": Release("8.5.2", 17),
}

# onnx-tensorrt release/8.5-GA, docs/operators.md: of its ops those that a network without control flow may hold
_TABLE = """
Abs Add And ArgMax ArgMin AveragePool BatchNormalization Cast Ceil Celu Clip Concat Constant ConstantOfShape Conv
ConvTranspose Cos CumSum DepthToSpace DequantizeLinear Div Dropout Einsum Elu Equal Erf Exp Expand Flatten Floor
Gather GatherElements GatherND Gemm GlobalAveragePool GlobalMaxPool Greater GreaterOrEqual GridSample HardSigmoid
HardSwish Identity InstanceNormalization LRN LeakyRelu Less LessOrEqual Log LogSoftmax LpNormalization MatMul Max
MaxPool Mean Min Mod Mul Neg Not OneHot Or PRelu Pad Pow QuantizeLinear Range Reciprocal ReduceL1 ReduceL2
ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize
Round ScatterElements ScatterND Selu Shape Sigmoid Sign Sin Size Slice Softmax Softplus Softsign SpaceToDepth Split
Sqrt Squeeze Sub Sum Tanh ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze Upsample Where
"""
_OPS = frozenset(_TABLE.split())
_SINCE_8_6 = frozenset({"GroupNormalization", "IsInf", "LayerNormalization"})  # onnx-tensorrt, docs/Changelog.md
_OPERATORS = "onnx-tensorrt, docs/operators.md"

_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_COMPUTING = """
Add AveragePool BatchNormalization Clip Conv ConvTranspose Div Einsum Elu Erf Exp Gemm GlobalAveragePool
GlobalMaxPool GroupNormalization HardSigmoid HardSwish InstanceNormalization LayerNormalization LeakyRelu Log
LogSoftmax MatMul Max MaxPool Min Mul Neg PRelu Pow Reciprocal ReduceL2 ReduceMax ReduceMean ReduceSum Relu Resize
Sigmoid Softmax Softplus Sqrt Sub Tanh
"""
COMPUTE = frozenset(_COMPUTING.split())


class Graph:
    """A model's graph with what the rules ask of it."""

    def __init__(self, model: "ModelProto", *, int8: bool = False) -> None:
        from onnx import TensorProto, shape_inference

        graph = shape_inference.infer_shapes(model).graph
        self.nodes = list(graph.node)
        self.producer = {name: node for node in self.nodes for name in node.output}
        self.readers: dict[str, list[NodeProto]] = defaultdict(list)
        for node in self.nodes:
            for name in node.input:
                self.readers[name].append(node)
        self.constants: dict[str, TensorProto] = {tensor.name: tensor for tensor in graph.initializer}
        self.shapes: dict[str, tuple[int, ...]] = {
            name: tuple(tensor.dims) for name, tensor in self.constants.items()
        } | {
            value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
            for value in (*graph.input, *graph.value_info, *graph.output)
        }
        self.uint8 = {value.name for value in graph.input if value.type.tensor_type.elem_type == TensorProto.UINT8}
        self._asked_int8 = int8
        self.int8 = any(node.op_type == "QuantizeLinear" for node in self.nodes)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a value; empty where it is not known."""
        return self.shapes.get(name, ())

    def array(self, name: str) -> "NDArray[np.generic] | None":
        """Of a constant; None of what is computed."""
        from onnx import numpy_helper

        return numpy_helper.to_array(self.constants[name]) if name in self.constants else None

    def is_constant(self, name: str) -> bool:
        """Whether a value is a constant, or one that was quantized."""
        maker = self.producer.get(name)
        return name in self.constants or (
            maker is not None and maker.op_type == "QuantizeLinear" and maker.input[0] in self.constants
        )

    def is_int8(self, layer: "NodeProto") -> bool:
        """Whether a convolution or linear layer has an int8 weight, or will have."""
        return self._asked_int8 or self.is_dequantized(layer.input[1])

    def is_dequantized(self, name: str) -> bool:
        """Whether a value comes out of a DequantizeLinear."""
        return name in self.producer and self.producer[name].op_type == "DequantizeLinear"


def refused_nodes(model: "ModelProto", release: Release, accelerator: str, *, int8: bool = False) -> dict[str, Refusal]:
    """The nodes, by name, that `accelerator` of a Jetson with `release` would not run as they are.

    Args:
        model: Static shapes, node names that differ.
        release: One of `RELEASES`.
        accelerator: `gpu`, or `dla`.
        int8: Whether a float model is asked about as what int8 will make of it.
    """
    graph = Graph(model, int8=int8)
    found: dict[str, Refusal] = {}
    for node in graph.nodes:
        for rule, runs, source in _RULES:
            if reason := rule(node, graph, release):
                found.setdefault(node.name, Refusal(f"{node.op_type}: {reason} ({source})", runs=runs))
        on_dla = accelerator == "dla" and node.op_type in COMPUTE | {"Concat", "Slice"}
        if on_dla and (reason := dla_reason(node, graph.shape, graph.array)):
            found.setdefault(node.name, Refusal(f"{node.op_type}: {reason}", runs=True))
    return found


def compute_ops(model: "ModelProto") -> Mapping[str, str]:
    """The op type of each node that computes, by name."""
    return {node.name: node.op_type for node in model.graph.node if node.op_type in COMPUTE}


_Rule = Callable[["NodeProto", Graph, Release], str | None]


def _unknown(node: "NodeProto", graph: Graph, release: Release) -> str | None:
    newer = _SINCE_8_6 if not release.tensorrt.startswith("8.5") else frozenset()
    if node.domain in ("", "ai.onnx") and node.op_type in _OPS | newer:
        return None
    return f"not among the ops of TensorRT {release.tensorrt}"


def _pools_features(node: "NodeProto", graph: Graph, release: Release) -> str | None:
    rank = len(graph.shape(node.input[0])) if node.op_type in ("MaxPool", "AveragePool") else 4
    return None if rank in (0, 4, 5) else f"its input has {rank} dimensions, and pools are 2D or 3D"


def _pixels(node: "NodeProto", graph: Graph, release: Release) -> str | None:
    if node.op_type == "Cast" or not graph.uint8.intersection(node.input):
        return None
    return "a uint8 input is cast to float before anything else"


def _zero_point(node: "NodeProto", graph: Graph, release: Release) -> str | None:
    if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
        return None
    zero = graph.array(node.input[2]) if len(node.input) > 2 else np.zeros((), np.int8)
    if zero is None or zero.any():
        return "its zero point is not the constant 0"
    if zero.dtype != np.int8:
        return f"it is {zero.dtype}, not int8"  # such as the int32 bias behind a DequantizeLinear
    return None


def _scale(node: "NodeProto", graph: Graph, release: Release) -> str | None:
    if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
        return None
    scale = graph.array(node.input[1])
    if scale is None or not (np.asarray(scale, np.float64) > 0).all():
        return "its scale is not a positive constant"
    if scale.size > 1 and not graph.is_constant(node.input[0]):
        return "an activation has one scale, not one per channel"
    axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
    if scale.size > 1 and axis != 0:
        return f"weights have a scale per output channel, axis 0, not {axis}"
    return None


def _int8_constant(node: "NodeProto", graph: Graph, release: Release) -> str | None:
    if node.op_type != "DequantizeLinear" or not release.tensorrt.startswith("8."):
        return None
    return "TensorRT 8 takes constants in float, behind a QuantizeLinear" if node.input[0] in graph.constants else None


def _float_layer(node: "NodeProto", graph: Graph, release: Release) -> str | None:
    if not graph.int8 or node.op_type not in _WEIGHTED:
        return None
    if all(graph.is_dequantized(name) for name in node.input[:2]):
        return None
    return "runs in float, since its input or its weight is not int8"


def _grouped_3d(node: "NodeProto", graph: Graph, release: Release) -> str | None:
    if node.op_type == "Conv" and groups_of(node) > 1 and len(graph.shape(node.input[1])) == 5:
        return "a grouped 3D convolution has no int8 kernel and slow ones in float: export in a 2D form"
    return None


def _int8_groups(node: "NodeProto", graph: Graph, release: Release) -> str | None:
    if node.op_type != "Conv" or not graph.is_int8(node) or groups_of(node) == 1:
        return None
    shape, groups = graph.shape(node.input[1]), groups_of(node)
    sizes = (shape[1], shape[0] // groups)
    if sizes == (1, 1) or not any(size % 4 for size in sizes):
        return None
    return f"in int8 the channels of a group are a multiple of 4, not {sizes[0]} and {sizes[1]}"


def _depthwise_tail(node: "NodeProto", graph: Graph, release: Release) -> str | None:
    if node.op_type != "Conv" or not graph.is_dequantized(node.input[1]) or groups_of(node) == 1:
        return None
    readers = graph.readers[node.output[0]]
    if len(readers) == 1 and readers[0].op_type in ("Relu", "Clip"):
        readers = graph.readers[readers[0].output[0]]
    others = sorted({reader.op_type for reader in readers} - {"QuantizeLinear"})
    return f"an int8 depthwise convolution is followed by nothing or a ReLU, not by {others[0]}" if others else None


_RULES: tuple[tuple[_Rule, bool, str], ...] = (
    (_unknown, False, _OPERATORS),
    (_pools_features, False, _OPERATORS),
    (_pixels, False, "TensorRT API, DataType::kUINT8"),
    (_zero_point, False, _OPERATORS),
    (_scale, False, "NVIDIA, TensorRT Developer Guide, Explicit Quantization"),
    (_int8_constant, False, "TensorRT 8 Developer Guide, Explicit Quantization, Quantized Weights"),
    (_grouped_3d, True, "NVIDIA/TensorRT#1198, #1409"),
    (_int8_groups, False, "TensorRT API, IConvolutionLayer::setNbGroups"),
    (_depthwise_tail, False, "NVIDIA/TensorRT#3385, on JetPack 5.1"),
    (_float_layer, True, "TensorRT Developer Guide, Q/DQ placement"),
)
