"""The table: what it says, that it fits, and that nothing hostile gets through."""

import io
import re
import subprocess
import sys

import pytest
from report_samples import EVIL, report, sustained, unmeasured, without_reference
from rich.console import Console

from edgeact._format import mb, ms, p_value, pct, signed, thread_count
from edgeact.parity import Report
from edgeact.report import print_table


def table(shown: Report, width: int = 80) -> str:
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    print_table(shown, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_importing_the_report_is_light() -> None:
    code = "import edgeact.report, sys; print([m for m in ('rich', 'jinja2', 'matplotlib', 'av') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    assert done.stdout.strip() == "[]"


def test_the_table_of_a_model_that_held() -> None:
    text = table(report())
    assert text.startswith("✓ held  ir_csn_26 → openvino · fp16 · volumetric\n")
    for pattern in (
        r"artifact +\d+\.\d dB",
        r"top-1 +[\d.]+ % +[\d.]+ % +drop 0\.00 pt, 95 % 0\.00 … 0\.00",
        r"latency p50 +\d{3} ms +15\d ms +2\.\d\d× PyTorch, 95 % 2\.\d\d … 2\.\d\d",
        r"latency p95 +4\d\d ms +15\d ms",
        r"latency p99 +4\d\d ms +15\d ms",
        r"peak memory +312 MB",
        r"placement +61 ops +measured; 0 fall back",
        r"size +12\.1 MB +model\.bin, model\.xml",
        r"measured 2026-07-13 10:00:00 UTC, A processor",
        r"random weights: accuracy means nothing",
    ):
        assert re.search(pattern, text), pattern


def test_the_table_of_a_model_that_fell_short_lists_the_failures() -> None:
    shown = report(held=False)
    text = " ".join(table(shown, width=300).split())
    assert text.startswith("✗ fell short")
    assert len(shown.failures) == 4
    for failure in shown.failures:
        assert f"✗ {failure}" in text
    assert "1 fall back: MaxPool3d" in text


def test_the_table_says_why_a_number_is_not_there() -> None:
    text = " ".join(table(unmeasured(), width=120).split())
    for name in ("numerics", "accuracy", "latency", "placement"):
        assert f"not measured: no {name} here" in text
    assert "PyTorch is not used here" in table(without_reference())


def test_the_table_of_minutes_shows_few_windows_and_the_sensors_that_were_read() -> None:
    text = table(report(sustained=sustained()))
    assert re.search(r"sustained +clips +p50 +p95 +p99 +°C +MHz *\n", text)
    assert len(re.findall(r"^ \d+ s +100 +1[05] ms", text, re.M)) == 12
    assert re.search(r"^ 390 s +100 +15 ms +17 ms +13 ms +79 +1,300", text, re.M)
    assert "it slowed down after 210 s" in text
    assert "power_w: not measured: no power sensor" in text
    assert "°C" not in table(report(sustained=sustained(2, sensors=False)))
    assert "sustained" not in table(report())


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_table_fits_the_terminal(width: int) -> None:
    long = report(held=False, notes=("n" * 200,), model="m" * 90, sustained=sustained())
    for shown in (report(), long, unmeasured()):
        assert max(len(line) for line in table(shown, width).splitlines()) <= width


def test_the_table_shows_markup_and_escape_sequences_as_text() -> None:
    text = table(report(notes=(EVIL,), failures=(EVIL,), model=EVIL, artifact={"files": [f"[/]{EVIL}"]}), width=300)
    assert "\x1b" not in text
    assert text.count("[red]&") == 4


def test_numbers_read_well() -> None:
    assert [pct(x) for x in (0, 0.9996, 1, 0.917, 0.00004)] == ["0.0 %", "99.960 %", "100.0 %", "91.7 %", "0.004 %"]
    assert [ms(x) for x in (None, 0.0321, 9.87654, 151.4, 12345.6)] == [
        "–",
        "0.0321 ms",
        "9.88 ms",
        "151 ms",
        "12,346 ms",
    ]
    assert [mb(x) for x in (None, 12.13, 312.4)] == ["–", "12.1 MB", "312 MB"]
    assert [thread_count(n) for n in (None, 1, 8)] == ["threads not given", "1 thread", "8 threads"]
    assert [p_value(x) for x in (1e-9, 0.0123, 0.69, 1.0)] == ["< 0.001", "0.012", "0.69", "1.00"]
    assert [signed(x) for x in (-0.001, -1.5, 2.0)] == ["0.00", "−1.50", "2.00"]
