"""The pages of `describe fit` and `describe classify`: a plot, its table, and what a reader must know."""

from collections.abc import Iterator, Sequence

from edgeact._describe_plots import accuracy_plot, variance_plot
from edgeact._format import pct
from edgeact._page import render_page
from edgeact.descriptor import Descriptor
from edgeact.dimensions import PAPER, PAPER_ALL, Curve, Row
from edgeact.parity import NotMeasured

__all__ = ["ROW_NAMES", "VARIANCE_NAMES", "accuracy_row", "curve_page", "fit_page", "variance_rows"]

ROW_NAMES = ("descriptor", "numbers", "accuracy", "95 % of it", "explained", "paper")
VARIANCE_NAMES = ("component", "variance", "explained", "together")


def fit_page(found: Descriptor, skipped: Sequence[str]) -> str:
    """The variance that a descriptor keeps.

    Raises:
        MissingDependencyError: jinja2 or matplotlib is not installed.
    """
    return render_page(
        "_describe.html",
        title=f"{found.dims} numbers per video",
        sub=f"of {len(found.mean):,}: relu of {found.layer} of {found.model} · {found.order}",
        heading="Explained variance",
        lead=f"Of the averaged features of {found.videos:,} videos of the training part. What holds little variance "
        "may still tell classes apart: edgeact describe classify measures that.",
        plot=variance_plot(found.explained),
        table_heading="Components",
        columns=VARIANCE_NAMES,
        rows=list(variance_rows(found)),
        notes=[f"skipped: {line}" for line in skipped],
    )


def variance_rows(found: Descriptor) -> Iterator[tuple[str, ...]]:
    """Each component and what the first ones hold together, in the order of `VARIANCE_NAMES`."""
    total = 0.0
    for i, (variance, share) in enumerate(zip(found.variances, found.explained, strict=True)):
        total += float(share)
        yield str(i + 1), f"{variance:.3g}", pct(float(share)), pct(min(total, 1.0))


def curve_page(curve: Curve, model: str) -> str:
    """Accuracy against dimensions.

    Raises:
        MissingDependencyError: jinja2 or matplotlib is not installed.
    """
    return render_page(
        "_describe.html",
        title="How many numbers per video?",
        sub=f"relu of {curve.layer} of {model} · {curve.order}",
        heading="Accuracy against dimensions",
        lead=f"A linear SVM trained on {curve.train_videos:,} videos, judged on {curve.test_videos:,} others of "
        f"{curve.classes} classes; the bars are 95 % intervals.",
        plot=accuracy_plot(curve.rows, PAPER | {PAPER_ALL[0]: PAPER_ALL[1]}),
        table_heading="What was measured",
        columns=ROW_NAMES,
        rows=[accuracy_row(row) for row in curve.rows],
        notes=curve.remarks(model),
    )


def accuracy_row(row: Row) -> tuple[str, ...]:
    """One line, in the order of `ROW_NAMES`."""
    paper, dims = "" if row.paper is None else pct(row.paper), f"{row.dims:,}" if row.dims else ""
    if isinstance(row.accuracy, NotMeasured):
        return row.name, dims, "–", "", "", paper
    interval = "" if row.ci95 is None else " … ".join(f"{100 * share:.1f}" for share in row.ci95)
    explained = "" if row.explained is None else pct(row.explained)
    return row.name, dims, pct(row.accuracy), interval, explained, paper
