"""Plots of a fitted descriptor; see `edgeact._figure` for how they become part of a page."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeact._figure import ARTIFACT, GRID, INK, MUTED, REFERENCE, svg_plot
from edgeact.dimensions import Row
from edgeact.parity import NotMeasured

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["accuracy_plot", "variance_plot"]

_FEW = 30  # components that can be told apart as dots


def variance_plot(explained: NDArray[np.floating[Any]]) -> str:
    """The share of the variance that components hold, together and each; HTML of two SVGs."""
    shares, numbers = 100 * np.asarray(explained, np.float64), np.arange(1, len(explained) + 1)
    together = np.minimum(shares.cumsum(), 100)
    marker = "o" if len(shares) <= _FEW else ""

    def draw(figure: "Figure", wide: bool) -> None:
        left, right = figure.subplots(*((1, 2) if wide else (2, 1)), squeeze=False).flat
        left.plot(numbers, together, marker=marker, color=ARTIFACT)
        beside: dict[str, Any] = {"textcoords": "offset points", "ha": "right", "color": INK}
        left.annotate(f"{together[-1]:.1f} %", (numbers[-1], together[-1]), (0, -14), **beside)
        left.set(ylim=(0, 104))
        left.set_title("Together (% of the variance)", loc="left", color=INK, fontsize=9)
        right.semilogy(numbers, shares, marker=marker, color=ARTIFACT)
        right.yaxis.set_major_formatter("{x:g}")
        right.minorticks_off()
        right.set_title("Each (% of the variance, log scale)", loc="left", color=INK, fontsize=9)
        for axes in (left, right):
            axes.set(xlabel="components" if axes is left else "component")
            axes.grid(axis="y", color=GRID)
            axes.locator_params(axis="x", integer=True, nbins=8)

    return svg_plot("variance", "Explained variance by component", draw, 2.8, 4.6)


def accuracy_plot(rows: Sequence[Row], paper: Mapping[int, float]) -> str:
    """Accuracy against the numbers kept, with intervals, beside the paper's points; HTML of two SVGs.

    Args:
        rows: Of a `Curve`.
        paper: Accuracies by dimensions.
    """
    measured = [row for row in rows if not isinstance(row.accuracy, NotMeasured)]

    def draw(figure: "Figure", wide: bool) -> None:
        axes = figure.subplots()
        axes.set_xscale("log")
        axes.plot(*_points(paper), "s--", color=REFERENCE, markersize=5, label="paper (other data)")
        _with_intervals(axes, [row for row in measured if row.name == "PCA"], "o-", ARTIFACT, "PCA")
        _with_intervals(axes, [row for row in measured if row.name == "all features"], "D", ARTIFACT, "all features")
        beside = [row for row in measured if row.name == "random"]
        _with_intervals(axes, beside, "x", INK, "random directions", shift=1.06)
        for row, style in zip((row for row in measured if not row.dims), ("-", ":"), strict=False):
            axes.axhline(100 * float(row.accuracy), linestyle=style, color=MUTED, linewidth=1, label=row.name)  # type: ignore[arg-type]
        ticks = _apart(sorted({row.dims for row in rows if row.dims} | paper.keys()))
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks], rotation=0 if wide else 60)
        axes.minorticks_off()
        axes.set(xlabel="numbers per video", ylim=(0, 100))
        axes.set_title("Accuracy on the test part (%)", loc="left", color=INK, fontsize=9)
        axes.grid(axis="y", color=GRID)
        figure.legend(frameon=False, labelcolor=INK, ncols=6 if wide else 2, loc="outside lower left")

    return svg_plot("accuracy", "Accuracy against dimensions", draw, 4.0, 4.2)


def _points(paper: Mapping[int, float]) -> tuple[list[int], list[float]]:
    dims = sorted(paper)
    return dims, [100 * paper[d] for d in dims]


def _apart(ticks: Sequence[int]) -> list[int]:
    """Without those whose labels would stand on the one before."""
    kept: list[int] = []
    for tick in ticks:
        if not kept or tick > 1.3 * kept[-1]:
            kept.append(tick)
    return kept


def _with_intervals(axes: "Axes", rows: Sequence[Row], style: str, colour: str, label: str, shift: float = 1.0) -> None:
    """Points with their 95 % intervals, a factor `shift` to the right, where others stand."""
    if not rows:
        return
    share = np.array([row.accuracy for row in rows], np.float64)
    bounds = np.array([row.ci95 for row in rows], np.float64)
    errors = 100 * np.abs(bounds.T - share)
    dims = [shift * row.dims for row in rows]
    axes.errorbar(dims, 100 * share, errors, fmt=style, color=colour, label=label, capsize=3, elinewidth=1.2)
