"""Temperature, clock and power of what computes. What cannot be read is None, with why.

CPU, or a Jetson or other SoC: plain files of /sys, read between two clips: no daemon, no root where users may read
them. A card of its own: `nvidia-smi`; /sys has the processor's temperature and energy, which are not the card's.
"""

import math
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edgeact._nvidia_smi import Card

__all__ = ["Reading", "Sensors", "power_mode"]

_PLAUSIBLE_C = (-40.0, 150.0)  # Jetson's zones of parts that are switched off read -256
_TOTAL_RAILS = ("VDD_IN", "POM_5V_IN")  # NVIDIA's names of the whole module's input: Orin and Xavier NX, Nano and TX2
_SAMPLE_S = 0.25


@dataclass(frozen=True)
class Reading:
    """Sensors over a window: the highest temperature, the mean clock, the mean power."""

    temperature_c: float | None
    clock_mhz: float | None
    power_w: float | None


class Sensors:
    """Samples the sensors while something runs.

    Args:
        accelerator: Where the network runs: "CPU" takes the fastest core's clock, anything else the GPU's.
        root: Where sysfs is mounted.
        smi: The program that tells of a card of its own.

    `not_measured` says what cannot be read here, and why.
    """

    def __init__(
        self, accelerator: str = "CPU", *, root: Path = Path("/sys"), smi: tuple[str, ...] = ("nvidia-smi",)
    ) -> None:
        self._root = root
        cores = "devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq"
        gpus = [f"class/devfreq/*{name}*/cur_freq" for name in ("gpu", "ga10b", "gv11b", "gp10b")]  # Orin, Xavier, TX2
        self._clocks = self._find(*((cores,) if accelerator == "CPU" else gpus))
        self._mhz_per_unit = 1e-3 if accelerator == "CPU" else 1e-6  # cpufreq in kHz, devfreq in Hz
        self._zones = self._find("class/thermal/thermal_zone*/temp")
        self._rail = self._total_rail()
        on_cpu = accelerator == "CPU"
        self._counters = self._find("class/powercap/intel-rapl:[0-9]/energy_uj") if on_cpu and not self._rail else []
        self._card = None if on_cpu or self._is_soc() else Card(accelerator, smi)
        if self._card:
            self._clocks, self._zones = [], []
        self.not_measured = dict(self._absent(accelerator) if self._card is None else self._untold(self._card))
        self.reset()

    def reset(self) -> None:
        """Begin a window."""
        self._temperatures: list[float] = []
        self._mhz: list[float] = []
        self._watts: list[float] = []
        self._started = self._sampled = time.monotonic()
        self._energy_uj = self._energy()

    def sample(self) -> None:
        """Look at the sensors, unless that was done a moment ago; call it between two runs."""
        if time.monotonic() - self._sampled >= _SAMPLE_S:
            if self._card:
                self._card.ask()
            else:
                self._look()

    def window(self) -> Reading:
        """What was sampled since `reset()`, with a last look now."""
        if self._card:
            reading = Reading(*self._card.answer())
            self.not_measured |= dict(self._untold(self._card))
            return reading
        self._look()
        return Reading(
            temperature_c=max(self._temperatures, default=None),
            clock_mhz=_mean(self._mhz),
            power_w=_mean(self._watts) if self._rail is not None else self._rapl_w(),
        )

    def facts(self) -> dict[str, str]:
        """What a reader of a measurement should know, in words: power mode, temperature and clock as they are."""
        self.reset()
        now, mode = self.window(), power_mode()
        facts = {} if mode is None else {"power_mode": mode}
        facts |= {} if now.temperature_c is None else {"temperature": f"{now.temperature_c:.1f} °C"}
        return facts | ({} if now.clock_mhz is None else {"clock": f"{now.clock_mhz:.0f} MHz"})

    def _look(self) -> None:
        self._sampled = time.monotonic()
        low, high = _PLAUSIBLE_C
        degrees = (value / 1e3 for zone in self._zones if (value := _number(zone)) is not None)
        self._temperatures += [value for value in degrees if low < value < high]
        clocks = [value for clock in self._clocks if (value := _number(clock)) is not None]
        self._mhz += [max(clocks) * self._mhz_per_unit] if clocks else []
        if self._rail is not None:
            millivolts, milliamperes = map(_number, self._rail)
            if millivolts is not None and milliamperes is not None:
                self._watts.append(millivolts * milliamperes / 1e6)

    def _is_soc(self) -> bool:
        """Whether the GPU is part of the processor's chip, whose zones and rails are its own too."""
        tegra = self._root / "firmware/devicetree/base/compatible"
        return bool(self._clocks or self._rail_labels()) or (tegra.is_file() and b"nvidia,tegra" in tegra.read_bytes())

    def _find(self, *patterns: str) -> list[Path]:
        """Files that can be read now."""
        return [file for pattern in patterns for file in sorted(self._root.glob(pattern)) if _number(file) is not None]

    def _total_rail(self) -> tuple[Path, Path] | None:
        """Voltage (mV) and current (mA) of the whole module, as Jetson's INA3221 measures them."""
        for label in self._rail_labels():
            if label.read_text().strip() in _TOTAL_RAILS:
                number = label.name.removeprefix("in").removesuffix("_label")
                rail = (label.with_name(f"in{number}_input"), label.with_name(f"curr{number}_input"))
                if None not in map(_number, rail):
                    return rail
        return None

    def _rail_labels(self) -> list[Path]:
        return sorted(self._root.glob("bus/i2c/drivers/ina3221/*/hwmon/hwmon*/in*_label"))

    def _energy(self) -> dict[Path, float]:
        return {counter: value for counter in self._counters if (value := _number(counter)) is not None}

    def _rapl_w(self) -> float | None:
        """Mean power of the processor packages since `reset()`, from their energy counters, which wrap."""
        seconds, microjoules = time.monotonic() - self._started, 0.0
        now = self._energy()
        if not now or now.keys() != self._energy_uj.keys() or seconds <= 0:
            return None
        for counter, value in now.items():
            spent = value - self._energy_uj[counter]
            microjoules += spent if spent >= 0 else spent + (_number(counter.with_name("max_energy_range_uj")) or 0)
        return microjoules / 1e6 / seconds

    def _absent(self, accelerator: str) -> Iterator[tuple[str, str]]:
        if not self._zones:
            yield "temperature_c", f"{self._root}/class/thermal has no zone that can be read"
        if not self._clocks:
            where = "devices/system/cpu/cpu*/cpufreq" if accelerator == "CPU" else "class/devfreq"
            yield "clock_mhz", f"{self._root}/{where} tells no clock of the {accelerator}"
        if self._rail is None and not self._counters:
            yield "power_w", self._no_power()

    def _untold(self, card: Card) -> Iterator[tuple[str, str]]:
        for name, value in zip(("temperature_c", "clock_mhz", "power_w"), card.first, strict=True):
            if value is None or card.missing:
                yield name, card.missing or "nvidia-smi does not tell it of this card"

    def _no_power(self) -> str:
        if labels := self._rail_labels():
            names = ", ".join(label.read_text().strip() for label in labels)
            return f"the board measures {names}, and none of them is the whole module ({' or '.join(_TOTAL_RAILS)})"
        if any(self._root.glob("class/powercap/intel-rapl:[0-9]/energy_uj")):
            return "only root may read the processor's energy counter (/sys/class/powercap/intel-rapl:*/energy_uj)"
        return "neither an INA3221 (Jetson) nor a RAPL counter (Intel, AMD) is there"


def _number(file: Path) -> float | None:
    """The number in a file of sysfs; None where it is absent, not readable (a part that is off) or no number."""
    try:
        value = float(file.read_text())
    except (OSError, ValueError):
        return None
    return value if math.isfinite(value) else None


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def power_mode(command: tuple[str, ...] = ("nvpmodel", "-q")) -> str | None:
    """A Jetson's power mode, as `nvpmodel -q` names it; None on other machines, or where it does not say."""
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    names = [line.partition(":")[2].strip() for line in done.stdout.splitlines() if "power mode" in line.lower()]
    return names[0] if names and done.returncode == 0 else None
