"""A .tflite edited after its conversion: names of layers, a uint8 clip without float ops, float or int8 logits."""

import re
from collections import defaultdict
from pathlib import Path
from typing import Any

__all__ = ["finish", "with_int8_logits"]

_MOVING = ("RESHAPE", "SLICE", "STRIDED_SLICE", "TRANSPOSE", "SPLIT")
_MOVEMENT = (*_MOVING, "CONCATENATION", "QUANTIZE", "PAD")
# The op of a fused kernel that gives it its name: of a convolution with its ReLU, the convolution.
_WEIGHTED = ("conv2d", "convolution", "linear", "addmm", "mm", "bmm")
_BESIDE = ("relu", "clamp", "hardtanh", "quantize_per_channel", "quantize_per_tensor", "dequantize_per_tensor")


def finish(path: Path, *, int8: bool) -> None:
    """Give every op of `path` the layer that it computes as its result's name, and an int8 file integers at its ends.

    A name reads `layer1.0.conv2/convolution_17`, the last its place; the clip keeps its own name, and the other
    tensors, whose names weigh a tenth of a file and say nothing, get none.
    """
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model(str(path))
    if int8:
        _quantize_the_clip(model)
    _name(model)
    if int8:
        _dequantize_logits(model)
    flatbuffer_utils.write_model(model, str(path))


def with_int8_logits(path: Path, out: Path) -> None:
    """Copy `path` to `out` without the DEQUANTIZE op behind its logits, which no NPU has."""
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model(str(path))
    graph = model.subgraphs[0]
    last = graph.operators[-1]
    if _kind(model, last) == "DEQUANTIZE" and list(last.outputs) == list(graph.outputs):
        graph.operators.remove(last)
        graph.outputs = list(last.inputs)
        for signature in model.signatureDefs or ():
            signature.outputs[0].tensorIndex = last.inputs[0]
    flatbuffer_utils.write_model(model, str(out))


def _name(model: Any) -> None:
    graph = model.subgraphs[0]
    names = [tensor.name.decode() for tensor in graph.tensors]
    origins: dict[int, str] = {}
    for number, op in enumerate(graph.operators):
        told = [names[x] for x in op.inputs if x >= 0 and x not in origins]  # its constants
        before = next((origins[x] for x in op.inputs if x in origins), None)
        for index in op.outputs:
            origins[index] = _origin([names[index], *told])
            if before and _kind(model, op) in _MOVEMENT:  # a compiler writes its input where it moves that to
                origins[index] = f"{before.rpartition('/')[0]}/{origins[index].rpartition('/')[2]}"
            graph.tensors[index].name = f"{origins[index]}_{number}".encode()
    for index, tensor in enumerate(graph.tensors):
        if index not in origins and index not in graph.inputs:
            tensor.name = b""


def _origin(names: list[str]) -> str:
    """`layer/op` of the converter's names of a result and of the constants behind it, each of all ops that it fused."""
    parts = [part for name in names for part in re.findall(r"[^;]*/[a-z_]+(?:2d)?(?=\d*(?:;|$))", name)]
    told = next((part for part in parts if part.rpartition("/")[2] in _WEIGHTED), None)
    first = (*parts, "/")[0]
    return str(told or next((part for part in parts if part.rpartition("/")[2] not in _BESIDE), first))


def _quantize_the_clip(model: Any) -> None:
    """One QUANTIZE op from uint8 to int8 in place of a CAST to float and a QUANTIZE op of scale 1 behind it.

    What lies between moves bytes alone, and does so in uint8. Nothing is changed where anything else reads the floats.
    """
    from ai_edge_litert import schema_py_generated as schema

    graph = model.subgraphs[0]
    cast = next((op for op in graph.operators if _kind(model, op) == "CAST" and op.inputs[0] in graph.inputs), None)
    if cast is None:
        return
    readers: dict[int, list[Any]] = defaultdict(list)
    for op in graph.operators:
        for index in op.inputs:
            readers[index].append(op)
    floats, wanted = [], [cast.outputs[0]]
    while wanted:
        floats.append(wanted.pop())
        for op in readers[floats[-1]]:
            if _kind(model, op) == "QUANTIZE" and _shifts_by_128(graph.tensors[op.outputs[0]]):
                continue
            if _kind(model, op) not in _MOVING:
                return
            wanted += op.outputs
    for index in [*graph.inputs, *floats]:
        tensor = graph.tensors[index]
        tensor.type, tensor.quantization = schema.TensorType.UINT8, schema.QuantizationParametersT()
        tensor.quantization.scale, tensor.quantization.zeroPoint = [1.0], [0]
    graph.operators.remove(cast)
    for op in readers[cast.outputs[0]]:
        op.inputs = [cast.inputs[0] if index == cast.outputs[0] else index for index in op.inputs]


def _shifts_by_128(tensor: Any) -> bool:
    scales, zeros = tensor.quantization.scale, tensor.quantization.zeroPoint
    return list(scales) == [1.0] and list(zeros) == [-128]


def _dequantize_logits(model: Any) -> None:
    """Put a DEQUANTIZE op behind the logits, where they are int8."""
    from ai_edge_litert import schema_py_generated as schema

    graph, kind = model.subgraphs[0], schema.BuiltinOperator.DEQUANTIZE
    (output,) = graph.outputs
    before = graph.tensors[output]
    if before.type != schema.TensorType.INT8:
        return
    after = schema.TensorT()
    after.shape, after.type, after.hasRank, after.name = before.shape, schema.TensorType.FLOAT32, True, b"logits"
    graph.tensors.append(after)
    code = schema.OperatorCodeT()
    code.builtinCode, code.deprecatedBuiltinCode, code.version = kind, kind, 2
    model.operatorCodes.append(code)
    op = schema.OperatorT()
    op.opcodeIndex, op.inputs, op.outputs = len(model.operatorCodes) - 1, [output], [len(graph.tensors) - 1]
    op.builtinOptionsType, op.builtinOptions = schema.BuiltinOptions.DequantizeOptions, schema.DequantizeOptionsT()
    graph.operators.append(op)
    graph.outputs = list(op.outputs)
    for signature in model.signatureDefs or ():
        signature.outputs[0].tensorIndex = op.outputs[0]


def _kind(model: Any, op: Any) -> str:
    from ai_edge_litert.tools import flatbuffer_utils

    name: str = flatbuffer_utils.opcode_to_name(model, op.opcodeIndex)
    return name
