"""Order of the interleaved calls, and the summary of their times."""

import numpy as np
import pytest

from edgeact.latency import measure_interleaved, summarize


def test_calls_are_interleaved_and_the_order_turns_round_every_round() -> None:
    seen: list[str] = []
    samples = measure_interleaved(
        {"reference": lambda: seen.append("r"), "artifact": lambda: seen.append("a")}, rounds=3, warmup=2
    )
    assert "".join(seen) == "rraa" + "ra" + "ar" + "ra"
    assert {name: len(times) for name, times in samples.items()} == {"reference": 3, "artifact": 3}
    assert all(time_ms >= 0 for times in samples.values() for time_ms in times)


def test_summary_gives_medians_percentiles_and_the_ratio_with_its_interval() -> None:
    rng = np.random.default_rng(0)
    artifact, reference = (rng.normal(10, 0.5, 60).tolist(), rng.normal(30, 1.5, 60).tolist())
    latency = summarize(
        {"artifact": artifact, "reference": reference}, threads=4, runtime="r 1", device="d", peak_memory_mb=5.0
    )
    assert latency.artifact_ms == np.median(artifact)
    assert latency.reference_ms == np.median(reference)
    assert latency.artifact_p50_p95_p99_ms == pytest.approx(np.percentile(artifact, [50, 95, 99]))
    assert latency.reference_p50_p95_p99_ms == pytest.approx(np.percentile(reference, [50, 95, 99]))
    assert latency.speedup == pytest.approx(np.median(reference) / np.median(artifact))
    assert latency.speedup_ci95 is not None
    low, high = latency.speedup_ci95
    assert low < 3.0 < high
    assert high - low < 0.5
    assert (latency.rounds, latency.threads, latency.peak_memory_mb) == (60, 4, 5.0)
    assert latency.artifact_samples_ms == tuple(artifact)


def test_drift_that_both_share_does_not_widen_the_ratio() -> None:
    drift = np.linspace(1, 2, 40)  # the machine slows down to half its speed
    latency = summarize(
        {"artifact": list(10 * drift), "reference": list(20 * drift)}, threads=1, runtime="r", device="d"
    )
    assert latency.speedup_ci95 == pytest.approx((2.0, 2.0))


def test_summary_is_deterministic() -> None:
    samples = {"artifact": [1.0, 2.0, 3.0], "reference": [4.0, 5.0, 6.0]}
    assert summarize(samples, threads=1, runtime="r", device="d") == summarize(
        samples, threads=1, runtime="r", device="d"
    )


def test_without_a_reference_nothing_follows_from_it_and_the_reason_stays() -> None:
    latency = summarize({"artifact": [1.0]}, threads=1, runtime="r", device="d", reference_missing="no PyTorch here")
    assert (latency.reference_ms, latency.speedup, latency.speedup_ci95) == (None, None, None)
    assert (latency.reference_p50_p95_p99_ms, latency.reference_samples_ms) == (None, ())
    assert latency.reference_missing == "no PyTorch here"
    assert latency.artifact_p50_p95_p99_ms == (1.0, 1.0, 1.0)
