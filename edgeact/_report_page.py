"""What the HTML report shows, computed here and laid out by `_report.html`; and how its numbers are written."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeact._film import film_strip
from edgeact._format import db, mb, pct, signed
from edgeact._page import render_page
from edgeact._plots import drop_plot, latency_plot, placement_plot, sustained_plot, training_plot
from edgeact.accuracy import Accuracy, Flip
from edgeact.descriptor_parity import Descriptors
from edgeact.latency import Latency
from edgeact.numerics import EXACT_DB, Numerics
from edgeact.parity import NotMeasured, Report
from edgeact.placement import Placement
from edgeact.sustained import Sustained, Window
from edgeact.whitening import Whitening

__all__ = ["descriptor_rows", "placement_in_words", "render", "sustained_in_words", "thinned", "whitening_rows"]

_CLIPS_SHOWN = 24
_STRIP_BYTES = 600_000  # of all film strips; noise, which JPEG cannot compress, would pass a megabyte
_MATRIX_CLASSES = 20  # more classes than this: only the most confused
_PAIRS_SHOWN = 8
_WINDOWS_SHOWN = 24


def render(report: Report, clip_frames: Mapping[str, NDArray[np.uint8]], curves: Sequence[Mapping[str, float]]) -> str:
    """The page as text; every value is escaped but our own SVG.

    Raises:
        MissingDependencyError: jinja2 or matplotlib is not installed.
    """
    accuracy = report.accuracy if isinstance(report.accuracy, Accuracy) else None
    clips, left_out = _clips(accuracy.flips if accuracy else (), clip_frames)
    return render_page(
        "_report.html",
        report=report,
        gates=_gates(report),
        rungs=_rungs(report),
        drop_plot=drop_plot(accuracy.drop_pt, accuracy.drop_ci95_pt, report.gates.max_drop_pt) if accuracy else "",
        latency_plot=latency_plot(report.latency) if isinstance(report.latency, Latency) else "",
        placement_plot=placement_plot(report.placement) if isinstance(report.placement, Placement) else "",
        work=placement_in_words(report.placement) if isinstance(report.placement, Placement) else "",
        training_plot=training_plot(curves),
        sustained=_sustained(report.sustained) if isinstance(report.sustained, Sustained) else None,
        descriptors=[] if report.descriptors is None else descriptor_rows(report.descriptors),
        alike=report.descriptors if isinstance(report.descriptors, Descriptors) else None,
        whitening=whitening_rows(report.whitening),
        matrix=_matrix(accuracy) if accuracy else None,
        clips=clips,
        clips_left_out=left_out,
    )


def _gates(report: Report) -> dict[str, dict[str, str]]:
    """Every gate with its limit, what was found, and `held`, `short` or `open` (nothing to judge)."""
    gates, rows = report.gates, {}
    numerics = report.numerics if isinstance(report.numerics, Numerics) else None
    accuracy = report.accuracy if isinstance(report.accuracy, Accuracy) else None
    placement = report.placement if isinstance(report.placement, Placement) else None
    speedup = report.latency.speedup if isinstance(report.latency, Latency) else None

    def add(key: str, name: str, limit: str, found: str | None, held: bool | None) -> None:
        state = "open" if held is None else "held" if held else "short"
        rows[key] = {"name": name, "limit": limit, "found": found or "not measured", "state": state}

    found, held = (db(numerics.sqnr_db), numerics.sqnr_db >= gates.min_sqnr_db) if numerics else (None, None)
    add("sqnr", "SQNR", f"at least {gates.min_sqnr_db:g} dB", found, held)
    found, held = (pct(accuracy.agreement), accuracy.agreement >= gates.min_agreement) if accuracy else (None, None)
    add("agreement", "Top-1 agreement", f"at least {pct(gates.min_agreement)}", found, held)
    found, held = (
        (f"{signed(accuracy.drop_pt)} pt", accuracy.drop_pt <= gates.max_drop_pt) if accuracy else (None, None)
    )
    add("drop", "Top-1 drop", f"at most {gates.max_drop_pt:g} pt", found, held)
    if report.descriptors is not None:
        described = report.descriptors if isinstance(report.descriptors, Descriptors) else None
        near = described.neighbours[-1] if described and described.neighbours else None
        found, held = (f"{described.cosine:.6f}", described.cosine >= gates.min_cosine) if described else (None, None)
        add("cosine", "Cosine of the descriptors", f"at least {gates.min_cosine:g}", found, held)
        found, held = (pct(near.agreement), near.agreement >= gates.min_neighbours) if near else (None, None)
        add("neighbours", "Ten nearest clips in common", f"at least {pct(gates.min_neighbours)}", found, held)
    fallback = placement.fallback_ops if placement else None
    found, held = (str(fallback), fallback <= gates.max_fallback) if fallback is not None else (None, None)
    add("fallback", "Ops that fall back", f"at most {gates.max_fallback}", found, held)
    found, limit = f"{speedup:.2f}×" if speedup is not None else None, gates.min_speedup
    held = speedup >= limit if speedup is not None and limit is not None else None
    add("speedup", "Speed-up", "not set" if limit is None else f"at least {limit:g}×", found, held)
    return rows


def _rungs(report: Report) -> list[dict[str, Any]]:
    """The ladder's rows; `bar` and `limit` are shares of the scale from 0 to the exact match."""
    if isinstance(report.numerics, NotMeasured):
        return []
    rungs, limit = report.numerics.rungs, report.gates.min_sqnr_db
    worst = min(rungs, key=lambda rung: rung.step_sqnr_db, default=None)
    return [
        {
            "rung": rung,
            "bar": _share(rung.sqnr_db),
            "limit": _share(limit),
            "short": rung.sqnr_db < limit,
            "worst": rung is worst and report.numerics.sqnr_db < limit,
        }
        for rung in rungs
    ]


def _share(value_db: float) -> float:
    return round(min(max(value_db / EXACT_DB, 0.0), 1.0), 4)


def _sustained(sustained: Sustained) -> dict[str, Any]:
    return {
        "minutes": sustained.minutes,
        "windows": thinned(sustained.windows, _WINDOWS_SHOWN),
        "remarks": sustained_in_words(sustained),
        "plot": sustained_plot(sustained),
    }


def placement_in_words(placement: Placement) -> str:
    """How much of the work is on fast kernels, and what crosses to and from the accelerator."""
    words = []
    if placement.macs is not None:
        on, off = placement.macs
        words.append(f"{pct(on / max(on + off, 1))} of {(on + off) / 1e9:.3g} GMAC on fast kernels")
    if placement.crossing_bytes:
        words.append(f"{mb(placement.crossing_bytes / 1e6)} to and from the accelerator")
    return ", ".join(words)


def descriptor_rows(found: Descriptors | NotMeasured) -> list[tuple[str, str, str, str]]:
    """How alike the descriptors are: name, reference, artifact, remark."""
    if isinstance(found, NotMeasured):
        return [("descriptors", "", "", f"not measured: {found.not_measured}")]
    low, high = found.nearest_drop_ci95_pt
    worst = max(range(found.dims), key=lambda i: found.component_error[i])
    rows = [
        ("cosine", "", f"{found.cosine:.7f}", f"lowest {found.cosine_lowest:.6f}, {found.lowest_clip}"),
        (
            "component error",
            "",
            f"{found.component_error[worst]:.2g} σ",
            f"of component {worst + 1} of {found.dims}, the worst; median {np.median(found.component_error):.2g} σ",
        ),
        (
            "nearest example",
            pct(found.nearest_reference),
            pct(found.nearest_artifact),
            f"drop {signed(found.nearest_drop_pt)} pt, 95 % {signed(low)} … {signed(high)}",
        ),
    ]
    for near in found.neighbours:
        low, high = near.agreement_ci95
        remark = f"in common, 95 % {100 * low:.1f} … {100 * high:.1f}; recall of the nearest {pct(near.recall)}"
        rows.append((f"{near.k} nearest clips" if near.k > 1 else "nearest clip", "", pct(near.agreement), remark))
    return rows


def whitening_rows(found: Whitening | NotMeasured | None) -> list[tuple[str, str, str, str]]:
    """What whitening does for an output in int8: name, whitened, naive, remark."""
    if found is None:
        return []
    if isinstance(found, NotMeasured):
        return [("whitening", "", "", f"not measured: {found.not_measured}")]
    first, second = found.cosine
    rows = [("cosine", f"{first:.6f}", f"{second:.6f}", f"simulated, {found.clips:,} clips; both calibrated alike")]
    if found.k:
        first, second = found.agreement
        whitened, naive = ((100 * low, 100 * high) for low, high in found.agreement_ci95)
        remark = f"in common, 95 % {whitened[0]:.1f} … {whitened[1]:.1f} against {naive[0]:.1f} … {naive[1]:.1f}"
        rows.append((f"{found.k} nearest clips" if found.k > 1 else "nearest clip", pct(first), pct(second), remark))
    first, second = found.svm
    return [*rows, ("linear SVM", pct(first), pct(second), f"reference {pct(found.svm_reference)}")]


def sustained_in_words(sustained: Sustained) -> list[str]:
    """What the windows do not say: when it slowed down, energy, and why a number is missing."""
    throttled, energy = sustained.throttled_at_s, sustained.energy_j_per_clip
    words = [] if throttled is None else [f"it slowed down after {throttled:,.0f} s"]
    words += [] if energy is None else [f"{energy:.3g} J per clip"]
    return words + [f"{name}: not measured: {reason}" for name, reason in sustained.not_measured.items()]


def thinned(windows: Sequence[Window], most: int) -> list[Window]:
    """At most `most` windows, evenly spread, with the first and the last."""
    places = np.linspace(0, len(windows) - 1, min(len(windows), most)).round().astype(int)
    return [windows[i] for i in places.tolist()]


def _matrix(accuracy: Accuracy) -> dict[str, Any]:
    """The confusion matrix as table rows: all classes, or of many the most confused, with a column for the rest."""
    counts = np.array(accuracy.confusion)
    wrong = counts - np.diag(np.diag(counts))
    errors = wrong.sum(0) + wrong.sum(1)
    chosen = list(range(len(counts)))
    if len(counts) > _MATRIX_CLASSES:
        chosen = sorted(i for i in np.argsort(-errors, kind="stable")[:_MATRIX_CLASSES].tolist() if errors[i] > 0)
    rows = []
    for i in chosen:
        total = int(counts[i].sum())
        # The root lifts rare errors out of the background; a row that is all right stays full.
        heat = np.sqrt(counts[i] / max(total, 1))
        cells = [{"n": int(counts[i, j]), "heat": round(float(heat[j]), 3), "right": i == j} for j in chosen]
        rows.append({"label": accuracy.labels[i], "cells": cells, "rest": total - int(counts[i, chosen].sum())})
    order = np.argsort(-wrong, axis=None, kind="stable")[:_PAIRS_SHOWN].tolist()
    pairs = [(*divmod(place, len(counts)), int(wrong.flat[place])) for place in order]
    return {
        "labels": [accuracy.labels[i] for i in chosen],
        "rows": rows,
        "partial": len(chosen) < len(counts),
        "classes": len(counts),
        "pairs": [(accuracy.labels[i], accuracy.labels[j], n) for i, j, n in pairs if n > 0],
    }


def _clips(flips: Sequence[Flip], clip_frames: Mapping[str, NDArray[np.uint8]]) -> tuple[list[dict[str, Any]], int]:
    """Cards of flipped clips, those with frames first, and how many are left out."""
    cards, spent = [], 0
    for flip in sorted(flips, key=lambda flip: flip.clip not in clip_frames)[:_CLIPS_SHOWN]:
        strip: list[tuple[str, int]] = []
        if flip.clip in clip_frames and spent < _STRIP_BYTES:
            strip = film_strip(clip_frames[flip.clip])
            spent += sum(len(uri) for uri, _ in strip)
        kind = "lost" if flip.reference == flip.label else "gained" if flip.artifact == flip.label else "both wrong"
        cards.append({"flip": flip, "strip": strip, "kind": kind})
    return cards, len(flips) - len(cards)
