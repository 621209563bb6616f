"""A report for people: the table of the command line, and one self-contained HTML page.

The page needs no network and no script; what it shows of files and labels is escaped, since both may come from
anywhere.
"""

import math
import os
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeact.errors import MissingDependencyError
from edgeact.latency import Latency
from edgeact.parity import EXACT_DB, Accuracy, Flip, Gates, NotMeasured, Numerics, Placement, Report

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

__all__ = ["print_table", "write_html"]

_CLIPS_SHOWN = 24
_STRIP_BYTES = 600_000  # of all film strips; noise, which JPEG cannot compress, would pass a megabyte
_MATRIX_CLASSES = 20  # more classes than this: only the most confused
_PAIRS_SHOWN = 8


def print_table(report: Report, console: "Console") -> None:
    """The report as tables on a terminal: verdict, numerics, figures of reference and artifact, notes."""
    from rich.padding import Padding
    from rich.text import Text

    def line(text: str, style: str = "") -> None:
        console.print(Padding(Text(_plain(text), style), (0, 0, 0, 2)))

    verdict, style = ("✓ held", "bold green") if report.held else ("✗ fell short", "bold red")
    what = f"{report.model} → {report.target} · {report.precision} · {report.form}"
    console.print(Text.assemble((verdict, style), "  ", (_plain(what), "bold")))
    for failure in report.failures:
        line(f"✗ {failure}", "red")
    console.print()
    console.print(_numerics_table(report))
    console.print(_figures_table(report))
    for note in report.notes:
        line(f"· {note}", "dim")


def _table(*columns: str) -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 1), header_style="bold")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 or column == "" else "right", overflow="fold")
    return table


def _numerics_table(report: Report) -> "RenderableType":
    numerics = report.numerics
    if isinstance(numerics, NotMeasured):
        from rich.text import Text

        return Text(f"  numerics: not measured: {_plain(numerics.not_measured)}\n")
    table = _table("rung", "SQNR", "this step", "max abs", "cosine", "clips")
    for rung in numerics.rungs:
        figures = (_db(rung.sqnr_db), _db(rung.step_sqnr_db), f"{rung.max_abs:.2g}", f"{rung.cosine:.7f}")
        table.add_row(_plain(rung.name), *figures, str(rung.clips))
    return table


def _figures_table(report: Report) -> "Table":
    table = _table("", "reference", "artifact", "")
    for row in (*_accuracy_rows(report.accuracy), *_latency_rows(report.latency), *_placement_rows(report.placement)):
        table.add_row(*(_plain(cell) for cell in row))
    files = ", ".join(str(name) for name in report.artifact.get("files", ()))
    table.add_row("size", "", _mb(report.artifact.get("size_mb")), _plain(files))
    return table


def _accuracy_rows(accuracy: Accuracy | NotMeasured) -> list[tuple[str, str, str, str]]:
    if isinstance(accuracy, NotMeasured):
        return [("accuracy", "", "", f"not measured: {accuracy.not_measured}")]
    low, high = accuracy.drop_ci95_pt
    flips = f"{accuracy.lost} lost, {accuracy.gained} gained, McNemar p {_p(accuracy.mcnemar_p)}"
    return [
        ("clips", "", f"{accuracy.n:,}", f"{accuracy.clips_to_resolve:,} needed to resolve the allowed drop"),
        (
            "top-1",
            _pct(accuracy.top1_reference),
            _pct(accuracy.top1_artifact),
            f"drop {_signed(accuracy.drop_pt)} pt, 95 % {_signed(low)} … {_signed(high)}",
        ),
        ("top-5", _pct(accuracy.top5_reference), _pct(accuracy.top5_artifact), ""),
        ("agreement", "", _pct(accuracy.agreement), flips),
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
    remarks = (speedup, latency.runtime, f"{latency.threads} threads, {latency.rounds} rounds")
    reference = latency.reference_p50_p95_p99_ms or (None, None, None)
    rows = [
        (f"latency {name}", _ms(before), _ms(after), remark)
        for name, before, after, remark in zip(
            ("p50", "p95", "p99"), reference, latency.artifact_p50_p95_p99_ms, remarks, strict=True
        )
    ]
    return [*rows, ("peak memory", "", _mb(latency.peak_memory_mb), latency.device)]


def _placement_rows(placement: Placement | NotMeasured) -> list[tuple[str, str, str, str]]:
    if isinstance(placement, NotMeasured):
        return [("placement", "", "", f"not measured: {placement.not_measured}")]
    fallback = f"{placement.fallback_ops} fall back"
    if placement.fallback:
        fallback += ": " + ", ".join(placement.fallback[:5]) + (" …" if len(placement.fallback) > 5 else "")
    return [("placement", "", f"{placement.accelerated_ops:,} ops", f"{placement.kind}; {fallback}")]


def write_html(
    report: Report,
    path: Path,
    *,
    clip_frames: Mapping[str, NDArray[np.uint8]] = {},  # noqa: B006 - read only
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
    page = _render(report, clip_frames, curves)
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        partial.write_text(page, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _render(
    report: Report, clip_frames: Mapping[str, NDArray[np.uint8]], curves: Sequence[Mapping[str, float]]
) -> str:
    try:
        import jinja2
    except ImportError as exc:
        raise MissingDependencyError("jinja2", "report", "an HTML report") from exc
    from edgeact._plots import drop_plot, latency_plot, training_plot

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"pct": _pct, "ms": _ms, "mb": _mb, "db": _db, "p": _p, "signed": _signed}
    accuracy, latency = report.accuracy, report.latency
    clips, left_out = _clips(accuracy.flips if isinstance(accuracy, Accuracy) else (), clip_frames)
    drop = ""
    if isinstance(accuracy, Accuracy):
        drop = drop_plot(accuracy.drop_pt, accuracy.drop_ci95_pt, report.gates.max_drop_pt)
    template = environment.from_string(resources.files("edgeact").joinpath("_report.html").read_text("utf-8"))
    return template.render(
        report=report,
        gates=_gates(report),
        drop_plot=drop,
        latency_plot=latency_plot(latency) if isinstance(latency, Latency) else "",
        training_plot=training_plot(curves),
        rungs=_rungs(report),
        matrix=_matrix(accuracy) if isinstance(accuracy, Accuracy) else None,
        clips=clips,
        clips_left_out=left_out,
    )


def _gates(report: Report) -> dict[str, dict[str, str]]:
    """Every gate with its limit, what was found, and `held`, `short` or `open` (nothing to judge)."""
    gates, rows = report.gates, {}

    def add(key: str, name: str, limit: str, found: str, held: bool | None) -> None:
        state = "open" if held is None else "held" if held else "short"
        rows[key] = {"name": name, "limit": limit, "found": found, "state": state}

    numerics, accuracy, latency, placement = report.numerics, report.accuracy, report.latency, report.placement
    held: bool | None = None
    found = "not measured"
    if isinstance(numerics, Numerics):
        held, found = numerics.sqnr_db >= gates.min_sqnr_db, _db(numerics.sqnr_db)
    add("sqnr", "SQNR", f"at least {gates.min_sqnr_db:g} dB", found, held)
    seen = accuracy if isinstance(accuracy, Accuracy) else None
    agreement = _pct(seen.agreement) if seen else "not measured"
    held = seen.agreement >= gates.min_agreement if seen else None
    add("agreement", "Top-1 agreement", f"at least {_pct(gates.min_agreement)}", agreement, held)
    drop = f"{_signed(seen.drop_pt)} pt" if seen else "not measured"
    held = seen.drop_pt <= gates.max_drop_pt if seen else None
    add("drop", "Top-1 drop", f"at most {gates.max_drop_pt:g} pt", drop, held)
    held, found = None, "not measured"
    if isinstance(placement, Placement):
        held, found = placement.fallback_ops <= gates.max_fallback, str(placement.fallback_ops)
    add("fallback", "Ops that fall back", f"at most {gates.max_fallback}", found, held)
    _speedup_gate(gates, latency, add)
    return rows


def _speedup_gate(gates: Gates, latency: Latency | NotMeasured, add: Any) -> None:
    speedup = latency.speedup if isinstance(latency, Latency) else None
    found = f"{speedup:.2f}×" if speedup is not None else "not measured"
    limit = "not set" if gates.min_speedup is None else f"at least {gates.min_speedup:g}×"
    held = None if speedup is None or gates.min_speedup is None else speedup >= gates.min_speedup
    add("speedup", "Speed-up", limit, found, held)


def _rungs(report: Report) -> list[dict[str, Any]]:
    """The ladder's rows; `bar` and `limit` are shares of the scale from 0 to the exact match."""
    if isinstance(report.numerics, NotMeasured):
        return []
    rungs = report.numerics.rungs
    worst = min(rungs, key=lambda rung: rung.step_sqnr_db, default=None)
    short = report.numerics.sqnr_db < report.gates.min_sqnr_db
    return [
        {
            "rung": rung,
            "bar": _share(rung.sqnr_db),
            "limit": _share(report.gates.min_sqnr_db),
            "short": rung.sqnr_db < report.gates.min_sqnr_db,
            "worst": short and rung is worst,
        }
        for rung in rungs
    ]


def _share(db: float) -> float:
    return round(min(max(db / EXACT_DB, 0.0), 1.0), 4)


def _matrix(accuracy: Accuracy) -> dict[str, Any]:
    """The confusion matrix as table rows: all classes, or of many the most confused, with a column for the rest."""
    counts = np.array(accuracy.confusion)
    wrong = counts - np.diag(np.diag(counts))
    errors = wrong.sum(0) + wrong.sum(1)
    chosen = list(range(len(counts)))
    if len(counts) > _MATRIX_CLASSES:
        chosen = sorted(int(i) for i in np.argsort(-errors, kind="stable")[:_MATRIX_CLASSES] if errors[i] > 0)
    rows = []
    for i in chosen:
        total = max(int(counts[i].sum()), 1)
        cells = [
            # The root lifts rare errors out of the white; a full row of right ones stays full.
            {"n": int(counts[i, j]), "heat": round(math.sqrt(counts[i, j] / total), 3), "right": i == j}
            for j in chosen
        ]
        rows.append({"label": accuracy.labels[i], "cells": cells, "rest": total - sum(cell["n"] for cell in cells)})
    order = np.argsort(-wrong, axis=None, kind="stable")[:_PAIRS_SHOWN]
    pairs = [(i, j, int(wrong[i, j])) for i, j in zip(*np.unravel_index(order, wrong.shape), strict=True)]
    return {
        "labels": [accuracy.labels[i] for i in chosen],
        "rows": rows,
        "partial": len(chosen) < len(counts),
        "classes": len(counts),
        "pairs": [(accuracy.labels[i], accuracy.labels[j], n) for i, j, n in pairs if n > 0],
    }


def _clips(
    flips: Sequence[Flip], clip_frames: Mapping[str, NDArray[np.uint8]]
) -> tuple[list[dict[str, Any]], int]:
    """Cards of flipped clips, those with frames first, and how many are left out."""
    from edgeact._plots import film_strip

    cards, spent = [], 0
    for flip in sorted(flips, key=lambda flip: flip.clip not in clip_frames)[:_CLIPS_SHOWN]:
        strip: list[tuple[str, int]] = []
        if flip.clip in clip_frames and spent < _STRIP_BYTES:
            strip = film_strip(clip_frames[flip.clip])
            spent += sum(len(uri) for uri, _ in strip)
        kind = "lost" if flip.reference == flip.label else "gained" if flip.artifact == flip.label else "both wrong"
        cards.append({"flip": flip, "strip": strip, "kind": kind})
    return cards, len(flips) - len(cards)


def _plain(text: object) -> str:
    """Text for a terminal: names of files and labels may hold escape sequences."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in str(text))


def _pct(share: float) -> str:
    """A share in percent; 99.96 % does not become 100 %."""
    shown = f"{share * 100:.1f}"
    return f"{share * 100:.3g}".join(("", " %")) if False else f"{shown if share in (0, 1) else shown} %"


def _ms(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f} ms" if value >= 100 else f"{value:.3g} ms"


def _mb(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f} MB" if value >= 100 else f"{value:.3g} MB"


def _db(value: float) -> str:
    return "exact" if value >= EXACT_DB else f"{value:.1f} dB"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def _signed(value: float) -> str:
    """Two decimals with a true minus sign, and no sign on a rounded zero."""
    text = f"{value:.2f}"
    return "0.00" if float(text) == 0 else text.replace("-", "−")
