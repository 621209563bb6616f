"""Training clips: random window in time, random crop and scale in space, flips only where the labels allow it.

Every random choice comes from (seed, epoch, sample), so a run gives the same clips on one process or many, and a
resumed run the same as one that was never stopped.

Shapes: B clips of T frames, H x W pixels, 3 channels; grid frames `[N, H', W', 3]` are resized but not cropped.
"""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeact.clip import ClipSpec, resize_window, window_indices
from edgeact.data import Sample, VideoDataset, load_grid
from edgeact.errors import InputError

__all__ = ["Augmentation", "augment", "training_batches"]

_PREFETCH_BATCHES = 3


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What may change in a training clip.

    Attributes:
        min_scale: Smallest side of the random crop as a share of the largest one that fits (1 = no scale jitter).
        flip: Mirror half of the clips. Wrong where left and right are different classes.
    """

    min_scale: float = 0.8
    flip: bool = False

    def __post_init__(self) -> None:
        if not 0.1 <= self.min_scale <= 1:
            raise InputError(f"min_scale is {self.min_scale}: it is a share of the frame's side from 0.1 to 1")


def augment(
    grid: NDArray[np.uint8], spec: ClipSpec, options: Augmentation, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """One training clip `[T, H, W, 3]` out of a video's grid frames `[N, H', W', 3]`."""
    start = int(rng.integers(max(1, len(grid) - spec.frames + 1)))
    frames = grid[window_indices(len(grid), spec.frames, start)]
    scale = rng.uniform(options.min_scale, 1)
    ratio = spec.crop_width / spec.crop_height
    largest = min(frames.shape[1], frames.shape[2] / ratio)
    height = max(1, round(largest * scale))
    width = max(1, min(frames.shape[2], round(height * ratio)))
    top = int(rng.integers(frames.shape[1] - height + 1))
    left = int(rng.integers(frames.shape[2] - width + 1))
    window = frames[:, top : top + height, left : left + width]
    if window.shape[1:3] != (spec.crop_height, spec.crop_width):
        window = np.stack([resize_window(frame, spec.crop_height, spec.crop_width) for frame in window])
    if options.flip and rng.random() < 0.5:
        window = window[:, :, ::-1]
    return np.ascontiguousarray(window)


def training_batches(
    dataset: VideoDataset,
    spec: ClipSpec,
    options: Augmentation,
    *,
    batch_size: int,
    epoch: int,
    seed: int,
    cache: Path | None,
    rank: int = 0,
    world: int = 1,
    workers: int = 2,
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
    """This process's share of every global batch: `(clips [B / world, T, H, W, 3], labels [B / world])`.

    The order is a permutation per epoch; a last batch that is not full is dropped.
    """
    order = np.random.default_rng([seed, epoch]).permutation(len(dataset.samples))
    batches = [order[i : i + batch_size][rank::world] for i in range(0, len(order) - batch_size + 1, batch_size)]

    def clip_of(index: int) -> NDArray[np.uint8]:
        sample: Sample = dataset.samples[index]
        rng = np.random.default_rng([seed, epoch, index])
        return augment(load_grid(sample, spec, cache), spec, options, rng)

    with ThreadPoolExecutor(workers) as pool:
        pending: list[tuple[NDArray[np.intp], list[Future[NDArray[np.uint8]]]]] = []
        submitted = iter(batches)

        def submit() -> None:
            batch = next(submitted, None)
            if batch is not None:
                pending.append((batch, [pool.submit(clip_of, int(i)) for i in batch]))

        try:
            for _ in range(_PREFETCH_BATCHES):
                submit()
            while pending:
                batch, futures = pending.pop(0)
                submit()
                clips = np.stack([future.result() for future in futures])
                yield clips, np.array([dataset.samples[i].label for i in batch], np.int64)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
