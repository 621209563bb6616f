"""From a network to a proven bundle, top to bottom.

    model (eval) ─► reference logits ─► torch.export ─► BN folded ─► [lowered] ─► target.compile ─► parity ─► bundle
         fp32 rung                                    folded rung                  artifact rung

Shapes: the network maps float `clip_BCTHW -> logits_BK`; the artifact maps a uint8 `clip_BTHWC` with B=1 to the same.
"""

import dataclasses
import json
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeact.bundle import (
    Bundle,
    GoldenClip,
    ReferenceSet,
    create_bundle,
    open_bundle,
    write_golden,
    write_manifest,
    write_reference,
)
from edgeact.clip import ClipSpec, normalize, scale_and_offset
from edgeact.data import Sample
from edgeact.environment import busy_note, cpu_name, describe_environment, today
from edgeact.errors import InputError, ToolchainError
from edgeact.evaluate import MOTION, EvaluationSet, OnCorrupt, Outputs, run_model
from edgeact.latency import Latency, measure_interleaved, summarize
from edgeact.parity import Accuracy, Gates, Report, compare_accuracy, judge, ladder
from edgeact.runtime import Runner, load_runner
from edgeact.runtime._memory import peak_memory_mb
from edgeact.targets import Target, check_precision, get_target

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram
    from torch.fx import GraphModule

__all__ = ["export"]

_GOLDEN_CLIPS = 4
_LADDER_CLIPS = 16
_FLIPPED_CLIPS_SHOWN = 24

Call = Callable[[NDArray[np.uint8]], NDArray[np.float32]]  # uint8 clip [1, T, H, W, 3] -> logits [1, K]


def export(
    model: "nn.Module",
    *,
    target: str,
    spec: ClipSpec,
    precision: str = "fp32",
    data: str | os.PathLike[str] = MOTION,
    out: str | os.PathLike[str] = "bundles",
    name: str | None = None,
    labels: Sequence[str] | None = None,
    model_name: str | None = None,
    facts: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
    gates: Gates | None = None,
    clips: int | None = None,
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
        data: Labelled videos (see `edgeact.data`), of which the held-out part is used, or `motion`.
        out: Folder of bundles; a bundle of the same name is replaced once the new one is whole.
        name: The bundle's name; `<model>-<target>-<precision>` by default.
        labels: Class names in the order of the logits; those of `data`, sorted, by default.
        model_name: The network's name in the manifest; its class by default.
        facts: More facts for the manifest, such as those of the training.
        notes: Remarks for the report.
        gates: Limits to hold; `Gates.defaults(precision)` by default.
        clips: Most clips of the held-out part, even over the classes; all by default.
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
    if rounds < 1:
        raise InputError(f"rounds is {rounds}: latency needs at least 1")
    model_name = model_name or type(model).__name__
    job = _Job(
        name=_bundle_name(name or f"{model_name.rpartition(':')[2]}-{target}-{precision}"),
        model=model.cpu().float().eval(),
        model_name=model_name,
        target_name=target,
        target=get_target(target),
        precision=precision,
        spec=spec,
        gates=gates or Gates.defaults(precision),
        threads=threads or os.cpu_count() or 1,
        rounds=rounds,
        evaluation=EvaluationSet.open(
            os.fspath(data),
            spec,
            labels=tuple(labels) if labels is not None else None,
            clips=clips,
            on_corrupt=on_corrupt,
            progress=progress,
        ),
    )
    facts = dict(facts or {}) | {"data": {"name": Path(data).name, "synthetic": str(data) == MOTION}}
    with _torch_threads(job.threads), create_bundle(Path(out), job.name) as folder:
        reference = _run_reference(job)
        folded = _fold(job.model, spec)
        job.target.compile(_export_uint8(folded, spec), folder, precision)
        files = sorted(file.name for file in folder.iterdir())
        runner = load_runner(job.target.runtime, folder, spec, job.threads)
        shown = _clips_of(job.evaluation, _spread(reference.samples))
        report = _measure(job, reference, folded, runner, shown, folder, files, Path(out), notes)
        write_golden(folder, _golden(reference, shown, job.labels))
        write_reference(folder, _reference_set(reference))
        _write_report(report, folder, job.evaluation, facts.get("training", {}).get("curves", ()))
        write_manifest(folder, _manifest(job, report, files, facts))
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
    spec: ClipSpec
    gates: Gates
    threads: int
    rounds: int
    evaluation: EvaluationSet

    @property
    def labels(self) -> tuple[str, ...]:
        return self.evaluation.dataset.labels


def _bundle_name(name: str) -> str:
    if not name or Path(name).name != name or name.startswith("."):
        raise InputError(f"a bundle cannot be named {name!r}: give a plain folder name")
    return name


def _run_reference(job: _Job) -> Outputs:
    """The full-precision model on the evaluation set: what everything after is compared with."""
    reference = run_model(_eager(job.model, job.spec), job.evaluation)
    outputs, classes = reference.logits.shape[1], len(job.labels)
    if outputs != classes:
        raise InputError(f"the model has {outputs} outputs, the data {classes} classes")
    return reference


def _measure(
    job: _Job,
    reference: Outputs,
    folded: "nn.Module",
    runner: Runner,
    shown: list[tuple[Sample, NDArray[np.uint8]]],
    folder: Path,
    files: list[str],
    out: Path,
    notes: Sequence[str],
) -> Report:
    """Every rung on the `shown` clips; accuracy on the evaluation set; latency and placement; and the verdict."""
    artifact = run_model(runner, job.evaluation)
    row_of = {sample.id: row for row, sample in enumerate(reference.samples)}
    rows = [row_of[sample.id] for sample, _ in shown]
    numerics = ladder(
        [
            ("fp32", reference.logits[rows]),
            ("folded", run_model(_eager(folded, job.spec), shown).logits),
            ("artifact", artifact.logits[rows]),
        ]
    )
    accuracy = compare_accuracy(
        reference.logits,
        artifact.logits,
        reference.truth,
        clips=[sample.id for sample in reference.samples],
        labels=job.labels,
        max_drop_pt=job.gates.max_drop_pt,
    )
    latency = _latency(job, runner, folder, shown[0][1])
    placement = runner.placement()
    failures = judge(job.gates, numerics, accuracy, latency, placement)
    return Report(
        bundle=str(out / job.name),
        target=job.target_name,
        model=job.model_name,
        precision=job.precision,
        form=job.target.form,
        held=not failures,
        failures=failures,
        artifact={
            "files": files,
            "size_mb": sum((folder / file).stat().st_size for file in files) / 1e6,
            "weights_fp32_mb": sum(4 * p.numel() for p in job.model.parameters()) / 1e6,
        },
        numerics=numerics,
        accuracy=accuracy,
        latency=latency,
        placement=placement,
        gates=job.gates,
        notes=(*notes, *_notes(job.evaluation), *busy_note()),
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
        "form": job.target.form,
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


def _reference_set(outputs: Outputs) -> ReferenceSet:
    return ReferenceSet(tuple(sample.id for sample in outputs.samples), outputs.truth, outputs.digests, outputs.logits)


def _write_report(
    report: Report, folder: Path, evaluation: EvaluationSet, curves: Sequence[Mapping[str, float]]
) -> None:
    """`report.json`, and `report.html` with the frames of the clips that flipped."""
    from edgeact.report import write_html

    (folder / "report.json").write_text(json.dumps(report.to_dict(), indent=1) + "\n")
    flips = report.accuracy.flips if isinstance(report.accuracy, Accuracy) else ()
    flipped = {flip.clip for flip in flips[:_FLIPPED_CLIPS_SHOWN]}
    clips = _clips_of(evaluation, [sample for sample in evaluation.dataset.samples if sample.id in flipped])
    frames = {sample.id: clip[0] for sample, clip in clips}
    write_html(report, folder / "report.html", clip_frames=frames, curves=curves)


def _eager(module: "nn.Module", spec: ClipSpec) -> Call:
    """The PyTorch side: normalisation in numpy, the same one that a device without it in the graph would use."""
    import torch

    def call(clip: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.inference_mode():
            logits: NDArray[np.float32] = module(torch.from_numpy(normalize(clip, spec))).numpy()
        return logits

    return call


@contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _torch_export_errors() -> Iterator[None]:
    """torch.export's failures in one line; they derive from many classes (UserError, Unsupported, RuntimeError …)."""
    with warnings.catch_warnings():
        # torch 2.13's own use of a class it deprecates, printed at every export
        warnings.filterwarnings("ignore", message=".*treespec, LeafSpec", category=FutureWarning)
        try:
            yield
        except InputError:
            raise
        except Exception as exc:
            lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
            raise ToolchainError(
                f"torch.export cannot capture this network: {lines[0] if lines else type(exc).__name__}; "
                "its forward must not depend on the values of tensors"
            ) from exc


def _fold(model: "nn.Module", spec: ClipSpec) -> "GraphModule":
    """The network's ATen graph with BatchNorm folded: float `clip_BCTHW` with B=1 -> `logits_BK`."""
    import torch

    from edgeact.quantize import fold_batch_norm

    clip = torch.zeros(1, 3, spec.frames, spec.crop_height, spec.crop_width)
    with _torch_export_errors(), torch.no_grad():
        graph: GraphModule = torch.export.export(model, (clip,)).module(check_guards=False)
        fold_batch_norm(graph)
    return graph


def _export_uint8(network: "nn.Module", spec: ClipSpec) -> "ExportedProgram":
    """`network` behind a uint8 `clip_BTHWC` input, normalisation inside: equal to `network(normalize(clip, spec))`."""
    import torch

    class Uint8Input(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            scale, offset = (torch.from_numpy(array).view(3, 1, 1, 1) for array in scale_and_offset(spec))
            self.network = network
            self.scale = torch.nn.Buffer(scale)
            self.offset = torch.nn.Buffer(offset)

        def forward(self, clip: torch.Tensor) -> torch.Tensor:
            x_BCTHW = clip.permute(0, 4, 1, 2, 3).float()
            logits_BK: torch.Tensor = self.network(x_BCTHW * self.scale + self.offset)
            return logits_BK

    with _torch_export_errors(), torch.no_grad():
        return torch.export.export(Uint8Input(), (torch.zeros((1, *spec.clip_shape), dtype=torch.uint8),))


def _spread(samples: Sequence[Sample]) -> list[Sample]:
    """A few samples for the rungs, spread over the classes: the first of every class, then the second …."""
    seen: Counter[int] = Counter()
    ranked = []
    for i, sample in enumerate(samples):
        ranked.append((seen[sample.label], i))
        seen[sample.label] += 1
    return [samples[i] for _, i in sorted(ranked)[:_LADDER_CLIPS]]


def _clips_of(evaluation: EvaluationSet, samples: Sequence[Sample]) -> list[tuple[Sample, NDArray[np.uint8]]]:
    """Decoded clips of these samples, in their order; they were usable before, so nothing is skipped now."""
    if not samples:
        return []
    part = dataclasses.replace(
        evaluation,
        dataset=dataclasses.replace(evaluation.dataset, samples=tuple(samples)),
        progress=False,
        notes=[],
        skipped=[],
    )
    return list(part)


def _golden(
    reference: Outputs, clips: Sequence[tuple[Sample, NDArray[np.uint8]]], labels: Sequence[str]
) -> list[GoldenClip]:
    """The smallest videos among the ladder's clips, one per class while classes last."""
    logits = {sample.id: row for sample, row in zip(reference.samples, reference.logits, strict=True)}
    by_size = sorted(clips, key=lambda pair: pair[0].path.stat().st_size)
    first_of_class = {sample.label: i for i, (sample, _) in reversed(list(enumerate(by_size)))}
    order = sorted(range(len(by_size)), key=lambda i: (first_of_class[by_size[i][0].label] != i, i))
    return [
        GoldenClip(sample.id, labels[sample.label], sample.path, clip[0], logits[sample.id])
        for sample, clip in (by_size[i] for i in order[:_GOLDEN_CLIPS])
    ]


def _latency(job: _Job, runner: Runner, folder: Path, clip: NDArray[np.uint8]) -> Latency:
    """PyTorch eager on the normalised clip against the artifact on the uint8 clip: the artifact does more."""
    import torch

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
