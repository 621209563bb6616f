"""A program as ONNX: static shapes, the user's layer names, and the oldest opset that every TensorRT of a Jetson reads.

aten.conv2d of layer1.0.conv2, third frame     Conv "layer1.0.conv2/conv2d_17"   so profiles name it
dequantize, conv, add, relu, quantize          as they are: QuantizeLinear and DequantizeLinear, int8 weights
"""

import ast
import math
from typing import TYPE_CHECKING, Any

from edgeact._toolchain import first_line, toolchain
from edgeact.errors import MissingDependencyError

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto
    from torch.export import ExportedProgram

__all__ = ["OLDEST_OPSET", "crossing_bytes", "layer_of", "op_of", "to_onnx"]

OLDEST_OPSET = 17  # TensorRT 8.5's newest (onnx-tensorrt release/8.5-GA, docs/operators.md); torch writes 18 and newer
_WRITTEN_OPSET = 18
_ASIDE = "aside"  # a domain that onnx's converter passes over
# What opset 18 added to ops that were there before, with the values that change nothing.
_NEW_ATTRIBUTES: dict[str, dict[str, Any]] = {
    "Pad": {},
    "Reduce": {"noop_with_empty_axes": 0},
    "Resize": {"antialias": 0, "keep_aspect_ratio_policy": b"stretch"},
    "ScatterElements": {},
    "ScatterND": {},
    "Split": {},
}
_IR_VERSION = 8  # of the file format, as released with opset 17 (onnx, docs/Versioning.md): older readers know no newer


def to_onnx(program: "ExportedProgram", precision: str) -> "ModelProto":
    """The ONNX model of `program`, which maps a uint8 `clip` to float32 `logits`.

    Args:
        program: uint8 `clip_BTHWC` with B=1 -> float32 `logits_BK`, static shapes; float, or PT2E int8.
        precision: fp16 computes in float16 up to the logits; others keep the program's types.

    Raises:
        MissingDependencyError: onnx or onnxscript is not installed.
        ToolchainError: An op has no ONNX form; torch's own words.
    """
    missing = MissingDependencyError("onnxscript", "export", "writing ONNX")
    with toolchain("torch cannot write this network as ONNX", missing, _innermost):
        import torch

        from edgeact.targets._float16 import in_float16

        exported = torch.onnx.export(
            in_float16(program) if precision == "fp16" else program,
            dynamo=True,
            opset_version=_WRITTEN_OPSET,
            verbose=False,
        )
        assert exported is not None, "no file was named, so the program is returned"
        model = exported.model_proto
        _name_nodes(model.graph)
        _name_output(model.graph, "logits")
        return _downgraded(model)


def _downgraded(model: "ModelProto") -> "ModelProto":
    """`model` in the oldest opset, or as it is where an op has no older form."""
    from onnx import checker, helper, version_converter

    kept = type(model)()
    kept.CopyFrom(model)
    for node in model.graph.node:
        new = _NEW_ATTRIBUTES.get("Reduce" if node.op_type.startswith("Reduce") else node.op_type)
        if new is None:
            continue
        rest = [each for each in node.attribute if helper.get_attribute_value(each) != new.get(each.name)]
        del node.attribute[:]
        node.attribute.extend(rest)
        while not node.input[-1]:
            del node.input[-1]
        if not node.op_type.startswith("Reduce"):  # of the others onnx's converter knows no older form: it is the same
            node.domain = _ASIDE
    model.opset_import.append(helper.make_opsetid(_ASIDE, 1))
    try:
        older = version_converter.convert_version(model, OLDEST_OPSET)
        older.ir_version = _IR_VERSION
        for node in older.graph.node:
            node.domain = "" if node.domain == _ASIDE else node.domain
        del older.opset_import[1:]
        checker.check_model(older)  # which refuses what is new in it after all
    except (RuntimeError, checker.ValidationError):  # the converter's own class is a RuntimeError
        return kept
    return older


def _name_nodes(graph: "GraphProto") -> None:
    """Each node by the layer of the user's model, and the op of the program, that it computes."""
    seen: set[str] = set()
    for i, node in enumerate(graph.node):
        told = {entry.key: entry.value for entry in node.metadata_props}
        scopes: list[str] = ast.literal_eval(told.get("pkg.torch.onnx.name_scopes", "[]"))
        op = told.get("pkg.torch.onnx.fx_node", "").partition(" ")[0].removeprefix("%") or f"{node.op_type}_{i}"
        name = f"{scopes[-2]}/{op}" if len(scopes) > 1 and scopes[-2] else op
        node.name = name if name not in seen else f"{name}.{node.op_type}_{i}"
        seen.add(name)
        del node.metadata_props[:]  # paths of the machine that exported


def op_of(name: str) -> str:
    """Name of the program's node that the ONNX node `name` computes."""
    return name.rpartition("/")[2].partition(".")[0]


def layer_of(name: str) -> str:
    """Path of the module of the user's network that the ONNX node `name` belongs to; empty for its own forward."""
    return name.rpartition("/")[0]


def crossing_bytes(model: "ModelProto") -> int:
    """Of the inputs and outputs of `model`: what goes to a device that runs the whole of it, and comes back."""
    from onnx import helper

    total = 0
    for value in (*model.graph.input, *model.graph.output):
        kind = value.type.tensor_type
        total += (
            math.prod(dim.dim_value for dim in kind.shape.dim)
            * helper.tensor_dtype_to_np_dtype(kind.elem_type).itemsize
        )
    return total


def _name_output(graph: "GraphProto", name: str) -> None:
    before = graph.output[0].name
    for node in graph.node:
        for values in (node.input, node.output):
            for i, value in enumerate(values):
                if value == before:
                    values[i] = name
    graph.output[0].name = name


def _innermost(exc: BaseException) -> str:
    """The cause in a line: the exporter wraps it in pages of advice."""
    while exc.__cause__ is not None:
        exc = exc.__cause__
    return first_line(exc)
