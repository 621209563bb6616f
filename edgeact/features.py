"""Features of whole videos, clip by clip, kept on disk: what was computed once is read the next time.

video ─► clips, `hop` sampled frames apart ─► features [N, D] ─► a file in the cache, renamed when whole

A run that was stopped goes on with the first video that has none. Raw numbers and a .json, as decoded videos are kept.

Shapes: N clips of a video, D features.
"""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgeact._cache import cache_dir
from edgeact._progress import progress_bar
from edgeact.clip import ClipSpec
from edgeact.data import Sample, VideoDataset
from edgeact.errors import InputError, VideoError
from edgeact.video import iter_windows

__all__ = ["FeatureSet", "Features"]

# Raise it when decoding, sampling, resizing or the network's evaluation changes what a file gives.
_FORMAT_VERSION = 1

Extract = Callable[[NDArray[np.uint8]], NDArray[np.float32]]  # uint8 clip [1, T, H, W, 3] -> features [1, D]


@dataclass(frozen=True)
class Features:
    """One video: its sample and the features `[N, D]` of its clips, memory-mapped."""

    sample: Sample
    clips: NDArray[np.float32]

    @property
    def average(self) -> NDArray[np.float64]:
        """`[D]`."""
        return np.asarray(self.clips.mean(0, dtype=np.float64))


@dataclass
class FeatureSet:
    """The videos of `dataset` through `extract`; iterating computes what the cache lacks, in order.

    Attributes:
        dataset: The videos.
        extract: The network up to its feature layer.
        network: Its `network_digest`.
        layer: Its name.
        spec: How a video becomes clips.
        hop: Sampled frames from the start of one clip to that of the next.
        on_corrupt: A video that cannot be used is an error, or is skipped.
        skipped: One line for each video left out; fills while iterating.
    """

    dataset: VideoDataset
    extract: Extract
    network: str
    layer: str
    spec: ClipSpec
    hop: int
    on_corrupt: Literal["skip", "error"] = "error"
    cache: Path = field(default_factory=cache_dir)
    progress: bool = False
    skipped: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.hop < 1:
            raise InputError(f"hop is {self.hop}: clips must move by at least 1 sampled frame")

    def __iter__(self) -> Iterator[Features]:
        """Every video with its features.

        Raises:
            VideoError: A video cannot be used and `on_corrupt` is "error", or none at all can.
            InputError: The network gives features that are not finite.
            OSError: The cache cannot be written; nothing half-written stays behind.
        """
        self.skipped.clear()
        used, last_error = 0, None
        with progress_bar("features", len(self.dataset.samples), self.progress) as step:
            for sample in self.dataset.samples:
                try:
                    features = self._of(sample)
                except VideoError as error:
                    if self.on_corrupt == "error":
                        raise
                    last_error = error
                    self.skipped.append(str(error))
                else:
                    used += 1
                    yield Features(sample, features)
                step()
        if not used:
            raise VideoError(f"{self.dataset.root}: none of its videos can be used") from last_error

    def _of(self, sample: Sample) -> NDArray[np.float32]:
        if not sample.path.is_file():
            raise VideoError(f"{sample.path}: no such file")
        key = self._key(sample.path)
        file = self.cache / "features" / key[:2] / f"{key}.f32"
        found = _load(file)
        if found is None:
            _write(file, self._computed(sample))
            found = _load(file)
        assert found is not None, "just written"
        return found

    def _key(self, path: Path) -> str:
        status = path.stat()
        identity = [_FORMAT_VERSION, self.network, self.layer, self.spec.to_dict(), self.hop]
        identity += [str(path.resolve()), status.st_size, status.st_mtime_ns]
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()

    def _computed(self, sample: Sample) -> Iterator[NDArray[np.float32]]:
        for window in iter_windows(sample.path, self.spec, self.hop):
            row = np.asarray(self.extract(window.clip[None]), np.float32)
            if not np.isfinite(row).all():
                raise InputError(f"the network's features of {sample.id} are not finite (NaN or infinity)")
            yield row


def _load(file: Path) -> NDArray[np.float32] | None:
    """Features of a video; None where they are absent or damaged."""
    try:
        shape: Any = tuple(json.loads(file.with_suffix(".json").read_text())["shape"])
        if len(shape) != 2 or file.stat().st_size != 4 * math.prod(shape):
            return None
        return np.memmap(file, np.float32, "r", shape=shape)
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _write(file: Path, rows: Iterator[NDArray[np.float32]]) -> None:
    """Row by row, so that memory holds one clip of a video, however long."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial, count, width = file.with_name(f".{file.name}.{os.getpid()}.part"), 0, 0
    seal = partial.with_suffix(".seal")
    try:
        with partial.open("wb") as stream:
            for row in rows:
                count, width = count + 1, row.shape[1]
                stream.write(np.ascontiguousarray(row).data)
        partial.replace(file)
        seal.write_text(json.dumps({"shape": [count, width]}))
        seal.replace(file.with_suffix(".json"))
    finally:
        partial.unlink(missing_ok=True)
        seal.unlink(missing_ok=True)
