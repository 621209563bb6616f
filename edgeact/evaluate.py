"""The evaluation set through a model: which clips, and one pass over them.

Clips stream from the decoder's cache, so memory does not grow with the number of videos.

Shapes: N clips, K classes; a clip is uint8 `[1, T, H, W, 3]` where it meets a model.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgeact.bundle import clip_digest
from edgeact.clip import ClipSpec
from edgeact.data import Sample, VideoDataset, cache_dir, iter_clips, open_dataset
from edgeact.errors import InputError
from edgeact.motion import MOTION_CLASSES, motion_set

__all__ = ["MOTION", "EvaluationSet", "Outputs", "balanced", "calibration_root", "dataset_root", "run_model"]

_MOST_MOTION_PER_CLASS = 240  # of the synthetic set, to calibrate on
MOTION = "motion"  # the name of the synthetic set where a folder is asked for

OnCorrupt = Literal["skip", "error"]


def dataset_root(data: str | Path, *, progress: bool = False) -> Path:
    """The folder that `--data` names; `motion` is the motion set's held-out part, made in the cache when absent."""
    return motion_set(train_per_class=0, progress=progress) if str(data) == MOTION else Path(data)


def balanced(dataset: VideoDataset, clips: int | None) -> VideoDataset:
    """At most `clips` samples, as even over the classes as they come, in the dataset's order; None keeps all.

    Raises:
        InputError: `clips` is less than one per class.
    """
    if clips is None or clips >= len(dataset.samples):
        return dataset
    if clips < len(dataset.labels):
        raise InputError(f"--clips {clips} is fewer than the {len(dataset.labels)} classes: give at least one each")
    seen = [0] * len(dataset.labels)
    ranked = []
    for sample in dataset.samples:
        ranked.append((seen[sample.label], sample))
        seen[sample.label] += 1
    chosen = {sample.id for _, sample in sorted(ranked, key=lambda pair: pair[0])[:clips]}
    return replace(dataset, samples=tuple(sample for sample in dataset.samples if sample.id in chosen))


def calibration_root(data: str | Path, clips: int, *, progress: bool = False) -> Path:
    """The folder whose training part int8 is calibrated on; for `motion`, one with at least `clips` clips in it."""
    per_class = 1 + -(-4 * clips // (3 * len(MOTION_CLASSES)))  # about a seventh of them choose epochs: see `data`
    per_class = min(per_class, _MOST_MOTION_PER_CLASS)
    return motion_set(train_per_class=per_class, progress=progress) if str(data) == MOTION else Path(data)


@dataclass
class EvaluationSet:
    """The clips on which models are compared; iterating decodes (or reads the cache) in order.

    `notes` and `skipped` fill while iterating.
    """

    dataset: VideoDataset
    spec: ClipSpec
    on_corrupt: OnCorrupt = "error"
    cache: Path | None = field(default_factory=cache_dir)
    progress: bool = False
    notes: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    @classmethod
    def open(
        cls,
        data: str | Path,
        spec: ClipSpec,
        *,
        labels: tuple[str, ...] | None,
        clips: int | None = None,
        on_corrupt: OnCorrupt = "error",
        progress: bool = False,
    ) -> "EvaluationSet":
        """Open the held-out part of `data`: a folder, or `motion`."""
        dataset = balanced(open_dataset(dataset_root(data, progress=progress), split="test", labels=labels), clips)
        return cls(dataset, spec, on_corrupt=on_corrupt, progress=progress)

    @classmethod
    def for_calibration(
        cls,
        data: str | Path,
        spec: ClipSpec,
        *,
        labels: tuple[str, ...],
        clips: int,
        split: Literal["train", "val"] = "train",
        on_corrupt: OnCorrupt = "error",
        progress: bool = False,
    ) -> "EvaluationSet":
        """Open `clips` clips of the training part of `data`, even over the classes, or those that choose its epochs.

        Raises:
            InputError: There is no such part.
        """
        root = calibration_root(data, clips, progress=progress)
        try:
            dataset = open_dataset(root, split=split, labels=labels)
        except InputError as exc:
            raise InputError(f"int8 takes clips of the training part, and {exc}") from exc
        return cls(balanced(dataset, max(clips, len(labels))), spec, on_corrupt=on_corrupt, progress=progress)

    def __iter__(self) -> Iterator[tuple[Sample, NDArray[np.uint8]]]:
        self.notes.clear()
        self.skipped.clear()
        for sample, clip in iter_clips(
            self.dataset,
            self.spec,
            on_corrupt=self.on_corrupt,
            cache=self.cache,
            progress=self.progress,
            skipped=self.skipped,
            notes=self.notes,
        ):
            yield sample, clip[None]


@dataclass(frozen=True)
class Outputs:
    """Logits `[N, K]` of one pass with the clips they belong to."""

    samples: tuple[Sample, ...]
    digests: tuple[str, ...]
    logits: NDArray[np.float32]

    @property
    def truth(self) -> NDArray[np.int64]:
        """True classes `[N]`."""
        return np.array([sample.label for sample in self.samples], np.int64)


def run_model(
    model: Callable[[NDArray[np.uint8]], NDArray[Any]], clips: Iterable[tuple[Sample, NDArray[np.uint8]]]
) -> Outputs:
    """Run every clip through `model`, which maps uint8 `[1, T, H, W, 3]` to `[1, K]`.

    Raises:
        InputError: The model returns another shape, or values that are not finite.
    """
    samples, digests = [], []
    rows = bytearray()  # one block: a small one for every clip, between a network's large ones, lets glibc's heap grow
    for sample, clip in clips:
        logits = np.asarray(model(clip))
        if logits.ndim != 2 or logits.shape[0] != 1:
            raise InputError(f"the model maps one clip to shape {logits.shape}: it must return logits [1, K]")
        if not np.isfinite(logits).all():
            raise InputError(f"the model's output for {sample.id} is not finite (NaN or infinity)")
        samples.append(sample)
        digests.append(clip_digest(clip))
        rows += logits[0].astype(np.float32).tobytes()
    return Outputs(tuple(samples), tuple(digests), np.frombuffer(rows, np.float32).reshape(len(samples), -1))
