"""The two sides of a comparison: a bundle as its export ran it, or the results of running one on a device.

Shapes: N clips, K classes.
"""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeact._results_checks import check_results, skipped_clips
from edgeact.bundle import Bundle, open_bundle
from edgeact.errors import BundleError, InputError
from edgeact.latency import Latency
from edgeact.parity import NotMeasured
from edgeact.placement import Placement
from edgeact.results import Results, read_results

__all__ = ["Side", "Source", "as_bundle", "common_clips", "open_source", "side_of"]

Source = Bundle | Results


@dataclass(frozen=True, kw_only=True)
class Side:
    """What is known of one side.

    Attributes:
        name: The path that it was opened from, or the bundle's or device's name.
        ran_on: Runtime and device, in words.
        evaluation: Logits `[K]` by clip id; None where the evaluation set was not run.
        golden: Logits `[K]` of the golden clips.
        digests: sha256 of decoded clips by id, of those that were taken.
        skipped: Lines on the videos that could not be used.
        latency_ms: Its median.
        size_mb: The artifact's, where the bundle is at hand.
        bundle_at_hand: Whether the bundle that was run is.
    """

    name: str
    ran_on: str
    evaluation: Mapping[str, NDArray[np.float32]] | None
    golden: Mapping[str, NDArray[np.float32]]
    digests: Mapping[str, str]
    skipped: tuple[str, ...]
    latency_ms: float | NotMeasured
    placement: Placement | NotMeasured
    size_mb: float | NotMeasured
    bundle_at_hand: bool

    @property
    def classes(self) -> int:
        """Number of classes, of any clip."""
        return len(next(iter((self.evaluation or self.golden).values())))


def open_source(source: Source | str | os.PathLike[str]) -> tuple[str, Source]:
    """A bundle from a folder, results from a file; with the name to show.

    Raises:
        InputError: There is neither, or it is damaged.
    """
    if isinstance(source, Bundle):
        return str(source.path), source
    if isinstance(source, Results):
        return f"{source.bundle_name} on {source.device.name}", source
    path = Path(source)
    if not os.path.lexists(path):  # a broken link is told when it is read
        raise InputError(f"{path} does not exist: give the folder of a bundle, or the results.json of a device")
    return str(path), open_bundle(path) if path.is_dir() else read_results(path)


def as_bundle(source: Source | None) -> list[Bundle]:
    """The source, where it is a bundle."""
    return [source] if isinstance(source, Bundle) else []


def side_of(name: str, source: Source, bundles: Sequence[Bundle]) -> Side:
    """A side from its source; `bundles` are all at hand, of which results may be.

    Raises:
        InputError: There are no logits, or results are not whole.
    """
    return _of_bundle(name, source) if isinstance(source, Bundle) else _of_results(name, source, bundles)


def _runtime(bundle: Bundle) -> str:
    proxy = bundle.manifest.get("proxy")
    return f"{proxy}, proxy for {bundle.runtime}" if proxy else bundle.runtime


def _of_bundle(name: str, bundle: Bundle) -> Side:
    reference, report = bundle.reference(), bundle.report()
    if reference.artifact is None:
        why = report.accuracy.not_measured if isinstance(report.accuracy, NotMeasured) else "none are in its files"
        raise InputError(
            f"{name} stores no logits of its artifact ({why}): give in its place the results of a device, as for "
            "`edgeact validate --results`"
        )
    evaluation = dict(zip(reference.ids, reference.artifact, strict=True))
    latency = report.latency
    if not _is_sound(report.latency, report.placement):  # anyone may have written it
        raise BundleError(f"{bundle.path / 'report.json'} holds a latency or a placement that cannot be: export again")
    return Side(
        name=name,
        ran_on=f"{latency.runtime} on {latency.device}" if isinstance(latency, Latency) else _runtime(bundle),
        evaluation=evaluation,
        golden={clip.id: evaluation[clip.id] for clip in bundle.golden() if clip.id in evaluation},
        digests=dict(zip(reference.ids, reference.digests, strict=True)),
        skipped=(),
        latency_ms=float(latency.artifact_ms) if isinstance(latency, Latency) else latency,
        placement=report.placement,
        size_mb=bundle.artifact_mb,
        bundle_at_hand=True,
    )


def _is_sound(latency: Any, placement: Any) -> bool:
    """Whether a stored latency is a time, and a stored placement counts ops by name."""
    if isinstance(latency, Latency) and not _is_positive(latency.artifact_ms):
        return False
    if isinstance(placement, NotMeasured):
        return True
    kernels, fallback = placement.kernels, placement.fallback
    if not isinstance(kernels, dict) or not isinstance(fallback, tuple):
        return False
    counts = (placement.accelerated_ops, placement.fallback_ops, *kernels.values())
    return {type(count) for count in counts} == {int} and {str} >= {type(op) for op in fallback}


def _is_positive(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < math.inf


def _of_results(name: str, results: Results, bundles: Sequence[Bundle]) -> Side:
    own = [bundle for bundle in bundles if bundle.manifest["digest"] == results.bundle_digest]
    for bundle in own:
        check_results(results, bundle)
    golden = {clip.id: clip.logits for clip in results.golden if not isinstance(clip.logits, NotMeasured)}
    evaluation, digests = None, {}
    if not isinstance(results.evaluation, NotMeasured):
        evaluation = dict(zip(results.evaluation.ids, results.evaluation.logits, strict=True))
        taken = zip(results.evaluation.ids, results.evaluation.digests, strict=True)
        digests = {clip: digest for clip, digest in taken if digest is not None}
    if not evaluation and not golden:
        raise InputError(f"{name} holds no logits: nothing was run")
    latency = results.latency_ms
    return Side(
        name=name,
        ran_on=f"{results.runtime.in_words()} on {results.device.name}",
        evaluation=evaluation,
        golden=golden,
        digests=digests,
        skipped=results.skipped,
        latency_ms=latency if isinstance(latency, NotMeasured) else float(np.median(latency)),
        placement=results.placement,
        size_mb=own[0].artifact_mb if own else NotMeasured(f"the bundle of {name} is not at hand: give --bundle"),
        bundle_at_hand=bool(own),
    )


def common_clips(a: Side, b: Side) -> tuple[tuple[str, ...], bool]:
    """Ids of the clips that both ran, in A's order, and whether they are the evaluation set or the golden clips.

    Raises:
        InputError: One ran clips that the other neither ran nor lists as skipped.
    """
    whole = a.evaluation is not None and b.evaluation is not None
    ids_a, ids_b = (tuple((side.evaluation if whole else side.golden) or ()) for side in (a, b))
    for side, has, wanted, other in ((b, ids_b, ids_a, a), (a, ids_a, ids_b, b)):
        absent = set(wanted) - set(has)
        absent -= skipped_clips(side.skipped, absent)
        if absent:
            what = "evaluation" if whole else "golden"
            raise InputError(
                f"{side.name} lacks {len(absent)} of the {len(wanted)} {what} clips of {other.name}, first "
                f"{min(absent)!r}: compare what ran the same clips"
            )
    ids = tuple(clip for clip in ids_a if clip in set(ids_b))
    if not ids:
        raise InputError(f"{a.name} and {b.name} ran no clip that both could use")
    return ids, whole
