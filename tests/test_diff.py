"""Two bundles or devices compared: on which clips, by which numbers, against which limits; and what cannot be."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from results_samples import GATES, IDS, logits, results_fields, without, write_bundle, write_fields

from edgeact._compare import PlacementChange, Ratio, Top1
from edgeact.bundle import Bundle, ReferenceSet, open_bundle, write_manifest, write_reference
from edgeact.diff import Limits
from edgeact.diff import diff as typed_diff
from edgeact.errors import BundleError, InputError
from edgeact.numerics import EXACT_DB
from edgeact.parity import NotMeasured
from edgeact.results import read_results

OPEN = Limits(min_agreement=0, max_drop_pt=100)

diff: Any = typed_diff  # each part may be NotMeasured; the tests read it as what it must be


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_bundle(tmp_path, "a", artifact=logits())


def results(bundle: Bundle, name: str = "r.json", **changes: Any) -> Path:
    return write_fields(bundle.path.parent / name, results_fields(bundle) | changes)


def rewrite(bundle: Bundle, change: dict[str, Any]) -> Bundle:
    """The bundle with another report.json, sealed."""
    file = bundle.path / "report.json"
    report = json.loads(file.read_text())
    for part, fields in change.items():
        report[part] |= fields
    file.write_text(json.dumps(report))
    write_manifest(bundle.path, without(dict(bundle.manifest), "schema", "files", "digest"))
    return open_bundle(bundle.path)


def test_a_bundle_against_itself(bundle: Bundle) -> None:
    found = diff(bundle, str(bundle.path), limits=Limits(min_sqnr_db=149, max_slower=1.0))
    assert found.held, found.failures
    assert (found.clips, found.clips_of, found.agreement, found.flips) == (12, "evaluation", 1.0, ())
    assert (found.sqnr_db, found.max_abs, found.cosine) == (EXACT_DB, 0.0, 1.0)
    assert found.latency_ms == Ratio(a=10.0, b=10.0, ratio=1.0)
    assert isinstance(found.placement, PlacementChange)
    assert (found.placement.kernels, found.placement.fallback_appeared) == ({}, ())
    assert found.notes == ("latencies are of two runs, not interleaved: a busy machine or another clock shows in them",)


def test_two_bundles(bundle: Bundle, tmp_path: Path) -> None:
    other = write_bundle(tmp_path, "b", artifact=logits(0.01, flipped=3), latency_ms=15.0, kernels={"conv": 8, "x": 1})
    found = diff(bundle, other)
    assert [(flip.clip, flip.label, flip.a, flip.b) for flip in found.flips] == [
        (f"left/{i}.mp4", "left", "left", "right") for i in range(3)
    ]
    assert found.agreement == 0.75
    assert found.sqnr_db == pytest.approx(3.0, abs=0.1)
    assert found.top1 == Top1(
        a=1.0, b=0.75, drop_pt=25.0, drop_ci95_pt=found.top1.drop_ci95_pt, lost=3, gained=0, mcnemar_p=0.25
    )
    assert found.latency_ms == Ratio(a=10.0, b=15.0, ratio=1.5)
    assert found.size_mb == Ratio(a=7e-6, b=7e-6, ratio=1.0)
    assert found.placement.kernels == {"gemm": (9, 0), "conv": (0, 8), "x": (0, 1)}
    assert (found.limits.min_agreement, found.limits.max_drop_pt) == (GATES["min_agreement"], GATES["max_drop_pt"])
    agreement, drop = found.failures
    assert agreement == "agreement: 75.00% is below 90.00% (3 of 12 clips flip)"
    assert drop.startswith("accuracy: top-1 drops 25.00 points, more than 10 (95 % interval 0.00 …")
    assert diff(bundle, other, limits=OPEN).held
    assert diff(other, bundle, limits=Limits(min_agreement=0)).held, "a gain is no drop"
    numerics, latency = diff(
        bundle, other, limits=Limits(min_sqnr_db=10, min_agreement=0, max_drop_pt=30, max_slower=1.4)
    ).failures
    assert numerics == "numerics: SQNR 3.0 dB is below 10 dB"
    assert latency == "latency: B takes 1.50x as long as A, more than 1.4x"
    assert json.loads(json.dumps(found.to_dict()))["flips"][0] == {
        "clip": "left/0.mp4",
        "label": "left",
        "a": "left",
        "b": "right",
    }


def test_the_stricter_gates_are_the_limits(bundle: Bundle, tmp_path: Path) -> None:
    other = write_bundle(tmp_path, "b", artifact=logits())
    gates = {"min_agreement": 0.5, "max_drop_pt": 1.0}
    write_manifest(other.path, without(dict(other.manifest), "schema", "files", "digest") | {"gates": gates})
    limits = diff(bundle, other.path).limits
    assert limits == Limits(min_agreement=0.9, max_drop_pt=1.0)
    assert diff(bundle, other.path, limits=Limits(max_drop_pt=5)).limits.max_drop_pt == 5


def test_a_bundle_with_the_results_of_a_device(bundle: Bundle) -> None:
    found = diff(bundle, results(bundle))
    assert found.held, found.failures
    assert found.ran_on == ("r 1 on d", "tensorrt 10.3 on Jetson Orin Nano")
    assert found.top1.b == 1.0
    assert found.latency_ms == Ratio(a=10.0, b=12.5, ratio=1.25)
    assert found.size_mb == Ratio(a=7e-6, b=7e-6, ratio=1.0)
    assert (found.placement.fallback_ops, found.placement.fallback_appeared) == ((0, 1), ("pool",))
    back = diff(results(bundle), bundle).placement
    assert (back.fallback_appeared, back.fallback_disappeared) == ((), ("pool",))
    assert len(found.notes) == 1


def test_two_results_of_one_bundle(bundle: Bundle) -> None:
    fields = results_fields(bundle, logits(flipped=1))
    one, other = results(bundle), write_fields(bundle.path.parent / "other.json", fields | {"latency_ms": [25.0]})
    found = diff(one, other)
    assert found.held
    assert found.limits == Limits()
    (flip,) = found.flips
    assert (flip.clip, flip.label, flip.a, flip.b) == ("left/0.mp4", None, "class 0", "class 1")
    assert found.top1 == NotMeasured("results do not hold the true classes: give --bundle, the bundle that they are of")
    assert found.size_mb == NotMeasured(f"the bundle of {one} is not at hand: give --bundle")
    assert found.latency_ms.ratio == 2.0
    (failure,) = diff(one, other, limits=Limits(max_drop_pt=1)).failures
    assert failure.startswith("accuracy: the drop is not measured: results do not hold")
    named = diff(read_results(one), other, bundle=bundle.path)
    assert named.a == "a on Jetson Orin Nano"
    assert (named.flips[0].label, named.flips[0].b, named.top1.b) == ("left", "right", pytest.approx(11 / 12))
    assert named.size_mb.ratio == 1.0


def test_results_of_another_bundle_are_told(bundle: Bundle, tmp_path: Path) -> None:
    other = write_bundle(tmp_path, "b", artifact=logits(0.1), kernels={"conv": 1})
    file = results(other)
    found = diff(bundle, file)
    assert f"{file} is of another bundle: its classes are taken for those of {bundle.path}" in found.notes
    assert found.size_mb == NotMeasured(f"the bundle of {file} is not at hand: give --bundle")
    assert diff(bundle, file, bundle=other).size_mb.ratio == 1.0


def test_golden_clips_where_one_side_ran_no_more(bundle: Bundle) -> None:
    fields = without(results_fields(bundle), "evaluation", "latency_ms", "placement")
    found = diff(bundle, write_fields(bundle.path.parent / "r.json", fields), limits=Limits(max_slower=2))
    assert (found.clips, found.clips_of) == (2, "golden")
    assert found.notes == ("compared on the 2 golden clips alone: one side did not run the evaluation set",)
    assert found.failures == ("latency: not measured: the results leave it out",)
    assert found.placement == NotMeasured("the results leave it out")
    assert isinstance(found.top1, Top1)


def test_skipped_clips_and_other_pixels_are_told(bundle: Bundle) -> None:
    fields = results_fields(bundle)
    first, *others = fields["evaluation"]
    line = f"{IDS[-1]}: cut short"
    changes = {"evaluation": [first | {"sha256": "0" * 64}, *others[:-1]], "skipped": [line]}
    file = results(bundle, **changes)
    found = diff(bundle, file)
    assert found.clips == 11
    assert found.notes[:2] == (
        f"{file}: skipped: {line}",
        "1 of 11 clips have other pixels in B than in A: another ClipSpec or decoder",
    )


def refused(a: Any, b: Any, message: str, **given: Any) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        diff(a, b, **given)


def test_sides_that_cannot_be_compared(bundle: Bundle, tmp_path: Path) -> None:
    refused(bundle, tmp_path / "no", "no does not exist: give the folder of a bundle, or the results.json of a device")
    refused(bundle, tmp_path, "holds no manifest.json")
    old = write_bundle(tmp_path, "old")
    refused(bundle, old, f"{old.path} stores no logits of its artifact (not asked): give in its place")
    refused(old, bundle, "give in its place the results of a device, as for `edgeact validate --results`")
    other = write_bundle(tmp_path, "b", artifact=logits(), ids=(*IDS[:-1], "more.mp4"))
    refused(bundle, other, f"{other.path} lacks 1 of the 12 evaluation clips of {bundle.path}, first 'still/3.mp4'")
    named = write_bundle(tmp_path, "c", artifact=logits(), labels=("a", "b", "c"))
    refused(bundle, named, f"{bundle.path} and {named.path} have other classes, or in another order")
    refused(bundle, results(bundle, golden=results_fields(bundle)["golden"][:1]), "golden lacks 1 of the 2 clips")
    nothing = without(results_fields(bundle), "evaluation")
    nothing["golden"] = [clip | {"logits": {"not_measured": "x"}} for clip in nothing["golden"]]
    file = write_fields(tmp_path / "r.json", nothing)
    refused(bundle, file, "golden clip 'left/0.mp4' has no logits (x), as 2 of the 2 golden clips")
    refused(file, file, "r.json holds no logits: nothing was run")


def test_results_of_other_classes_or_clips(bundle: Bundle, tmp_path: Path) -> None:
    fields = results_fields(bundle)
    fields["bundle"]["digest"] = "another"
    few = fields | {"golden": [{"id": "x", "logits": [1, 2]}], "evaluation": [{"id": "x", "logits": [1, 2]}]}
    file = write_fields(tmp_path / "few.json", few)
    refused(bundle, file, f"{bundle.path} tells 3 classes apart, {file} 2: they cannot be compared")
    refused(file, file, f"{bundle.path} has 3 classes, {file} 2", bundle=bundle)
    far = fields | {"evaluation": [{"id": "x", "logits": [1, 2, 3]}]}
    file = write_fields(tmp_path / "far.json", far)
    refused(file, file, f"{bundle.path} lacks 1 of the 1 clips, first 'x'", bundle=bundle)
    skipped = [f"{clip}: no video" for clip in IDS]
    a = write_fields(tmp_path / "a.json", fields | {"evaluation": fields["evaluation"][:1], "skipped": skipped})
    b = write_fields(tmp_path / "b.json", fields | {"evaluation": fields["evaluation"][1:], "skipped": skipped})
    refused(a, b, f"{a} and {b} ran no clip that both could use")


def test_other_labels_of_the_same_clips(bundle: Bundle, tmp_path: Path) -> None:
    other = write_bundle(tmp_path, "b", artifact=logits())
    stored = other.reference()
    swapped = np.roll(stored.labels, 1)
    write_reference(other.path, ReferenceSet(stored.ids, swapped, stored.digests, stored.logits, stored.artifact))
    write_manifest(other.path, without(dict(other.manifest), "schema", "files", "digest"))
    refused(
        bundle, other.path, f"{other.path} labels 'left/0.mp4' differently from {bundle.path}: compare the same clips"
    )


@pytest.mark.parametrize(
    "change",
    [
        {"latency": {"artifact_ms": "fast"}},
        {"latency": {"artifact_ms": 0}},
    ],
)
def test_a_stored_report_that_cannot_be(bundle: Bundle, change: dict[str, Any]) -> None:
    hostile = rewrite(bundle, change)
    with pytest.raises(BundleError, match=r"report\.json holds a latency or a placement that cannot be"):
        diff(hostile, hostile)


@pytest.mark.parametrize(
    "change",
    [
        {"kernels": ["gemm"]},
        {"kernels": {"gemm": "9"}},
        {"fallback": "pool"},
        {"fallback": [1]},
        {"fallback_ops": None},
        {"layers": {"name": "stem"}},
    ],
)
def test_a_stored_placement_that_cannot_be(bundle: Bundle, change: dict[str, Any]) -> None:
    hostile = rewrite(bundle, {"placement": change})
    with pytest.raises(BundleError, match=r"report\.json cannot be read: not a report of this version of edgeact"):
        diff(hostile, hostile)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"min_sqnr_db": float("nan")}, "min_sqnr_db is nan: it must be a finite number that is not negative"),
        ({"max_slower": -1.0}, "max_slower is -1.0: it must be a finite number"),
        ({"min_agreement": 1.5}, "min_agreement is 1.5: it is a share of clips from 0 to 1"),
    ],
)
def test_limits_that_make_no_sense(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        Limits(**fields)


def test_an_artifact_of_no_size_has_no_ratio(bundle: Bundle) -> None:
    (bundle.path / "model.bin").write_bytes(b"")
    write_manifest(bundle.path, without(dict(bundle.manifest), "schema", "files", "digest"))
    found = diff(bundle.path, bundle.path)
    assert found.size_mb == NotMeasured("A's is 0")
