"""What LiteRT's compilers for phone NPUs take of a .tflite, by their published sources; nothing is compiled here.

Each compiler is a plugin that picks ops by a list of its own and asks the vendor's SDK about the rest, which only
`--sdk` can: what these lists leave out stays on the CPU, what they hold may still be refused by the SDK.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeact.placement import IN_FLOAT, Kind, PlacedOp, Placement

__all__ = ["NPUS", "Npu", "estimate", "of_no_rule", "placed_by_compiler", "refused"]

_SOURCE = "google-ai-edge/LiteRT, litert/vendors"

_MEDIATEK = """
ABS ADD AVERAGE_POOL_2D BATCH_MATMUL CAST CONCATENATION CONV_2D DEPTHWISE_CONV_2D DEQUANTIZE DIV FULLY_CONNECTED GELU
GREATER HARD_SWISH L2_NORMALIZATION LEAKY_RELU LOGISTIC MAXIMUM MAX_POOL_2D MEAN MINIMUM MUL PAD PADV2 PRELU QUANTIZE
REDUCE_MAX RELU RESHAPE RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR RSQRT SLICE SOFTMAX SPLIT SQRT SQUARED_DIFFERENCE
STRIDED_SLICE SUB SUM TANH TILE TRANSPOSE TRANSPOSE_CONV UNPACK
"""
_QUALCOMM = """
ABS ADD ARG_MAX ARG_MIN AVERAGE_POOL_2D BATCH_MATMUL BROADCAST_TO CAST CEIL CONCATENATION CONV_2D CONV_3D COS CUMSUM
DEPTHWISE_CONV_2D DEPTH_TO_SPACE DEQUANTIZE DIV DYNAMIC_UPDATE_SLICE ELU EMBEDDING_LOOKUP EQUAL EXP FLOOR FLOOR_DIV
FULLY_CONNECTED GATHER GATHER_ND GELU GREATER GREATER_EQUAL HARD_SWISH L2_NORMALIZATION L2_POOL_2D LEAKY_RELU LESS
LESS_EQUAL LOG LOGICAL_AND LOGICAL_NOT LOGICAL_OR LOGISTIC MAXIMUM MAX_POOL_2D MEAN MINIMUM MIRROR_PAD MUL NEG
NOT_EQUAL PACK PAD PADV2 POW PRELU QUANTIZE REDUCE_ALL REDUCE_ANY REDUCE_MAX REDUCE_MIN RELU RELU6 RELU_0_TO_1
RELU_N1_TO_1 RESHAPE RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR REVERSE_V2 ROUND RSQRT SELECT SELECT_V2 SIGN SIN SLICE
SOFTMAX SPACE_TO_DEPTH SPLIT SQRT SQUARE SQUARED_DIFFERENCE STRIDED_SLICE SUB SUM TANH TILE TOPK_V2 TRANSPOSE
TRANSPOSE_CONV UNPACK
"""
_NOT_GOOGLE = """
ASSIGN_VARIABLE BIDIRECTIONAL_SEQUENCE_LSTM BROADCAST_ARGS BUCKETIZE CALL_ONCE COMPLEX_ABS CONV_3D CONV_3D_TRANSPOSE
CUSTOM DENSIFY FAKE_QUANT HASHTABLE HASHTABLE_FIND HASHTABLE_IMPORT HASHTABLE_SIZE IMAG LOCAL_RESPONSE_NORMALIZATION
MATRIX_DIAG MATRIX_SET_DIAG MULTINOMIAL NON_MAX_SUPPRESSION_V4 NON_MAX_SUPPRESSION_V5 RANDOM_STANDARD_NORMAL
RANDOM_UNIFORM RANK READ_VARIABLE REAL REDUCE_PROD REVERSE_SEQUENCE RFFT2D SEGMENT_SUM SHAPE SPARSE_TO_DENSE
STABLEHLO_SCATTER SVDF UNIDIRECTIONAL_SEQUENCE_RNN UNIQUE UNSORTED_SEGMENT_MAX UNSORTED_SEGMENT_MIN
UNSORTED_SEGMENT_PROD UNSORTED_SEGMENT_SUM VAR_HANDLE WHERE
"""


@dataclass(frozen=True, kw_only=True)
class Npu:
    """A vendor's NPU, as LiteRT's compiler for it states its rules.

    Attributes:
        source: Where its rules are.
        socs: Chips, by the names that the compiler takes.
        takes: The only ops that it takes; none where it names those that it leaves.
        leaves: Ops that it never takes.
        highest_rank: Of a tensor, and where that is said; None where nothing is.
    """

    source: str
    socs: tuple[str, ...]
    takes: frozenset[str] = frozenset()
    leaves: frozenset[str] = frozenset()
    highest_rank: tuple[int, str] | None = None


# Chips: ai_edge_litert.aot.vendors.*.target.SocModel of ai-edge-litert 2.3.0.
NPUS: Mapping[str, Npu] = {
    "google-tensor": Npu(
        source=f"{_SOURCE}/google_tensor/compiler/compiler_plugin.cc, kUnSupportedOps",
        socs=("Tensor_G3", "Tensor_G4", "Tensor_G5", "Tensor_G6"),
        leaves=frozenset(_NOT_GOOGLE.split()),
    ),
    "mediatek": Npu(
        source=f"{_SOURCE}/mediatek/compiler/MediaTek_Neuro_Compiler.md, Supported Operations",
        socs=(
            *("MT6853", "MT6877", "MT6878", "MT6879", "MT6886", "MT6893", "MT6895", "MT6897", "MT6983", "MT6985"),
            *("MT6989", "MT6991", "MT6993", "MT8171", "MT8188", "MT8189"),
        ),
        takes=frozenset(_MEDIATEK.split()),
        highest_rank=(4, "MediaTek, Neuron SDK, MDLA 3.0 Guidelines, Tensor Rank"),
    ),
    "qualcomm": Npu(
        source=f"{_SOURCE}/qualcomm/compiler/Qualcomm_QNN_Compiler.md, Supported Operations",
        socs=(*("SA8255", "SA8295", "SM8350", "SM8450", "SM8475", "SM8550", "SM8650", "SM8750", "SM8845", "SM8850"),),
        takes=frozenset(_QUALCOMM.split()),
    ),
}

_MOVEMENT = {
    "CAST",
    "CONCATENATION",
    "DEQUANTIZE",
    "EXPAND_DIMS",
    "PACK",
    "PAD",
    "PADV2",
    "QUANTIZE",
    "RESHAPE",
    "SLICE",
}
_MOVEMENT |= {"SPLIT", "SPLIT_V", "SQUEEZE", "STRIDED_SLICE", "TRANSPOSE", "UNPACK", "TILE", "BROADCAST_TO"}
_WEIGHTED = {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV", "BATCH_MATMUL"}

# The axis of the weights that has a scale for each channel, by Google's specification for makers of hardware.
_CHANNELS = {"CONV_2D": 0, "DEPTHWISE_CONV_2D": 3}
_SPECIFICATION = "ai.google.dev/edge/litert, LiteRT 8-bit quantization specification"


def refused(npu: str, op: str, shapes: Sequence[Sequence[int]]) -> str:
    """Why the compiler for `npu` leaves an op, with the source; empty where its rules take it.

    Args:
        npu: One of `NPUS`.
        op: Its name in TFLite's schema.
        shapes: Of the tensors that it reads and gives; -1 is a size that is not fixed.
    """
    rules = NPUS[npu]
    if op in rules.leaves or (rules.takes and op not in rules.takes):
        return f"{op}: not among the ops of its compiler ({rules.source})"
    if any(size < 0 for shape in shapes for size in shape):
        return f"{op}: a size that is not fixed, and it is compiled ahead of time ({_SOURCE})"
    if rules.highest_rank is not None:
        highest, source = rules.highest_rank
        if (rank := max((len(shape) for shape in shapes), default=0)) > highest:
            return f"{op}: a tensor of rank {rank}, and the highest is {highest} ({source})"
    return ""


def estimate(path: Path, npu: str) -> Placement:
    """Where the ops of an int8 .tflite would run, by the rules of `npu`; read from the file alone.

    Args:
        path: Its tensors are named by layer (`_tflite.finish`).
        npu: One of `NPUS`.
    """

    def judge(kind: str, tensors: Sequence[Any]) -> str:
        return refused(npu, kind, [_shape(tensor) for tensor in tensors]) or _unlike_specified(kind, tensors)

    return _placement(path, judge, "estimated")


def _unlike_specified(kind: str, tensors: Sequence[Any]) -> str:
    """What is wrong with the weights of an op that computes in integers; empty where nothing is."""
    from ai_edge_litert import schema_py_generated as schema

    if kind not in _CHANNELS or tensors[0].type == schema.TensorType.FLOAT32:
        return ""
    weights, axis = tensors[1], _CHANNELS[kind]
    scales, zeros = weights.quantization.scale, weights.quantization.zeroPoint
    if weights.type != schema.TensorType.INT8 or len(scales) != weights.shape[axis] or any(zeros):
        return (
            f"{kind}: its weights are not int8, symmetric and with a scale for each channel ({_SPECIFICATION}, {kind})"
        )
    return ""


def of_no_rule(path: Path) -> tuple[str, ...]:
    """What an int8 .tflite has of which no rule says whether it is taken, in words."""
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model(str(path))
    graph, floats, batches = model.subgraphs[0], Counter[str](), Counter[str]()
    for op in graph.operators:
        name = flatbuffer_utils.opcode_to_name(model, op.opcodeIndex)
        if name in _MOVEMENT:
            continue
        if graph.tensors[op.inputs[0]].type == schema.TensorType.FLOAT32 and name not in _WEIGHTED:
            floats[name] += 1
        shape = _shape(graph.tensors[op.inputs[0]])
        if len(shape) == 4 and shape[0] > 1:
            batches[name] += 1
    found = {"in float32": floats, "of a batch above 1, which holds time (--form unrolled has none)": batches}
    return tuple(
        f"{what}: {', '.join(f'{count} {name}' for name, count in ops.items())}" for what, ops in found.items() if ops
    )


def placed_by_compiler(path: Path, compiled: Path) -> Placement:
    """Where the ops of an int8 .tflite run, by what LiteRT's compiler left of them beside its own op in `compiled`."""
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model(str(compiled))
    graph = model.subgraphs[0]
    left = [op for op in graph.operators if flatbuffer_utils.opcode_to_name(model, op.opcodeIndex) != "CUSTOM"]
    names = {_name(graph.tensors[index]) for op in left for index in op.outputs}
    return _placement(
        path,
        lambda kind, tensors: f"{kind}, which the compiler left" if _name(tensors[-1]) in names else "",
        "measured",
    )


def _placement(path: Path, judge: Callable[[str, Sequence[Any]], str], kind: Kind) -> Placement:
    """Of the file's ops, each judged by its kind, and the tensors that it reads and gives."""
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model(str(path))
    graph = model.subgraphs[0]
    placed, moving, left = [], [], []
    for number, op in enumerate(graph.operators):
        name: str = flatbuffer_utils.opcode_to_name(model, op.opcodeIndex)
        tensors = [graph.tensors[index] for index in (*op.inputs, *op.outputs) if index >= 0]
        result = _name(graph.tensors[op.outputs[0]])
        why = judge(name, tensors)
        if not why and name in _WEIGHTED and tensors[0].type == schema.TensorType.FLOAT32:
            why = name + IN_FLOAT.removesuffix(")")
        left.append(bool(why))
        if name in _MOVEMENT:
            moving += [name] if why else []
            continue
        layer = result.rpartition("/")[0] if "/" in result else None
        unit = "CPU" if why else "NPU"
        placed.append(PlacedOp(name=result or f"{name} {number}", kernel=name, unit=unit, layer=layer, fallback=why))
    return Placement.of(placed, kind, sum(_bytes(graph.tensors[index]) for index in _crossing(graph, left)), moving)


def _crossing(graph: Any, left: Sequence[bool]) -> set[int]:
    """Tensors that one side makes and the other reads: the NPU, and the caller with what is `left` to the CPU."""
    off = dict.fromkeys(graph.inputs, True)
    for op, is_left in zip(graph.operators, left, strict=True):
        off |= dict.fromkeys(op.outputs, is_left)
    crossing = {index for index in graph.outputs if not off[index]}
    for op, is_left in zip(graph.operators, left, strict=True):
        crossing |= {index for index in op.inputs if index in off and off[index] != is_left}
    return crossing


def _name(tensor: Any) -> str:
    return bytes(tensor.name or b"").decode()


def _shape(tensor: Any) -> list[int]:
    fixed, signature = tensor.shape, tensor.shapeSignature
    return [int(size) for size in (signature if signature is not None and len(signature) else fixed)]


def _bytes(tensor: Any) -> int:
    from ai_edge_litert import schema_py_generated as schema

    size = 4 if tensor.type in (schema.TensorType.FLOAT32, schema.TensorType.INT32) else 1
    for length in tensor.shape:
        size *= int(length)
    return size
