"""Latency over minutes, as heat builds up: windows of runs, each with the device's temperature, clock and power.

window     0     1     2     3     4     5
p50 ms   100   100   101   118   121   120    slower by more than a tenth, twice in a row
MHz     1500  1500  1490  1250  1220  1230    … and at a lower clock: throttled from window 3 on
"""

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from edgeact._progress import progress_bar
from edgeact._sensors import Reading, Sensors
from edgeact.errors import InputError

__all__ = ["Sustained", "Window", "check_minutes", "run_sustained", "throttling"]

_MIN_WINDOW_S = 2.0
_MIN_WINDOWS, _MAX_WINDOWS = 3, 60
# A shared core or a governor moves a median by a few percent; throttling takes a quarter to a half of the clock.
_SLOWER = 1.10
_HOTTER_C = 1.0
_LOWER_CLOCK = 0.95


@dataclass(frozen=True, kw_only=True)
class Window:
    """Some seconds of back-to-back runs: clips, percentiles, and the device's sensors.

    The temperature is the highest of the window, clock and power are its means. A sensor that cannot be read is
    None; `Sustained.not_measured` says why.
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
        throttled_at_s: Start of the window from which on heat slowed the device down; see `throttling`.
        not_measured: Why a number is None, by its name.
    """

    minutes: float
    windows: tuple[Window, ...]
    energy_j_per_clip: float | None
    throttled_at_s: float | None
    not_measured: dict[str, str]


class _Timed(NamedTuple):
    """A window as it was run."""

    start_s: float
    seconds: float
    samples_ms: list[float]
    sensors: Reading


def check_minutes(minutes: float) -> None:
    """Refuse a length that no run can have.

    Raises:
        InputError: It is not a positive number of at most a week.
    """
    if not 0 < minutes <= 7 * 24 * 60:  # NaN fails too
        raise InputError(f"minutes is {minutes:g}: a sustained run takes more than 0 and at most a week")


def run_sustained(call: Callable[[], object], minutes: float, *, sensors: Sensors, progress: bool = False) -> Sustained:
    """Call back to back for `minutes`, in at most 60 windows of at least 2 s (a third of a run shorter than 6 s).

    Raises:
        InputError: `minutes` is not a positive number.
    """
    check_minutes(minutes)
    seconds = 60 * minutes
    count = max(_MIN_WINDOWS, min(_MAX_WINDOWS, math.floor(seconds / _MIN_WINDOW_S)))
    timed: list[_Timed] = []
    start = time.perf_counter()
    with progress_bar(f"running for {minutes:g} minutes", count, progress) as step:
        for i in range(count):
            if timed and time.perf_counter() - start >= seconds:  # clips longer than a window
                break
            timed.append(_run_window(call, start, (i + 1) * seconds / count, sensors))
            step()
    total_s, clips = sum(one.seconds for one in timed), sum(len(one.samples_ms) for one in timed)
    watts = [one.sensors.power_w for one in timed]
    joules = [power * one.seconds for power, one in zip(watts, timed, strict=True) if power is not None]
    windows = tuple(_window(one) for one in timed)
    throttled_at_s, unclear = throttling(windows)
    not_measured = sensors.not_measured | ({"throttled_at_s": unclear} if unclear else {})
    if "power_w" in not_measured:
        not_measured["energy_j_per_clip"] = not_measured["power_w"]
    return Sustained(
        minutes=total_s / 60,
        windows=windows,
        energy_j_per_clip=sum(joules) / clips if len(joules) == len(timed) else None,
        throttled_at_s=throttled_at_s,
        not_measured=not_measured,
    )


def _run_window(call: Callable[[], object], start: float, end_s: float, sensors: Sensors) -> _Timed:
    """Run until `end_s` after `start`, at least once; the sensors are read between two runs."""
    samples: list[float] = []
    begin = now = time.perf_counter()
    sensors.reset()
    while not samples or now - start < end_s:
        before = time.perf_counter()
        call()
        now = time.perf_counter()
        samples.append((now - before) * 1e3)
        sensors.sample()
    return _Timed(begin - start, now - begin, samples, sensors.window())


def _window(timed: _Timed) -> Window:
    p50, p95, p99 = map(float, np.percentile(timed.samples_ms, [50, 95, 99]))
    return Window(
        start_s=timed.start_s,
        clips=len(timed.samples_ms),
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
        temperature_c=timed.sensors.temperature_c,
        clock_mhz=timed.sensors.clock_mhz,
        power_w=timed.sensors.power_w,
    )


def throttling(windows: Sequence[Window]) -> tuple[float | None, str | None]:
    """When the device began to slow down for its heat, and what cannot be told about it.

    The first two windows are the measure. Slower is a median latency of more than 1.10 times theirs, in two windows in
    a row: one disturbance is none. It is throttling when the clock of the first of the two is more than 5 % lower;
    where no clock can be read, when it is hotter by 1 °C. Anything else that is slower is told, without that word.
    """
    first, rest = windows[:2], windows[2:]
    usual = float(np.mean([window.p50_ms for window in first]))
    slow = [window.p50_ms > _SLOWER * usual for window in rest]
    at = next((i for i, pair in enumerate(itertools.pairwise(slow)) if all(pair)), None)
    if at is None:
        return None, None
    window = rest[at]
    clocks = [one.clock_mhz for one in (*first, window) if one.clock_mhz is not None]
    degrees = [one.temperature_c for one in (*first, window) if one.temperature_c is not None]
    slower = f"slower from {window.start_s:.0f} s on ({usual:.1f} to {window.p50_ms:.1f} ms)"
    if len(clocks) == 3:
        lower = clocks[2] < _LOWER_CLOCK * float(np.mean(clocks[:2]))
        return (window.start_s, None) if lower else (None, f"{slower}, at the same clock: other programs may run")
    if len(degrees) == 3:
        hotter = degrees[2] >= max(degrees[:2]) + _HOTTER_C
        return (window.start_s, None) if hotter else (None, f"{slower}, and no hotter: other programs may run")
    return None, f"{slower}, and neither clock nor temperature can be read to tell heat from other programs"
