"""The report's plots; see `edgeact._figure` for how they become part of a page."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from edgeact._figure import ARTIFACT, GRID, INK, LIMIT, MUTED, REFERENCE, svg_plot
from edgeact._format import ms
from edgeact.latency import Latency
from edgeact.placement import PlacedLayer, Placement
from edgeact.sustained import Sustained

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["drop_plot", "latency_plot", "placement_plot", "sustained_plot", "training_plot"]

_DOTS = 400  # samples drawn per row of the latency plot

_CURVES = (
    ("Loss", (("train_loss", "training", REFERENCE, "--"), ("val_loss", "held out", ARTIFACT, "-")), 1.0),
    ("Top-1, held out (%)", (("val_top1", "held out", ARTIFACT, "-"),), 100.0),
    ("Learning rate", (("lr", "learning rate", MUTED, "-"),), 1.0),
)


def latency_plot(latency: Latency) -> str:
    """Every timed run as a dot, with p50, p95 and p99 as marks; HTML of two SVGs."""
    rows = [("artifact", latency.artifact_samples_ms, latency.artifact_p50_p95_p99_ms, ARTIFACT)]
    if latency.reference_p50_p95_p99_ms is not None:
        rows.append(("PyTorch", latency.reference_samples_ms, latency.reference_p50_p95_p99_ms, REFERENCE))

    def draw(figure: "Figure", wide: bool) -> None:
        axes = figure.subplots()
        jitter = np.random.default_rng(0)
        for y, (_, samples, percentiles, colour) in enumerate(rows):
            x = np.sort(samples)
            x = x[np.unique(np.linspace(0, len(x) - 1, min(len(x), _DOTS)).round().astype(int))] if len(x) else x
            axes.scatter(x, y + jitter.uniform(-0.2, 0.2, len(x)), s=12, color=colour, alpha=0.45, linewidths=0)
            for value, style, height in zip(percentiles, ("-", "--", ":"), (0.38, 0.32, 0.32), strict=True):
                axes.plot([value, value], [y - height, y + height], style, color=colour, linewidth=1.8)
            axes.annotate(
                f"p50 {ms(percentiles[0])}" + f" · p95 {ms(percentiles[1])} · p99 {ms(percentiles[2])}" * wide,
                (percentiles[0], y + 0.38),
                xytext=(0, 3),
                textcoords="offset points",
                ha="left" if percentiles[0] < 0.5 * _top(latency) else "right",
                color=INK,
            )
        axes.set(yticks=range(len(rows)), yticklabels=[row[0] for row in rows])
        axes.set(ylim=(-0.6, len(rows) - 0.25), xlim=(0, 1.06 * _top(latency)), xlabel="ms per clip")
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.grid(axis="x", color=GRID)

    height = 0.75 + 0.75 * len(rows)
    return svg_plot("latency", f"Latency of {len(rows)} models, every run", draw, height, height)


def _top(latency: Latency) -> float:
    return max((*latency.artifact_samples_ms, *latency.reference_samples_ms, latency.artifact_ms))


def drop_plot(drop_pt: float, interval: tuple[float, float], limit_pt: float) -> str:
    """The drop of top-1 with its interval against zero and the limit; HTML of two SVGs."""
    low, high = min(interval[0], drop_pt, 0.0), max(interval[1], drop_pt, limit_pt)
    pad = 0.12 * (high - low) or 1.0

    def draw(figure: "Figure", wide: bool) -> None:
        axes = figure.subplots()
        axes.axvspan(limit_pt, high + pad, color=LIMIT, alpha=0.10, linewidth=0)
        axes.axvline(limit_pt, color=LIMIT, linewidth=1.5)
        axes.axvline(0, color=MUTED, linewidth=1)
        axes.annotate("limit", (limit_pt, 0.62), xytext=(4, 0), textcoords="offset points", color=LIMIT, fontsize=8)
        axes.plot(interval, (0, 0), "-", color=ARTIFACT, linewidth=3, solid_capstyle="round")
        axes.plot([drop_pt], [0], "o", color=ARTIFACT, markersize=9)
        axes.set(yticks=[], ylim=(-1, 1), xlim=(low - pad, high + pad))
        axes.set(xlabel="drop of top-1, points" + (" (right is worse; shaded: over the limit)" if wide else ""))

    return svg_plot("drop", "Drop of top-1 accuracy with its 95 % interval", draw, 0.95, 0.95)


def sustained_plot(sustained: Sustained) -> str:
    """p50 and p95 over minutes, and below them the temperature where it was read; HTML of two SVGs."""
    windows = sustained.windows
    minutes = [window.start_s / 60 for window in windows]
    heat = [np.nan if window.temperature_c is None else window.temperature_c for window in windows]
    panels = 1 if np.isnan(heat).all() else 2

    def draw(figure: "Figure", wide: bool) -> None:
        upper, *lower = figure.subplots(panels, 1, sharex=True, squeeze=False).flat
        for label, samples, style in (
            ("p50", [window.p50_ms for window in windows], "-"),
            ("p95", [window.p95_ms for window in windows], "--"),
        ):
            upper.plot(minutes, samples, style, color=ARTIFACT, label=label, marker="o" if len(windows) < 3 else "")
        if sustained.throttled_at_s is not None:
            upper.axvline(sustained.throttled_at_s / 60, color=LIMIT, linewidth=1.5)
        upper.set(ylabel="ms per clip", ylim=(0, 1.1 * max(window.p95_ms for window in windows)))
        upper.legend(frameon=False, labelcolor=INK, loc="lower right")
        for axes in lower:
            axes.plot(minutes, heat, color=LIMIT, marker="o" if len(windows) < 3 else "")
            axes.set(ylabel="°C")
        for axes in (upper, *lower):
            axes.grid(axis="y", color=GRID)
        line = " (the line: where it slowed down)" if wide and sustained.throttled_at_s is not None else ""
        figure.axes[-1].set(xlabel=f"minutes{line}")

    return svg_plot("sustained", "Latency over minutes", draw, 1.2 + 1.0 * panels, 1.2 + 1.0 * panels)


def placement_plot(placement: Placement) -> str:
    """A bar per layer, coloured by where it runs: its share of the multiply-accumulates, and of the layers' time.

    HTML of two SVGs, without the time where that is not told; empty where the layers are not told.
    """
    layers = [layer for layer in placement.layers if layer.macs or layer.ms or layer.fallback_ops]
    panels = [
        ("MACs", _shares([layer.macs for layer in layers])),
        ("layers' time", _shares([layer.ms for layer in layers])),
    ]
    panels = [(title, shares) for title, shares in panels if shares]
    if not panels:
        return ""
    units = list(dict.fromkeys(_where(layer) for layer in layers if not layer.fallback_ops))
    shades = np.linspace(1.0, 0.4, len(units))

    def draw(figure: "Figure", wide: bool) -> None:
        for axes, (title, shares) in zip(
            figure.subplots(len(panels), 1, sharex=True, squeeze=False).flat, panels, strict=True
        ):
            for unit, shade in zip((*units, None), (*shades, 1.0), strict=True):
                chosen = [
                    i for i, layer in enumerate(layers) if unit == (None if layer.fallback_ops else _where(layer))
                ]
                colour, label = (LIMIT, "with a fallback") if unit is None else (ARTIFACT, unit)
                if chosen:
                    heights = [shares[i] for i in chosen]
                    axes.bar(chosen, heights, 0.8, color=colour, alpha=shade, linewidth=0, label=label)
            axes.set(ylabel=f"% of the {title}")
            axes.grid(axis="y", color=GRID)
        stages = [layer.name.partition(".")[0] or "forward" for layer in layers]
        starts = [i for i, stage in enumerate(stages) if i == 0 or stage != stages[i - 1]]
        figure.axes[-1].set_xticks(starts, [stages[i] for i in starts], rotation=90 if len(starts) > 6 else 0)
        for text in figure.axes[-1].get_xticklabels():
            text.set_parse_math(False)  # a module's name, not a formula
        figure.axes[0].legend(frameon=False, labelcolor=INK, ncols=4, loc="lower right", bbox_to_anchor=(1, 1))

    height = 0.9 + 1.1 * len(panels)
    return svg_plot("placement", "Where each layer runs, and its share of the work", draw, height, height)


def _where(layer: PlacedLayer) -> str:
    return " and ".join(layer.units)


def _shares(amounts: Sequence[float | None]) -> list[float]:
    """In percent; none where no amount is told."""
    told = [amount or 0.0 for amount in amounts]
    return [100 * amount / sum(told) for amount in told] if sum(told) > 0 else []


def training_plot(curves: Sequence[Mapping[str, Any]]) -> str:
    """Loss, accuracy and learning rate over epochs, whichever are there; empty where none is."""
    panels = []
    for title, lines, scale in _CURVES:
        drawn = [(label, _series(curves, key), colour, style) for key, label, colour, style in lines]
        drawn = [line for line in drawn if line[1]]
        if drawn:
            panels.append((title, drawn, scale))
    if not panels:
        return ""

    def draw(figure: "Figure", wide: bool) -> None:
        shape = (1, len(panels)) if wide else (len(panels), 1)
        for axes, (title, drawn, scale) in zip(figure.subplots(*shape, squeeze=False).flat, panels, strict=True):
            for label, points, colour, style in drawn:
                epochs, values = zip(*points, strict=True)
                marker = "o" if len(points) < 3 else ""
                axes.plot(epochs, np.multiply(values, scale), style, marker=marker, color=colour, label=label)
            axes.set(xlabel="epoch")
            axes.set_title(title, loc="left", color=INK, fontsize=9)
            axes.grid(axis="y", color=GRID)
            axes.locator_params(axis="x", integer=True, nbins=6)
            axes.locator_params(axis="y", nbins=5)
            if len(drawn) > 1:
                axes.legend(frameon=False, labelcolor=INK)

    return svg_plot("training", "Training curves", draw, 2.4, 2.1 * len(panels))


def _series(curves: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    """Pairs (epoch, value); rows come from a checkpoint's metadata, so anything but a finite number is left out."""
    points = []
    for i, row in enumerate(curves):
        pair = (row.get("epoch", i), row.get(key))
        if all(isinstance(number, int | float) and math.isfinite(number) for number in pair):
            points.append((float(pair[0]), float(cast(float, pair[1]))))
    return points
