"""From a network to a proven bundle, top to bottom.

    model (eval) ─► reference logits ─► torch.export ─► BN folded ─► [int8] ─► [lowered] ─► target.compile ─► parity
         fp32 rung                                 folded rung  quantized rung  lowered rung  artifact rung  ─► bundle

Shapes: the network maps float `clip_BCTHW -> logits_BK`; the artifact maps a uint8 `clip_BTHWC` with B=1 to the same.
"""

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeact._capture import behind_uint8, check_network, eager, fold, lower_and_prove, run_program
from edgeact._golden import clips_of, golden_clips, reference_set, spread, write_report
from edgeact._quantized import quantize
from edgeact.accuracy import Accuracy, compare_accuracy
from edgeact.bundle import Bundle, create_bundle, open_bundle, write_golden, write_manifest, write_reference
from edgeact.clip import ClipSpec, normalize
from edgeact.environment import busy_note, cpu_name, describe_environment, today
from edgeact.errors import InputError, UnknownNameError
from edgeact.evaluate import MOTION, EvaluationSet, OnCorrupt, Outputs, run_model
from edgeact.latency import Latency, measure_interleaved, summarize
from edgeact.numerics import Numerics, ladder
from edgeact.parity import Gates, NotMeasured, Placement, Report, judge
from edgeact.quantize.scheme import OBSERVERS, Observer
from edgeact.quantize.state import QuantizedState
from edgeact.runtime import Runner, load_runner
from edgeact.runtime._memory import peak_memory_mb
from edgeact.targets import Target, check_form, check_options, check_precision, get_target

if TYPE_CHECKING:
    from torch import nn

__all__ = ["export"]


def export(
    model: "nn.Module",
    *,
    target: str,
    spec: ClipSpec,
    precision: str = "fp32",
    form: str | None = None,
    options: Mapping[str, str] | None = None,
    data: str | os.PathLike[str] = MOTION,
    out: str | os.PathLike[str] = "bundles",
    name: str | None = None,
    labels: Sequence[str] | None = None,
    model_name: str | None = None,
    facts: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
    gates: Gates | None = None,
    clips: int | None = None,
    calibration_clips: int = 64,
    observer: Observer = "min-max",
    quantized: QuantizedState | None = None,
    threads: int = 0,
    rounds: int = 30,
    on_corrupt: OnCorrupt = "error",
    progress: bool = False,
) -> Bundle:
    """Export `model` for `target`, prove it against itself in fp32, and write the bundle `out/name`.

    Args:
        model: Float `clip_BCTHW -> logits_BK`; it is put in eval mode on the CPU.
        target: One of `list_targets()`.
        spec: How a video becomes a clip.
        precision: One of the target's precisions.
        form: One of the target's forms of time; the first of them by default.
        options: Options of the target, such as `{"backend": "vulkan"}`.
        data: Labelled videos (see `edgeact.data`), of which the held-out part is used, or `motion`.
        out: Folder of bundles; a bundle of the same name is replaced once the new one is whole.
        name: The bundle's name; `<model>-<target>-<precision>` by default, with options that are not defaults.
        labels: Class names in the order of the logits; those of `data`, sorted, by default.
        model_name: The network's name in the manifest; its class by default.
        facts: More facts for the manifest, such as those of the training.
        notes: Remarks for the report.
        gates: Limits to hold; `Gates.defaults(precision)` by default.
        clips: Most clips of the held-out part, even over the classes; all by default.
        calibration_clips: Clips of the training part of `data` that int8 takes its ranges from, even over the classes.
        observer: How an activation's range follows from them: min-max, percentile or mse.
        quantized: What quantization-aware training left of `model` (`Checkpoint.quantized`); int8 then needs no clips.
        threads: CPU threads of both sides of the latency comparison; 0 takes every core.
        rounds: Interleaved rounds of the latency comparison.
        on_corrupt: A video that cannot be used is an error, or is skipped and listed.
        progress: Show bars on stderr.

    Returns:
        The bundle. Whether it held its gates stands in `report.json` and in `bundle.manifest["facts"]["held"]`.

    Raises:
        InputError: Anything that was asked cannot be done; nothing is left behind.
        ToolchainError: torch.export or the target's toolchain failed.
    """
    check_precision(target, precision)
    if observer not in OBSERVERS:
        raise UnknownNameError("observer", observer, OBSERVERS)
    for number, value, why in (("rounds", rounds, "latency"), ("calibration_clips", calibration_clips, "int8")):
        if value < 1:
            raise InputError(f"{number} is {value}: {why} needs at least 1")
    model_name = model_name or type(model).__name__
    options = check_options(target, options or {})
    evaluation = EvaluationSet.open(
        os.fspath(data),
        spec,
        labels=tuple(labels) if labels is not None else None,
        clips=clips,
        on_corrupt=on_corrupt,
        progress=progress,
    )
    int8: EvaluationSet | QuantizedState | None = None
    if precision == "int8" and quantized is not None and quantized.spec != spec:
        raise InputError(f"int8 was trained for clips of {quantized.spec}, not {spec}: keep the checkpoint's ClipSpec")
    if precision == "int8":
        int8 = quantized or EvaluationSet.for_calibration(
            os.fspath(data),
            spec,
            labels=evaluation.dataset.labels,
            clips=calibration_clips,
            on_corrupt=on_corrupt,
            progress=progress,
        )
    job = _Job(
        name=_bundle_name(name or _default_name(model_name, target, precision, options)),
        model=model.cpu().float().eval(),
        model_name=model_name,
        target_name=target,
        target=get_target(target),
        precision=precision,
        form=check_form(target, form),
        options=options,
        spec=spec,
        gates=gates or Gates.defaults(precision),
        threads=threads or os.cpu_count() or 1,
        rounds=rounds,
        evaluation=evaluation,
        int8=int8,
        observer=observer,
    )
    facts = dict(facts or {}) | {"data": {"name": Path(data).name, "synthetic": str(data) == MOTION}}
    with _torch_threads(job.threads), create_bundle(Path(out), job.name) as folder:
        _build(job, folder, bundle=str(Path(out) / job.name), facts=facts, notes=notes)
    return open_bundle(Path(out) / job.name)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Job:
    """What was asked, checked."""

    name: str
    model: "nn.Module"
    model_name: str
    target_name: str
    target: Target
    precision: str
    form: str
    options: Mapping[str, str]
    spec: ClipSpec
    gates: Gates
    threads: int
    rounds: int
    evaluation: EvaluationSet
    int8: EvaluationSet | QuantizedState | None
    observer: Observer

    @property
    def labels(self) -> tuple[str, ...]:
        return self.evaluation.dataset.labels


def _default_name(model: str, target: str, precision: str, options: Mapping[str, str]) -> str:
    """`<model>-<target>-<precision>`, and the options that are not the target's defaults."""
    chosen = [value for name, value in options.items() if value != get_target(target).options[name][0]]
    return "-".join([model.rpartition(":")[2], target, *chosen, precision])


def _bundle_name(name: str) -> str:
    if not name or Path(name).name != name or name.startswith("."):
        raise InputError(f"a bundle cannot be named {name!r}: give a plain folder name")
    return name


def _run_reference(job: _Job) -> Outputs:
    """The full-precision model on the evaluation set: what everything after is compared with."""
    outputs, classes = check_network(job.model, job.spec), len(job.labels)
    if outputs != classes:
        raise InputError(f"the model has {outputs} outputs, the data {classes} classes")
    return run_model(eager(job.model, job.spec), job.evaluation)


def _build(job: _Job, folder: Path, *, bundle: str, facts: Mapping[str, Any], notes: Sequence[str]) -> None:
    """The pipeline: every rung, the artifact, what is measured of it, and the bundle's files."""
    reference = _run_reference(job)
    shown = clips_of(job.evaluation, spread(reference.samples))
    network = fold(job.model, job.spec)
    rungs = [("folded", run_model(eager(network, job.spec), shown).logits)]
    if job.int8 is not None:
        assert job.target.scheme is not None, "a target with int8 has a scheme"
        network, quantization = quantize(network, job.int8, job.target.scheme, job.observer)
        rungs.append(("quantized", run_model(eager(network, job.spec), shown).logits))
        facts = {**facts, "quantization": quantization}
        notes = (*_int8_notes(quantization), *notes)
    program = lower_and_prove(behind_uint8(network, job.spec), job.form, shown[0][1])
    if job.form != "volumetric":
        rungs.append(("lowered", run_model(run_program(program), shown).logits))
    job.target.compile(program, folder, job.precision, job.options)
    files = sorted(file.name for file in folder.iterdir())
    runner = load_runner(job.target.runtime, folder, job.spec, job.threads)
    artifact = NotMeasured(runner.missing) if runner.missing else run_model(runner, job.evaluation)
    report = _report(
        job,
        numerics=_ladder(reference, rungs, artifact, [sample.id for sample, _ in shown]),
        reference=reference,
        artifact=artifact,
        latency=_latency(job, runner, folder, shown[0][1]),
        placement=runner.placement(),
        files={"files": files, "size_mb": sum((folder / file).stat().st_size for file in files) / 1e6},
        bundle=bundle,
        notes=(*notes, *_notes(job.evaluation), *busy_note()),
    )
    write_golden(folder, golden_clips(reference, shown, job.labels))
    write_reference(folder, reference_set(reference))
    write_report(report, folder, job.evaluation, facts.get("training", {}).get("curves", ()))
    write_manifest(folder, _manifest(job, report, files, facts))


def _ladder(
    reference: Outputs,
    rungs: list[tuple[str, NDArray[np.float32]]],
    artifact: Outputs | NotMeasured,
    shown: list[str],
) -> Numerics:
    """Every rung on the clips `shown`; reference and artifact ran all clips, these among them."""
    row_of = {sample.id: row for row, sample in enumerate(reference.samples)}
    rows = [row_of[clip] for clip in shown]
    if not isinstance(artifact, NotMeasured):
        rungs = [*rungs, ("artifact", artifact.logits[rows])]
    return ladder([("fp32", reference.logits[rows]), *rungs])


def _report(
    job: _Job,
    *,
    numerics: Numerics,
    reference: Outputs,
    artifact: Outputs | NotMeasured,
    latency: Latency | NotMeasured,
    placement: Placement,
    files: dict[str, Any],
    bundle: str,
    notes: tuple[str, ...],
) -> Report:
    """What was measured, and the verdict."""
    accuracy: Accuracy | NotMeasured
    if isinstance(artifact, NotMeasured):
        accuracy = artifact
        notes = (f"artifact rung: not measured: {artifact.not_measured}", *notes)
    else:
        accuracy = compare_accuracy(
            reference.logits,
            artifact.logits,
            reference.truth,
            clips=[sample.id for sample in reference.samples],
            labels=job.labels,
            max_drop_pt=job.gates.max_drop_pt,
        )
    failures = judge(job.gates, numerics, accuracy, latency, placement)
    return Report(
        bundle=bundle,
        target=job.target_name,
        model=job.model_name,
        precision=job.precision,
        form=job.form,
        held=not failures,
        failures=failures,
        artifact=files | {"weights_fp32_mb": sum(4 * p.numel() for p in job.model.parameters()) / 1e6},
        numerics=numerics,
        accuracy=accuracy,
        latency=latency,
        placement=placement,
        gates=job.gates,
        notes=notes,
        environment=describe_environment(),
        date=today(),
    )


def _manifest(job: _Job, report: Report, files: list[str], facts: Mapping[str, Any]) -> dict[str, Any]:
    latency = report.latency
    return {
        "name": job.name,
        "model": job.model_name,
        "target": job.target_name,
        "precision": job.precision,
        "form": job.form,
        "options": dict(job.options),
        "runtime": job.target.runtime,
        "artifact": files,
        "spec": job.spec.to_dict(),
        "labels": list(job.labels),
        "io": _io(job.spec, len(job.labels)),
        "gates": dataclasses.asdict(job.gates),
        "facts": {
            **facts,
            "held": report.held,
            "created": report.date,
            "environment": report.environment,
            "reference_ms": latency.reference_ms if isinstance(latency, Latency) else None,
        },
    }


@contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _latency(job: _Job, runner: Runner, folder: Path, clip: NDArray[np.uint8]) -> Latency | NotMeasured:
    """PyTorch eager on the normalised clip against the artifact on the uint8 clip: the artifact does more."""
    import torch

    if runner.missing:
        return NotMeasured(runner.missing)

    clip_BCTHW = torch.from_numpy(normalize(clip, job.spec))
    with torch.inference_mode():
        samples = measure_interleaved(
            {"reference": lambda: job.model(clip_BCTHW), "artifact": lambda: runner(clip)}, rounds=job.rounds
        )
    return summarize(
        samples,
        threads=job.threads,
        runtime=f"{job.target.runtime} {runner.version}",
        device=cpu_name(),
        peak_memory_mb=peak_memory_mb(job.target.runtime, folder, job.spec, job.threads),
    )


def _int8_notes(quantization: Mapping[str, Any]) -> list[str]:
    notes = ["int8: weights and ranges from quantization-aware training"]
    if "clips" in quantization:
        notes = [f"int8: ranges from {quantization['clips']} clips of the training part"]
    if quantization["in_float"]:
        notes.append(f"int8: in float stay {', '.join(quantization['in_float'])}")
    return notes


def _notes(evaluation: EvaluationSet) -> list[str]:
    notes = [f"skipped: {line}" for line in evaluation.skipped]
    looped = [note for note in evaluation.notes if "looped" in note]
    if looped:
        notes.append(
            f"{len(looped)} of {len(evaluation.dataset.samples)} videos are shorter than a clip and were looped"
        )
    return notes + [note for note in evaluation.notes if note not in looped]


def _io(spec: ClipSpec, classes: int) -> dict[str, Any]:
    return {
        "input": {"name": "clip", "dtype": "uint8", "shape": [1, *spec.clip_shape], "layout": "BTHWC", "color": "RGB"},
        "output": {"name": "logits", "dtype": "float32", "shape": [1, classes], "layout": "BK"},
        "normalization": "inside the graph",
    }
