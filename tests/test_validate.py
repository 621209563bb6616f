"""What a device measured, judged: every measurement, what it left out, and a proxy that stays one."""

import dataclasses
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from results_samples import IDS, logits, results_fields, without, write_bundle, write_fields

from edgeact.accuracy import Accuracy
from edgeact.bundle import Bundle
from edgeact.errors import InputError
from edgeact.latency import Latency
from edgeact.numerics import Numerics
from edgeact.parity import NotMeasured, Report
from edgeact.placement import Placement, write_placement
from edgeact.results import read_results
from edgeact.runtime import CheckedRunner
from edgeact.sustained import Sustained
from edgeact.validate import judge_results, stored_gates, validate


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_bundle(tmp_path, facts={"reference_ms": 20.0, "environment": {"cpu": "a server"}})


@pytest.fixture
def fields(bundle: Bundle) -> dict[str, Any]:
    fields = results_fields(bundle, logits(noise=0.01))
    fields["placement"] |= {"fallback_ops": 0, "fallback": []}
    return fields


def judged(bundle: Bundle, fields: dict[str, Any]) -> Report:
    return validate(bundle, results=write_fields(bundle.path.parent / "results.json", fields))


def test_everything_a_device_measured(bundle: Bundle, fields: dict[str, Any]) -> None:
    report = judged(bundle, fields)
    assert report.held, report.failures
    assert isinstance(report.numerics, Numerics)
    assert 30 < report.numerics.sqnr_db < 70
    assert isinstance(report.accuracy, Accuracy)
    assert (report.accuracy.n, report.accuracy.agreement, report.accuracy.labels) == (12, 1.0, bundle.labels)
    assert isinstance(report.latency, Latency)
    assert (report.latency.artifact_ms, report.latency.threads, report.latency.rounds) == (12.5, None, 3)
    assert (report.latency.runtime, report.latency.device) == ("tensorrt 10.3", "Jetson Orin Nano")
    assert report.latency.peak_memory_mb == 100.5
    assert report.latency.reference_missing == "PyTorch is not used here; the export measured 20.0 ms on a server"
    assert isinstance(report.placement, Placement)
    assert (report.placement.kind, report.placement.kernels) == ("measured", {"conv": 9})
    assert isinstance(report.sustained, Sustained)
    assert report.sustained.windows[0].clock_mhz == 900
    assert report.environment == {"device": "Jetson Orin Nano", "power mode": "15W"}
    assert report.date == "2026-11-22T09:00:00+00:00"
    assert report.notes == ("decoding: 2 golden videos give the export's frames to the bit", "fan on")
    assert Report.from_dict(report.to_dict()) == report


def test_a_device_that_falls_short(bundle: Bundle, fields: dict[str, Any]) -> None:
    fields |= {"placement": results_fields(bundle)["placement"]}
    fields["evaluation"] = results_fields(bundle, logits(flipped=3))["evaluation"]
    fields["golden"][0]["logits"] = [-4.0, 0.0, 0.0]
    fields["golden"][0]["frames"] = {"mean_levels": 1.5, "max_levels": 9}
    fields["golden"][1]["frames"] = {"error": "no decoder"}
    report = judged(bundle, fields)
    starts = [failure[:38] for failure in report.failures]
    assert starts == [
        "decoding: left/0.mp4 differs from the ",
        "decoding: still/3.mp4: no decoder",
        "numerics: SQNR -3.0 dB is below 10 dB;",
        "accuracy: top-1 agreement 75.00% is be",
        "accuracy: top-1 drops 25.00 points, mo",
        "placement: 1 ops fall back, more than ",
    ]
    assert not report.held


def test_a_proxy_stays_a_proxy(bundle: Bundle, fields: dict[str, Any]) -> None:
    fields["runtime"] = {"name": "onnxruntime", "version": "1.31.1", "threads": 4, "proxy_for": "tensorrt"}
    report = judged(bundle, fields)
    assert report.latency.runtime == "onnxruntime 1.31.1, proxy for tensorrt"  # type: ignore[union-attr]
    assert report.placement.kind == "proxy"  # type: ignore[union-attr]
    assert (
        "onnxruntime 1.31.1 ran in place of tensorrt: its logits are a proxy, and its latency and placement are not "
        "those of tensorrt"
    ) in report.notes


def test_a_proxy_hands_on_the_compilers_estimate_and_no_other(bundle: Bundle, fields: dict[str, Any]) -> None:
    fields["runtime"] = {"name": "ethos_u_reference", "version": "2", "threads": 1, "proxy_for": "ethos_u"}
    fields["placement"] |= {"kind": "estimated"}
    file = write_fields(bundle.path.parent / "results.json", fields)
    stored = read_results(file, bundle).placement
    assert isinstance(stored, Placement)
    compiled = dataclasses.replace(bundle, manifest={**bundle.manifest, "artifact": ["model.bin", "placement.json"]})
    for told, kind in ((stored, "estimated"), (dataclasses.replace(stored, accelerated_ops=8), "proxy")):
        write_placement(bundle.path, told)
        report = judge_results(compiled, read_results(file, bundle), stored_gates(bundle))
        assert report.placement.kind == kind  # type: ignore[union-attr]
    write_placement(bundle.path, stored)
    notes = judge_results(compiled, read_results(file, bundle), stored_gates(bundle)).notes
    assert (
        "ethos_u_reference 2 ran in place of ethos_u: its logits are a proxy, and its latency is not that of ethos_u; "
        "the placement is what the export estimated"
    ) in notes
    assert judged(bundle, fields).placement.kind == "proxy", "no compiler said it"  # type: ignore[union-attr]


def test_a_sustained_run_that_was_asked_for_and_not_made_is_told(bundle: Bundle, fields: dict[str, Any]) -> None:
    why = "the device alone tells: onnxruntime is a proxy for tensorrt"
    notes = judged(bundle, fields | {"sustained": {"not_measured": why}}).notes
    assert [note for note in notes if "sustained" in note] == [f"sustained run: not measured: {why}"]
    for silent in ({"sustained": {"not_measured": "give --minutes"}}, {}):
        notes = judged(bundle, without(fields, "sustained") | silent).notes
        assert not [note for note in notes if "sustained" in note]


class StandIn:
    """A runner of the right logits, or, with `missing`, of an artifact that cannot run on this machine."""

    device, threads, version = "CPU", 1, "1"

    def __init__(self, missing: str | None) -> None:
        self.missing = missing

    def __call__(self, clip: NDArray[np.uint8]) -> NDArray[np.float32]:
        assert self.missing is None
        return logits()[:1]

    def layers(self, clip: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        return []

    def placement(self) -> NotMeasured:
        return NotMeasured("a stand-in")


@pytest.mark.parametrize(
    ("missing", "runtime", "why"),
    [
        ("it runs on the phone alone", "openvino", "it runs on the phone alone"),
        (None, "onnxruntime", "the device alone tells: onnxruntime is a proxy for openvino"),
    ],
)
def test_minutes_that_cannot_be_measured_here_are_told(
    missing: str | None, runtime: str, why: str, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = CheckedRunner(bundle, StandIn(missing), runtime)
    monkeypatch.setattr(sys.modules["edgeact.measure"], "load", lambda bundle, threads: runner)
    report = validate(bundle, minutes=1)
    assert report.sustained == NotMeasured(why)
    assert f"sustained run: not measured: {why}" in report.notes
    assert isinstance(report.numerics, NotMeasured) is (missing is not None)
    report = validate(bundle)
    assert report.sustained == NotMeasured("give --minutes")
    assert not [note for note in report.notes if "sustained" in note]


def test_what_a_device_left_out(bundle: Bundle, fields: dict[str, Any]) -> None:
    fields = without(fields, "evaluation", "latency_ms", "placement", "sustained", "notes")
    fields["golden"] = [without(clip, "frames") for clip in fields["golden"]]
    report = judged(bundle, fields)
    assert report.held
    left_out = NotMeasured("the results leave it out")
    assert (report.accuracy, report.latency, report.placement, report.sustained) == (left_out,) * 4
    assert report.notes == ("decoding: not measured for 2 of 2 golden videos",)
    strict = dataclasses.replace(stored_gates(bundle), require_all=True)
    failures = validate(bundle, gates=strict, results=read_results(bundle.path.parent / "results.json")).failures
    assert [failure.partition(":")[0] for failure in failures] == ["accuracy", "latency", "placement"]


@pytest.mark.parametrize("left_out", [(0,), (1,), (0, 1)])
def test_golden_clips_without_logits_are_not_judged(
    bundle: Bundle, fields: dict[str, Any], left_out: tuple[int, ...], tmp_path: Path
) -> None:
    for i in left_out:
        fields["golden"][i]["logits"] = {"not_measured": "out of memory"}
    words = f"golden clip {fields['golden'][left_out[0]]['id']!r} has no logits (out of memory), as {len(left_out)} of"
    with pytest.raises(InputError, match=re.escape(words)):
        judged(bundle, fields)
    results = read_results(write_fields(tmp_path / "r.json", fields))  # no bundle is at hand to check it by
    for of_a_device in (results, tmp_path / "r.json"):
        with pytest.raises(InputError, match=re.escape(words)):
            validate(bundle, results=of_a_device)
    if len(left_out) == 2:  # an artifact that cannot run on this machine, as a Vulkan one
        report = judge_results(bundle, results, stored_gates(bundle), measured_here=True)
        assert report.numerics == NotMeasured("out of memory")
    else:
        with pytest.raises(InputError, match=re.escape(words)):
            judge_results(bundle, results, stored_gates(bundle), measured_here=True)


def test_results_that_skip_much_fall_short(bundle: Bundle, fields: dict[str, Any]) -> None:
    fields["evaluation"] = fields["evaluation"][2:]
    fields["skipped"] = [f"{clip}: cut short" for clip in IDS[:2]]
    (failure,) = judged(bundle, fields).failures
    assert failure == (
        "accuracy: 2 of the 12 clips of the evaluation set are skipped, more than 1 (1% of it, at least one)"
    )
    results = read_results(bundle.path.parent / "results.json", bundle)
    assert judge_results(bundle, results, stored_gates(bundle), measured_here=True).held, "the user's own choice"


@pytest.mark.parametrize(("skipped", "held"), [(3, True), (4, False)])
def test_a_hundredth_may_be_skipped(
    bundle: Bundle, fields: dict[str, Any], skipped: int, held: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["edgeact.validate"], "MAX_SKIPPED", 0.25)  # of 12
    fields["evaluation"] = fields["evaluation"][skipped:]
    fields["skipped"] = [f"{clip}: cut short" for clip in IDS[:skipped]]
    assert judged(bundle, fields).held is held


def test_notes_on_pixels_and_skipped_clips(bundle: Bundle, fields: dict[str, Any]) -> None:
    first, second, *others = fields["evaluation"]
    fields["evaluation"] = [first | {"sha256": "0" * 64}, without(second, "sha256"), *others[:-1]]
    fields["skipped"] = [f"{IDS[-1]}: cut short"]
    report = judged(bundle, fields)
    assert report.accuracy.n == 11  # type: ignore[union-attr]
    assert report.notes[1:4] == (
        "skipped: still/3.mp4: cut short",
        "1 of 11 clips decode to other pixels than at the export",
        "1 of 11 clips have no sha256: whether they decode to the export's pixels is open",
    )


def test_a_bundle_that_fell_short_does_not_hold_on_a_device(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path, facts={"held": False})
    (failure, _) = judged(bundle, results_fields(bundle)).failures
    assert failure.startswith("export: it fell short there")


def test_results_of_another_bundle_are_not_judged(bundle: Bundle, fields: dict[str, Any], tmp_path: Path) -> None:
    fields["bundle"]["digest"] = "another"
    results = read_results(write_fields(tmp_path / "r.json", fields))
    with pytest.raises(InputError, match="it is of the bundle 'small' with the digest 'another', not of"):
        judge_results(bundle, results, stored_gates(bundle))
    with pytest.raises(InputError, match="data is run here, results were measured elsewhere: give one of them"):
        validate(bundle, data="motion", results=results)
