"""What two networks get right on the same labelled clips: top-1 and top-5, the drop with its interval, every flip.

Shapes: N clips, K classes; `logits_NK` float32.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeact._statistics import clips_to_resolve, mcnemar_exact, wilson_interval
from edgeact.errors import InputError

__all__ = ["Accuracy", "Flip", "compare_accuracy"]

_BOOTSTRAP_ROUNDS = 2000


@dataclass(frozen=True, kw_only=True)
class Flip:
    """A clip on which reference and artifact disagree (labels by name)."""

    clip: str
    label: str
    reference: str
    artifact: str


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Reference and artifact on the same labelled clips.

    Attributes:
        n: Clips compared.
        drop_pt: top-1 of the reference minus top-1 of the artifact, in percentage points.
        drop_ci95_pt: 95 % interval of the drop: paired bootstrap over clips (Efron 1979, percentile).
        agreement: Share of clips with the same top-1 class, right or wrong.
        lost: Clips the reference has right and the artifact wrong; `gained` is the reverse.
        mcnemar_p: Exact two-sided McNemar test of lost against gained (McNemar 1947).
        clips_to_resolve: Clips needed to resolve `max_drop_pt` with 80 % power at 5 %, given the flips seen.
        confusion: `confusion[true][predicted]`, counts of the artifact.
    """

    n: int
    top1_reference: float
    top1_artifact: float
    top5_reference: float
    top5_artifact: float
    top1_ci95: tuple[float, float]
    drop_pt: float
    drop_ci95_pt: tuple[float, float]
    agreement: float
    lost: int
    gained: int
    mcnemar_p: float
    clips_to_resolve: int
    labels: tuple[str, ...]
    confusion: tuple[tuple[int, ...], ...]
    flips: tuple[Flip, ...]


def compare_accuracy(
    reference: NDArray[Any],
    artifact: NDArray[Any],
    truth: NDArray[Any],
    *,
    clips: Sequence[str],
    labels: Sequence[str],
    max_drop_pt: float,
    seed: int = 0,
) -> Accuracy:
    """Accuracy of both models on the same clips: `reference` and `artifact` are `logits_NK`, `truth` classes `[N]`.

    Raises:
        InputError: There are no clips.
    """
    n = len(truth)
    if n == 0:
        raise InputError("accuracy needs at least one labelled clip, found none")
    predicted_r, predicted_a = reference.argmax(1), artifact.argmax(1)
    right_r, right_a = predicted_r == truth, predicted_a == truth
    lost, gained = int((right_r & ~right_a).sum()), int((~right_r & right_a).sum())
    return Accuracy(
        n=n,
        top1_reference=float(right_r.mean()),
        top1_artifact=float(right_a.mean()),
        top5_reference=_top_share(reference, truth, 5),
        top5_artifact=_top_share(artifact, truth, 5),
        top1_ci95=wilson_interval(int(right_a.sum()), n),
        drop_pt=(lost - gained) * 100 / n,  # rounded once: 7 of 100 clips are not more than 7 points
        drop_ci95_pt=_drop_interval(lost, gained, n, seed),
        agreement=float((predicted_r == predicted_a).mean()),
        lost=lost,
        gained=gained,
        mcnemar_p=mcnemar_exact(lost, gained),
        clips_to_resolve=clips_to_resolve(lost, gained, n, max_drop_pt),
        labels=tuple(labels),
        confusion=_confusion(truth, predicted_a, len(labels)),
        flips=_flips(clips, labels, truth, predicted_r, predicted_a),
    )


def _top_share(logits_NK: NDArray[Any], labels_N: NDArray[Any], k: int) -> float:
    top = np.argsort(-logits_NK, axis=1, kind="stable")[:, :k]
    return float((top == labels_N[:, None]).any(axis=1).mean())


def _drop_interval(lost: int, gained: int, n: int, seed: int) -> tuple[float, float]:
    """Percentile bootstrap of the drop in points.

    Resampling clips is drawing their three outcomes from a multinomial; n draws per round would take gigabytes.
    """
    shares = np.array([lost, gained, n - lost - gained]) / n
    drawn = np.random.default_rng(seed).multinomial(n, shares, _BOOTSTRAP_ROUNDS)
    low, high = np.percentile((drawn[:, 0] - drawn[:, 1]) * 100 / n, [2.5, 97.5])
    return float(low), float(high)


def _confusion(truth_N: NDArray[Any], predicted_N: NDArray[Any], classes: int) -> tuple[tuple[int, ...], ...]:
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (truth_N, predicted_N), 1)
    return tuple(tuple(int(count) for count in row) for row in counts)


def _flips(
    clips: Sequence[str],
    labels: Sequence[str],
    truth_N: NDArray[Any],
    reference_N: NDArray[Any],
    artifact_N: NDArray[Any],
) -> tuple[Flip, ...]:
    return tuple(
        Flip(
            clip=clips[i],
            label=labels[int(truth_N[i])],
            reference=labels[int(reference_N[i])],
            artifact=labels[int(artifact_N[i])],
        )
        for i in np.flatnonzero(reference_N != artifact_N).tolist()
    )
