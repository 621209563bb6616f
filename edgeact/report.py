"""A report for people: the table of the command line, and one self-contained HTML page.

The page needs no network and no script; what it shows of files and labels is escaped, since both may come from
anywhere.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgeact._format import db, mb, ms, p_value, pct, signed, thread_count
from edgeact._page import write_page
from edgeact._report_page import (
    descriptor_rows,
    placement_in_words,
    render,
    sustained_in_words,
    thinned,
    whitening_rows,
)
from edgeact._terminal import add_row, new_table, plain, print_line
from edgeact.accuracy import Accuracy
from edgeact.latency import Latency
from edgeact.parity import NotMeasured, Report
from edgeact.placement import Placement
from edgeact.sustained import Sustained

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

__all__ = ["print_table", "write_html"]

_WINDOWS_SHOWN = 12


def print_table(report: Report, console: "Console") -> None:
    """The report as tables on a terminal: verdict, numerics, figures of reference and artifact, notes."""
    from rich.text import Text

    verdict, style = ("✓ held", "bold green") if report.held else ("✗ fell short", "bold red")
    what = f"{report.model} → {report.target} · {report.precision} · {report.form}"
    console.print(Text.assemble((verdict, style), "  ", (plain(what), "bold")))
    for failure in report.failures:
        print_line(console, "✗", failure, "red")
    console.print(_numerics_table(report))
    console.print(_figures_table(report))
    if rows := whitening_rows(report.whitening):
        table = new_table("int8 output", "whitened", "naive", "")
        for row in rows:
            add_row(table, *row)
        console.print(table)
    if isinstance(report.sustained, Sustained):
        console.print(_sustained_table(report.sustained))
        for remark in sustained_in_words(report.sustained):
            print_line(console, "·", remark, "dim")
    device = f", {report.latency.device}" if isinstance(report.latency, Latency) else ""
    date = report.date.replace("T", " ").replace("+00:00", " UTC")
    for note in (f"measured {date}{device}", *report.notes):
        print_line(console, "·", note, "dim")


def _numerics_table(report: Report) -> "RenderableType":
    numerics = report.numerics
    if isinstance(numerics, NotMeasured):
        from rich.text import Text

        return Text(f"  numerics: not measured: {plain(numerics.not_measured)}\n")
    table = new_table("rung", "SQNR", "this step", "max abs", "cosine", "agree", "top-1", "clips")
    for rung in numerics.rungs:
        figures = [db(rung.sqnr_db), db(rung.step_sqnr_db), f"{rung.max_abs:.2g}", f"{rung.cosine:.7f}"]
        figures += ("" if share is None else f"{100 * share:.1f} %" for share in (rung.agreement, rung.top1))
        add_row(table, rung.name, *figures, rung.clips)
    return table


def _figures_table(report: Report) -> "Table":
    table = new_table("", "reference", "artifact", "")
    described = () if report.descriptors is None else descriptor_rows(report.descriptors)
    for row in (
        *_accuracy_rows(report.accuracy),
        *described,
        *_latency_rows(report.latency),
        *_placement_rows(report.placement),
    ):
        add_row(table, *row)
    files = ", ".join(str(name) for name in report.artifact.get("files", ()))
    add_row(table, "size", "", mb(report.artifact.get("size_mb")), files)
    return table


def _accuracy_rows(accuracy: Accuracy | NotMeasured) -> list[tuple[str, str, str, str]]:
    if isinstance(accuracy, NotMeasured):
        return [("accuracy", "", "", f"not measured: {accuracy.not_measured}")]
    low, high = accuracy.drop_ci95_pt
    flips = f"{accuracy.lost} lost, {accuracy.gained} gained, McNemar p {p_value(accuracy.mcnemar_p)}"
    return [
        ("clips", "", f"{accuracy.n:,}", f"{accuracy.clips_to_resolve:,} needed to resolve the allowed drop"),
        (
            "top-1",
            pct(accuracy.top1_reference),
            pct(accuracy.top1_artifact),
            f"drop {signed(accuracy.drop_pt)} pt, 95 % {signed(low)} … {signed(high)}",
        ),
        ("top-5", pct(accuracy.top5_reference), pct(accuracy.top5_artifact), ""),
        ("agreement", "", pct(accuracy.agreement), flips),
    ]


def _latency_rows(latency: Latency | NotMeasured) -> list[tuple[str, str, str, str]]:
    if isinstance(latency, NotMeasured):
        return [("latency", "", "", f"not measured: {latency.not_measured}")]
    if latency.speedup is None:
        speedup = latency.reference_missing or ""
    else:
        speedup = f"{latency.speedup:.2f}× PyTorch" + (
            f", 95 % {latency.speedup_ci95[0]:.2f} … {latency.speedup_ci95[1]:.2f}" if latency.speedup_ci95 else ""
        )
    remarks = (speedup, latency.runtime, f"{thread_count(latency.threads)}, {latency.rounds} rounds")
    reference = latency.reference_p50_p95_p99_ms or (None, None, None)
    rows = [
        (f"latency {name}", ms(before), ms(after), remark)
        for name, before, after, remark in zip(
            ("p50", "p95", "p99"), reference, latency.artifact_p50_p95_p99_ms, remarks, strict=True
        )
    ]
    return [*rows, ("peak memory", "", mb(latency.peak_memory_mb), "")]


def _placement_rows(placement: Placement | NotMeasured) -> list[tuple[str, str, str, str]]:
    if isinstance(placement, NotMeasured):
        return [("placement", "", "", f"not measured: {placement.not_measured}")]
    fallback = f"{placement.fallback_ops} fall back"
    if placement.fallback:
        fallback += ": " + ", ".join(placement.fallback[:5]) + (" …" if len(placement.fallback) > 5 else "")
    rows = [("placement", "", f"{placement.accelerated_ops:,} ops", f"{placement.kind}; {fallback}")]
    work = placement_in_words(placement)
    return [*rows, ("work", "", "", work)] if work else rows


def _sustained_table(sustained: Sustained) -> "Table":
    """Windows over the minutes, few enough for a terminal; a sensor that no window read has no column."""
    sensors = [
        (title, name)
        for title, name in (("°C", "temperature_c"), ("MHz", "clock_mhz"), ("W", "power_w"))
        if any(getattr(window, name) is not None for window in sustained.windows)
    ]
    table = new_table("sustained", "clips", "p50", "p95", "p99", *(title for title, _ in sensors))
    for window in thinned(sustained.windows, _WINDOWS_SHOWN):
        figures = (ms(window.p50_ms), ms(window.p95_ms), ms(window.p99_ms))
        read = [getattr(window, name) for _, name in sensors]
        cells = ("–" if value is None else f"{value:,.4g}" for value in read)
        add_row(table, f"{window.start_s:,.0f} s", f"{window.clips:,}", *figures, *cells)
    return table


def write_html(
    report: Report,
    path: Path,
    *,
    clip_frames: Mapping[str, NDArray[np.uint8]] = {},
    curves: Sequence[Mapping[str, float]] = (),
) -> None:
    """Write the report as one HTML page, beside `path` first and then renamed.

    Args:
        report: What to show.
        path: The file; an existing one is replaced.
        clip_frames: Frames `[T, H, W, 3]` of flipped clips by clip id, shown as film strips.
        curves: Rows of training metrics: epoch and any of train_loss, val_loss, val_top1, lr.

    Raises:
        MissingDependencyError: jinja2 or matplotlib is not installed.
        OSError: The file cannot be written.
    """
    write_page(Path(path), render(report, clip_frames, curves))
