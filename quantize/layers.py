"""Which layer loses how much: what int8 costs at every layer, and what the rounding of each costs by itself.

float   x ─ conv ─ relu ─ conv ─ …          layer_outputs, compare_layers: the same layer's output in both graphs;
↕            ↕                                  the noise of all layers before it is in it
int8    x ─ conv ─ relu ─ conv ─ …

int8 with one layer's inputs and weight rounded, all else in float ─► logits          rank_layers
"""

import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from edgeact.numerics import compare_outputs
from edgeact.quantize.annotate import in_float, is_weighted
from edgeact.quantize.scheme import Scheme

__all__ = ["called", "compare_layers", "int8_layers", "layer_outputs", "rank_layers", "sample"]

_SAMPLED = 1 << 16

_quantize: Any = torch.ops.quantized_decomposed.quantize_per_tensor.default
_dequantize: Any = torch.ops.quantized_decomposed.dequantize_per_tensor.default


def called(graph: fx.GraphModule, name: str) -> str:
    """What a person calls the layer `name`: its module's path in the user's network, where it has one."""
    node = next(node for node in graph.graph.nodes if node.name == name)
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return f"{stack[-1][0]}" if stack and stack[-1][0] else name


def int8_layers(quantized: fx.GraphModule) -> list[str]:
    """Names of its convolutions and linear layers that are int8."""
    floats = in_float(quantized, Scheme())
    return [node.name for node in quantized.graph.nodes if is_weighted(node) and node.name not in floats]


def layer_outputs(graph: fx.GraphModule, clips: Sequence[torch.Tensor]) -> dict[str, NDArray[np.float32]]:
    """What every convolution and linear layer computes on all `clips`, sampled, by name in the graph's order.

    Args:
        graph: Float or int8, B=1.
        clips: Normalised clips `[1, C, T, H, W]`.
    """
    recorder = _Record(graph)
    with torch.no_grad():
        for clip in clips:
            recorder.run(clip)
    return {name: np.concatenate(parts) for name, parts in recorder.seen.items()}


def sample(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Every n-th of `values`, some 65,000 of them: enough for an SQNR, where all layers of a network fill gigabytes."""
    step = values.size // _SAMPLED | 1  # odd, so that it does not fall on one column of frames
    return values.reshape(-1)[::step].copy()


def compare_layers(
    reference: Mapping[str, NDArray[np.float32]], found: Mapping[str, NDArray[np.float32]]
) -> list[tuple[str, float]]:
    """SQNR in dB of every layer's output, in the order of `reference`; see `layer_outputs`."""
    return [(name, compare_outputs(values, found[name])[0]) for name, values in reference.items()]


def rank_layers(
    folded: fx.GraphModule,
    quantized: fx.GraphModule,
    clips: Sequence[torch.Tensor],
    on_layer: Callable[[], None] = lambda: None,
) -> list[tuple[str, float]]:
    """SQNR in dB of the logits when one layer alone is rounded, for every int8 layer, the worst first.

    Args:
        folded: Float, B=1.
        quantized: The int8 network of it.
        clips: Normalised clips `[1, C, T, H, W]`.
        on_layer: Called after each layer.
    """
    ranked = []
    with torch.no_grad():
        reference = torch.cat([folded(clip) for clip in clips]).numpy()
        for layer in int8_layers(quantized):
            partly = _Partly(folded, quantized, {layer})
            logits = torch.cat([partly.run(clip) for clip in clips]).numpy()
            ranked.append((layer, compare_outputs(reference, logits)[0]))
            on_layer()
    return sorted(ranked, key=lambda pair: pair[1])


class _Record(fx.Interpreter):
    """Keeps samples of what the layers compute, clip by clip."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.seen: dict[str, list[NDArray[np.float32]]] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if is_weighted(n):
            self.seen.setdefault(n.name, []).append(sample(value.numpy()))
        return value


class _Partly(fx.Interpreter):
    """The int8 graph that rounds what its layers `rounded` read, and nothing else; float weights are `folded`'s."""

    def __init__(self, folded: fx.GraphModule, quantized: fx.GraphModule, rounded: Collection[str]) -> None:
        super().__init__(quantized)
        weights = {node.name: str(node.all_input_nodes[1].target) for node in folded.graph.nodes if is_weighted(node)}
        self._weights = {name: operator.attrgetter(path)(folded) for name, path in weights.items()}
        self._rounded = rounded

    def run_node(self, n: fx.Node) -> Any:
        if n.target is _quantize:
            return self.fetch_args_kwargs_from_env(n)[0][0]
        if n.target == _dequantize and n.all_input_nodes[0].op == "call_function":
            x, *scale = self.fetch_args_kwargs_from_env(n)[0]
            rounds = any(user.name in self._rounded for user in n.users)
            return _dequantize(_quantize(x, *scale), *scale) if rounds else x
        value = super().run_node(n)
        if n.target is torch.ops.quantized_decomposed.dequantize_per_channel.default:
            (layer,) = n.users
            return value if layer.name in self._rounded else self._weights[layer.name]
        return value
