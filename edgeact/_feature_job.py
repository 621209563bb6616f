"""What a process or a machine needs to compute the features of any video: paths and names, never a network.

client: Job ─► worker: Recipe.build() once, on one thread ─► compute(job, sample) for each video ─► rows to the client

The worker's network must be the client's, by its digest, and so must be the versions that its numbers depend on.
"""

import functools
import importlib.metadata
import sys
import threading
from dataclasses import dataclass
from typing import Protocol

import numpy as np

import edgeact
from edgeact.clip import ClipSpec
from edgeact.data import Sample
from edgeact.errors import EdgeactError, InputError
from edgeact.features import Extract, Rows, compute_rows

__all__ = ["Job", "Recipe", "compute", "versions_here"]

_PACKAGES = ("numpy", "av", "torch", "openvino", "onnxruntime", "ai-edge-litert", "executorch")


class Recipe(Protocol):
    """How a network is built anywhere; it is pickled, so it holds paths and names."""

    def build(self) -> tuple[Extract, str]:
        """The network up to its features, and its digest."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What all videos have in common.

    Attributes:
        recipe: Of the network.
        network: Its digest, where the job was made.
        spec: How a video becomes clips.
        hop: Sampled frames from the start of one clip to that of the next.
        versions: Of edgeact, and of what its numbers depend on.
    """

    recipe: Recipe
    network: str
    spec: ClipSpec
    hop: int
    versions: dict[str, str]


@functools.cache
def versions_here() -> dict[str, str]:
    """Of edgeact, and of the packages that features depend on, where they are installed."""
    found = {"edgeact": edgeact.__version__, "python": ".".join(map(str, sys.version_info[:2]))}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def compute(job: Job, sample: Sample, size: int) -> Rows:
    """Features and times of all clips of a video of `size` bytes; runs on a worker.

    Raises:
        VideoError: It holds no usable video.
        InputError: The video, the network or a version is not that of the client; the message names the worker.
    """
    where = _cluster_worker()
    _check_versions(job, where)
    if not sample.path.is_file() or sample.path.stat().st_size != size:
        what = "is another file there" if sample.path.exists() else "is not there"
        raise InputError(f"{where}: {sample.path} {what}; videos must lie at the same paths on every worker")
    extract = _network(job, where)
    parts = list(compute_rows(sample.path, sample.id, extract, job.spec, job.hop))
    return np.concatenate([rows for rows, _ in parts]), np.concatenate([times for _, times in parts])


def _cluster_worker() -> str:
    """The address of the Dask worker that this is, or that it is a process."""
    if "distributed" in sys.modules:
        from distributed import get_worker

        try:
            return f"worker {get_worker().address}"
        except ValueError:  # none
            pass
    return "a worker process"


def _check_versions(job: Job, where: str) -> None:
    here = versions_here()
    for name, wanted in job.versions.items():
        if here.get(name) != wanted:
            raise InputError(
                f"{where} has {name} {here.get(name, 'not')} installed, this machine {wanted}: install the same there"
            )


_own = threading.local()  # a Dask worker may have several threads, and runners are for one
_building = threading.Lock()


def _network(job: Job, where: str) -> Extract:
    """Built once in each thread; the last job's alone is kept."""
    if getattr(_own, "job", None) == job:
        return _own.extract  # type: ignore[no-any-return]
    with _building:  # torch.export is not for several threads
        try:
            _own.job, (_own.extract, digest) = None, job.recipe.build()
        except EdgeactError as exc:
            raise InputError(
                f"{where} cannot build the network: {exc}; what it is made of (checkpoint, bundle, code of --model) "
                "must lie at the same paths on every worker"
            ) from exc
    if digest != job.network:
        raise InputError(
            f"{where} has another network: {digest[:12]}, here it is {job.network[:12]}; the checkpoint or bundle at "
            "that path is another one there, or there is none and its random weights differ"
        )
    _own.job = job
    return _own.extract  # type: ignore[no-any-return]
