"""The int8 rung: the folded network with ranges from clips, or the one that quantization-aware training left.

folded graph ─┬─► ranges from clips of the training part ─┬─► int8 graph, which PyTorch simulates
folded rung  └── weights and ranges of the checkpoint ───┘   quantized rung
└─► the worst layers again in float, if asked
"""

import copy
import dataclasses
from bisect import bisect_left
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeact._capture import eager, quiet_torchao
from edgeact._layouts import some
from edgeact._progress import progress_bar
from edgeact.clip import ClipSpec, normalize
from edgeact.errors import CheckpointError, InputError, MissingDependencyError, UnknownNameError
from edgeact.evaluate import EvaluationSet, Outputs, run_model
from edgeact.parity import Gates, NotMeasured
from edgeact.placement import IN_FLOAT, Placement
from edgeact.quantize.options import Int8
from edgeact.quantize.scheme import Scheme
from edgeact.quantize.state import QuantizedState

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import GraphModule

    from edgeact.quantize.ranges import Ranges

__all__ = ["Quantized", "Source", "allow_floats", "quantize"]

_RANKING_CLIPS = 4
_NOT_REACHED = (
    "int8: --keep-float auto: the validation clips miss --max-drop or --min-agreement with every layer in float, too; "
    "what is left is the rounding of what stands between layers"
)


@dataclass(frozen=True, kw_only=True)
class Source:
    """What an int8 network is made from.

    Attributes:
        options: What the user said.
        clips: Of the training part; None where nothing is calibrated.
        validation: What "auto" judges by; None unless it is asked for.
        gates: Its limits.
    """

    options: Int8
    clips: EvaluationSet | None
    validation: EvaluationSet | None
    gates: Gates

    @classmethod
    def open(cls, options: Int8, data: str, spec: ClipSpec, gates: Gates, **how: Any) -> "Source":
        """Open the parts of `data` that `options` need; `how` goes to `EvaluationSet.for_calibration`.

        Raises:
            InputError: `data` lacks one, or int8 was trained for another ClipSpec.
        """
        if options.trained is not None and options.trained.spec != spec:
            own, given = options.trained.spec.to_dict(), spec.to_dict()
            other = ", ".join(f"{name} {own[name]}, not {given[name]}" for name in own if own[name] != given[name])
            raise InputError(f"int8 was trained for {other}: keep the checkpoint's")
        clips = validation = None
        how["clips"] = options.calibration.clips
        if options.trained is None or options.ranks_layers:
            clips = EvaluationSet.for_calibration(data, spec, **how)
        if options.keep_float == "auto":
            validation = EvaluationSet.for_calibration(data, spec, split="val", **how)
        return cls(options=options, clips=clips, validation=validation, gates=gates)


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """An int8 network.

    Attributes:
        network: Float `clip_BCTHW -> logits_BK` with int8 weights, and rounding where the device rounds.
        whole: The same with no layer kept in float.
        asked: Whether layers are in float because it was asked for, and no others.
        facts: For the manifest.
        notes: For the report.
    """

    network: "GraphModule"
    whole: "GraphModule"
    asked: bool
    facts: dict[str, Any]
    notes: tuple[str, ...]


def quantize(folded: "GraphModule", source: Source, demanded: Scheme | None) -> Quantized:
    """The int8 network of `folded`.

    Args:
        folded: The float network, B=1, BatchNorm folded.
        source: What to make it from.
        demanded: What the target demands.

    Raises:
        InputError: The clips cannot calibrate it; see `calibrate`. Or more layers are to stay in float than it has.
        UnknownNameError: A layer to keep in float that it does not have, or not in int8.
        CheckpointError: What was trained does not serve the target, or is of another network.
        MissingDependencyError: torchao is not installed.
    """
    assert demanded is not None, "a target with int8 has a scheme"
    with quiet_torchao():
        try:
            from edgeact.quantize import convert
            from edgeact.quantize.annotate import in_float
        except ImportError as exc:
            raise MissingDependencyError("torchao", "export", "exporting in int8") from exc
        trained = source.options.trained
        start = _calibrated(folded, source, demanded) if trained is None else _trained(folded, trained, demanded)
        scheme = dataclasses.replace(start.scheme, partial_sums=demanded.partial_sums)
        whole = network = convert.quantize(start.graph, start.ranges, scheme)
        kept: Mapping[str, float | None] = {}
        missed: tuple[str, ...] = ()
        if source.options.keep_float:
            network, kept, missed = _partly(folded, start, whole, scheme, source)
        floats, unasked = in_float(network, scheme), in_float(whole, scheme)
    return Quantized(
        network=network,
        whole=whole,
        asked=bool(kept) and not unasked,
        facts=start.facts | {"in_float": floats, "kept": kept} | dataclasses.asdict(scheme),
        notes=(start.note, *missed, *_floats_in_words(folded, floats, kept, unasked)),
    )


def _floats_in_words(
    folded: "GraphModule", floats: list[str], kept: Mapping[str, float | None], unasked: list[str]
) -> Iterator[str]:
    """Why which layers stay in float."""
    from edgeact.quantize.annotate import without_rule
    from edgeact.quantize.layers import called

    found = [f"{called(folded, name)} ({db:.1f} dB)" for name, db in kept.items() if db is not None]
    if found:
        yield f"int8: in float stay, as asked, the layers whose rounding alone costs most: {', '.join(found)}"
    elif kept:
        yield f"int8: in float stay, as asked, {', '.join(dict.fromkeys(called(folded, name) for name in kept))}"
    if feeding := [called(folded, name) for name in floats if name not in kept and name not in unasked]:
        yield f"int8: in float, too, since these read what they give: {', '.join(feeding)}"
    if others := [f"{count} {name}" for name, count in without_rule(folded).most_common()]:
        yield f"int8: in float stay, having no int8 rule: {', '.join(others)}"
    if unasked:
        yield f"int8: in float stay {', '.join(called(folded, name) for name in unasked)}"


def allow_floats(
    gates: Gates, placement: Placement | NotMeasured, program: "ExportedProgram", demanded: Scheme | None
) -> Gates:
    """`gates` under which what `program` computes in float, each tap of each frame an op, is no fallback in float."""
    from edgeact.quantize.annotate import in_float

    assert demanded is not None, "a target with int8 has a scheme"
    asked = len(in_float(program.graph_module, demanded))
    fallback = placement.fallback if isinstance(placement, Placement) else ()
    floats = sum(name.endswith(IN_FLOAT) for name in fallback)
    return dataclasses.replace(gates, max_fallback=gates.max_fallback + min(asked, floats))


@dataclass(frozen=True, kw_only=True)
class _Start:
    """The float graph and the ranges that an int8 network is made of, and where they come from."""

    graph: "GraphModule"
    ranges: "Ranges"
    scheme: Scheme
    facts: dict[str, Any]
    note: str


def _calibrated(folded: "GraphModule", source: Source, scheme: Scheme) -> _Start:
    """`folded` with ranges from clips."""
    from edgeact.quantize.calibrate import calibrate

    clips, labels = source.clips, []
    assert clips is not None, "opened where nothing was trained"

    def arrays() -> Iterator[NDArray[np.uint8]]:
        for sample, clip in clips:
            labels.append(sample.label)
            yield clip

    found = calibrate(folded, arrays(), clips.spec, scheme, source.options.calibration.observer)
    facts = {"clips": len(labels), "classes": len(set(labels)), "observer": found.observer}
    judged = ", ".join(f"{name} {db:.1f} dB" for name, db in found.sqnr_db.items())
    note = f"int8: ranges from {len(labels)} clips of the training part, by {found.observer}"
    note += f", which loses least ({judged})" if judged else ""
    note += f"; skipped: {'; '.join(clips.skipped)}" if clips.skipped else ""
    return _Start(graph=folded, ranges=found.ranges, scheme=scheme, facts=facts, note=note)


def _trained(folded: "GraphModule", trained: QuantizedState, demanded: Scheme) -> _Start:
    """`folded` with the trained weights and ranges."""
    from edgeact.quantize.annotate import value_names

    if not trained.scheme.serves(demanded):
        raise CheckpointError(
            f"the checkpoint was trained for int8 with {trained.scheme}, the target demands {demanded}: train --qat "
            "with --scheme affine, or portable where zero must be at 0"
        )
    graph = copy.deepcopy(folded)
    own, given = graph.state_dict(), trained.weights
    if {name: (w.shape, w.dtype) for name, w in own.items()} != {name: (w.shape, w.dtype) for name, w in given.items()}:
        raise CheckpointError("the checkpoint's int8 weights are not those of its network: it is damaged")
    if unknown := set(trained.ranges).difference(value_names(graph).values()):
        raise CheckpointError(f"the checkpoint has int8 ranges of {some(sorted(unknown))}, which its network lacks")
    graph.load_state_dict(dict(trained.weights))
    note = "int8: weights and ranges from quantization-aware training"
    return _Start(graph=graph, ranges=trained.ranges, scheme=trained.scheme, facts={"trained": True}, note=note)


def _partly(
    folded: "GraphModule", start: _Start, whole: "GraphModule", scheme: Scheme, source: Source
) -> tuple["GraphModule", Mapping[str, float | None], tuple[str, ...]]:
    """The int8 network with its worst layers in float, and these with the SQNR in dB that each alone leaves.

    Or with those that were named, and None. And a note where "auto" could not find enough of them.
    """
    from edgeact.quantize import convert

    def keep(layers: Collection[str]) -> "GraphModule":
        return convert.quantize(start.graph, start.ranges, scheme, keep_float=layers)

    asked = source.options.keep_float
    if isinstance(asked, tuple):
        named = _named(folded, whole, asked)
        return keep(named), dict.fromkeys(named), ()
    ranked = dict(_ranked(start, whole, source))
    layers = list(ranked)
    missed: tuple[str, ...] = ()
    if asked != "auto" and asked > len(layers):
        raise InputError(f"keep_float is {asked}, and this network has {len(layers)} int8 layers: fewer, or 'auto'")
    if asked == "auto":
        assert source.validation is not None, "opened where it decides"
        reference = run_model(eager(folded, source.validation.spec), source.validation)
        # More layers in float lose less, so halving finds the fewest.
        asked = bisect_left(range(len(layers)), True, key=lambda n: _holds(keep(layers[:n]), reference, source))
        if asked == len(layers) and not _holds(keep(layers), reference, source):
            missed = (_NOT_REACHED,)
    return keep(layers[:asked]), {name: ranked[name] for name in layers[:asked]}, missed


def _ranked(start: _Start, whole: "GraphModule", source: Source) -> list[tuple[str, float]]:
    """The int8 layers with the SQNR in dB that each alone leaves, the worst first."""
    import torch

    from edgeact.quantize.layers import int8_layers, rank_layers

    assert source.clips is not None, "opened where layers are ranked"
    spec, step = source.clips.spec, max(1, len(source.clips.dataset.samples) // _RANKING_CLIPS)
    few = islice(source.clips, 0, _RANKING_CLIPS * step, step)  # they stand class by class
    clips = [torch.from_numpy(normalize(clip, spec)) for _, clip in few]
    with progress_bar("ranking layers", len(int8_layers(whole)), source.clips.progress) as on_layer:
        return rank_layers(start.graph, whole, clips, on_layer)


def _named(folded: "GraphModule", whole: "GraphModule", asked: Collection[str]) -> list[str]:
    """The int8 layers that the network calls `asked`."""
    from edgeact.quantize.layers import called, int8_layers

    names = {layer: called(folded, layer) for layer in int8_layers(whole)}
    for name in set(asked).difference(names.values()):
        raise UnknownNameError("int8 layer", name, names.values())
    return [layer for layer, name in names.items() if name in asked]


def _holds(network: "GraphModule", reference: Outputs, source: Source) -> bool:
    """Whether the simulation holds the gates on accuracy on the validation clips."""
    assert source.validation is not None
    answers = run_model(eager(network, source.validation.spec), source.validation).logits.argmax(1)
    before, truth = reference.logits.argmax(1), reference.truth
    drop_pt = 100 * float(np.mean(before == truth) - np.mean(answers == truth))
    return bool(drop_pt <= source.gates.max_drop_pt and np.mean(answers == before) >= source.gates.min_agreement)
