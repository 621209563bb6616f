"""Two bundles or devices, clip by clip: which answers changed, by how much, and what it costs.

A, B: bundle | results.json ─► the clips that both ran ─► flips, numerics, top-1, latency, placement, size ─► limits

Shapes: N clips, K classes; `a_NK`, `b_NK` are logits of the same clips.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from edgeact._compare import (
    Change,
    PlacementChange,
    Ratio,
    Top1,
    class_names,
    flips,
    placement_change,
    ratio,
    top1,
    true_classes,
)
from edgeact._sides import Side, Source, as_bundle, common_clips, open_source, side_of
from edgeact.bundle import Bundle, open_bundle
from edgeact.errors import InputError
from edgeact.numerics import compare_outputs
from edgeact.parity import NotMeasured
from edgeact.validate import stored_gates

__all__ = ["Diff", "Limits", "diff"]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What B may lose against A; None is not judged.

    Attributes:
        min_sqnr_db: Lowest SQNR of B's logits against A's.
        min_agreement: Lowest share of clips with the same answer.
        max_drop_pt: Highest drop of top-1 in percentage points.
        max_slower: Highest ratio of B's median latency to A's.
    """

    min_sqnr_db: float | None = None
    min_agreement: float | None = None
    max_drop_pt: float | None = None
    max_slower: float | None = None

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None and (not math.isfinite(value) or value < 0):
                raise InputError(f"{name} is {value}: it must be a finite number that is not negative")
        if self.min_agreement is not None and self.min_agreement > 1:
            raise InputError(f"min_agreement is {self.min_agreement}: it is a share of clips from 0 to 1")


@dataclass(frozen=True, kw_only=True)
class Diff:
    """B against A; `to_dict` is what `--json` prints."""

    a: str
    b: str
    ran_on: tuple[str, str]
    clips: int
    clips_of: str
    held: bool
    failures: tuple[str, ...]
    sqnr_db: float
    max_abs: float
    cosine: float
    agreement: float
    flips: tuple[Change, ...]
    top1: Top1 | NotMeasured
    latency_ms: Ratio | NotMeasured
    placement: PlacementChange | NotMeasured
    size_mb: Ratio | NotMeasured
    limits: Limits
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON types only."""
        return asdict(self)


def diff(
    a: Source | str | os.PathLike[str],
    b: Source | str | os.PathLike[str],
    *,
    bundle: Bundle | str | os.PathLike[str] | None = None,
    limits: Limits | None = None,
) -> Diff:
    """Compare B with A on the clips that both ran: the evaluation set, or the golden clips where one ran no more.

    Args:
        a: A bundle, the results of a device, or the path of either.
        b: Likewise.
        bundle: Of what the results are, for labels and sizes; needed by neither side that is a bundle.
        limits: What B may lose. Agreement and drop that are not given are the stricter stored gates of the bundles.

    Raises:
        InputError: A side is damaged or holds no logits, or they ran other clips or have other classes, or
            give descriptors.
    """
    (name_a, source_a), (name_b, source_b) = open_source(a), open_source(b)
    extra = open_bundle(bundle) if isinstance(bundle, str | os.PathLike) else bundle
    bundles = [*as_bundle(source_a), *as_bundle(source_b), *as_bundle(extra)]
    if described := next((found for found in bundles if found.reading is not None), None):
        raise InputError(f"{described.path} gives descriptors: what changes between two is told for classes alone")
    first, second = side_of(name_a, source_a, bundles), side_of(name_b, source_b, bundles)
    labels = class_names(first, second, bundles)
    ids, whole = common_clips(first, second)
    a_NK, b_NK = (np.stack([((s.evaluation if whole else None) or s.golden)[i] for i in ids]) for s in (first, second))
    truth = true_classes(ids, bundles)
    sqnr_db, max_abs, cosine = compare_outputs(a_NK, b_NK)
    limits = _with_gates(limits or Limits(), bundles)
    found = Diff(
        a=name_a,
        b=name_b,
        ran_on=(first.ran_on, second.ran_on),
        clips=len(ids),
        clips_of="evaluation" if whole else "golden",
        held=True,
        failures=(),
        sqnr_db=sqnr_db,
        max_abs=max_abs,
        cosine=cosine,
        agreement=float(np.mean(a_NK.argmax(1) == b_NK.argmax(1))),
        flips=flips(ids, labels, truth, a_NK, b_NK),
        top1=top1(ids, labels, truth, a_NK, b_NK),
        latency_ms=ratio(first.latency_ms, second.latency_ms),
        placement=placement_change(first.placement, second.placement),
        size_mb=ratio(first.size_mb, second.size_mb),
        limits=limits,
        notes=_notes(first, second, ids, bundles),
    )
    failures = _judge(found)
    return replace(found, held=not failures, failures=failures)


def _with_gates(limits: Limits, bundles: Sequence[Bundle]) -> Limits:
    """Agreement and drop that were not asked for, by the stricter of the bundles' stored gates."""
    gates = [stored_gates(bundle) for bundle in bundles]
    agreement, drop = limits.min_agreement, limits.max_drop_pt
    if agreement is None and gates:
        agreement = max(gate.min_agreement for gate in gates)
    if drop is None and gates:
        drop = min(gate.max_drop_pt for gate in gates)
    return replace(limits, min_agreement=agreement, max_drop_pt=drop)


def _notes(a: Side, b: Side, ids: Sequence[str], bundles: Sequence[Bundle]) -> tuple[str, ...]:
    notes = []
    if a.evaluation is None or b.evaluation is None:
        notes.append(f"compared on the {len(ids)} golden clips alone: one side did not run the evaluation set")
    for side in (a, b):
        notes += [f"{side.name}: skipped: {line}" for line in side.skipped]
        if bundles and not side.bundle_at_hand:
            notes.append(f"{side.name} is of another bundle: its classes are taken for those of {bundles[0].path}")
    both = [clip for clip in ids if clip in a.digests and clip in b.digests]
    other = sum(a.digests[clip] != b.digests[clip] for clip in both)
    if other:
        notes.append(f"{other} of {len(both)} clips have other pixels in B than in A: another ClipSpec or decoder")
    if isinstance(a.latency_ms, float) and isinstance(b.latency_ms, float):
        notes.append("latencies are of two runs, not interleaved: a busy machine or another clock shows in them")
    return tuple(notes)


def _judge(found: Diff) -> tuple[str, ...]:
    """Failures in words; a limit on what was not measured is one."""
    limits, failures = found.limits, []
    if limits.min_sqnr_db is not None and found.sqnr_db < limits.min_sqnr_db:
        failures.append(f"numerics: SQNR {found.sqnr_db:.1f} dB is below {limits.min_sqnr_db:g} dB")
    if limits.min_agreement is not None and found.agreement < limits.min_agreement:
        failures.append(
            f"agreement: {found.agreement:.2%} is below {limits.min_agreement:.2%} "
            f"({len(found.flips)} of {found.clips} clips flip)"
        )
    if limits.max_drop_pt is not None:
        if isinstance(found.top1, NotMeasured):
            failures.append(f"accuracy: the drop is not measured: {found.top1.not_measured}")
        elif found.top1.drop_pt > limits.max_drop_pt:
            low, high = found.top1.drop_ci95_pt
            failures.append(
                f"accuracy: top-1 drops {found.top1.drop_pt:.2f} points, more than {limits.max_drop_pt:g} "
                f"(95 % interval {low:.2f} … {high:.2f})"
            )
    if limits.max_slower is not None:
        if isinstance(found.latency_ms, NotMeasured):
            failures.append(f"latency: not measured: {found.latency_ms.not_measured}")
        elif found.latency_ms.ratio > limits.max_slower:
            failures.append(
                f"latency: B takes {found.latency_ms.ratio:.2f}x as long as A, more than {limits.max_slower:g}x"
            )
    return tuple(failures)
