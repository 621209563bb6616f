"""Features of whole videos, clip by clip, kept on disk: what was computed once is read the next time.

video ─► clips, `hop` sampled frames apart ─► features [N, D] ─► a file in the cache, renamed when whole

Videos that the cache lacks are computed first, in any order and anywhere; then all are read, in the order of the
dataset: what follows is the same wherever they were computed. A run that was stopped goes on with those it lacks.
Raw numbers and a .json, as decoded videos are kept.

Shapes: N clips of a video, D features.
"""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
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

__all__ = ["Compute", "Extract", "FeatureSet", "Features", "Rows", "compute_rows"]

# Raise it when decoding, sampling, resizing or the network's evaluation changes what a file gives.
_FORMAT_VERSION = 2

Extract = Callable[[NDArray[np.uint8]], NDArray[np.float32]]  # uint8 clip [1, T, H, W, 3] -> features [1, D]
Rows = tuple[NDArray[np.float32], NDArray[np.float64]]  # of N clips, features [N, D], and start and end [N, 2] in s

# Videos as they are finished, in any order; going through the rows of one that cannot be used raises VideoError.
Compute = Callable[[Iterable[Sample]], Iterator[tuple[Sample, Iterator[Rows]]]]


@dataclass(frozen=True)
class Features:
    """One video: its sample, the features `[N, D]` of its clips, memory-mapped, and their times.

    Attributes:
        sample: The video.
        clips: `[N, D]`.
        times: Start and end `[N, 2]` of each clip, in seconds from the first frame.
    """

    sample: Sample
    clips: NDArray[np.float32]
    times: NDArray[np.float64]

    @property
    def average(self) -> NDArray[np.float64]:
        """`[D]`."""
        return np.asarray(self.clips.mean(0, dtype=np.float64))


def compute_rows(
    source: str | Path, name: str, extract: Extract, spec: ClipSpec, hop: int, *, threads: int = 1
) -> Iterator[Rows]:
    """Decode a video, on so many threads, and extract its features clip by clip; memory holds one clip.

    Raises:
        VideoError: It holds no usable video.
        InputError: The network gives features that are not finite; the message has the video's `name`.
    """
    for window in iter_windows(source, spec, hop, threads=threads):
        row = np.asarray(extract(window.clip[None]), np.float32)
        if not np.isfinite(row).all():
            raise InputError(
                f"the network's features of {name} are not finite (NaN or infinity): its weights are damaged, or its "
                "training diverged; give another checkpoint"
            )
        yield row, np.array([[window.start_s, window.end_s]])


@dataclass
class FeatureSet:
    """The videos of `dataset` through a network; iterating computes what the cache lacks.

    Attributes:
        dataset: The videos.
        extract: The network up to its feature layer.
        network: Its `network_digest`.
        layer: Its name.
        spec: How a video becomes clips.
        hop: Sampled frames from the start of one clip to that of the next.
        on_corrupt: A video that cannot be used is an error, or is skipped.
        cache: Where features are kept.
        progress: Show a bar on stderr.
        compute: How other processes or machines compute videos; None computes them here, with `extract`.
        skipped: One line for each video left out; fills while iterating.
        computed: How many videos were computed so far; the others were in the cache.
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
    compute: Compute | None = None
    skipped: list[str] = field(default_factory=list)
    computed: int = field(default=0, init=False)
    _failed: dict[Path, VideoError] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.hop < 1:
            raise InputError(f"hop is {self.hop}: clips must move by at least 1 sampled frame")

    def __iter__(self) -> Iterator[Features]:
        """Every video with its features, in the dataset's order.

        Raises:
            VideoError: A video cannot be used and `on_corrupt` is "error", or none at all can.
            InputError: The network gives features that are not finite.
            DeviceError: Of `compute`: a worker or the cluster is gone.
            OSError: The cache cannot be written; nothing half-written stays behind.
        """
        self.skipped.clear()
        used, last_error = 0, None
        self._complete()
        for sample in self.dataset.samples:
            try:
                features = self._stored(sample)
            except VideoError as error:
                last_error = error
                self.skipped.append(str(error))
            else:
                used += 1
                yield features
        if not used:
            why = "" if last_error is None else f", as {last_error}"
            raise VideoError(f"{self.dataset.root}: none of its videos can be used{why}") from last_error

    @property
    def origin(self) -> str:
        """What was computed in this run, in words: a scheduler is not asked for what the cache has."""
        return f"{self.computed} of {len(self.dataset.samples)} videos computed; what was computed before is kept"

    def _complete(self) -> None:
        """Compute what the cache lacks."""
        missing = []
        for sample in self.dataset.samples:
            try:
                if self._load(sample) is None:
                    missing.append(sample)
            except VideoError:
                if self.on_corrupt == "error":
                    raise
        if not missing:
            return
        computed = (self.compute or self._compute_here)(missing)
        with progress_bar("features", len(missing), self.progress) as step, closing(computed):  # type: ignore[type-var]
            for sample, rows in computed:
                file = self._file(sample)
                try:
                    _write(file, rows)
                    self.computed += 1
                except VideoError as error:
                    self._failed[file] = error
                    if self.on_corrupt == "error":
                        raise
                step()

    def _compute_here(self, samples: Iterable[Sample]) -> Iterator[tuple[Sample, Iterator[Rows]]]:
        for sample in samples:
            yield sample, compute_rows(sample.path, sample.id, self.extract, self.spec, self.hop)

    def _stored(self, sample: Sample) -> Features:
        found = self._load(sample)
        if found is None:  # taken away since: the cache is anyone's to empty
            file = self._file(sample)
            _write(file, compute_rows(sample.path, sample.id, self.extract, self.spec, self.hop))
            found = _load(file)
        assert found is not None, "just written"
        return Features(sample, *found)

    def _load(self, sample: Sample) -> Rows | None:
        """What the cache has of a video.

        Raises:
            VideoError: There is no such file, or it could not be used before.
        """
        file = self._file(sample)
        if file in self._failed:
            raise self._failed[file]
        return _load(file)

    def _file(self, sample: Sample) -> Path:
        """Where the features of a video are kept; the name changes whenever what they depend on does."""
        if not sample.path.is_file():
            raise VideoError(f"{sample.path}: no such file")
        status = sample.path.stat()
        identity = [_FORMAT_VERSION, self.network, self.layer, self.spec.to_dict(), self.hop]
        identity += [str(sample.path.resolve()), status.st_size, status.st_mtime_ns]
        key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        return self.cache / "features" / key[:2] / f"{key}.f32"


def _load(file: Path) -> Rows | None:
    """Features and times of a video; None where they are absent or damaged."""
    try:
        entry = json.loads(file.with_suffix(".json").read_text())
        shape: Any = tuple(entry["shape"])
        times = np.array(entry["times"], np.float64)
        if len(shape) != 2 or times.shape != (shape[0], 2) or file.stat().st_size != 4 * math.prod(shape):
            return None
        return np.memmap(file, np.float32, "r", shape=shape), times
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _write(file: Path, computed: Iterable[Rows]) -> None:
    """As rows come, so that memory holds one clip of a video, however long."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial, times, width = file.with_name(f".{file.name}.{os.getpid()}.part"), [], 0
    seal = partial.with_suffix(".seal")
    try:
        with partial.open("wb") as stream:
            for rows, their_times in computed:
                times += their_times.tolist()
                width = rows.shape[1]
                stream.write(np.ascontiguousarray(rows).data)
        partial.replace(file)
        seal.write_text(json.dumps({"shape": [len(times), width], "times": times}))
        seal.replace(file.with_suffix(".json"))
    finally:
        partial.unlink(missing_ok=True)
        seal.unlink(missing_ok=True)
