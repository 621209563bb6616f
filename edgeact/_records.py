"""What is written down of an export: its name, the report with the verdict, and the manifest."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeact._quantized import Source
from edgeact.accuracy import Accuracy, compare_accuracy
from edgeact.bundle import aside
from edgeact.clip import ClipSpec
from edgeact.descriptor import Described
from edgeact.descriptor_file import reading_to_dict
from edgeact.descriptor_parity import Descriptors, compare_descriptors, descriptors_in_words
from edgeact.environment import describe_environment, device_name, today
from edgeact.errors import InputError
from edgeact.evaluate import EvaluationSet, Outputs
from edgeact.latency import Latency
from edgeact.numerics import Numerics
from edgeact.parity import Gates, NotMeasured, Report, judge
from edgeact.placement import Placement
from edgeact.runtime import Runner, emulation_of, needs_engine
from edgeact.targets import Request, Target, get_target
from edgeact.whitening import Whitening

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "Job",
    "bundle_name",
    "data_notes",
    "default_name",
    "engine_notes",
    "make_manifest",
    "make_report",
]


@dataclass(frozen=True, kw_only=True)
class Job:
    """What was asked, checked."""

    name: str
    model: "nn.Module"
    model_name: str
    target_name: str
    target: Target
    asked: Request
    form: str
    spec: ClipSpec
    gates: Gates
    threads: int
    rounds: int
    evaluation: EvaluationSet
    int8: Source | None
    described: Described | None

    @property
    def labels(self) -> tuple[str, ...]:
        return self.evaluation.dataset.labels

    @property
    def outputs(self) -> int:
        """Numbers that one clip gives."""
        return len(self.labels) if self.described is None else len(self.described.reading.scale)


def default_name(model: str, target: str, precision: str, options: Mapping[str, str]) -> str:
    """`<model>-<target>-<precision>`, and the options that are not the target's defaults."""
    chosen = [value for name, value in options.items() if value != get_target(target).options[name][0]]
    return "-".join([model.rpartition(":")[2], target, *chosen, precision])


def bundle_name(name: str) -> str:
    if not name or Path(name).name != name or name.startswith("."):
        raise InputError(f"a bundle cannot be named {name!r}: give a plain folder name")
    if name.endswith(aside("")):
        raise InputError(f"a bundle cannot be named {name!r}: {aside('')} marks those that fell short")
    return name


def make_report(
    job: Job,
    *,
    numerics: Numerics,
    reference: Outputs,
    artifact: Outputs | NotMeasured,
    latency: Latency | NotMeasured,
    placement: Placement | NotMeasured,
    files: dict[str, Any],
    out: Path,
    notes: tuple[str, ...],
    whitening: Whitening | NotMeasured | None = None,
) -> Report:
    """What was measured, and the verdict, which says where in `out` the bundle will be."""
    accuracy: Accuracy | NotMeasured
    descriptors: Descriptors | NotMeasured | None = None
    ids = [sample.id for sample in reference.samples]
    how: dict[str, Any] = {"clips": ids, "labels": job.labels, "max_drop_pt": job.gates.max_drop_pt}
    if isinstance(artifact, NotMeasured):
        accuracy = artifact
        descriptors = None if job.described is None else artifact
        notes = (f"artifact rung: not measured: {artifact.not_measured}", *notes)
    elif job.described is None:
        accuracy = compare_accuracy(reference.logits, artifact.logits, reference.truth, **how)
    else:
        outputs = (reference.logits, artifact.logits, reference.truth)
        accuracy, descriptors = compare_descriptors(*outputs, job.described, **how)
        notes = (descriptors_in_words(job.described), *notes)
    failures = judge(job.gates, numerics, accuracy, latency, placement, descriptors)
    return Report(
        bundle=str(out / (aside(job.name) if failures else job.name)),
        target=job.target_name,
        model=job.model_name,
        precision=job.asked.precision,
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
        descriptors=descriptors,
        whitening=whitening,
    )


def make_manifest(job: Job, report: Report, files: list[str], facts: Mapping[str, Any]) -> dict[str, Any]:
    latency = report.latency
    return {
        "name": Path(report.bundle).name,
        "model": job.model_name,
        "target": job.target_name,
        "precision": job.asked.precision,
        "form": job.form,
        "options": dict(job.asked.options),
        "runtime": job.target.runtime,
        "proxy": job.target.proxy,
        "artifact": files,
        "spec": job.spec.to_dict(),
        "labels": list(job.labels),
        "io": _io(job),
        "gates": dataclasses.asdict(job.gates),
        "facts": {
            **facts,
            "held": report.held,
            "created": report.date,
            "environment": report.environment,
            "reference_ms": latency.reference_ms if isinstance(latency, Latency) else None,
        },
    }


def data_notes(evaluation: EvaluationSet) -> list[str]:
    notes = [f"skipped: {line}" for line in evaluation.skipped]
    looped = [note for note in evaluation.notes if "looped" in note]
    if looped:
        notes.append(
            f"{len(looped)} of {len(evaluation.dataset.samples)} videos are shorter than a clip and were looped"
        )
    return notes + [note for note in evaluation.notes if note not in looped]


def engine_notes(job: Job, runner: Runner) -> list[str]:
    """What ran here, where a device will run something else."""
    if job.target.proxy:
        builds = needs_engine(job.target.runtime)
        device = "; on the device, `edgeact compile` builds the engine and `edgeact validate` judges it"
        proxy = f"proxy: {job.target.proxy} {runner.version} ran in place of {job.target.runtime}"
        return [proxy + device * builds]
    if emulation := emulation_of(runner):
        return [f"emulated: {emulation} ({runner.version}) ran the artifact: its logits count, its time says nothing"]
    if not needs_engine(job.target.runtime):
        return []
    return [f"compiled on this machine, for {device_name(runner.device)}; on others `edgeact compile` does it"]


def _io(job: Job) -> dict[str, Any]:
    """What the artifact takes and gives: the clip or each of its frames as an image, logits or a descriptor."""
    clip_shape = job.spec.clip_shape
    clip = {"name": "clip", "dtype": "uint8", "shape": [1, *clip_shape], "layout": "BTHWC", "color": "RGB"}
    if job.target.takes_images:
        names = [f"frame_{t}" for t in range(job.spec.frames)]
        clip = {"names": names, "dtype": "uint8", "shape": list(clip_shape[1:]), "layout": "image", "color": "RGB"}
    output: dict[str, Any] = {"name": "logits", "dtype": "float32", "shape": [1, job.outputs], "layout": "BK"}
    output["content"] = "logits"
    if job.described is not None:
        output |= {"layout": "BD", "content": "descriptor", "reading": reading_to_dict(job.described.reading)}
    return {
        "input": clip,
        "output": output,
        "normalization": "inside the graph",
    }
