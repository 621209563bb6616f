"""What an export leaves beside the artifact: golden clips, reference logits, and the report with its pictures."""

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeact.accuracy import Accuracy
from edgeact.bundle import GoldenClip, ReferenceSet
from edgeact.data import Sample
from edgeact.evaluate import EvaluationSet, Outputs
from edgeact.parity import NotMeasured, Report

__all__ = ["clips_of", "golden_clips", "reference_set", "spread", "write_report"]

_GOLDEN_CLIPS = 4
_LADDER_CLIPS = 32
_FLIPPED_CLIPS_SHOWN = 24


def spread(samples: Sequence[Sample]) -> list[Sample]:
    """A few samples for the rungs, spread over the classes: the first of every class, then the second …."""
    seen: Counter[int] = Counter()
    ranked = []
    for i, sample in enumerate(samples):
        ranked.append((seen[sample.label], i))
        seen[sample.label] += 1
    return [samples[i] for _, i in sorted(ranked)[:_LADDER_CLIPS]]


def clips_of(evaluation: EvaluationSet, samples: Sequence[Sample]) -> list[tuple[Sample, NDArray[np.uint8]]]:
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


def golden_clips(
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


def reference_set(outputs: Outputs, artifact: Outputs | NotMeasured) -> ReferenceSet:
    """What the evaluation set gave: the reference's outputs, and the artifact's, which ran the same clips."""
    ids = tuple(sample.id for sample in outputs.samples)
    own = None if isinstance(artifact, NotMeasured) else artifact.logits
    return ReferenceSet(ids, outputs.truth, outputs.digests, outputs.logits, own)


def write_report(
    report: Report, folder: Path, evaluation: EvaluationSet, curves: Sequence[Mapping[str, float]]
) -> None:
    """`report.json`, and `report.html` with the frames of the clips that flipped."""
    from edgeact.report import write_html

    (folder / "report.json").write_text(json.dumps(report.to_dict(), indent=1) + "\n")
    flips = report.accuracy.flips if isinstance(report.accuracy, Accuracy) else ()
    flipped = {flip.clip for flip in flips[:_FLIPPED_CLIPS_SHOWN]}
    clips = clips_of(evaluation, [sample for sample in evaluation.dataset.samples if sample.id in flipped])
    frames = {sample.id: clip[0] for sample, clip in clips}
    write_html(report, folder / "report.html", clip_frames=frames, curves=curves)
