"""int8 as OpenVINO wants it: FakeQuantize on activations, int8 weights times their scales.

    x ─ quantize ─ dequantize ─ conv ◄ dequantize ◄ int8 weight        PT2E
    x ─ fake_quantize ───────── conv ◄ mul ◄ cast ◄ int8 weight        here

With quantize and dequantize ops OpenVINO leaves depthwise Conv3d in float; so written, its low-precision
transformations (openvino/src/common/low_precision_transformations) take every convolution, and weights are stored as
int8.
"""

import operator
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from edgeact.lowering._lower import keep_origins

if TYPE_CHECKING:
    from torch.export import ExportedProgram

__all__ = ["with_fake_quantize"]

_aten = torch.ops.aten


def with_fake_quantize(program: "ExportedProgram") -> "ExportedProgram":
    """`program`, in whose place of quantize and dequantize ops stands what OpenVINO's frontend translates."""
    module = program.module(check_guards=False)
    assert isinstance(module, fx.GraphModule)
    for node in list(module.graph.nodes):
        name = str(node.target)
        with module.graph.inserting_before(node):
            if name.startswith("quantized_decomposed.dequantize_per_tensor"):
                node.replace_all_uses_with(_fake(module, node))
            elif name.startswith("quantized_decomposed.dequantize_per_channel"):
                node.replace_all_uses_with(_scaled(module, node))
    module.graph.eliminate_dead_code()
    module.recompile()
    with torch.no_grad():
        exported = torch.export.export(module, *program.example_inputs)
    keep_origins(module.graph, exported.graph)
    return exported


def _fake(module: fx.GraphModule, node: fx.Node) -> fx.Node:
    """The value that `node` dequantizes, rounded in one op; of an int8 constant, its values in float."""
    before: Any = node.args[0]
    if before.op == "get_attr":
        name, (_, scale, zero_point, *_) = f"{node.name}_values", node.args
        module.register_buffer(name, (operator.attrgetter(before.target)(module).float() - zero_point) * scale)
        return module.graph.get_attr(name)
    x, scale, zero_point, low, high, *_ = before.args
    return module.graph.call_function(_aten.fake_quantize_per_tensor_affine.default, (x, scale, zero_point, low, high))


def _scaled(module: fx.GraphModule, node: fx.Node) -> fx.Node:
    """The int8 weight of `node` cast to float, times its scales, one for each output channel."""
    weight: Any = node.args[0]
    scales: Any = node.args[1]
    shape = (-1, *(1,) * (operator.attrgetter(weight.target)(module).ndim - 1))
    name = f"{node.name}_scales"
    module.register_buffer(name, operator.attrgetter(scales.target)(module).float().view(shape))
    cast = module.graph.call_function(_aten._to_copy.default, (weight,), {"dtype": torch.float32})
    return module.graph.call_function(_aten.mul.Tensor, (cast, module.graph.get_attr(name)))
