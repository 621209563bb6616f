"""The numbers of two networks compared: SQNR, largest difference and cosine, rung by rung.

Shapes: N clips, K classes; `logits_NK` float32.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeact.errors import InputError

__all__ = ["EXACT_DB", "Numerics", "Rung", "best_class", "compare_outputs", "ladder"]

# Outputs that are equal to the last bit have no finite SQNR; 150 dB is beyond what float32 can resolve (24 bits ≈ 144).
EXACT_DB = 150.0


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One stage of the ladder against the full-precision reference, on the golden or evaluation clips.

    `step_sqnr_db` compares with the rung before, so a drop shows where it happened. `agreement` is the share of clips
    with the reference's top-1 class, `top1` that with the true one; None where the truth is not known.
    """

    name: str
    sqnr_db: float
    max_abs: float
    cosine: float
    step_sqnr_db: float
    agreement: float
    top1: float | None
    clips: int


@dataclass(frozen=True, kw_only=True)
class Numerics:
    """The artifact's outputs against the reference's, and every rung between."""

    sqnr_db: float
    max_abs: float
    cosine: float
    rungs: tuple[Rung, ...]


def compare_outputs(reference: NDArray[Any], outputs: NDArray[Any]) -> tuple[float, float, float]:
    """SQNR in dB, largest absolute difference and cosine of two equally shaped arrays.

    SQNR = 10 log10(sum reference^2 / sum (reference - outputs)^2), over all values at once.

    Raises:
        InputError: The shapes differ, or a value is not finite.
    """
    if reference.shape != outputs.shape:
        raise InputError(f"outputs have shape {outputs.shape}, the reference {reference.shape}: they must be equal")
    if not (np.isfinite(reference).all() and np.isfinite(outputs).all()):
        raise InputError(
            "outputs hold values that are not finite (NaN or infinity): the model overflows on these clips"
        )
    a, b = reference.astype(np.float64).ravel(), outputs.astype(np.float64).ravel()
    signal, noise = float(a @ a), float((a - b) @ (a - b))
    norms = math.sqrt(signal * float(b @ b))
    if noise == 0:
        return EXACT_DB, 0.0, 1.0
    sqnr = 10 * math.log10(signal / noise) if signal > 0 else -EXACT_DB
    return min(sqnr, EXACT_DB), float(np.abs(a - b).max()), float(a @ b) / norms if norms > 0 else 0.0


def best_class(logits_NK: NDArray[Any]) -> NDArray[np.int64]:
    """The answers `[N]` of a network that classifies."""
    return np.asarray(logits_NK.argmax(1))


def ladder(
    outputs: Sequence[tuple[str, NDArray[Any]]],
    truth: NDArray[np.int64] | None = None,
    answers: Callable[[NDArray[Any]], NDArray[np.int64]] = best_class,
) -> Numerics:
    """Numerics of the rungs `(name, outputs_NK)`: first the reference, last the artifact; `truth` holds N classes.

    `answers` says what the outputs stand for, `[N]`: what rungs agree on, and what is compared with the truth.
    """
    reference = outputs[0][1]
    expected = answers(reference)
    rungs = []
    for (name, logits), (_, before) in zip(outputs[1:], outputs[:-1], strict=True):
        sqnr_db, max_abs, cosine = compare_outputs(reference, logits)
        step_db = compare_outputs(before, logits)[0]
        rungs.append(
            Rung(
                name=name,
                sqnr_db=sqnr_db,
                max_abs=max_abs,
                cosine=cosine,
                step_sqnr_db=step_db,
                agreement=float(np.mean(answers(logits) == expected)),
                top1=None if truth is None else float(np.mean(answers(logits) == truth)),
                clips=len(logits),
            )
        )
    last = rungs[-1]
    return Numerics(sqnr_db=last.sqnr_db, max_abs=last.max_abs, cosine=last.cosine, rungs=tuple(rungs))
