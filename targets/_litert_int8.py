"""int8 as litert-torch wants it: constants in float behind a quantize op, and float logits after the last one.

    int8 weight ──────────── dequantize ─ conv        PT2E, and the lowering's taps and zeros
    float weight ─ quantize ─ dequantize ─ conv       here; the converter folds the first three into the int8 weight

Told that the graph has scales ("static"), the converter fuses each op with the quantize and dequantize ops around it;
it takes the last of them for the caller's, and gives int8 logits.
"""

import operator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

if TYPE_CHECKING:
    from litert_torch.quantize.quant_config import QuantConfig

__all__ = ["finish", "keep_pads_in_layout", "quantize_in_the_graph", "read_scales"]

_aten = torch.ops.aten
_quantized = torch.ops.quantized_decomposed


def read_scales() -> "QuantConfig":
    """What tells the converter to look for quantize and dequantize ops; this quantizer itself annotates nothing."""
    from litert_torch.quantize.pt2e_quantizer import PT2EQuantizer, get_symmetric_quantization_config
    from litert_torch.quantize.quant_config import QuantConfig

    return QuantConfig(pt2e_quantizer=PT2EQuantizer().set_global(get_symmetric_quantization_config()))


def quantize_in_the_graph(module: fx.GraphModule) -> None:
    """Every int8 constant of `module` as a float constant and the quantize op that gives it; in place."""
    for node in list(module.graph.nodes):
        if not _is_dequantize(node) or node.args[0].op != "get_attr":
            continue
        stored: Any = node.args[0]
        name = f"{str(stored.target).replace('.', '_')}_real"
        if name not in dict(module.named_buffers()):
            module.register_buffer(name, _real(module, node))
        per_channel = "per_channel" in str(node.target)
        op = _quantized.quantize_per_channel.default if per_channel else _quantized.quantize_per_tensor.default
        with module.graph.inserting_before(node):
            real = module.graph.get_attr(name)
            node.replace_input_with(stored, module.graph.call_function(op, (real, *node.args[1:])))
    module.graph.eliminate_dead_code()
    module.recompile()


def keep_pads_in_layout() -> None:
    """Teach the converter to pad in NHWC: it would transpose before and after, and cannot cancel that through int8."""
    from litert_torch._convert.fx_passes.optimize_layout_transposes_pass.layout_rewrite import rewriters

    @rewriters.register(_aten.constant_pad_nd.default)  # type: ignore[untyped-decorator]
    def pad_nhwc(node: fx.Node) -> None:
        x, pads, *value = node.args
        assert isinstance(pads, list | tuple)
        width, height, channels, batch = ([*pads, *[0] * 8][i : i + 2] for i in (0, 2, 4, 6))
        node.args = (x, [*channels, *width, *height, *batch], *value)


def _is_dequantize(node: fx.Node) -> bool:
    return str(node.target).startswith("quantized_decomposed.dequantize_per_")


def _real(module: fx.GraphModule, node: fx.Node) -> torch.Tensor:
    """What `node` makes of its int8 constant; divided by its scale, the same integers again."""

    def value(argument: Any) -> Any:
        return operator.attrgetter(str(argument.target))(module) if isinstance(argument, fx.Node) else argument

    real: torch.Tensor = node.target(*map(value, node.args))  # type: ignore[operator]
    return real


def finish(path: Path) -> None:
    """Give the .tflite `path` float logits, and take the names from its tensors: they say nothing and weigh a tenth."""
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model(str(path))
    graph = model.subgraphs[0]
    for index, tensor in enumerate(graph.tensors):
        tensor.name = tensor.name if index in (*graph.inputs, *graph.outputs) else b""
    _dequantize_logits(model)
    flatbuffer_utils.write_model(model, str(path))


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
