"""Latency of two things interleaved in one run, since a shared machine's speed drifts.

    round 1: reference, artifact     round 2: artifact, reference     round 3: reference, artifact …

Every round gives one pair; medians and the ratio's interval come from the pairs.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

__all__ = ["Latency", "measure_interleaved", "summarize"]

_BOOTSTRAP_ROUNDS = 1000


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Milliseconds per clip (batch 1): medians, percentiles and the paired ratio.

    `reference_ms` and what follows from it are None where no PyTorch is installed; `reference_missing` says so.
    `threads` is None where a device did not say, as accelerators have none. `peak_memory_mb` is that of a fresh process
    that loads the bundle and runs clips, None where it cannot be read.
    """

    reference_ms: float | None
    artifact_ms: float
    speedup: float | None
    speedup_ci95: tuple[float, float] | None
    artifact_p50_p95_p99_ms: tuple[float, float, float]
    reference_p50_p95_p99_ms: tuple[float, float, float] | None
    reference_missing: str | None
    threads: int | None
    rounds: int
    runtime: str
    device: str
    peak_memory_mb: float | None
    reference_samples_ms: tuple[float, ...]
    artifact_samples_ms: tuple[float, ...]


def measure_interleaved(
    calls: Mapping[str, Callable[[], object]], *, rounds: int = 30, warmup: int = 3
) -> dict[str, list[float]]:
    """Milliseconds of every call, `rounds` times each, interleaved; the order turns round every round."""
    for call in calls.values():
        for _ in range(warmup):
            call()
    samples: dict[str, list[float]] = {name: [] for name in calls}
    order = list(calls.items())
    for _ in range(rounds):
        for name, call in order:
            start = time.perf_counter()
            call()
            samples[name].append((time.perf_counter() - start) * 1e3)
        order.reverse()
    return samples


def _percentiles(samples: list[float]) -> tuple[float, float, float]:
    p50, p95, p99 = np.percentile(samples, [50, 95, 99])
    return float(p50), float(p95), float(p99)


def summarize(
    samples: Mapping[str, list[float]],
    *,
    threads: int | None,
    runtime: str,
    device: str,
    peak_memory_mb: float | None = None,
    reference_missing: str | None = None,
    seed: int = 0,
) -> Latency:
    """Medians, percentiles and the bootstrapped 95 % interval of the ratio of medians over paired rounds.

    Args:
        samples: Milliseconds under `artifact` and, where it could be measured, `reference`.
        reference_missing: Why there are no reference samples.
    """
    artifact, reference = samples["artifact"], samples.get("reference", [])
    speedup, interval = None, None
    if reference:
        pairs = np.array([reference, artifact])
        draws = np.random.default_rng(seed).integers(0, len(artifact), (_BOOTSTRAP_ROUNDS, len(artifact)))
        medians = np.median(pairs[:, draws], axis=2)
        low, high = np.percentile(medians[0] / medians[1], [2.5, 97.5])
        speedup, interval = float(np.median(reference) / np.median(artifact)), (float(low), float(high))
    return Latency(
        reference_ms=float(np.median(reference)) if reference else None,
        artifact_ms=float(np.median(artifact)),
        speedup=speedup,
        speedup_ci95=interval,
        artifact_p50_p95_p99_ms=_percentiles(artifact),
        reference_p50_p95_p99_ms=_percentiles(reference) if reference else None,
        reference_missing=reference_missing,
        threads=threads,
        rounds=len(artifact),
        runtime=runtime,
        device=device,
        peak_memory_mb=peak_memory_mb,
        reference_samples_ms=tuple(reference),
        artifact_samples_ms=tuple(artifact),
    )
