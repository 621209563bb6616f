"""The parts of a comparison: classes and truth, flips, top-1, ratios, placement.

Shapes: N clips, K classes; `a_NK`, `b_NK` are logits of the same clips.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeact._sides import Side
from edgeact.accuracy import compare_accuracy
from edgeact.bundle import Bundle
from edgeact.errors import InputError
from edgeact.parity import NotMeasured
from edgeact.placement import Placement

__all__ = [
    "Change",
    "PlacementChange",
    "Ratio",
    "Top1",
    "class_names",
    "flips",
    "placement_change",
    "ratio",
    "top1",
    "true_classes",
]


@dataclass(frozen=True, kw_only=True)
class Change:
    """A clip with another answer in B than in A; classes by name, or `class 3` where no bundle names them."""

    clip: str
    label: str | None
    a: str
    b: str


@dataclass(frozen=True, kw_only=True)
class Top1:
    """Shares of right answers; `drop_pt` and its 95 % interval in percentage points, as `Accuracy` has them."""

    a: float
    b: float
    drop_pt: float
    drop_ci95_pt: tuple[float, float]
    lost: int
    gained: int
    mcnemar_p: float


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """A quantity of both (milliseconds, megabytes), and B's over A's."""

    a: float
    b: float
    ratio: float


@dataclass(frozen=True, kw_only=True)
class PlacementChange:
    """Counts are (A, B); kernels and fallbacks that are the same are left out."""

    kinds: tuple[str, str]
    accelerated_ops: tuple[int, int]
    fallback_ops: tuple[int, int]
    fallback_appeared: tuple[str, ...]
    fallback_disappeared: tuple[str, ...]
    kernels: dict[str, tuple[int, int]]


def class_names(a: Side, b: Side, bundles: Sequence[Bundle]) -> tuple[str, ...]:
    """Class names, or numbers where no bundle is at hand.

    Raises:
        InputError: The sides have other classes.
    """
    if a.classes != b.classes:
        raise InputError(f"{a.name} tells {a.classes} classes apart, {b.name} {b.classes}: they cannot be compared")
    for other in bundles[1:]:
        if other.labels != bundles[0].labels:
            raise InputError(
                f"{bundles[0].path} and {other.path} have other classes, or in another order: they cannot be compared"
            )
    if not bundles:
        return tuple(f"class {i}" for i in range(a.classes))
    if len(bundles[0].labels) != a.classes:
        raise InputError(f"{bundles[0].path} has {len(bundles[0].labels)} classes, {a.name} {a.classes}")
    return bundles[0].labels


def true_classes(ids: Sequence[str], bundles: Sequence[Bundle]) -> NDArray[np.int64] | None:
    """True classes `[N]`; None where no bundle is at hand.

    Raises:
        InputError: A bundle does not hold these clips, or two label one differently.
    """
    found = []
    for bundle in bundles:
        reference = bundle.reference()
        label_of = dict(zip(reference.ids, reference.labels, strict=True))
        missing = [clip for clip in ids if clip not in label_of]
        if missing:
            raise InputError(f"{bundle.path} lacks {len(missing)} of the {len(ids)} clips, first {missing[0]!r}")
        found.append(np.array([label_of[clip] for clip in ids], np.int64))
    for bundle, other in zip(bundles[1:], found[1:], strict=True):
        if (other != found[0]).any():
            clip = ids[int((other != found[0]).argmax())]
            raise InputError(
                f"{bundle.path} labels {clip!r} differently from {bundles[0].path}: compare the same clips"
            )
    return found[0] if found else None


def flips(
    ids: Sequence[str],
    labels: Sequence[str],
    truth: NDArray[np.int64] | None,
    a_NK: NDArray[np.float32],
    b_NK: NDArray[np.float32],
) -> tuple[Change, ...]:
    """The clips with another answer in B than in A."""
    answers = zip(ids, a_NK.argmax(1), b_NK.argmax(1), strict=True)
    return tuple(
        Change(clip=clip, label=None if truth is None else labels[truth[i]], a=labels[one], b=labels[other])
        for i, (clip, one, other) in enumerate(answers)
        if one != other
    )


def top1(
    ids: Sequence[str],
    labels: Sequence[str],
    truth: NDArray[np.int64] | None,
    a_NK: NDArray[np.float32],
    b_NK: NDArray[np.float32],
) -> Top1 | NotMeasured:
    """Right answers of both; not measured without the true classes."""
    if truth is None:
        return NotMeasured("results do not hold the true classes: give --bundle, the bundle that they are of")
    found = compare_accuracy(a_NK, b_NK, truth, clips=ids, labels=labels, max_drop_pt=0.0)
    return Top1(
        a=found.top1_reference,
        b=found.top1_artifact,
        drop_pt=found.drop_pt,
        drop_ci95_pt=found.drop_ci95_pt,
        lost=found.lost,
        gained=found.gained,
        mcnemar_p=found.mcnemar_p,
    )


def ratio(a: float | NotMeasured, b: float | NotMeasured) -> Ratio | NotMeasured:
    """Both and B's over A's, or why one is missing."""
    if isinstance(a, NotMeasured):
        return a
    if isinstance(b, NotMeasured):
        return b
    return Ratio(a=a, b=b, ratio=b / a) if a > 0 else NotMeasured("A's is 0")


def placement_change(a: Placement | NotMeasured, b: Placement | NotMeasured) -> PlacementChange | NotMeasured:
    """What differs, or why one is missing."""
    if isinstance(a, NotMeasured):
        return a
    if isinstance(b, NotMeasured):
        return b
    counts = {kernel: (a.kernels.get(kernel, 0), b.kernels.get(kernel, 0)) for kernel in {**a.kernels, **b.kernels}}
    return PlacementChange(
        kinds=(a.kind, b.kind),
        accelerated_ops=(a.accelerated_ops, b.accelerated_ops),
        fallback_ops=(a.fallback_ops, b.fallback_ops),
        fallback_appeared=tuple(op for op in b.fallback if op not in set(a.fallback)),
        fallback_disappeared=tuple(op for op in a.fallback if op not in set(b.fallback)),
        kernels={kernel: pair for kernel, pair in counts.items() if pair[0] != pair[1]},
    )
