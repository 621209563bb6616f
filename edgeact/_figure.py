"""A plot as inline SVG that follows the page's colour scheme.

Colours are placeholders while matplotlib draws and become CSS variables of the page (`--ink`, `--artifact` …), so one
SVG serves light and dark. Each plot is drawn twice, wide and narrow, since text in one SVG cannot fit both.
"""

import io
import re
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from edgeact.errors import MissingDependencyError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["ARTIFACT", "GRID", "INK", "LIMIT", "MUTED", "REFERENCE", "svg_plot"]

# Placeholders no plot would use by chance, and the variables of _report.html that replace them.
INK, MUTED, GRID, REFERENCE, ARTIFACT, LIMIT = (f"#0a0b0{i}" for i in range(1, 7))
_VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--line",
    REFERENCE: "--reference",
    ARTIFACT: "--artifact",
    LIMIT: "--bad",
}
_WIDE_IN, _NARROW_IN = 9.0, 3.5  # 1 inch = 96 CSS pixels: the page's column, and a phone's


def svg_plot(name: str, label: str, draw: Callable[["Figure", bool], None], wide_in: float, narrow_in: float) -> str:
    """Draw both sizes; the page shows one. Heights in inches.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        import matplotlib.style
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError as exc:
        raise MissingDependencyError("matplotlib", "report", "an HTML report") from exc
    settings: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": f"edgeact-{name}",
        "font.family": "DejaVu Sans",
        "font.size": 9,
    }
    settings |= {"axes.edgecolor": GRID, "axes.labelcolor": MUTED, "xtick.color": GRID, "ytick.color": GRID}
    settings |= {"xtick.labelcolor": MUTED, "ytick.labelcolor": MUTED, "grid.linewidth": 0.7}
    settings |= {
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "axes.facecolor": "none",
    }
    parts = []
    for wide, size in ((True, (_WIDE_IN, wide_in)), (False, (_NARROW_IN, narrow_in))):
        with matplotlib.style.context(["default", settings]), warnings.catch_warnings():  # a matplotlibrc has no say
            warnings.filterwarnings("ignore", "Glyph")  # of a name in another script: the reader's browser has the font
            figure = Figure(figsize=size, layout="constrained", facecolor="none")
            canvas = FigureCanvasSVG(figure)
            draw(figure, wide)
            for axes in figure.axes:
                _quiet(axes)
            buffer = io.StringIO()
            # savefig would lay out twice; print_svg has no types.
            cast(Any, canvas).print_svg(buffer, metadata={"Date": None, "Creator": None})
        suffix = "wide" if wide else "narrow"
        parts.append(_inline(buffer.getvalue(), f"{name}-{suffix}", label, suffix))
    return "".join(parts)


def _quiet(axes: "Axes") -> None:
    """No tick marks on the sides; grid behind the data."""
    axes.tick_params(axis="y", length=0)
    axes.set_axisbelow(True)


def _inline(svg: str, prefix: str, label: str, css: str) -> str:
    """One matplotlib file as an element of the page: ids made unique, colours made variables, no prologue or style."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}-", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    view = re.search(r'viewBox="([^"]+)"', svg)
    assert view is not None
    body = svg[svg.index(">") + 1 :]
    return f'<svg class="plot {css}" viewBox="{view[1]}" role="img" aria-label="{label}">{body.strip()}'
