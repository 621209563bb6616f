"""The three tests behind an accuracy: few lines each, so that a device needs no statistics library.

tests/test_parity.py compares them with scipy.
"""

import math

__all__ = ["clips_to_resolve", "mcnemar_exact", "wilson_interval"]

_Z95, _Z80 = 1.959964, 0.841621  # standard normal quantiles of 0.975 and 0.80


def mcnemar_exact(lost: int, gained: int) -> float:
    """Two-sided exact McNemar test: the binomial probability of a split as uneven as this one."""
    n = lost + gained
    tail = sum(math.comb(n, k) for k in range(min(lost, gained) + 1)) / 2**n
    return float(min(1.0, 2 * tail))


def wilson_interval(successes: float, n: int) -> tuple[float, float]:
    """95 % Wilson score interval of a share (Wilson 1927), which holds for small n and shares near 0 or 1."""
    p, z2 = successes / n, _Z95 * _Z95
    centre, spread = p + z2 / (2 * n), _Z95 * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return max(0.0, (centre - spread) / (1 + z2 / n)), min(1.0, (centre + spread) / (1 + z2 / n))


def clips_to_resolve(lost: int, gained: int, n: int, max_drop_pt: float) -> int:
    """Clips needed to tell a drop of `max_drop_pt` from none: paired proportions (Connor 1987), 80 % power at 5 %.

    The share of discordant clips is the one seen, at least half a clip, since none seen does not mean none.
    A limit of 0 points is taken as one clip in n.
    """
    discordant = max(lost + gained, 0.5) / n
    drop = max_drop_pt / 100 if max_drop_pt > 0 else 1 / n
    discordant = max(discordant, drop)
    root = _Z95 * math.sqrt(discordant) + _Z80 * math.sqrt(max(discordant - drop * drop, 0.0))
    return math.ceil((root / drop) ** 2)
