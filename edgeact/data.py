"""Labelled video folders: which clips there are, on which side of the split, and their decoded frames.

Its layouts are those of `edgeact._layouts`: split.csv, split folders, or class folders.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from edgeact._cache import Decoded, cache_dir, cached
from edgeact._layouts import read_entries, some
from edgeact._progress import progress_bar
from edgeact.clip import ClipSpec
from edgeact.errors import InputError, UnknownNameError, VideoError
from edgeact.video import read_clip, read_grid

__all__ = ["Sample", "VideoDataset", "cache_dir", "iter_clips", "load_grid", "open_dataset"]

Split = Literal["train", "val", "test", "all"]


@dataclass(frozen=True)
class Sample:
    """One labelled video.

    Attributes:
        id: Its path relative to the dataset's root, with forward slashes: the same on every machine.
        path: Where it is.
        label: Position in the dataset's labels.
    """

    id: str
    path: Path
    label: int


@dataclass(frozen=True)
class VideoDataset:
    """Labelled videos of one split, in the order of their ids."""

    root: Path
    labels: tuple[str, ...]
    samples: tuple[Sample, ...]


def open_dataset(root: str | Path, *, split: Split, labels: Sequence[str] | None = None) -> VideoDataset:
    """List the clips of a labelled video folder (see `edgeact._layouts`).

    Args:
        root: The folder.
        split: "train", "val" (to choose an epoch by), "test" (held out) or "all".
        labels: The labels of a checkpoint or bundle, which fix the order; None sorts the dataset's own.

    Raises:
        InputError: The folder is no dataset, a class has no clips, or its labels are not those asked for.
    """
    if split not in get_args(Split):
        raise UnknownNameError("split", split, get_args(Split))
    root = Path(root)
    if not root.exists():
        raise InputError(f"{root}: no such folder; give a folder with split.csv or one folder of videos per class")
    if not root.is_dir():
        raise InputError(f"{root}: is a file; give a folder with split.csv or one folder of videos per class")
    entries = read_entries(root)
    found = sorted({entry.label for entry in entries})
    names = tuple(labels) if labels is not None else tuple(found)
    _check_labels(root, names, found)
    chosen = sorted((entry for entry in entries if split in (entry.split, "all")), key=lambda entry: entry.id)
    if empty := sorted(set(found) - {entry.label for entry in chosen}):
        hint = "two groups of training clips are needed to hold one out" if split == "val" else "or use 'all'"
        raise InputError(f"{root}: no clips of the class {some(empty)} in the {split!r} split; add some ({hint})")
    index = {name: position for position, name in enumerate(names)}
    samples = tuple(Sample(entry.id, root / entry.id, index[entry.label]) for entry in chosen)
    return VideoDataset(root, names, samples)


def _check_labels(root: Path, names: tuple[str, ...], found: list[str]) -> None:
    if len(set(names)) != len(names):
        raise InputError(f"labels repeat: {some(sorted({name for name in names if names.count(name) > 1}))}")
    absent, unknown = sorted(set(names) - set(found)), sorted(set(found) - set(names))
    parts = [f"the model knows {some(absent)}, which the data lacks"] if absent else []
    parts += [f"the data has {some(unknown)}, which the model does not know"] if unknown else []
    if parts:
        raise InputError(f"{root}: the labels differ from the model's: {'; '.join(parts)}")


def load_grid(sample: Sample, spec: ClipSpec, cache: Path | None) -> NDArray[np.uint8]:
    """All grid frames of a clip, `[N, H', W', 3]` uncropped: memory-mapped (read-only) where there is a cache.

    Raises:
        VideoError: The video cannot be used.
    """
    return cached(sample.path, spec, "grid", cache, lambda: read_grid(sample.path, spec))[0]


def _load_clip(sample: Sample, spec: ClipSpec, cache: Path | None) -> Decoded:
    def decode() -> Decoded:
        clip = read_clip(sample.path, spec)
        return clip.frames, clip.notes

    frames, notes = cached(sample.path, spec, "clip", cache, decode)
    return np.array(frames), notes


def iter_clips(
    dataset: VideoDataset,
    spec: ClipSpec,
    *,
    on_corrupt: Literal["skip", "error"] = "error",
    workers: int = 2,
    cache: Path | None,
    progress: bool = False,
    skipped: list[str] | None = None,
    notes: list[str] | None = None,
) -> Iterator[tuple[Sample, NDArray[np.uint8]]]:
    """The middle clip `[T, H, W, 3]` of every video in order, decoded ahead by `workers` threads.

    Args:
        dataset: The clips.
        spec: Sampling and preprocessing.
        on_corrupt: What a video that cannot be used does: "error" raises, "skip" leaves it out.
        workers: Decoding threads, at least 1.
        cache: Folder for decoded clips; None decodes every time.
        progress: Show a bar on stderr.
        skipped: Receives one line for each video left out.
        notes: Receives one line for each remark on a video ("looped: …").

    Raises:
        VideoError: A video cannot be used and `on_corrupt` is "error", or none at all can.
    """
    if on_corrupt not in ("skip", "error"):
        raise UnknownNameError("on_corrupt", on_corrupt, ("skip", "error"))
    if workers < 1:
        raise InputError(f"workers is {workers}: decoding needs at least 1 thread")
    used, last_error = 0, None
    bar = progress_bar("decoding", len(dataset.samples), progress)
    with _decoding(dataset, spec, workers, cache) as results, bar as step:
        for sample, result in results:
            try:
                clip, remarks = result.result()
            except VideoError as error:
                if on_corrupt == "error":
                    raise
                last_error = error
                if skipped is not None:
                    skipped.append(str(error))
            else:
                used += 1
                if notes is not None:
                    notes.extend(f"{sample.id}: {remark}" for remark in remarks)
                yield sample, clip
            step()
    if not used and dataset.samples:
        raise VideoError(f"{dataset.root}: none of {len(dataset.samples)} videos can be used") from last_error


@contextlib.contextmanager
def _decoding(
    dataset: VideoDataset, spec: ClipSpec, workers: int, cache: Path | None
) -> Iterator[Iterator[tuple[Sample, Future[Decoded]]]]:
    """Clips in order while threads decode a few ahead; leaving early drops what has not begun."""
    pool = ThreadPoolExecutor(workers, "edgeact-decode")

    def ahead() -> Iterator[tuple[Sample, Future[Decoded]]]:
        pending: deque[tuple[Sample, Future[Decoded]]] = deque()
        for sample in dataset.samples:
            pending.append((sample, pool.submit(_load_clip, sample, spec, cache)))
            if len(pending) > 2 * workers:
                yield pending.popleft()
        while pending:
            yield pending.popleft()

    try:
        yield ahead()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
