"""The measurements against scipy and simulation, and the gates that judge them."""

import dataclasses
import json
import re
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from report_samples import sustained
from scipy.stats import binomtest

from edgeact._statistics import clips_to_resolve, mcnemar_exact, wilson_interval
from edgeact.accuracy import Accuracy, compare_accuracy
from edgeact.errors import InputError
from edgeact.latency import Latency, summarize
from edgeact.numerics import EXACT_DB, Numerics, compare_outputs, ladder
from edgeact.parity import Gates, NotMeasured, Report, judge
from edgeact.placement import Placement

NONE = NotMeasured("not asked")


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (1, 0), (3, 3), (0, 6), (9, 2), (2, 9), (40, 61), (700, 800)])
def test_mcnemar_is_the_two_sided_binomial_test(lost: int, gained: int) -> None:
    expected = binomtest(lost, lost + gained, 0.5).pvalue if lost + gained else 1.0
    assert mcnemar_exact(lost, gained) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("successes", "n"), [(0, 1), (1, 1), (0, 20), (20, 20), (7, 20), (220, 240), (19000, 20000)])
def test_wilson_interval_is_that_of_scipy(successes: int, n: int) -> None:
    expected = binomtest(successes, n).proportion_ci(method="wilson")
    assert wilson_interval(successes, n) == pytest.approx((expected.low, expected.high), abs=1e-6)


@pytest.mark.parametrize(("lost", "gained", "n", "max_drop_pt"), [(12, 8, 400, 2.0), (50, 50, 500, 5.0)])
def test_the_clips_to_resolve_give_the_power_they_promise(lost: int, gained: int, n: int, max_drop_pt: float) -> None:
    needed, drop, discordant = clips_to_resolve(lost, gained, n, max_drop_pt), max_drop_pt / 100, (lost + gained) / n
    shares = [(discordant + drop) / 2, (discordant - drop) / 2, 1 - discordant]
    drawn = np.random.default_rng(0).multinomial(needed, shares, 20_000)
    z = (drawn[:, 0] - drawn[:, 1]) / np.sqrt(np.maximum(drawn[:, 0] + drawn[:, 1], 1))
    assert 0.77 < (z > 1.959964).mean() < 0.83


def test_more_flips_and_smaller_drops_need_more_clips() -> None:
    assert clips_to_resolve(0, 0, 240, 1.0) < clips_to_resolve(5, 5, 240, 1.0) < clips_to_resolve(5, 5, 240, 0.5)
    assert clips_to_resolve(0, 0, 240, 0.0) == clips_to_resolve(0, 0, 240, 100 / 240)
    assert clips_to_resolve(0, 0, 1, 100.0) >= 1


def test_sqnr_of_noise_of_a_known_power() -> None:
    rng = np.random.default_rng(0)
    reference = rng.normal(0, 1, (1000, 10)).astype(np.float32)
    outputs = reference + rng.normal(0, 0.01, reference.shape).astype(np.float32)
    sqnr_db, max_abs, cosine = compare_outputs(reference, outputs)
    assert sqnr_db == pytest.approx(40, abs=0.2)
    assert max_abs == pytest.approx(float(np.abs(reference - outputs).max()), rel=1e-4)
    assert 0.9999 < cosine < 1


def test_outputs_at_the_ends_of_the_scale() -> None:
    ones, zeros = np.ones((1, 3), np.float32), np.zeros((1, 3), np.float32)
    assert compare_outputs(ones, ones) == (EXACT_DB, 0.0, 1.0)
    assert compare_outputs(zeros, zeros) == (EXACT_DB, 0.0, 1.0)
    assert compare_outputs(zeros, ones) == (-EXACT_DB, 1.0, 0.0)
    assert compare_outputs(ones, -ones) == pytest.approx((-6.02, 2.0, -1.0), abs=0.01)


def test_outputs_that_cannot_be_compared() -> None:
    with pytest.raises(InputError, match=re.escape("outputs have shape (1, 3), the reference (1, 2): they must be")):
        compare_outputs(np.zeros((1, 2)), np.zeros((1, 3)))
    for value in (np.nan, np.inf):
        with pytest.raises(InputError, match="outputs hold values that are not finite"):
            compare_outputs(np.zeros((1, 2)), np.array([[0.0, value]]))


def logits(classes: list[int]) -> NDArray[np.float32]:
    return np.eye(3, dtype=np.float32)[classes]


def accuracy(truth: list[int], reference: list[int], artifact: list[int], max_drop_pt: float = 1.0) -> Accuracy:
    return compare_accuracy(
        logits(reference),
        logits(artifact),
        np.array(truth),
        clips=[f"clip{i}" for i in range(len(truth))],
        labels=("a", "b", "c"),
        max_drop_pt=max_drop_pt,
    )


def test_accuracy_counts_flips_both_ways() -> None:
    found = accuracy(truth=[0, 0, 1, 1, 2, 2], reference=[0, 0, 1, 0, 2, 0], artifact=[0, 1, 1, 1, 2, 1])
    assert (found.n, found.lost, found.gained, found.drop_pt) == (6, 1, 1, 0.0)
    assert found.top1_reference == found.top1_artifact == pytest.approx(4 / 6)
    assert found.top5_artifact == 1.0
    assert found.agreement == 0.5
    assert found.confusion == ((1, 1, 0), (0, 2, 0), (0, 1, 1))
    assert [(flip.clip, flip.label, flip.reference, flip.artifact) for flip in found.flips] == [
        ("clip1", "a", "a", "b"),
        ("clip3", "b", "a", "b"),
        ("clip5", "c", "a", "b"),
    ]


def test_the_interval_of_the_drop_is_that_of_its_normal_limit() -> None:
    n, lost, gained = 1000, 60, 20
    artifact = [1] * lost + [0] * (n - lost - gained) + [0] * gained
    reference = [0] * (n - gained) + [1] * gained
    found = accuracy(truth=[0] * n, reference=reference, artifact=artifact)
    share, drop = (lost + gained) / n, (lost - gained) / n
    spread = 196 * ((share - drop**2) / n) ** 0.5
    assert found.drop_pt == 4.0
    assert found.drop_ci95_pt == pytest.approx((4 - spread, 4 + spread), abs=0.25)
    assert found == accuracy(truth=[0] * n, reference=reference, artifact=artifact)


def test_without_flips_the_interval_has_no_width() -> None:
    assert accuracy([0, 1, 2], [0, 1, 1], [0, 1, 1]).drop_ci95_pt == (0.0, 0.0)


@pytest.mark.parametrize("lost", [7, 14, 28, 55, 57])
def test_a_drop_of_just_the_limit_holds(lost: int) -> None:
    found = accuracy([0] * 100, [0] * 100, [1] * lost + [0] * (100 - lost), max_drop_pt=lost)
    assert found.drop_pt == lost
    assert judge(Gates(max_drop_pt=lost, min_agreement=0), NONE, found, NONE, NONE) == ()


def test_accuracy_of_no_clips() -> None:
    with pytest.raises(InputError, match="accuracy needs at least one labelled clip, found none"):
        accuracy([], [], [])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"min_agreement": 1.5}, "min_agreement is 1.5: it is a share of clips from 0 to 1"),
        ({"min_agreement": float("nan")}, "min_agreement is nan"),
        ({"min_sqnr_db": -1.0}, "min_sqnr_db is -1.0: it must be a finite number that is not negative"),
        ({"max_drop_pt": float("inf")}, "max_drop_pt is inf: it must be a finite number"),
        ({"max_fallback": -1}, "max_fallback is -1"),
        ({"min_speedup": float("nan")}, "min_speedup is nan"),
    ],
)
def test_gates_that_make_no_sense(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        Gates(**fields)


def test_default_gates_per_precision() -> None:
    assert Gates.defaults("fp32") == Gates()
    assert Gates.defaults("fp16").min_sqnr_db < Gates.defaults("fp32").min_sqnr_db


def steps(*noise: float) -> Numerics:
    """A ladder whose rungs add noise of these amplitudes one after another."""
    rng = np.random.default_rng(0)
    rungs = [("fp32", rng.normal(0, 1, (16, 8)))]
    for i, amplitude in enumerate(noise):
        rungs.append((f"rung{i}", rungs[-1][1] + amplitude * rng.normal(0, 1, (16, 8))))
    return ladder(rungs)


def test_the_ladder_compares_with_the_reference_and_with_the_rung_before() -> None:
    numerics = steps(1e-3, 1e-1, 0.0)
    first, second, third = numerics.rungs
    assert [rung.name for rung in numerics.rungs] == ["rung0", "rung1", "rung2"]
    assert first.sqnr_db == first.step_sqnr_db == pytest.approx(60, abs=2)
    assert second.step_sqnr_db == pytest.approx(20, abs=2)
    assert third.step_sqnr_db == EXACT_DB
    assert numerics.sqnr_db == third.sqnr_db == second.sqnr_db
    assert (first.agreement, first.top1) == (1.0, None)
    assert {rung.clips for rung in numerics.rungs} == {16}


def test_a_rung_says_how_many_answers_it_changes() -> None:
    logits, truth = np.eye(4), np.array([0, 1, 2, 2])
    (rung,) = ladder([("fp32", logits), ("artifact", np.roll(logits, 1, axis=0))], truth).rungs
    assert (rung.agreement, rung.top1) == (0.0, 0.25)


def test_a_failure_of_numerics_names_the_largest_step() -> None:
    (failure,) = judge(Gates(), steps(1e-6, 1e-2, 1e-6), NONE, NONE, NONE)
    assert re.match(r"numerics: SQNR 39\.\d dB is below 80 dB; the largest step is at the rung 'rung1' \(39", failure)


def test_failures_of_accuracy_are_the_agreement_and_the_drop() -> None:
    found = accuracy([0] * 10, [0] * 10, [1] + [0] * 9)
    agreement, drop = judge(Gates(), NONE, found, NONE, NONE)
    assert agreement == "accuracy: top-1 agreement 90.00% is below 100.00% (1 of 10 clips flip)"
    assert drop.startswith("accuracy: top-1 drops 10.00 points, more than 0 (95 % interval 0.00 …")


def placement(*fallback: str) -> Placement:
    return Placement(
        accelerated_ops=9, fallback_ops=len(fallback), fallback=fallback, kind="measured", kernels={"gemm": 9}
    )


def test_a_failure_of_placement_names_the_first_ops() -> None:
    (failure,) = judge(Gates(max_fallback=1), NONE, NONE, NONE, placement(*"abcdef"))
    assert failure == "placement: 6 ops fall back, more than 1: a, b, c, d, e"
    assert judge(Gates(max_fallback=1), NONE, NONE, NONE, placement("a")) == ()


def latency(reference: list[float] | None) -> Latency:
    samples = {"artifact": [10.0]} | ({"reference": reference} if reference else {})
    missing = None if reference else "PyTorch is not used here"
    return summarize(samples, threads=1, runtime="r", device="d", reference_missing=missing)


def test_latency_is_judged_only_when_asked_and_measured() -> None:
    (failure,) = judge(Gates(min_speedup=2.0), NONE, NONE, latency([15.0]), NONE)
    assert failure == "latency: 1.50x of PyTorch eager is below 2x"
    assert judge(Gates(), NONE, NONE, latency([5.0]), NONE) == ()
    assert judge(Gates(min_speedup=2.0), NONE, NONE, latency(None), NONE) == ()
    assert judge(Gates(min_speedup=2.0), NONE, NONE, latency([20.0]), NONE) == ()
    everything = steps(1e-6), accuracy([0], [0], [0]), latency(None), placement()
    (failure,) = judge(Gates(min_speedup=2.0, require_all=True), *everything)
    assert failure == "latency: speed-up not measured: PyTorch is not used here"
    assert judge(Gates(require_all=True), *everything) == ()


def test_what_was_not_measured_cannot_fail() -> None:
    assert judge(Gates(min_speedup=9.0), NONE, NONE, NONE, NONE) == ()


def report(**changes: Any) -> Report:
    base = Report(
        bundle="b",
        target="t",
        model="m",
        precision="fp32",
        form="volumetric",
        held=True,
        failures=(),
        artifact={"files": ["m.xml"], "size_mb": 1.0},
        numerics=steps(1e-6),
        accuracy=accuracy([0, 1], [0, 1], [0, 0]),
        latency=latency([15.0]),
        placement=placement("a"),
        gates=Gates(),
        notes=("n",),
        environment={"cpu": "c"},
        date="2026-01-01T00:00:00+00:00",
    )
    return dataclasses.replace(base, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"accuracy": NONE, "placement": NONE, "latency": NONE, "numerics": NONE, "sustained": NONE},
        {"sustained": sustained(3)},
    ],
)
def test_a_report_survives_json(changes: dict[str, Any]) -> None:
    original = report(**changes)
    assert Report.from_dict(json.loads(json.dumps(original.to_dict()))) == original


def test_a_report_from_before_minutes_were_measured() -> None:
    fields = report().to_dict()
    del fields["sustained"]
    assert Report.from_dict(fields).sustained == NotMeasured("give --minutes")


def test_a_report_of_another_version_is_refused() -> None:
    fields = report().to_dict()
    for broken in ({**fields, "extra": 1}, {"bundle": "b"}, {**fields, "accuracy": None}):
        with pytest.raises(InputError, match="not a report of this version of edgeact"):
            Report.from_dict(broken)
