"""A bundle on the machine at hand, torch-free: what results.json holds.

golden videos ─► decoded frames ─► logits     each stage beside what the export stored
evaluation set (--data) ─► logits             for accuracy with flips
one golden clip, again and again ─► latency, peak memory, placement; with `minutes`, latency as heat builds up
"""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from edgeact._sensors import Sensors
from edgeact.bundle import Bundle, GoldenClip, ReferenceSet, open_bundle
from edgeact.data import VideoDataset, open_dataset
from edgeact.environment import busy_note, describe_environment, device_name, today
from edgeact.errors import InputError, VideoError
from edgeact.evaluate import MOTION, EvaluationSet, OnCorrupt, dataset_root, run_model
from edgeact.latency import measure_interleaved
from edgeact.parity import NOT_ASKED, NotMeasured
from edgeact.results import Device, EvaluationOutputs, FrameDifference, GoldenOutput, Results, UsedRuntime
from edgeact.runtime import CheckedRunner, emulation_of, load
from edgeact.runtime._memory import peak_memory_mb
from edgeact.sustained import Sustained, check_minutes, run_sustained
from edgeact.video import read_clip

__all__ = ["check_lengths", "evaluation_clips", "measure"]


def measure(
    bundle: Bundle | str | os.PathLike[str],
    *,
    data: str | os.PathLike[str] | None = None,
    threads: int = 0,
    rounds: int = 30,
    minutes: float | None = None,
    on_corrupt: OnCorrupt = "error",
    progress: bool = False,
) -> Results:
    """Run a bundle on this machine; `judge_results` judges what comes out.

    Args:
        bundle: A bundle or its folder.
        data: The evaluation set of the export; `motion` is made here. None takes `motion` for a bundle that was
            exported with it, and leaves the evaluation set unmeasured for any other.
        threads: CPU threads; 0 takes every core.
        rounds: Timed runs.
        minutes: Then run back to back for that long, with the machine's sensors; None does not.
        on_corrupt: A video that cannot be used is an error, or is skipped and listed.
        progress: Show bars on stderr.

    Raises:
        BundleError: The bundle is damaged, hostile or of another version.
        InputError: `data` is not the set of the export, or a count cannot be.
        MissingDependencyError: The bundle's runtime is not installed here.
    """
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    check_lengths(rounds, minutes)
    runner = load(opened, threads=threads)
    engine, clips = runner.runner, opened.golden()
    golden = tuple(_golden(runner, clip) for clip in clips)
    evaluation, skipped = _evaluation(runner, data, on_corrupt, progress)
    latency, memory_mb = _latency(runner, clips[0], rounds)
    sensors = Sensors(engine.device)
    return Results(
        bundle_name=opened.name,
        bundle_digest=opened.manifest["digest"],
        created=today(),
        runtime=UsedRuntime(
            name=runner.runtime, version=engine.version, threads=engine.threads, proxy_for=runner.proxy_for
        ),
        device=Device(name=device_name(engine.device), facts=describe_environment() | sensors.facts()),
        golden=golden,
        evaluation=evaluation,
        skipped=skipped,
        latency_ms=latency,
        peak_memory_mb=memory_mb,
        placement=engine.placement(),
        sustained=_sustained(runner, clips[0], minutes, sensors, progress),
        notes=(*_emulated_note(runner), *busy_note(timed=not isinstance(latency, NotMeasured))),
    )


def check_lengths(rounds: int, minutes: float | None) -> None:
    """Refuse what no measurement can take.

    Raises:
        InputError: There is no round, or `minutes` is not a positive number.
    """
    if rounds < 1:
        raise InputError(f"rounds is {rounds}: latency needs at least 1")
    if minutes is not None:
        check_minutes(minutes)


def _emulated_note(runner: CheckedRunner) -> tuple[str, ...]:
    if emulation := emulation_of(runner.runner):
        return (f"emulated: {emulation} ran the artifact: its logits count, its time says nothing",)
    return ()


def _golden(runner: CheckedRunner, clip: GoldenClip) -> GoldenOutput:
    """The stored frames through the network, and the video as this machine decodes it beside them."""
    missing = runner.runner.missing
    return GoldenOutput(
        id=clip.id,
        logits=NotMeasured(missing) if missing else runner(clip.frames[None])[0],
        frames=_decode(clip, runner.bundle),
    )


def _decode(clip: GoldenClip, bundle: Bundle) -> FrameDifference:
    try:
        frames = read_clip(clip.video, bundle.spec).frames
    except VideoError as exc:
        return FrameDifference(error=str(exc))
    levels = np.abs(frames.astype(np.int16) - clip.frames)
    return FrameDifference(mean_levels=float(levels.mean()), max_levels=float(levels.max()))


def _evaluation(
    runner: CheckedRunner, data: str | os.PathLike[str] | None, on_corrupt: OnCorrupt, progress: bool
) -> tuple[EvaluationOutputs | NotMeasured, tuple[str, ...]]:
    """The clips of the export through the network, and the videos that could not be used."""
    bundle = runner.bundle
    if runner.runner.missing:
        return NotMeasured(runner.runner.missing), ()
    dataset = evaluation_clips(bundle, data, progress=progress)
    if dataset is None:
        return NotMeasured(f"give --data to run the {len(bundle.reference().ids)} clips of the evaluation set"), ()
    clips = EvaluationSet(dataset, bundle.spec, on_corrupt=on_corrupt, progress=progress)
    outputs = run_model(runner, clips)
    ids = tuple(sample.id for sample in outputs.samples)
    return EvaluationOutputs(ids=ids, logits=outputs.logits, digests=outputs.digests), tuple(clips.skipped)


def evaluation_clips(
    bundle: Bundle, data: str | os.PathLike[str] | None, *, progress: bool = False
) -> VideoDataset | None:
    """The clips of a bundle's evaluation set in `data`; None where none is given and they cannot be made.

    Raises:
        InputError: `data` is not the set of the export.
    """
    if data is None and not _is_synthetic(bundle):
        return None
    return _same_clips(dataset_root(os.fspath(data or MOTION), progress=progress), bundle.labels, bundle.reference())


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


def _latency(
    runner: CheckedRunner, clip: GoldenClip, rounds: int
) -> tuple[tuple[float, ...] | NotMeasured, float | None]:
    """Milliseconds of every timed run, and the peak memory of a fresh process in megabytes."""
    bundle, engine = runner.bundle, runner.runner
    if engine.missing:
        return NotMeasured(engine.missing), None
    if runner.proxy_for:
        return NotMeasured(f"the device alone tells: {runner.runtime} is a proxy for {runner.proxy_for}"), None
    if emulation := emulation_of(engine):
        return NotMeasured(f"emulated: the device alone tells, and here is {emulation}"), None
    frames = np.ascontiguousarray(clip.frames[None])
    samples = measure_interleaved({"artifact": lambda: engine(frames)}, rounds=rounds)
    return tuple(samples["artifact"]), peak_memory_mb(runner.runtime, bundle.path, bundle.spec, engine.threads)


def _sustained(
    runner: CheckedRunner, clip: GoldenClip, minutes: float | None, sensors: Sensors, progress: bool
) -> Sustained | NotMeasured:
    if minutes is None:
        return NOT_ASKED
    if runner.runner.missing:
        return NotMeasured(runner.runner.missing)
    if runner.proxy_for:
        return NotMeasured(f"the device alone tells: {runner.runtime} is a proxy for {runner.proxy_for}")
    if emulation := emulation_of(runner.runner):
        return NotMeasured(f"emulated: the device alone tells, and here is {emulation}")
    frames = np.ascontiguousarray(clip.frames[None])
    return run_sustained(lambda: runner.runner(frames), minutes, sensors=sensors, progress=progress)
