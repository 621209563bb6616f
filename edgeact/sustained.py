"""Latency over minutes, as heat builds up: windows of runs, each with the device's temperature, clock and power."""

from dataclasses import dataclass

__all__ = ["Sustained", "Window"]


@dataclass(frozen=True, kw_only=True)
class Window:
    """Some seconds of back-to-back runs: how many clips, their percentiles, and the device's sensors at its end.

    A sensor that cannot be read is None; `Sustained.not_measured` says why.
    """

    start_s: float
    clips: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    temperature_c: float | None = None
    clock_mhz: float | None = None
    power_w: float | None = None


@dataclass(frozen=True, kw_only=True)
class Sustained:
    """Minutes of back-to-back runs, window by window.

    Attributes:
        minutes: How long it ran.
        windows: In order.
        energy_j_per_clip: Energy of one clip, from the power over the whole run.
        throttled_at_s: Start of the first window in which the device had slowed down; None where it did not.
        not_measured: Why a number is None, by its name.
    """

    minutes: float
    windows: tuple[Window, ...]
    energy_j_per_clip: float | None
    throttled_at_s: float | None
    not_measured: dict[str, str]
