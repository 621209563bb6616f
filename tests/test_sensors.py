"""Sensors on made-up trees of sysfs, as boards have them."""

import itertools
import sys
import time
from pathlib import Path

import pytest

from edgeact._sensors import Reading, Sensors, power_mode


def write(root: Path, files: dict[str, object]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{content}\n")
    return root


INA = "bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3"
ORIN = {
    "class/thermal/thermal_zone0/temp": 51000,
    "class/thermal/thermal_zone1/temp": 48500,
    "class/thermal/thermal_zone2/temp": -256000,  # a part that is switched off
    "devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": 729600,
    "devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": 1510400,
    "class/devfreq/17000000.ga10b/cur_freq": 624750000,
    f"{INA}/in1_label": "VDD_IN",
    f"{INA}/in1_input": 5000,
    f"{INA}/curr1_input": 1400,
    f"{INA}/in2_label": "VDD_CPU_GPU_CV",
}


def test_a_jetson(tmp_path: Path) -> None:
    sensors = Sensors(root=write(tmp_path, ORIN))
    assert sensors.not_measured == {}
    assert sensors.window() == Reading(51.0, 1510.4, pytest.approx(7.0))
    gpu = Sensors("GPU", root=tmp_path)
    assert gpu.window().clock_mhz == pytest.approx(624.75)


def test_a_window_has_the_highest_temperature_and_means(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))  # each look is long after the one before
    sensors = Sensors(root=write(tmp_path, ORIN))
    write(tmp_path, {"class/thermal/thermal_zone0/temp": 60000, f"{INA}/curr1_input": 2000})
    sensors.sample()
    write(tmp_path, {"class/thermal/thermal_zone0/temp": 55000, f"{INA}/curr1_input": 1000})
    assert sensors.window() == Reading(60.0, 1510.4, pytest.approx(7.5))
    sensors.reset()
    assert sensors.window() == Reading(55.0, 1510.4, pytest.approx(5.0))


def test_the_processors_energy_counters_wrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    rapl = "class/powercap/intel-rapl:{}/{}"
    counters = {rapl.format(0, "energy_uj"): 9_000_000, rapl.format(0, "max_energy_range_uj"): 10_000_000}
    write(tmp_path, counters | {rapl.format(1, "energy_uj"): 0, rapl.format("0:0", "energy_uj"): 7})
    sensors = Sensors(root=tmp_path)
    assert "power_w" not in sensors.not_measured
    now[0] = 2.0
    write(tmp_path, {rapl.format(0, "energy_uj"): 1_000_000, rapl.format(1, "energy_uj"): 4_000_000})
    assert sensors.window().power_w == pytest.approx((2 + 4) / 2)
    (tmp_path / rapl.format(1, "energy_uj")).unlink()
    assert sensors.window().power_w is None


def test_what_is_absent_says_why(tmp_path: Path) -> None:
    sensors = Sensors(root=tmp_path)
    assert sensors.window() == Reading(None, None, None)
    assert sensors.not_measured == {
        "temperature_c": f"{tmp_path}/class/thermal has no zone that can be read",
        "clock_mhz": f"{tmp_path}/devices/system/cpu/cpu*/cpufreq tells no clock of the CPU",
        "power_w": "neither an INA3221 (Jetson) nor a RAPL counter (Intel, AMD) is there",
    }
    assert Sensors("GPU", root=tmp_path).not_measured["clock_mhz"] == (
        f"{tmp_path}/class/devfreq tells no clock of the GPU"
    )


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        (
            {f"{INA}/in1_label": "VDD_GPU_SOC", f"{INA}/in2_label": "VIN_SYS_5V0"},
            "the board measures VDD_GPU_SOC, VIN_SYS_5V0, and none of them is the whole module (VDD_IN or POM_5V_IN)",
        ),
        (
            {"class/powercap/intel-rapl:0/energy_uj": "no number, as where only root may read"},
            "only root may read the processor's energy counter (/sys/class/powercap/intel-rapl:*/energy_uj)",
        ),
    ],
)
def test_power_of_a_part_is_not_that_of_the_device(tmp_path: Path, files: dict[str, object], reason: str) -> None:
    assert Sensors(root=write(tmp_path, files)).not_measured["power_w"] == reason


def test_the_power_mode() -> None:
    told = (sys.executable, "-c", "print('NV Power Mode: MAXN_SUPER\\n0')")
    assert power_mode(told) == "MAXN_SUPER"
    assert power_mode((sys.executable, "-c", "raise SystemExit('NV Power Mode: needs root')")) is None
    assert power_mode(("no-such-nvpmodel",)) is None
