"""A bundle against its own reference, on the machine where it runs: no torch, no checkpoint.

golden videos ─► decoded frames ─► logits          each stage compared with what the export stored
evaluation set (--data) ─► logits ─► reference.npz  accuracy with flips, as at the export
"""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edgeact.accuracy import Accuracy, compare_accuracy
from edgeact.bundle import Bundle, GoldenClip, ReferenceSet, open_bundle
from edgeact.data import VideoDataset, open_dataset
from edgeact.environment import busy_note, describe_environment, device_name, today
from edgeact.errors import BundleError, InputError, VideoError
from edgeact.evaluate import MOTION, EvaluationSet, OnCorrupt, dataset_root, run_model
from edgeact.latency import Latency, measure_interleaved, summarize
from edgeact.numerics import Numerics, ladder
from edgeact.parity import Gates, NotMeasured, Placement, Report, judge
from edgeact.runtime import CheckedRunner, load
from edgeact.runtime._memory import peak_memory_mb
from edgeact.video import read_clip

__all__ = ["stored_gates", "validate"]

# Two H.264 decoders agree to the bit; colour conversion may round by a level. More than one level on average is
# another picture: wrong colour matrix, resize or frames.
MAX_DECODE_LEVELS = 1.0


def validate(
    bundle: Bundle | str | os.PathLike[str],
    *,
    data: str | os.PathLike[str] | None = None,
    threads: int = 0,
    rounds: int = 30,
    gates: Gates | None = None,
    on_corrupt: OnCorrupt = "error",
    progress: bool = False,
) -> Report:
    """Judge a bundle on this machine.

    Args:
        bundle: A bundle or its folder.
        data: The evaluation set of the export; `motion` is made here. None takes `motion` for a bundle that was
            exported with it, and leaves accuracy unmeasured for any other.
        threads: CPU threads; 0 takes every core.
        rounds: Timed runs.
        gates: Limits to hold; those stored in the bundle by default.
        on_corrupt: A video that cannot be used is an error, or is skipped and listed.
        progress: Show bars on stderr.

    Raises:
        BundleError: The bundle is damaged, hostile or of another version.
        InputError: `data` is not the set of the export.
        MissingDependencyError: The bundle's runtime is not installed here.
    """
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    if rounds < 1:
        raise InputError(f"rounds is {rounds}: latency needs at least 1")
    runner = load(opened, threads=threads)
    gates = gates or stored_gates(opened)
    golden, reference = opened.golden(), opened.reference()
    notes, failures = _check_decoding(golden, opened)
    if opened.manifest["facts"].get("held") is False:
        failures.append("export: it fell short there, as its report.json says: export it again with the gates to hold")
    numerics: Numerics | NotMeasured
    accuracy: Accuracy | NotMeasured
    latency: Latency | NotMeasured
    if runner.runner.missing:
        numerics = accuracy = latency = NotMeasured(runner.runner.missing)
        return _judged(opened, gates, numerics, accuracy, latency, runner.runner.placement(), failures, notes)
    outputs = np.concatenate([runner(clip.frames[None]) for clip in golden])
    numerics = ladder([("golden", np.stack([clip.logits for clip in golden])), ("artifact", outputs)])
    if data is None and not _is_synthetic(opened):
        accuracy = NotMeasured(f"give --data to run the {len(reference.ids)} clips of the evaluation set")
    else:
        dataset = _same_clips(dataset_root(os.fspath(data or MOTION), progress=progress), opened.labels, reference)
        clips = EvaluationSet(dataset, opened.spec, on_corrupt=on_corrupt, progress=progress)
        accuracy, more = _accuracy(runner, reference, clips, gates)
        notes += more
    latency = _latency(runner, golden[0], rounds)
    return _judged(opened, gates, numerics, accuracy, latency, runner.runner.placement(), failures, notes)


def _judged(
    bundle: Bundle,
    gates: Gates,
    numerics: Numerics | NotMeasured,
    accuracy: Accuracy | NotMeasured,
    latency: Latency | NotMeasured,
    placement: Placement | NotMeasured,
    failures: Sequence[str],
    notes: Sequence[str],
) -> Report:
    """The report on these measurements; `failures` are those of decoding, which no gate judges."""
    failures = (*failures, *judge(gates, numerics, accuracy, latency, placement))
    if gates.min_speedup is not None and isinstance(latency, Latency) and not gates.require_all:
        gate = f"the gate of {gates.min_speedup:g}x of PyTorch eager"
        notes = (*notes, f"{gate} is not judged: {latency.reference_missing}")
    return Report(
        bundle=str(bundle.path),
        target=bundle.manifest["target"],
        model=bundle.manifest["model"],
        precision=bundle.manifest["precision"],
        form=bundle.manifest["form"],
        held=not failures,
        failures=failures,
        artifact={"files": list(bundle.manifest["artifact"]), "size_mb": bundle.artifact_mb},
        numerics=numerics,
        accuracy=accuracy,
        latency=latency,
        placement=placement,
        gates=gates,
        notes=(*notes, *busy_note()),
        environment=describe_environment(),
        date=today(),
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


def _check_decoding(golden: Sequence[GoldenClip], bundle: Bundle) -> tuple[list[str], list[str]]:
    """Notes and failures of decoding the golden videos here, against the frames the export decoded."""
    notes, failures = [], []
    for clip in golden:
        try:
            frames = read_clip(clip.video, bundle.spec).frames
        except VideoError as exc:
            failures.append(f"decoding: {clip.id}: {exc}")
            continue
        levels = np.abs(frames.astype(np.int16) - clip.frames)
        if levels.mean() > MAX_DECODE_LEVELS:
            failures.append(
                f"decoding: {clip.id} differs from the export's frames by {levels.mean():.1f} of 255 levels on "
                f"average, more than {MAX_DECODE_LEVELS:g}"
            )
        elif levels.max() > 0:
            notes.append(
                f"decoding: {clip.id} differs by at most {levels.max()} of 255 levels from the export's frames"
            )
    if not notes and not failures:
        notes.append(f"decoding: {len(golden)} golden videos give the export's frames to the bit")
    return notes, failures


def _is_synthetic(bundle: Bundle) -> bool:
    data = bundle.manifest["facts"].get("data")
    return isinstance(data, dict) and data.get("synthetic") is True


def _same_clips(root: Path, labels: tuple[str, ...], reference: ReferenceSet) -> VideoDataset:
    """The clips of `reference`, in its order, out of the folder `root`.

    Raises:
        InputError: The folder lacks a clip, or labels one differently.
    """
    dataset = open_dataset(root, split="all", labels=labels)
    by_id = {sample.id: sample for sample in dataset.samples}
    missing = [clip for clip in reference.ids if clip not in by_id]
    if missing:
        raise InputError(
            f"{root} lacks {len(missing)} of the {len(reference.ids)} clips of the bundle's evaluation set, first "
            f"{missing[0]!r}: give the folder that the bundle was exported with"
        )
    relabelled = [
        clip for clip, label in zip(reference.ids, reference.labels, strict=True) if by_id[clip].label != label
    ]
    if relabelled:
        raise InputError(f"{root} labels {relabelled[0]!r} differently from the bundle's evaluation set")
    return replace(dataset, samples=tuple(by_id[clip] for clip in reference.ids))


def _accuracy(
    runner: CheckedRunner, reference: ReferenceSet, clips: EvaluationSet, gates: Gates
) -> tuple[Accuracy, list[str]]:
    """Accuracy on `clips`, which are those of `reference`, and notes on what differs from the export."""
    outputs = run_model(runner, clips)
    row_of = {clip: row for row, clip in enumerate(reference.ids)}
    rows = [row_of[sample.id] for sample in outputs.samples]
    notes = [f"skipped: {line}" for line in clips.skipped]
    other = sum(reference.digests[row] != digest for row, digest in zip(rows, outputs.digests, strict=True))
    if other:
        notes.append(f"{other} of {len(rows)} clips decode to other pixels here than at the export")
    accuracy = compare_accuracy(
        reference.logits[rows],
        outputs.logits,
        outputs.truth,
        clips=[sample.id for sample in outputs.samples],
        labels=runner.labels,
        max_drop_pt=gates.max_drop_pt,
    )
    return accuracy, notes


def _latency(runner: CheckedRunner, clip: GoldenClip, rounds: int) -> Latency:
    frames = np.ascontiguousarray(clip.frames[None])
    bundle = runner.bundle
    samples = measure_interleaved({"artifact": lambda: runner.runner(frames)}, rounds=rounds)
    facts = bundle.manifest["facts"]
    exported_ms, environment = facts.get("reference_ms"), facts.get("environment")
    machine = environment.get("cpu", "another machine") if isinstance(environment, dict) else "another machine"
    return summarize(
        samples,
        threads=runner.runner.threads,
        runtime=f"{bundle.runtime} {runner.runner.version}",
        device=device_name(runner.runner.device),
        peak_memory_mb=peak_memory_mb(bundle.runtime, Path(bundle.path), bundle.spec, runner.runner.threads),
        reference_missing=f"PyTorch is not used here; the export measured {exported_ms:.1f} ms on {machine}"
        if isinstance(exported_ms, int | float)
        else "PyTorch is not used here",
    )
