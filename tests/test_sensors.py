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
    board = write(tmp_path / "board", {"firmware/devicetree/base/compatible": "nvidia,p3768\0nvidia,tegra234"})
    assert Sensors("Orin", root=board).not_measured["clock_mhz"] == f"{board}/class/devfreq tells no clock of the Orin"


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


WORKSTATION = {
    "class/thermal/thermal_zone0/temp": 91000,
    "devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": 5000000,
    "class/powercap/intel-rapl:0/energy_uj": 1_000_000,
    "class/powercap/intel-rapl:0/max_energy_range_uj": 10_000_000,
}
CARD = "NVIDIA GeForce RTX 4090"


def smi(tmp_path: Path, answer: str, status: int = 0) -> tuple[str, ...]:
    """A stand-in for nvidia-smi: notes how it was called, and answers."""
    calls = tmp_path / "calls"
    program = f"import sys; open({str(calls)!r}, 'a').write(' '.join(sys.argv[1:]) + '\\n')"
    return (sys.executable, "-c", f"{program}; print({answer!r}); sys.exit({status})")


@pytest.fixture
def workstation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return write(tmp_path / "sys", WORKSTATION)


def test_a_card_is_asked_itself(tmp_path: Path, workstation: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()
    monkeypatch.setattr("edgeact._sensors.time.monotonic", lambda: float(next(clock)))
    both = f"NVIDIA T400, 40, 300, 20.1\n{CARD}, 61, 2520, 402.35"
    sensors = Sensors(CARD, root=workstation, smi=smi(tmp_path, both))
    assert sensors.not_measured == {}
    calls = tmp_path / "calls"
    query = "--query-gpu=name,temperature.gpu,clocks.sm,power.draw --format=csv,noheader,nounits\n"
    for windows in (2, 3):
        sensors.reset()
        sensors.sample()
        sensors.sample()
        assert sensors.window() == Reading(61.0, 2520.0, 402.35)
        assert calls.read_text() == windows * query
    assert Sensors(root=workstation).window().temperature_c == 91.0, "the CPU's own"


def test_one_of_several_cards_by_its_uuid(tmp_path: Path, workstation: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two = f"{CARD}, 61, 2520, 400\n{CARD}, 35, 210, 20"
    reason = f"lists 2 cards of the name {CARD}: name the one that runs in CUDA_VISIBLE_DEVICES by its UUID"
    assert reason in Sensors(CARD, root=workstation, smi=smi(tmp_path, two)).not_measured["power_w"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-5d1c,GPU-77")
    sensors = Sensors(CARD, root=workstation, smi=smi(tmp_path, f"{CARD}, 61, 2520, 400"))
    assert sensors.window().power_w == 400
    assert (tmp_path / "calls").read_text().splitlines()[-1].startswith("-i GPU-5d1c --query-gpu=")


@pytest.mark.parametrize(
    ("answer", "status", "reason"),
    [
        ("No devices were found", 6, "does not tell (exit status 6): 'No devices were found'"),
        ("", 0, "does not tell (exit status 0): ''"),
        (f"{CARD}, 61, 2520", 0, "does not tell (exit status 0)"),
        ("NVIDIA T400, 1, 2, 3\nNVIDIA T600, 1, 2, 3", 0, f"lists 0 cards of the name {CARD}"),
        (f"{CARD}, [N/A], [Not Supported], [Unknown Error]", 0, "nvidia-smi does not tell it of this card"),
        (f"{CARD}, nan, -1, 1e400", 0, "nvidia-smi does not tell it of this card"),
    ],
)
def test_a_card_that_does_not_tell(answer: str, status: int, reason: str, tmp_path: Path, workstation: Path) -> None:
    sensors = Sensors(CARD, root=workstation, smi=smi(tmp_path, answer, status))
    assert sensors.window() == Reading(None, None, None), "the processor's figures are not the card's"
    assert sensors.not_measured.keys() == {"temperature_c", "clock_mhz", "power_w"}
    assert all(reason in told for told in sensors.not_measured.values())


def test_without_nvidia_smi(workstation: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = Sensors(CARD, root=workstation, smi=("no-such-smi",)).not_measured["power_w"]
    assert absent == "no-such-smi, which tells of this card, cannot be run: No such file or directory"
    monkeypatch.setattr("edgeact._nvidia_smi._TIMEOUT_S", 0.05)
    hangs = Sensors(CARD, root=workstation, smi=(sys.executable, "-c", "import time; time.sleep(60)"))
    assert hangs.not_measured["clock_mhz"] == f"{sys.executable} gave no answer within 0.05 s"


def test_a_card_that_is_lost_says_why(tmp_path: Path, workstation: Path) -> None:
    sensors = Sensors(CARD, root=workstation, smi=smi(tmp_path, f"{CARD}, 61, 2520, 400"))
    assert sensors._card is not None
    sensors._card._command = smi(tmp_path, "Unable to determine the device handle: GPU is lost", 15)
    assert sensors.window() == Reading(None, None, None)
    assert "GPU is lost" in sensors.not_measured["power_w"]


def test_the_power_mode() -> None:
    told = (sys.executable, "-c", "print('NV Power Mode: MAXN_SUPER\\n0')")
    assert power_mode(told) == "MAXN_SUPER"
    assert power_mode((sys.executable, "-c", "raise SystemExit('NV Power Mode: needs root')")) is None
    assert power_mode(("no-such-nvpmodel",)) is None
