"""Numbers as a person reads them, in tables, plots and the page."""

from edgeact.numerics import EXACT_DB

__all__ = ["db", "mb", "ms", "p_value", "pct", "signed", "thread_count"]


def pct(share: float) -> str:
    """A share in percent; what is not all or nothing is not rounded to it."""
    rounded = f"{share * 100:.1f}"
    return f"{share * 100:.3f} %" if rounded in ("0.0", "100.0") and share not in (0, 1) else f"{rounded} %"


def ms(value: float | None) -> str:
    """Milliseconds to three digits; a dash where there are none."""
    return "–" if value is None else f"{value:,.0f} ms" if value >= 100 else f"{value:.3g} ms"


def mb(value: float | None) -> str:
    """Megabytes to three digits; a dash where there are none."""
    return "–" if value is None else f"{value:,.0f} MB" if value >= 100 else f"{value:.3g} MB"


def db(value: float) -> str:
    """Decibels, or the word for outputs that are equal to the last bit."""
    return "exact" if value >= EXACT_DB else f"{value:.1f} dB"


def p_value(value: float) -> str:
    """A probability as tables of statistics write it."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def signed(value: float) -> str:
    """Two decimals with a true minus sign, and no sign on a rounded zero."""
    text = f"{value:.2f}"
    return "0.00" if float(text) == 0 else text.replace("-", "−")


def thread_count(threads: int | None) -> str:
    """How many threads, or that nobody said."""
    return "threads not given" if threads is None else "1 thread" if threads == 1 else f"{threads} threads"
