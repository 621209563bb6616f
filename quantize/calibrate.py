"""Calibration: from clips to the ranges that an int8 network is made with.

    clips ─► observe ─► ranges by observer ─► an int8 network of each, on some of the clips ─► least noise in the logits

No observer is best everywhere: on five trained networks the worst of the three left 2 to 12 dB less than the best.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from edgeact.clip import ClipSpec, normalize
from edgeact.numerics import compare_outputs
from edgeact.quantize.convert import quantize
from edgeact.quantize.ranges import Ranges, observe
from edgeact.quantize.scheme import Observer, Scheme

__all__ = ["Calibrated", "calibrate"]

_JUDGING_CLIPS = 64  # of 16, one clip that an observer cuts off, or its absence, decided


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """The outcome.

    Attributes:
        ranges: Of every activation that is quantized.
        observer: How they follow from the clips.
        sqnr_db: What each observer leaves in the logits, simulated, where one was chosen; else empty.
    """

    ranges: Ranges
    observer: Observer
    sqnr_db: Mapping[Observer, float]


def calibrate(
    graph: fx.GraphModule,
    clips: Iterable[NDArray[np.uint8]],
    spec: ClipSpec,
    scheme: Scheme,
    observer: Observer | Literal["auto"] = "auto",
) -> Calibrated:
    """The ranges of `graph` on `clips`; "auto" takes those of the observer that loses least. Else as `observe`."""
    judging: list[NDArray[np.uint8]] = []
    ranges = observe(graph, _keeping(clips, judging), spec, scheme)
    if observer != "auto":
        return Calibrated(ranges=ranges[observer], observer=observer, sqnr_db={})
    reference = _logits(graph, judging, spec)
    sqnr_db: dict[Observer, float] = {}
    for name, found in ranges.items():
        sqnr_db[name] = compare_outputs(reference, _logits(quantize(graph, found, scheme), judging, spec))[0]
    best = max(sqnr_db, key=sqnr_db.__getitem__)
    return Calibrated(ranges=ranges[best], observer=best, sqnr_db=sqnr_db)


def _keeping(clips: Iterable[NDArray[np.uint8]], kept: list[NDArray[np.uint8]]) -> Iterator[NDArray[np.uint8]]:
    """`clips`, of which every n-th goes into `kept`, too: they stand class by class, and their number is not known."""
    step = 1
    for index, clip in enumerate(clips):
        if index % step == 0:
            kept.append(clip)
        if len(kept) > _JUDGING_CLIPS:
            del kept[1::2]
            step *= 2
        yield clip


def _logits(graph: fx.GraphModule, clips: Iterable[NDArray[np.uint8]], spec: ClipSpec) -> NDArray[np.float32]:
    with torch.no_grad():  # a clip at a time: 64 normalised ones of 32 x 224 x 224 would fill a gigabyte
        return torch.cat([graph(torch.from_numpy(normalize(clip, spec))) for clip in clips]).numpy()
