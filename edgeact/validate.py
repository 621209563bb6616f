"""A bundle against its own reference: what was measured of it, here or on a device, judged by one rule.

measure(bundle) ─► Results ─┐
results.json ─────► Results ─┴─► judge_results(bundle, results, gates) ─► Report
"""

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from edgeact._results_checks import check_results
from edgeact.accuracy import Accuracy, compare_accuracy
from edgeact.bundle import Bundle, open_bundle
from edgeact.descriptor_parity import Descriptors, compare_descriptors, descriptors_in_words, nearest_clip
from edgeact.errors import BundleError, InputError
from edgeact.evaluate import OnCorrupt
from edgeact.latency import Latency, summarize
from edgeact.measure import measure
from edgeact.numerics import Numerics, best_class, ladder
from edgeact.parity import NOT_ASKED, Gates, NotMeasured, Report, judge
from edgeact.placement import Placement, read_placement
from edgeact.results import LEFT_OUT, EvaluationOutputs, GoldenOutput, Results, read_results

__all__ = ["judge_results", "stored_gates", "validate"]

# Two H.264 decoders agree to the bit; colour conversion may round by a level. More than one level on average is
# another picture: wrong colour matrix, resize or frames.
MAX_DECODE_LEVELS = 1.0

# Of the evaluation set, by results that were measured elsewhere; one clip may always be skipped. Here, --skip-corrupt
# is the user's own choice on the user's own files.
MAX_SKIPPED = 0.01


def validate(
    bundle: Bundle | str | os.PathLike[str],
    *,
    data: str | os.PathLike[str] | None = None,
    threads: int = 0,
    rounds: int = 30,
    minutes: float | None = None,
    gates: Gates | None = None,
    on_corrupt: OnCorrupt = "error",
    progress: bool = False,
    results: Results | str | os.PathLike[str] | None = None,
) -> Report:
    """Judge a bundle, on this machine or by what a device measured.

    Args:
        bundle: A bundle or its folder.
        data: The evaluation set of the export; `motion` is made here. None takes `motion` for a bundle that was
            exported with it, and leaves accuracy unmeasured for any other.
        threads: CPU threads; 0 takes every core.
        rounds: Timed runs.
        minutes: Then run back to back for that long, with the machine's sensors; None does not.
        gates: Limits to hold; those stored in the bundle by default.
        on_corrupt: A video that cannot be used is an error, or is skipped and listed.
        progress: Show bars on stderr.
        results: What was measured elsewhere, by `edgeact.device.measure_on` or by a program that wrote this
            results.json: nothing is run here, and what says how to is not used.

    Raises:
        BundleError: The bundle is damaged, hostile or of another version.
        InputError: `data` is not the set of the export, or `results` are not of this bundle or not whole.
        MissingDependencyError: The bundle's runtime is not installed here.
    """
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    gates = gates or stored_gates(opened)
    if results is not None and data is not None:
        raise InputError("data is run here, results were measured elsewhere: give one of them")
    measured_here = results is None
    if results is None:
        how: dict[str, Any] = {"on_corrupt": on_corrupt, "progress": progress}
        results = measure(opened, data=data, threads=threads, rounds=rounds, minutes=minutes, **how)
    elif not isinstance(results, Results):
        results = read_results(results, opened)
    return judge_results(opened, results, gates, measured_here=measured_here)


def judge_results(bundle: Bundle, results: Results, gates: Gates, *, measured_here: bool = False) -> Report:
    """Judge what was measured of a bundle by what its export stored.

    Args:
        bundle: What was run.
        results: What was measured.
        gates: Limits to hold.
        measured_here: This very process measured it. Anything else may come from anyone: it must hold the logits of
            every golden clip, and falls short where it skips more than a hundredth of the evaluation set.

    Raises:
        InputError: The results are of another bundle, or not whole.
    """
    check_results(results, bundle, measured_here=measured_here)
    failures, notes = _check_decoding(results.golden)
    if bundle.manifest["facts"].get("held") is False:
        failures.append("export: it fell short there, as its report.json says: export it again with the gates to hold")
    if not measured_here:
        failures += _too_many_skipped(bundle, results)
    numerics, latency = _numerics(bundle, results), _latency(bundle, results)
    accuracy, descriptors, remarks = _accuracy(bundle, results, gates)
    placement = _placement(bundle, results)
    failures += judge(gates, numerics, accuracy, latency, placement, descriptors)
    if gates.min_speedup is not None and isinstance(latency, Latency) and not gates.require_all:
        gate = f"the gate of {gates.min_speedup:g}x of PyTorch eager"
        remarks.append(f"{gate} is not judged: {latency.reference_missing}")
    facts = dict(results.device.facts)
    notes += [
        *_proxy_note(results, placement),
        *_sample_note(bundle),
        *remarks,
        *_sustained_note(results),
        *results.notes,
    ]
    return Report(
        bundle=str(bundle.path),
        target=bundle.manifest["target"],
        model=bundle.manifest["model"],
        precision=bundle.manifest["precision"],
        form=bundle.manifest["form"],
        held=not failures,
        failures=tuple(failures),
        artifact={"files": list(bundle.manifest["artifact"]), "size_mb": bundle.artifact_mb},
        numerics=numerics,
        accuracy=accuracy,
        latency=latency,
        placement=placement,
        gates=gates,
        notes=tuple(notes),
        environment=facts if results.device.name in facts.values() else {"device": results.device.name, **facts},
        date=results.created,
        sustained=results.sustained,
        descriptors=descriptors,
    )


def stored_gates(bundle: Bundle) -> Gates:
    """The gates that the bundle was exported with.

    Raises:
        BundleError: They are malformed.
    """
    fields: dict[str, Any] = dict(bundle.manifest["gates"])
    try:
        return Gates(**fields)
    except (TypeError, InputError) as exc:
        raise BundleError(f"{bundle.path} has gates that cannot be used: {exc}") from exc


def _check_decoding(golden: Sequence[GoldenOutput]) -> tuple[list[str], list[str]]:
    """Failures and notes of decoding the golden videos, against the frames the export decoded."""
    failures, notes, compared = [], [], 0
    for clip in golden:
        if clip.frames is None:
            continue
        compared += 1
        mean, most = clip.frames.mean_levels or 0.0, clip.frames.max_levels or 0.0
        if clip.frames.error is not None:
            failures.append(f"decoding: {clip.id}: {clip.frames.error}")
        elif mean > MAX_DECODE_LEVELS:
            failures.append(
                f"decoding: {clip.id} differs from the export's frames by {mean:.1f} of 255 levels on average, more "
                f"than {MAX_DECODE_LEVELS:g}"
            )
        elif most > 0:
            notes.append(f"decoding: {clip.id} differs by at most {most:g} of 255 levels from the export's frames")
    if compared and not notes and not failures:
        notes.append(f"decoding: {compared} golden videos give the export's frames to the bit")
    if compared < len(golden):
        notes.append(f"decoding: not measured for {len(golden) - compared} of {len(golden)} golden videos")
    return failures, notes


def _numerics(bundle: Bundle, results: Results) -> Numerics | NotMeasured:
    """The golden clips: the artifact's logits against the reference's."""
    found = {clip.id: clip.logits for clip in results.golden}
    rows = []
    for clip in bundle.golden():
        logits = found[clip.id]
        if isinstance(logits, NotMeasured):
            return logits
        rows.append((clip.logits, logits))
    reference, outputs = (np.stack(side) for side in zip(*rows, strict=True))
    answers = best_class if bundle.reading is None else nearest_clip(bundle.reading)
    return ladder([("golden", reference), ("artifact", outputs)], answers=answers)


def _accuracy(
    bundle: Bundle, results: Results, gates: Gates
) -> tuple[Accuracy | NotMeasured, Descriptors | NotMeasured | None, list[str]]:
    """Accuracy on the evaluation set, the descriptors if there are, and notes on what differs from the export."""
    notes, evaluation = [f"skipped: {line}" for line in results.skipped], results.evaluation
    described = bundle.described()
    if isinstance(evaluation, NotMeasured):
        return evaluation, None if described is None else evaluation, notes
    reference = bundle.reference()
    row_of = {clip: row for row, clip in enumerate(reference.ids)}
    rows = [row_of[clip] for clip in evaluation.ids]
    outputs = (reference.logits[rows], evaluation.logits, reference.labels[rows])
    how: dict[str, Any] = {"clips": evaluation.ids, "labels": bundle.labels, "max_drop_pt": gates.max_drop_pt}
    descriptors = None
    if described is None:
        accuracy = compare_accuracy(*outputs, **how)
    else:
        accuracy, descriptors = compare_descriptors(*outputs, described, **how)
        notes.append(descriptors_in_words(described))
    return accuracy, descriptors, notes + _pixel_notes(evaluation, [reference.digests[row] for row in rows])


def _too_many_skipped(bundle: Bundle, results: Results) -> list[str]:
    """A failure where results leave out more clips than a few damaged files: what is left could be the easy ones."""
    if isinstance(results.evaluation, NotMeasured):
        return []
    total = len(bundle.reference().ids)
    skipped, allowed = total - len(results.evaluation.ids), max(1, int(MAX_SKIPPED * total))
    if skipped <= allowed:
        return []
    return [
        f"accuracy: {skipped} of the {total} clips of the evaluation set are skipped, more than {allowed} "
        f"({MAX_SKIPPED:.0%} of it, at least one)"
    ]


def _pixel_notes(evaluation: EvaluationOutputs, stored: Sequence[str]) -> list[str]:
    """How many clips are known to have other pixels than at the export, and of how many nobody said."""
    total = len(stored)
    unknown = evaluation.digests.count(None)
    other = sum(found not in (None, wanted) for found, wanted in zip(evaluation.digests, stored, strict=True))
    notes = [f"{other} of {total} clips decode to other pixels than at the export"] if other else []
    if unknown:
        notes.append(f"{unknown} of {total} clips have no sha256: whether they decode to the export's pixels is open")
    return notes


def _latency(bundle: Bundle, results: Results) -> Latency | NotMeasured:
    if isinstance(results.latency_ms, NotMeasured):
        return results.latency_ms
    facts = bundle.manifest["facts"]
    exported_ms, environment = facts.get("reference_ms"), facts.get("environment")
    machine = environment.get("cpu", "another machine") if isinstance(environment, dict) else "another machine"
    return summarize(
        {"artifact": list(results.latency_ms)},
        threads=results.runtime.threads,
        runtime=results.runtime.in_words(),
        device=results.device.name,
        peak_memory_mb=results.peak_memory_mb,
        reference_missing=f"PyTorch is not used here; the export measured {exported_ms:.1f} ms on {machine}"
        if isinstance(exported_ms, int | float)
        else "PyTorch is not used here",
    )


def _placement(bundle: Bundle, results: Results) -> Placement | NotMeasured:
    """As measured, with what each layer computes; what a proxy did says so, whatever the results call it.

    A proxy may hand on the compiler's estimate for the device, out of the bundle: that stays one.
    """
    found = results.placement
    if isinstance(found, NotMeasured):
        return found
    of_proxy = results.runtime.proxy_for is not None and not _is_the_compilers(found, bundle)
    macs = bundle.manifest["facts"].get("macs")
    if isinstance(macs, dict) and all(type(count) is int for count in macs.values()):
        found = found.with_macs(macs)
    return replace(found, kind="proxy") if of_proxy else found


def _is_the_compilers(found: Placement, bundle: Bundle) -> bool:
    """Whether it is the estimate that the export's compiler left in the bundle."""
    stored = "placement.json" in bundle.manifest["artifact"]
    return stored and found.kind == "estimated" and found == read_placement(bundle.path)


def _proxy_note(results: Results, placement: Placement | NotMeasured) -> tuple[str, ...]:
    used = results.runtime
    if used.proxy_for is None:
        return ()
    ran = f"{used.name} {used.version} ran in place of {used.proxy_for}: its logits are a proxy, and its latency"
    if isinstance(placement, Placement) and placement.kind != "proxy":
        return (f"{ran} is not that of {used.proxy_for}; the placement is what the export estimated",)
    return (f"{ran} and placement are not those of {used.proxy_for}",)


def _sample_note(bundle: Bundle) -> tuple[str, ...]:
    """That the export compared a sample of its data alone, where it did; the bundle holds no logits of the rest."""
    data = bundle.manifest["facts"].get("data")
    whole = data.get("sampled_from") if isinstance(data, dict) else None
    if type(whole) is not int:
        return ()
    return (f"the bundle's evaluation set is a sample: {len(bundle.reference().ids)} of {whole} clips",)


def _sustained_note(results: Results) -> tuple[str, ...]:
    """Why a sustained run that was asked for is not there: its table is missing without a word."""
    if not isinstance(results.sustained, NotMeasured) or results.sustained in (NOT_ASKED, LEFT_OUT):
        return ()
    return (f"sustained run: not measured: {results.sustained.not_measured}",)
