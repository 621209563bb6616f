"""The int8 rung: the folded network with ranges from clips, or the one that quantization-aware training left.

folded graph ─┬─► ranges from clips of the training part ─┬─► int8 graph, which PyTorch simulates
 folded rung  └── weights and ranges of the checkpoint ───┘   quantized rung
"""

import copy
import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from edgeact._capture import quiet_torchao
from edgeact.errors import CheckpointError, MissingDependencyError
from edgeact.evaluate import EvaluationSet
from edgeact.quantize.scheme import Observer, Scheme
from edgeact.quantize.state import QuantizedState

if TYPE_CHECKING:
    from torch.fx import GraphModule

__all__ = ["quantize"]


def quantize(
    folded: "GraphModule", source: EvaluationSet | QuantizedState, demanded: Scheme, observer: Observer
) -> tuple["GraphModule", Mapping[str, Any]]:
    """The int8 network of `folded`, and the facts of its quantization.

    Args:
        folded: Float, B=1, BatchNorm folded.
        source: Clips to take ranges from, or trained weights and ranges.
        demanded: What the target demands.
        observer: How a range follows from the clips.

    Raises:
        InputError: The clips cannot calibrate it; see `observe`.
        CheckpointError: What was trained does not serve the target, or is of another network.
        MissingDependencyError: torchao is not installed.
    """
    with quiet_torchao():
        try:
            from edgeact.quantize import convert, ranges
            from edgeact.quantize.annotate import in_float
        except ImportError as exc:
            raise MissingDependencyError("torchao", "export", "exporting in int8") from exc
        if isinstance(source, QuantizedState):
            graph, scheme = _trained(folded, source, demanded), source.scheme
            seen: ranges.Ranges = source.ranges
            facts: dict[str, Any] = {"trained": True}
        else:
            graph, scheme = folded, demanded
            seen = ranges.observe(graph, (clip for _, clip in source), source.spec, scheme, observer)
            samples = source.dataset.samples
            facts = {"clips": len(samples) - len(source.skipped), "classes": len({s.label for s in samples})}
            facts |= {"observer": observer}
        scheme = dataclasses.replace(scheme, partial_sums=demanded.partial_sums)
        network = convert.quantize(graph, seen, scheme)
    return network, facts | {"in_float": in_float(network)} | dataclasses.asdict(scheme)


def _trained(folded: "GraphModule", source: QuantizedState, demanded: Scheme) -> "GraphModule":
    """`folded` with the trained weights."""
    if not source.scheme.serves(demanded):
        raise CheckpointError(
            f"the checkpoint was trained under the int8 scheme {source.scheme}, the target demands {demanded}: train "
            "with --qat for this target, or for every target (--scheme portable)"
        )
    graph = copy.deepcopy(folded)
    own = {name: tensor.shape for name, tensor in graph.state_dict().items()}
    if own != {name: tensor.shape for name, tensor in source.weights.items()}:
        raise CheckpointError("the checkpoint's int8 weights are not those of its network: it is damaged")
    graph.load_state_dict(dict(source.weights))
    return graph
