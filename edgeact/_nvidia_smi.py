"""Temperature, clock and power of an NVIDIA card, from the driver's own `nvidia-smi`.

It runs beside the network, once per window: a card that has nothing to do lowers its clock within a moment.
"""

import csv
import math
import os
import subprocess

__all__ = ["Card"]

_FIELDS = ("temperature.gpu", "clocks.sm", "power.draw")
_MOST = (150.0, 10_000.0, 10_000.0)  # °C, MHz, W: what is more is no reading
_TIMEOUT_S = 10.0

Figures = tuple[float | None, float | None, float | None]
_NONE: Figures = (None, None, None)


class Card:
    """The card that runs the network, found by its name among those of the machine.

    `missing` says why it cannot be asked; it is None where it answers.

    Args:
        name: The card's name, as CUDA tells it.
        command: The program to ask.
    """

    def __init__(self, name: str, command: tuple[str, ...] = ("nvidia-smi",)) -> None:
        self._name = name
        one = os.environ.get("CUDA_VISIBLE_DEVICES", "").partition(",")[0]
        only = ("-i", one) if one.startswith("GPU-") else ()  # numbers are CUDA's own, and need not be the driver's
        fields = ",".join(("name", *_FIELDS))
        self._command = (*command, *only, f"--query-gpu={fields}", "--format=csv,noheader,nounits")
        self._asked: subprocess.Popen[str] | None = None
        self.missing: str | None = None
        self.first = self.answer()

    def ask(self) -> None:
        """Begin to ask, unless that was done since the last answer."""
        if self._asked is None and self.missing is None:
            try:
                self._asked = subprocess.Popen(
                    self._command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
                )
            except OSError as exc:
                self.missing = f"{self._command[0]}, which tells of this card, cannot be run: {exc.strerror}"

    def answer(self) -> Figures:
        """Temperature (°C), clock (MHz) and power (W) when it was asked, or now; None is what it does not tell."""
        self.ask()
        if self._asked is None:
            return _NONE
        asked, self._asked = self._asked, None
        try:
            told, _ = asked.communicate(timeout=_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            asked.kill()
            asked.communicate()
            self.missing = f"{self._command[0]} gave no answer within {_TIMEOUT_S:g} s"
            return _NONE
        rows = [[field.strip() for field in row] for row in csv.reader(told.splitlines())]
        rows = [row for row in rows if len(row) == 1 + len(_FIELDS)]
        if asked.returncode != 0 or not rows:
            first = told.strip().partition("\n")[0][:200]
            self.missing = f"{self._command[0]} does not tell (exit status {asked.returncode}): {first!r}"
            return _NONE
        mine = rows if len(rows) == 1 else [row for row in rows if row[0] == self._name]
        if len(mine) != 1:
            self.missing = (
                f"{self._command[0]} lists {len(mine)} cards of the name {self._name}: name the one that runs in "
                "CUDA_VISIBLE_DEVICES by its UUID (`nvidia-smi -L`)"
            )
            return _NONE
        temperature, clock, power = (_number(text, most) for text, most in zip(mine[0][1:], _MOST, strict=True))
        return temperature, clock, power


def _number(text: str, most: float) -> float | None:
    """The figure of a field; None for [N/A], [Not Supported] and the like."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and 0 <= value <= most else None
