"""What a whitened output keeps of a descriptor when int8 rounds it, beside the naive one: PCA coordinates as they are.

int8 gives a tensor one scale. Naive, the first component fills it and the last ones fall between two of its levels;
whitened, every component has the same variance. Both are simulated here from one run of the int8 network:

    int8 network without its last rounding ─► outputs_Nd ─┬─► the whitened output's own levels ─► descriptors
                                                          └─► × scale ─► naive levels ─► descriptors

That is exact, since weights have a scale for each row: those of the naive projection are rounded to the same levels.

Shapes: N clips, d dimensions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeact.descriptor import Described
from edgeact.descriptor_parity import compare_descriptors

__all__ = ["Rounding", "Whitening", "compare_whitening"]

_LOWEST, _HIGHEST = -128, 127


@dataclass(frozen=True, kw_only=True)
class Whitening:
    """Whitened and naive int8 output against the reference: pairs of (whitened, naive).

    Attributes:
        clips: Compared.
        k: Neighbours counted; 0 of too few clips.
        cosine: With the reference's descriptor, averaged over clips.
        agreement: Share of the reference's k nearest clips that are the output's, too.
        agreement_ci95: Their intervals: bootstrap over clips.
        svm: Share of clips that the linear SVM classifies right.
        svm_reference: The same of the reference's descriptors.
    """

    clips: int
    k: int
    cosine: tuple[float, float]
    agreement: tuple[float, ...]
    agreement_ci95: tuple[tuple[float, float], ...]
    svm: tuple[float, float]
    svm_reference: float


@dataclass(frozen=True)
class Rounding:
    """One scale and zero point of a tensor."""

    scale: float
    zero: int

    @classmethod
    def of_range(cls, low: float, high: float, *, symmetric: bool) -> "Rounding":
        """That of a range, which 0 is in or is taken into; `symmetric`: about 0, as some targets demand."""
        low, high = min(0.0, low), max(0.0, high)
        if symmetric:
            return cls(max(-low, high) / ((_HIGHEST - _LOWEST) / 2), 0)
        scale = (high - low) / (_HIGHEST - _LOWEST)
        return cls(scale, round(_LOWEST - low / scale))

    def __call__(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """The values that int8 can hold nearest to these."""
        levels = np.clip(np.rint(np.asarray(values, np.float64) / self.scale) + self.zero, _LOWEST, _HIGHEST)
        return np.asarray((levels - self.zero) * self.scale)


def compare_whitening(
    unrounded_Nd: NDArray[Any],
    rounding: Rounding,
    naive: Rounding,
    reference_Nd: NDArray[Any],
    truth: NDArray[np.int64],
    described: Described,
    *,
    clips: Sequence[str],
    labels: Sequence[str],
) -> Whitening:
    """Both outputs, simulated.

    Args:
        unrounded_Nd: Whitened outputs of the int8 network before the last rounding.
        rounding: Its last rounding.
        naive: That of PCA coordinates.
        reference_Nd: Whitened outputs of the reference.
        truth: Classes `[N]`.
        described: How whitened outputs are read, and what classifies.
        clips: Ids of the clips.
        labels: Names of the classes.
    """
    scale_d = described.reading.scale
    naive_Nd = naive(np.asarray(unrounded_Nd, np.float64) * scale_d) / scale_d
    both = [
        compare_descriptors(reference_Nd, outputs_Nd, truth, described, clips=clips, labels=labels, max_drop_pt=0.0)
        for outputs_Nd in (rounding(unrounded_Nd), naive_Nd)
    ]
    (accuracy, first), (naive_accuracy, second) = both
    near = [found.neighbours[-1] for found in (first, second) if found.neighbours]
    return Whitening(
        clips=len(truth),
        k=near[0].k if near else 0,
        cosine=(first.cosine, second.cosine),
        agreement=tuple(found.agreement for found in near),
        agreement_ci95=tuple(found.agreement_ci95 for found in near),
        svm=(accuracy.top1_artifact, naive_accuracy.top1_artifact),
        svm_reference=accuracy.top1_reference,
    )
