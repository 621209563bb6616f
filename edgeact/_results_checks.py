"""Whether results are of a bundle, and whole: every golden clip, every clip of the evaluation set or why not."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from edgeact.bundle import Bundle
from edgeact.errors import InputError
from edgeact.parity import NotMeasured

if TYPE_CHECKING:
    from edgeact.results import GoldenOutput, Results

__all__ = ["check_results", "refuse_duplicates", "skipped_clips"]

_COLONS = 4


def check_results(results: "Results", bundle: Bundle, *, measured_here: bool = False) -> None:
    """Compare results with the bundle that they must be of.

    Args:
        results: What a program measured.
        bundle: What it ran.
        measured_here: This very process ran it: then an artifact that cannot run on this machine may leave all
            golden clips unmeasured. From a file or a device that would be a way around every gate.

    Raises:
        InputError: They are of another bundle, or clips are missing, unmeasured, unknown, both run and skipped, or of
            another number of classes.
    """
    if results.bundle_digest != bundle.manifest["digest"]:
        raise InputError(
            f"it is of the bundle {results.bundle_name!r} with the digest {results.bundle_digest[:12]!r}, not of "
            f"{bundle.path} with {bundle.manifest['digest'][:12]!r}: run this bundle on the device"
        )
    golden, wanted = [clip.id for clip in results.golden], [clip.id for clip in bundle.golden()]
    _refuse_unknown(golden, wanted, "golden")
    missing = [clip for clip in wanted if clip not in set(golden)]
    if missing:
        raise InputError(f"golden lacks {len(missing)} of the {len(wanted)} clips of golden.json, first {missing[0]!r}")
    _refuse_unmeasured(results.golden, measured_here)
    for clip in results.golden:
        if not isinstance(clip.logits, NotMeasured):
            _check_outputs(len(clip.logits), bundle, f"golden clip {clip.id!r}")
    if not isinstance(results.evaluation, NotMeasured):
        _check_outputs(results.evaluation.logits.shape[1], bundle, "evaluation")
        _check_coverage(results.evaluation.ids, results.skipped, bundle.reference().ids)


def _refuse_unmeasured(golden: Sequence["GoldenOutput"], measured_here: bool) -> None:
    """Without the logits of the golden clips there is nothing to judge: they are required, all of them."""
    unmeasured = [(clip.id, clip.logits.not_measured) for clip in golden if isinstance(clip.logits, NotMeasured)]
    if not unmeasured or (measured_here and len(unmeasured) == len(golden)):
        return
    clip, why = unmeasured[0]
    raise InputError(
        f"golden clip {clip!r} has no logits ({why}), as {len(unmeasured)} of the {len(golden)} golden clips: results "
        "are judged by them, so run the artifact on every golden clip"
    )


def _check_coverage(found: Sequence[str], skipped: Iterable[str], wanted: Sequence[str]) -> None:
    _refuse_unknown(found, wanted, "evaluation")
    absent = set(wanted) - set(found)
    named = list(_named(skipped, wanted))
    if both := set[str]().union(*(clips for clips in named if not clips & absent)):
        raise InputError(
            f"evaluation holds {len(both)} clips that skipped lists too, first {min(both)!r}: a clip was run, or could "
            "not be used"
        )
    unexplained = absent.difference(*named)
    if unexplained:
        raise InputError(
            f"evaluation covers {len(found)} of the {len(wanted)} clips of the bundle's evaluation set, and "
            f"{len(unexplained)} of the others are not in skipped, first {min(unexplained)!r}: run every clip, or list "
            "in skipped as 'id: reason' what cannot be used"
        )


def _check_outputs(found: int, bundle: Bundle, place: str) -> None:
    if found != bundle.outputs:
        what = "labels" if bundle.reading is None else "numbers of a descriptor"
        raise InputError(f"{place} has {found} logits, not one for each of the {bundle.outputs} {what} of the bundle")


def _refuse_unknown(found: Iterable[str], known: Collection[str], place: str) -> None:
    allowed = set(known)
    unknown = [clip for clip in found if clip not in allowed]
    if unknown:
        raise InputError(f"{place} holds {len(unknown)} clips that the bundle does not, first {unknown[0]!r}")


def refuse_duplicates(ids: Iterable[str], place: str) -> None:
    """Refuse an id that occurs twice.

    Raises:
        InputError: One does.
    """
    clip, count = Counter(ids).most_common(1)[0]
    if count > 1:
        raise InputError(f"{place} holds the clip {clip!r} {count} times")


def skipped_clips(skipped: Iterable[str], ids: Collection[str]) -> set[str]:
    """Those of `ids` that lines `id: reason` name, or `path: reason` with a path that ends in the id."""
    return set[str]().union(*_named(skipped, ids))


def _named(skipped: Iterable[str], ids: Collection[str]) -> Iterator[set[str]]:
    """Which of `ids` each line could mean: more than one where an id ends in another."""
    known = set(ids)
    depths = {clip.count("/") + 1 for clip in known}
    for line in skipped:
        parts = line.split(": ", _COLONS)  # a path may hold some
        named: set[str] = set()
        for i in range(1, len(parts) + 1):
            names = ": ".join(parts[:i]).replace("\\", "/").split("/")
            named |= {"/".join(names[-depth:]) for depth in depths} & known
        yield named
