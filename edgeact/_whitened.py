"""The int8 network of a whitened descriptor, run without its last rounding: see `edgeact.whitening`."""

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeact._capture import eager, quiet_torchao
from edgeact.descriptor import Described
from edgeact.evaluate import EvaluationSet, Outputs, balanced, run_model
from edgeact.parity import NotMeasured
from edgeact.quantize.scheme import Observer
from edgeact.whitening import Rounding, Whitening, compare_whitening

if TYPE_CHECKING:
    from torch.fx import GraphModule

__all__ = ["measure_whitening"]

_MOST_CLIPS = 128  # PyTorch simulates int8 more slowly than a device computes it


def measure_whitening(
    folded: "GraphModule",
    network: "GraphModule",
    calibration: EvaluationSet,
    evaluation: EvaluationSet,
    reference: Outputs,
    described: Described,
    *,
    observer: Observer,
    symmetric: bool,
) -> Whitening | NotMeasured | None:
    """Whitened against naive int8 output, simulated; None of an output that is not whitened.

    Args:
        folded: The float network, `clip_BCTHW -> outputs_Bd`.
        network: The int8 network, float `clip_BCTHW -> outputs_Bd`.
        calibration: The clips that gave its ranges, and give that of the naive output.
        evaluation: The clips that `reference` ran. Of either, a share where they are many.
        reference: Outputs of the full-precision model.
        described: How outputs are read, and what classifies.
        observer: How ranges follow from the clips.
        symmetric: Whether the target demands a zero point of 0.
    """
    if (described.reading.scale == 1).all():
        return None
    with quiet_torchao():
        from edgeact.quantize.ranges import range_of
    network, rounding = _without_last_rounding(network)
    if rounding is None:
        return NotMeasured("its outputs are not rounded to int8, so whitening them changes nothing")
    coordinates = run_model(eager(folded, evaluation.spec), _few(calibration)).logits * described.reading.scale
    low, high = range_of(coordinates.astype(np.float32), observer, symmetric=symmetric)
    naive = Rounding.of_range(low, high, symmetric=symmetric)
    found = run_model(eager(network, evaluation.spec), _few(evaluation))
    row_of = {sample.id: row for row, sample in enumerate(reference.samples)}
    ids = [sample.id for sample in found.samples]
    return compare_whitening(
        found.logits,
        rounding,
        naive,
        reference.logits[np.array([row_of[clip] for clip in ids])],
        found.truth,
        described,
        clips=ids,
        labels=evaluation.dataset.labels,
    )


def _few(clips: EvaluationSet) -> EvaluationSet:
    dataset = balanced(clips.dataset, max(_MOST_CLIPS, len(clips.dataset.labels)))
    return dataclasses.replace(clips, dataset=dataset, notes=[], skipped=[])


def _without_last_rounding(network: "GraphModule") -> tuple["GraphModule", Rounding | None]:
    """The network that gives what is rounded last, with the same weights, and that rounding, if there is one."""
    from torch import fx

    graph = fx.Graph()
    last: Any = graph.graph_copy(network.graph, {})
    last = last[0] if isinstance(last, tuple | list) else last
    if not str(last.target).startswith("quantized_decomposed.dequantize_per_tensor"):
        return network, None
    stored, scale, zero = last.args[:3]
    graph.output(stored.args[0])
    graph.eliminate_dead_code()
    return fx.GraphModule(network, graph), Rounding(float(scale), int(zero))
