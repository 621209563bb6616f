"""What two networks' descriptors of the same clips have in common: direction, neighbours, and what is told by them.

Shapes: N clips, d dimensions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeact.accuracy import Accuracy, compare_accuracy
from edgeact.descriptor import Described, Reading, blocks, unit

__all__ = ["Descriptors", "Neighbours", "compare_descriptors", "descriptors_in_words", "nearest_clip", "nearest_others"]

_NEIGHBOURS = (1, 5, 10)
_BOOTSTRAP_ROUNDS = 2000


@dataclass(frozen=True, kw_only=True)
class Neighbours:
    """The k nearest other clips, by cosine, of every clip.

    Attributes:
        k: How many.
        agreement: Share of the reference's k nearest that are among the artifact's, each among its own descriptors.
        agreement_ci95: Its interval: bootstrap over clips (percentile).
        recall: Share of clips whose nearest by the reference is among the k nearest of the artifact's descriptor, among
            the reference's descriptors: what a device finds in an index that the reference built.
    """

    k: int
    agreement: float
    agreement_ci95: tuple[float, float]
    recall: float


@dataclass(frozen=True, kw_only=True)
class Descriptors:
    """Reference and artifact on the same clips, each clip a descriptor of its own.

    Attributes:
        n: Clips compared.
        dims: Numbers of a descriptor.
        cosine: Of the two descriptors of a clip, averaged over clips.
        cosine_lowest: That of the clip `lowest_clip`.
        component_error: Per component, the root mean square error over the reference's standard deviation on the clips.
        neighbours: For k = 1, 5, 10, as far as there are clips.
        nearest_reference: Share of clips whose class is that of the nearest example of the training part.
        nearest_artifact: The same of the artifact's descriptors, among the reference's examples.
        nearest_drop_pt: The first minus the second, in percentage points.
        nearest_drop_ci95_pt: Its interval, as that of `Accuracy`.
    """

    n: int
    dims: int
    cosine: float
    cosine_lowest: float
    lowest_clip: str
    component_error: tuple[float, ...]
    neighbours: tuple[Neighbours, ...]
    nearest_reference: float
    nearest_artifact: float
    nearest_drop_pt: float
    nearest_drop_ci95_pt: tuple[float, float]


def compare_descriptors(
    reference_Nd: NDArray[Any],
    artifact_Nd: NDArray[Any],
    truth: NDArray[np.int64],
    described: Described,
    *,
    clips: Sequence[str],
    labels: Sequence[str],
    max_drop_pt: float,
) -> tuple[Accuracy, Descriptors]:
    """The accuracy of the linear SVM on both sides' descriptors, and how alike these are.

    Args:
        reference_Nd: Outputs of the reference.
        artifact_Nd: Outputs of the artifact.
        truth: Classes `[N]`.
        described: How outputs are read, and the examples that classify.
        clips: Ids of the clips.
        labels: Names of the classes.
        max_drop_pt: The drop of accuracy that is allowed.

    Raises:
        InputError: There are no clips.
    """
    ours, theirs = (described.reading.clips(outputs) for outputs in (reference_Nd, artifact_Nd))
    how: dict[str, Any] = {"clips": clips, "labels": labels, "max_drop_pt": max_drop_pt}
    examples, classes = described.examples, np.eye(len(labels))
    accuracy = compare_accuracy(examples.svm(ours), examples.svm(theirs), truth, **how)
    nearest = compare_accuracy(classes[examples.nearest(ours)], classes[examples.nearest(theirs)], truth, **how)
    cosines_N = (ours * theirs).sum(1)
    lowest = int(cosines_N.argmin())
    return accuracy, Descriptors(
        n=len(truth),
        dims=ours.shape[1],
        cosine=float(cosines_N.mean()),
        cosine_lowest=float(cosines_N[lowest]),
        lowest_clip=clips[lowest],
        component_error=_component_errors(reference_Nd, artifact_Nd),
        neighbours=_neighbours(ours, theirs),
        nearest_reference=nearest.top1_reference,
        nearest_artifact=nearest.top1_artifact,
        nearest_drop_pt=nearest.drop_pt,
        nearest_drop_ci95_pt=nearest.drop_ci95_pt,
    )


def descriptors_in_words(described: Described) -> str:
    """What the accuracy of a network without classes is."""
    return (
        "accuracy is that of a linear SVM on the descriptors, trained on those that the reference gives of "
        f"{len(described.examples.labels)} videos of the training part; rungs agree on the nearest other clip"
    )


def _component_errors(reference_Nd: NDArray[Any], artifact_Nd: NDArray[Any]) -> tuple[float, ...]:
    reference = np.asarray(reference_Nd, np.float64)
    errors_d = np.sqrt(np.square(reference - artifact_Nd).mean(0))
    deviations_d = np.maximum(reference.std(0), np.finfo(np.float64).tiny)
    return tuple(float(error) for error in np.minimum(errors_d / deviations_d, np.finfo(np.float64).max))


def _neighbours(ours_Nd: NDArray[np.float64], theirs_Nd: NDArray[np.float64]) -> tuple[Neighbours, ...]:
    n = len(ours_Nd)
    counts = [k for k in _NEIGHBOURS if k < n]
    if not counts:
        return ()
    reference, artifact, across = (
        nearest_others(queries, gallery, counts[-1])
        for queries, gallery in ((ours_Nd, ours_Nd), (theirs_Nd, theirs_Nd), (theirs_Nd, ours_Nd))
    )
    found = []
    for k in counts:
        common_N = (reference[:, :k, None] == artifact[:, None, :k]).any(2).sum(1)
        found.append(
            Neighbours(
                k=k,
                agreement=float(common_N.mean() / k),
                agreement_ci95=_interval(common_N, k),
                recall=float((reference[:, :1] == across[:, :k]).any(1).mean()),
            )
        )
    return tuple(found)


def nearest_others(queries_Nd: NDArray[Any], gallery_Nd: NDArray[Any], k: int) -> NDArray[np.int64]:
    """The k rows `[N, k]` of the gallery with the highest cosine, best first; a row's own place is left out."""
    gallery, found, first = unit(gallery_Nd).T, [], 0
    for rows in blocks(unit(queries_Nd)):
        similar = rows @ gallery
        places = np.arange(len(rows))
        similar[places, first + places] = -np.inf
        found.append(np.argsort(-similar, axis=1, kind="stable")[:, :k])
        first += len(rows)
    return np.concatenate(found)


def nearest_clip(reading: Reading) -> Callable[[NDArray[Any]], NDArray[np.int64]]:
    """A function from outputs `[N, d]` to the nearest other clip `[N]` of each: what a descriptor answers."""

    def answers(outputs_Nd: NDArray[Any]) -> NDArray[np.int64]:
        descriptors_Nd = reading.clips(outputs_Nd)
        return np.asarray(nearest_others(descriptors_Nd, descriptors_Nd, 1)[:, 0])

    return answers


def _interval(common_N: NDArray[np.int64], k: int, seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap over clips, of which each has one of k + 1 counts: a multinomial, as for `Accuracy`."""
    n = len(common_N)
    drawn = np.random.default_rng(seed).multinomial(n, np.bincount(common_N, minlength=k + 1) / n, _BOOTSTRAP_ROUNDS)
    low, high = np.percentile(drawn @ np.arange(k + 1) / (n * k), [2.5, 97.5])
    return float(low), float(high)
