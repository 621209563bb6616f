"""Where videos are computed besides this process: other processes of this machine, or a Dask cluster.

Both are a concurrent.futures.Executor. A few videos a worker are under way at a time, so memory holds the features of
those; results come back as they are finished, and a video whose worker was lost is given to another or is an error.
"""

import contextlib
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    ProcessPoolExecutor,
    wait,
)
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

from edgeact._feature_job import Job, Recipe, compute, versions_here
from edgeact.clip import ClipSpec
from edgeact.data import Sample
from edgeact.errors import DeviceError, EdgeactError, MissingDependencyError, VideoError
from edgeact.features import Rows

__all__ = ["Elsewhere", "Place", "Workers", "cluster", "processes"]

_ANSWER_S = 10  # a scheduler that is there answers in well under one
_AHEAD = 2  # videos of each worker: one it works on, and the next

# Of so many videos at most: an executor, and how many workers it has at the moment.
Place = Callable[[int], AbstractContextManager[tuple[Executor, Callable[[], int]]]]


@dataclass(frozen=True)
class Elsewhere:
    """Where a network runs besides this process, and how it is built there."""

    recipe: Recipe
    place: Place

    def workers(self, network: str, spec: ClipSpec, hop: int) -> "Workers":
        """For the network of that digest."""
        job = Job(recipe=self.recipe, network=network, spec=spec, hop=hop, versions=versions_here())
        return Workers(job, self.place)


@dataclass(frozen=True)
class Workers:
    """A `features.Compute`: videos go to the workers of `place`."""

    job: Job
    place: Place

    def __call__(self, samples: Iterable[Sample]) -> Iterator[tuple[Sample, Iterator[Rows]]]:
        """Videos as they are finished.

        Raises:
            InputError: A worker has another version, network or file, or its features are not finite.
            DeviceError: A worker died, or the cluster is gone.
        """
        waiting, pending = list(samples), dict[Future[Rows], Sample]()
        with self.place(len(waiting)) as (executor, workers):
            waiting.reverse()
            while waiting or pending:
                while waiting and len(pending) < _AHEAD * max(workers(), 1):
                    sample = waiting.pop()
                    there = replace(sample, path=sample.path.absolute())  # a worker may stand elsewhere
                    pending[executor.submit(compute, self.job, there, sample.path.stat().st_size)] = sample
                done = wait(pending, _ANSWER_S, FIRST_COMPLETED).done
                if not done and not workers():
                    raise DeviceError("no worker is left; what is finished is kept: start some, and run it again")
                for future in done:
                    sample = pending.pop(future)
                    yield sample, _rows(future, sample)


def _rows(future: Future[Rows], sample: Sample) -> Iterator[Rows]:
    """A video that cannot be used is refused where its rows are read; what else went wrong is raised at once."""
    error = future.exception()
    if type(error).__name__ == "KilledWorker":  # Dask's; a pool of processes ends as a whole
        raise DeviceError(f"{sample.path}: every worker that computed it died (out of memory?): {error}") from error
    if error is not None and not isinstance(error, VideoError):
        raise error
    return _given(future)


def _given(future: Future[Rows]) -> Iterator[Rows]:
    yield future.result()


def processes(count: int) -> Place:
    """So many processes of this machine, at most one for each video.

    They end with this process, however it ends.
    """

    @contextmanager
    def place(videos: int) -> Iterator[tuple[Executor, Callable[[], int]]]:
        workers, context = min(count, videos), multiprocessing.get_context("spawn")  # forking would copy torch's locks
        watched, held = context.Pipe(duplex=False)
        pool = ProcessPoolExecutor(workers, context, initializer=_end_with, initargs=(watched,))
        try:
            with _interrupts_held():  # else ^C shows a traceback of every worker that is still importing
                for _ in range(workers):
                    pool.submit(_start)
            yield pool, lambda: workers
        except BaseException as exc:
            held.close()  # ends the workers now, not after their videos
            if isinstance(exc, BrokenExecutor):
                raise DeviceError(
                    "a worker process died before its video was done (killed, or out of memory): what is finished is "
                    "kept; run it again, with fewer --workers if memory is short"
                ) from exc
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            held.close()

    return place


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """SIGINT waits until the end of the block, and never reaches processes that are started within."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start() -> None:
    """What makes the pool start a process."""


def _end_with(held_elsewhere: Connection) -> None:
    """Runs first in a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ^C reaches it too; its client ends it
    threading.Thread(target=_wait_for_end, args=(held_elsewhere,), daemon=True).start()


def _wait_for_end(held_elsewhere: Connection) -> None:
    """The other end is closed by the client, or by the system when the client was killed."""
    with contextlib.suppress(EOFError, OSError):
        held_elsewhere.recv_bytes()
    os._exit(1)


def cluster(address: str) -> Place:
    """The workers of the Dask cluster whose scheduler is at `address`, such as tcp://10.0.0.1:8786.

    A video whose worker died is computed by another one; the third death that one video causes is an error.
    """

    @contextmanager
    def place(videos: int) -> Iterator[tuple[Executor, Callable[[], int]]]:
        client = _connect(address)
        try:
            yield client.get_executor(pure=False), lambda: sum(client.nthreads().values())
        except EdgeactError:
            raise
        except (CancelledError, OSError) as exc:
            if isinstance(exc, OSError) and exc.filename is not None:  # a file's
                raise
            raise DeviceError(f"--scheduler {address} went away; what is finished is kept: run it again") from exc
        except (ImportError, RuntimeError) as exc:
            raise DeviceError(
                f"--scheduler {address}: it or a worker failed: {exc}; what is finished is kept. Both need this "
                "edgeact with its extra dask"
            ) from exc
        finally:
            client.close()

    return place


def _connect(address: str) -> Any:
    try:
        from distributed import Client
    except ImportError as exc:
        raise MissingDependencyError("distributed", "dask", "--scheduler") from exc
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)  # what it would log is raised
    # A client that its constructor gave up is closed by the garbage collector, maybe while another one starts, which
    # never ends then: the object is made first, so that there is something to close.
    client: Any = Client.__new__(Client)
    try:
        try:
            client.__init__(address, timeout=_ANSWER_S, set_as_default=False)
        except (OSError, ValueError, TypeError) as exc:
            raise DeviceError(
                f"--scheduler {address}: no Dask scheduler answers there within {_ANSWER_S} s ({exc}); `dask "
                "scheduler` starts one and prints its address"
            ) from exc
        try:
            client.wait_for_workers(1, timeout=_ANSWER_S)
        except TimeoutError as exc:
            raise DeviceError(f"--scheduler {address} has no workers: start some with `dask worker {address}`") from exc
    except BaseException:
        client.close()
        raise
    return client
