"""Runs of minutes, here of a second: windows, energy, and when throttling may be said."""

import time
from pathlib import Path

import numpy as np
import pytest

from edgeact._progress import tell_progress
from edgeact._sensors import Reading, Sensors
from edgeact.errors import InputError
from edgeact.sustained import Window, run_sustained, throttling


class Fake(Sensors):
    """Five watts and nothing else."""

    def window(self) -> Reading:
        return Reading(None, None, 5.0)


def test_a_run_in_windows(tmp_path: Path) -> None:
    told = []
    sensors = Fake(root=tmp_path)
    sensors.not_measured.pop("power_w")
    with tell_progress(lambda *line: told.append(line)):
        found = run_sustained(lambda: time.sleep(0.01), 0.01, sensors=sensors, progress=True)
    assert len(found.windows) == 3
    assert [round(window.start_s, 1) for window in found.windows] == [0.0, 0.2, 0.4]
    assert found.minutes == pytest.approx(0.01, rel=0.3)
    assert all(window.clips > 2 and 10 <= window.p50_ms <= window.p95_ms <= window.p99_ms for window in found.windows)
    clips = sum(window.clips for window in found.windows)
    assert found.energy_j_per_clip == pytest.approx(5 * 60 * found.minutes / clips)
    assert set(found.not_measured) == {"temperature_c", "clock_mhz"}
    assert told == [("running for 0.01 minutes", i, 3) for i in range(4)]


def test_a_clip_longer_than_a_window_ends_in_time(tmp_path: Path) -> None:
    found = run_sustained(lambda: time.sleep(0.2), 0.002, sensors=Sensors(root=tmp_path))
    assert [window.clips for window in found.windows] == [1]
    assert found.energy_j_per_clip is None
    assert found.not_measured["energy_j_per_clip"] == found.not_measured["power_w"]


@pytest.mark.parametrize("minutes", [0, -1, np.nan, np.inf])
def test_a_length_that_no_run_has(minutes: float) -> None:
    with pytest.raises(InputError, match=f"minutes is {minutes:g}: a sustained run takes more than 0"):
        run_sustained(lambda: None, minutes, sensors=Sensors())


def windows(p50: list[float], clocks: list[float] | None = None, degrees: list[float] | None = None) -> list[Window]:
    return [
        Window(
            start_s=10.0 * i,
            clips=10,
            p50_ms=ms,
            p95_ms=ms,
            p99_ms=ms,
            clock_mhz=clocks[i] if clocks else None,
            temperature_c=degrees[i] if degrees else None,
        )
        for i, ms in enumerate(p50)
    ]


SLOWER = [100.0, 100, 101, 118, 121, 120]
HOTTER = [50.0, 55, 60, 70, 74, 74]


@pytest.mark.parametrize(
    ("p50", "clocks", "degrees", "at", "unclear"),
    [
        (SLOWER, [1500.0, 1500, 1490, 1250, 1220, 1230], None, 30.0, None),
        (SLOWER, [1500.0] * 6, HOTTER, None, "slower from 30 s on (100.0 to 118.0 ms), at the same clock"),
        (SLOWER, None, HOTTER, 30.0, None),
        (SLOWER, None, [50.0] * 6, None, "slower from 30 s on (100.0 to 118.0 ms), and no hotter"),
        (SLOWER, None, None, None, "slower from 30 s on (100.0 to 118.0 ms), and neither clock nor temperature"),
        ([100.0, 100, 150, 100, 150, 100], [1500.0, 1500, 900, 1500, 900, 1500], HOTTER, None, None),  # disturbances
        ([100.0, 100, 109, 109, 109, 109], [1500.0, 1500, 900, 900, 900, 900], HOTTER, None, None),
        ([100.0], None, None, None, None),
    ],
)
def test_throttling(
    p50: list[float], clocks: list[float] | None, degrees: list[float] | None, at: float | None, unclear: str | None
) -> None:
    found = throttling(windows(p50, clocks, degrees))
    assert found[0] == at
    assert (found[1] or "").startswith(unclear or "")
    assert (found[1] is None) == (unclear is None)


def test_a_slowdown_that_no_sensor_explains_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeact.sustained._MIN_WINDOW_S", 0.1)
    start = time.monotonic()
    found = run_sustained(
        lambda: time.sleep(0.005 if time.monotonic() < start + 0.3 else 0.03), 0.0105, sensors=Sensors(root=tmp_path)
    )
    assert len(found.windows) == 6
    assert found.throttled_at_s is None
    assert found.not_measured["throttled_at_s"].startswith("slower from 0 s on (5.")
