"""Where a graph is quantized: our own PT2E quantizer, so that no convolution is left in float without being told.

    x ─q─ conv ─ relu ─q─ max_pool ─(q of its input)─ conv ─q─┐
                                                    relu ─q─ add ─ relu ─q─ mean ─q─ linear ─q─ logits

Every op that computes gets int8 inputs and an int8 output, behind the activation that runtimes fuse with it; an op that
moves data has the scale of its input, so it costs nothing. What is in neither table stays in float.
"""

from collections import Counter
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import fx
from torchao.quantization.pt2e import (
    FakeQuantize,
    MinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    PerChannelMinMaxObserver,
)
from torchao.quantization.pt2e.quantizer import (
    QuantizationAnnotation,
    QuantizationSpec,
    Quantizer,
    SharedQuantizationSpec,
)

from edgeact.lowering import Conv, default_taps
from edgeact.lowering.convolution import MOST_STACKED
from edgeact.quantize.scheme import Scheme

__all__ = [
    "SchemeQuantizer",
    "adds_taps",
    "has_rule",
    "in_float",
    "is_weighted",
    "moves_data",
    "observers",
    "value_names",
    "without_rule",
]

_WEIGHTED = {"conv1d", "conv2d", "conv3d", "linear"}
_FUSED = {"relu", "relu_", "relu6", "relu6_", "hardtanh", "hardtanh_"}  # runtimes clamp as they write int8
_COMPUTING = """
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d add add_ avg_pool2d avg_pool3d elu hardsigmoid hardswish
    hardswish_ hardtanh hardtanh_ leaky_relu leaky_relu_ mean mul mul_ relu relu_ relu6 relu6_ sigmoid silu silu_ sub
"""
_MOVING = """
    adaptive_max_pool3d clone constant_pad_nd contiguous dropout expand flatten flip index_select max_pool2d max_pool3d
    pad permute reshape select slice squeeze transpose unsqueeze view
"""
_KNOWN = frozenset(["cat", "getitem", *_WEIGHTED, *_FUSED, *_COMPUTING.split(), *_MOVING.split()])
_SMALLEST_SCALE = 2.0**-20


def _name(node: fx.Node) -> str:
    return getattr(node.target, "__name__", "").partition(".")[0] if node.op == "call_function" else ""


def is_weighted(node: fx.Node) -> bool:
    """Whether `node` is a convolution or a linear layer."""
    return _name(node) in _WEIGHTED


def moves_data(node: fx.Node) -> bool:
    """Whether the op of `node` gives values that it was given, and keeps their scale."""
    return _name(node) in _MOVING.split()


def has_rule(op: str) -> bool:
    """Whether the ATen op of this name is in int8, or moves what is."""
    return op in _KNOWN


def adds_taps(node: fx.Node) -> bool:
    """Whether the 2-D forms of `node` add convolutions over some of its temporal taps (`lowering.convolution`)."""
    if _name(node) != "conv3d":
        return False
    x, weight = (argument.meta["val"].shape for argument in node.all_input_nodes[:2])
    frames = (x[2], node.meta["val"].shape[2])
    conv = Conv(
        in_channels=x[1],
        out_channels=weight[0],
        groups=x[1] // weight[1],
        kernel=tuple(weight[2:]),
        frames_in=frames[0],
        frames_out=frames[1],
        int8=True,
    )
    return bool(weight[2] > 1 and (default_taps(conv) == "sum" or weight[2] > MOST_STACKED))


def in_float(quantized: fx.GraphModule, scheme: Scheme) -> list[str]:
    """Names of the convolutions and linear layers of an int8 network that are not int8.

    What adds taps as int8 tensors (`Scheme.partial_sums`) has kernels that give int8 alone: a layer whose result is
    read in float is computed in float there.
    """
    return [node.name for node in quantized.graph.nodes if is_weighted(node) and not _is_int8(node, scheme)]


def without_rule(graph: fx.GraphModule) -> Counter[str]:
    """How many ops of `graph` are in no table: attention's products, norms, GELU and the like stay in float."""
    found = (node for node in graph.graph.nodes if _name(node) and _name(node) not in _KNOWN)
    return Counter(_name(node) for node in found if any(_is_float(value) for value in node.all_input_nodes))


def _is_int8(node: fx.Node, scheme: Scheme) -> bool:
    result = next(iter(node.users)) if _is_fused(node) else node
    rounded = all("quantize_per_tensor" in str(user.target) for user in result.users) or not scheme.partial_sums
    return rounded and all("dequantize" in str(x.target) for x in node.all_input_nodes[:2])


def value_names(graph: fx.GraphModule) -> dict[fx.Node, str]:
    """A name of its input and of every tensor that `graph` computes: `clip`, `conv3d_0`, `relu_0`, `conv3d_1`.

    It is the same whether the batch is free or fixed: sizes that are computed in the graph do not count.
    """
    names, seen = {}, Counter[str]()
    for node in graph.graph.nodes:
        if node.op == "placeholder":
            names[node] = node.name
        elif (op := _name(node)) and isinstance(node.meta.get("val"), torch.Tensor):
            names[node] = f"{op}_{seen[op]}"
            seen[op] += 1
    return names


def observers(prepared: fx.GraphModule) -> Iterator[tuple[fx.Node, Any]]:
    """What torchao put into a `prepared` graph: each value that is quantized, and the module that watches it."""
    for node in prepared.graph.nodes:
        if node.op == "call_module":
            yield node.args[0], prepared.get_submodule(str(node.target))


class SchemeQuantizer(Quantizer):  # type: ignore[misc]
    """Annotates a network's ATen graph, BatchNorm folded, as `scheme` says.

    Args:
        scheme: The int8 rule.
        watch: Observer of the activations.
        training: Round in the forward pass too (torchao's FakeQuantize), weights by what they are at that step.
        keep_float: Nodes of convolutions and linear layers, by name, that stay in float.
    """

    def __init__(
        self,
        scheme: Scheme,
        *,
        watch: Any = MinMaxObserver,
        training: bool = False,
        keep_float: Collection[str] = (),
    ) -> None:
        super().__init__()
        activation, weight = (each.with_args(eps=_SMALLEST_SCALE) for each in (watch, PerChannelMinMaxObserver))
        if training:
            now: Any = {"observer": MovingAveragePerChannelMinMaxObserver, "averaging_constant": 1.0}
            activation = FakeQuantize.with_args(observer=watch, eps=_SMALLEST_SCALE)
            weight = FakeQuantize.with_args(**now, eps=_SMALLEST_SCALE)
        self._scheme, self._keep_float = scheme, frozenset(keep_float)
        self._activation = QuantizationSpec(
            dtype=torch.int8,
            quant_min=-128,  # OpenVINO computes wrong numbers in 255 levels
            quant_max=127,
            qscheme=torch.per_tensor_symmetric if scheme.symmetric else torch.per_tensor_affine,
            observer_or_fake_quant_ctr=activation,
        )
        self._weight = QuantizationSpec(
            dtype=torch.int8,
            quant_min=-127,
            quant_max=127,
            qscheme=torch.per_channel_symmetric,
            ch_axis=0,
            observer_or_fake_quant_ctr=weight,
        )

    def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
        """Write `meta["quantization_annotation"]` on every op of the two tables."""
        for node in model.graph.nodes:
            if (spec := self._specs(node)) is not None:
                inputs, output = spec
                node.meta["quantization_annotation"] = QuantizationAnnotation(
                    input_qspec_map=inputs, output_qspec=output, _annotated=True
                )
        return model

    def validate(self, model: fx.GraphModule) -> None:
        """Every annotation is ours."""

    def _specs(self, node: fx.Node) -> tuple[dict[fx.Node, Any], Any] | None:
        """Of the inputs by node, and of the output; None leaves `node` in float."""
        name, act = _name(node), self._activation
        before: Any = node.args[0] if node.args else None
        if node.name in self._keep_float:
            return None
        if name in _WEIGHTED:
            weight: Any = node.args[1]
            keep = self._scheme.partial_sums and adds_taps(node)
            return {before: act, weight: self._weight}, act if keep or not _is_fused(node) else None
        if name == "cat":
            first, *others = before
            shared = SharedQuantizationSpec((first, node))
            return {first: act} | {other: shared for other in others if other is not first}, shared
        if moves_data(node):
            return {before: act}, SharedQuantizationSpec((before, node))
        if name in _COMPUTING.split() and all(_is_float(argument) for argument in node.all_input_nodes):
            follows = name in _FUSED and _is_fused(before)
            return {} if follows else dict.fromkeys(node.all_input_nodes, act), None if _is_fused(node) else act
        return None


def _is_fused(node: fx.Node) -> bool:
    """Whether runtimes compute `node` and the activation that alone consumes it as one op."""
    users = list(node.users)
    able = is_weighted(node) or _name(node) in ("add", "add_")
    return able and len(users) == 1 and _name(users[0]) in _FUSED


def _is_float(node: fx.Node) -> bool:
    value = node.meta.get("val")  # of a free batch, sizes are computed in the graph, too
    return node.op != "get_attr" and isinstance(value, torch.Tensor) and value.dtype == torch.float32
