"""int8 as litert-torch wants it: constants in float behind a quantize op, and float logits after the last one.

    int8 weight ──────────── dequantize ─ conv        PT2E, and the lowering's taps and zeros
    float weight ─ quantize ─ dequantize ─ conv       here; the converter folds the first three into the int8 weight

Told that the graph has scales ("static"), the converter fuses each op with the quantize and dequantize ops around it;
it takes the last of them for the caller's, and gives int8 logits.
"""

import operator
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

if TYPE_CHECKING:
    from litert_torch.quantize.quant_config import QuantConfig

__all__ = ["keep_pads_in_layout", "normalise_in_int8", "quantize_in_the_graph", "read_scales"]

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


def normalise_in_int8(module: fx.GraphModule) -> None:
    """The clip's normalisation, `x * scale + offset` in float, as a depthwise convolution of integers; in place.

    uint8 frame ─ cast ─ * scale ─ + offset ─ quantize        in float, which no NPU takes
    uint8 frame ─ cast ─ quantize ─ conv2d 1x1 ─ quantize     the same to 1/254 of a grey level, its int32 bias rounded

    The first quantize op subtracts 128 and rounds nothing; `_tflite` makes the cast one with it. A network whose first
    layer is in float, or that normalises in another way, stays as it is.
    """
    call, constants = module.graph.call_function, None
    for quantize in module.graph.find_nodes(op="call_function", target=_quantized.quantize_per_tensor.default):
        normalised: Any = quantize.args[0]
        if (found := _normalisation(module, normalised)) is None:
            continue
        frame, scale, offset = found
        with module.graph.inserting_before(quantize):
            constants = constants or _depthwise(module, scale, offset)
            stored = call(_quantized.quantize_per_tensor.default, (frame, *_LEVELS))
            levels = call(_quantized.dequantize_per_tensor.default, (stored, *_LEVELS))
            conv = call(_aten.conv2d.default, (levels, *constants, [1, 1], [0, 0], [1, 1], scale.numel()))
        conv.meta = dict(normalised.meta)
        quantize.replace_input_with(normalised, conv)
    module.graph.eliminate_dead_code()
    module.recompile()


_LEVELS = (1.0, -128, -128, 127, torch.int8)  # scale and zero point of uint8's levels as int8


def _normalisation(module: fx.GraphModule, add: fx.Node) -> tuple[fx.Node, torch.Tensor, torch.Tensor] | None:
    """The levels 0 to 255 of a frame `[N, C, H, W]`, and the scale and offset per channel of which `add` is the end."""
    mul: Any = add.args[0] if add.target is _aten.add.Tensor else None
    if not isinstance(mul, fx.Node) or mul.target is not _aten.mul.Tensor:
        return None
    frame, *constants = mul.args[0], mul.args[1], add.args[1]
    values = [_constant(module, node) for node in constants]
    if not isinstance(frame, fx.Node) or any(value is None or value.shape != (1, 3, 1, 1) for value in values):
        return None
    source = frame
    while source.target in _MOVEMENT:
        source = source.all_input_nodes[0]
    if source.target is not _aten._to_copy.default or source.all_input_nodes[0].op != "placeholder":
        return None
    return frame, values[0], values[1]


_MOVEMENT = (_aten.permute.default, _aten.reshape.default, _aten.view.default, _aten.slice.Tensor, _aten.select.int)


def _constant(module: fx.GraphModule, node: Any) -> Any:
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    return operator.attrgetter(str(node.target))(module)


def _depthwise(module: fx.GraphModule, scale: torch.Tensor, offset: torch.Tensor) -> tuple[fx.Node, fx.Node]:
    """Weight, behind its quantize and dequantize ops, and bias of the normalisation, put where the graph stands."""
    steps = scale.abs().flatten() / 127
    zeros = torch.zeros(scale.numel(), dtype=torch.int64)
    values = {"weight": scale.reshape(-1, 1, 1, 1), "bias": offset.flatten(), "scale": steps, "zero": zeros}
    for name, value in values.items():
        module.register_buffer(f"normalisation_{name}", value.clone())
    weight, bias, step, zero = (module.graph.get_attr(f"normalisation_{name}") for name in values)
    limits = (step, zero, 0, -127, 127, torch.int8)
    stored = module.graph.call_function(_quantized.quantize_per_channel.default, (weight, *limits))
    return module.graph.call_function(_quantized.dequantize_per_channel.default, (stored, *limits)), bias
