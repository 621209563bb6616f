"""Videos computed by processes and on a Dask cluster: the same rows as here, and what is lost is said."""

import dataclasses
import gc
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from feature_recipes import DIGEST, Brightness
from long_videos import write_long_videos

from edgeact import _workers, errors
from edgeact._feature_job import Job, compute, versions_here
from edgeact._sources import find_videos
from edgeact._workers import Elsewhere, Place, cluster, processes
from edgeact.clip import ClipSpec
from edgeact.data import open_dataset
from edgeact.errors import DeviceError, InputError, MissingDependencyError, VideoError
from edgeact.features import Features, FeatureSet
from edgeact.video import iter_windows

SPEC = ClipSpec(frames=16, frame_stride=1, short_side=18, crop_height=16, crop_width=16)
HOP = 8


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_long_videos(tmp_path_factory.mktemp("long") / "videos", train=3, test=1)


@pytest.fixture
def open_set(videos: Path, tmp_path: Path) -> Callable[..., FeatureSet]:
    """The videos' features, computed at a place."""

    def call(place: Place | None, recipe: Brightness | None = None, root: Path = videos) -> FeatureSet:
        recipe = recipe or Brightness()
        elsewhere = None if place is None else Elsewhere(recipe, place).workers(DIGEST, SPEC, HOP)
        extract, _ = Brightness().build()
        cache = tmp_path / ("here" if place is None else "elsewhere")
        return FeatureSet(find_videos(root), extract, DIGEST, "mean", SPEC, HOP, "skip", cache, compute=elsewhere)

    return call


@pytest.fixture(scope="module")
def deadly(videos: Path) -> Brightness:
    """No process survives down/01.mp4."""
    first = next(iter_windows(videos / "down" / "01.mp4", SPEC, HOP))
    return Brightness(deadly=float(first.clip[None].mean()))


def _assert_same(found: list[Features], wanted: list[Features]) -> None:
    assert [video.sample for video in found] == [video.sample for video in wanted]
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one.clips, other.clips)
        np.testing.assert_array_equal(one.times, other.times)


def test_processes_give_the_same_rows_and_list_what_is_corrupt(
    open_set: Callable[..., FeatureSet], videos: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "videos"
    subprocess.run(["cp", "-r", videos, broken], check=True)
    (broken / "down" / "01.mp4").write_bytes(b"no video")
    here, there = open_set(None, root=broken), open_set(processes(2), root=broken)
    _assert_same(list(there), list(here))
    assert there.skipped == here.skipped
    assert len(there.skipped) == 1
    assert "01.mp4" in there.skipped[0]
    erring = dataclasses.replace(there, on_corrupt="error", cache=tmp_path / "new", skipped=[])
    with pytest.raises(VideoError, match=r"01\.mp4"):
        list(erring)


def test_a_worker_that_dies_is_an_error_and_what_is_finished_is_kept(
    open_set: Callable[..., FeatureSet], deadly: Brightness, tmp_path: Path
) -> None:
    dying = open_set(processes(2), deadly)
    with pytest.raises(DeviceError, match="a worker process died before its video was done"):
        list(dying)
    finished = {file: file.stat().st_mtime_ns for file in (tmp_path / "elsewhere").rglob("*.f32")}
    assert finished
    assert not list(tmp_path.rglob("*.part"))
    _assert_same(list(open_set(processes(2))), list(open_set(None)))
    assert all(file.stat().st_mtime_ns == before for file, before in finished.items())


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("nan", r"features of across/0\d.mp4 are not finite"),
        (
            "absent",
            "a worker process cannot build the network: unknown model 'c4d'.* at the same paths on every worker",
        ),
        ("other", "a worker process has another network: 111111111111, here it is 000000000000"),
    ],
)
def test_what_goes_wrong_in_a_process_is_an_error_here(
    open_set: Callable[..., FeatureSet], tmp_path: Path, fault: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        list(open_set(processes(1), Brightness(fault)))
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]


def test_a_worker_refuses_what_is_not_the_clients(videos: Path) -> None:
    sample = find_videos(videos).samples[0]
    size = sample.path.stat().st_size
    job = Job(recipe=Brightness(), network=DIGEST, spec=SPEC, hop=HOP, versions=versions_here())
    rows, times = compute(job, sample, size)
    assert len(rows) == len(times) > 1
    with pytest.raises(InputError, match=r"has edgeact 0\.1\.0 installed, this machine 9\.9: install the same"):
        compute(dataclasses.replace(job, versions=job.versions | {"edgeact": "9.9"}), sample, size)
    with pytest.raises(InputError, match="has tflite not installed, this machine 1"):
        compute(dataclasses.replace(job, versions={"tflite": "1"}), sample, size)
    with pytest.raises(InputError, match=r"mp4 is another file there; videos must lie at the same paths"):
        compute(job, sample, size + 1)
    with pytest.raises(InputError, match=r"gone\.mp4 is not there; videos must lie at the same paths"):
        compute(job, dataclasses.replace(sample, path=videos / "gone.mp4"), size)


def test_relative_paths_are_those_of_the_client(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Elsewhen(ThreadPoolExecutor):
        """Threads that stand in another folder by the time they work."""

        def submit(self, fn, /, *call, **options):
            monkeypatch.chdir(tmp_path)
            return super().submit(fn, *call, **options)

    @contextmanager
    def place(most):
        with Elsewhen(1) as executor:
            yield executor, lambda: 1

    monkeypatch.chdir(videos.parent)
    (sample, *_) = open_dataset(videos.name, split="all").samples
    ((found, rows),) = Elsewhere(Brightness(), place).workers(DIGEST, SPEC, HOP)([sample])
    assert found == sample
    assert len(list(rows)) == 1


@pytest.mark.parametrize("name", errors.__all__)
def test_every_error_crosses_to_another_process(name: str) -> None:
    made = getattr(errors, name)
    error = made("model", "c4d", ["c3d"]) if name in ("UnknownNameError", "MissingDependencyError") else made("no")
    found = pickle.loads(pickle.dumps(error))
    assert (type(found), str(found)) == (made, str(error))


@pytest.fixture(scope="module")
def scheduler() -> Iterator[str]:
    """A cluster of one worker with two threads, in this process."""
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=1,
        threads_per_worker=2,
        processes=False,
        protocol="tcp://",
        dashboard_address="127.0.0.1:0",
        memory_limit=0,
    ) as found:
        yield found.scheduler_address


def test_a_cluster_gives_the_same_rows(open_set: Callable[..., FeatureSet], scheduler: str, tmp_path: Path) -> None:
    _assert_same(list(open_set(cluster(scheduler))), list(open_set(None)))
    for fault, message in (("nan", "are not finite"), ("absent", r"worker tcp://.* cannot build the network: unknown")):
        erring = dataclasses.replace(open_set(cluster(scheduler), Brightness(fault)), cache=tmp_path / "new")
        with pytest.raises(InputError, match=message):
            list(erring)


def test_a_scheduler_that_is_not_there_is_an_error_in_a_line(
    open_set: Callable[..., FeatureSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    from distributed.utils import LoopRunner

    monkeypatch.setattr(_workers, "_ANSWER_S", 0.3)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(DeviceError, match=rf"--scheduler {address}: no Dask scheduler answers.*`dask scheduler`"):
            list(open_set(cluster(address)))
    with pytest.raises(DeviceError, match="--scheduler nowhere: no Dask scheduler answers"):
        list(open_set(cluster("nowhere")))
    with LoopRunner._lock:  # as while a client starts, which may collect garbage: an unclosed one would wait for it
        collecting = threading.Thread(target=gc.collect, daemon=True)
        collecting.start()
        collecting.join(10)
        assert not collecting.is_alive()
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(MissingDependencyError, match=r"--scheduler needs distributed.*edgeact\[dask\]"):
        list(open_set(cluster(address)))


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), ImportError("No module named 'edgeact'")])
def test_a_worker_that_fails_is_an_error_in_a_line(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[bool] = []
    client = SimpleNamespace(get_executor=lambda **_: None, close=lambda: closed.append(True))
    monkeypatch.setattr(_workers, "_connect", lambda address: client)
    message = f"it or a worker failed: {error}; what is finished is kept"
    with pytest.raises(DeviceError, match=message), cluster("tcp://10.0.0.1:8786")(1):
        raise error
    assert closed


def test_a_cluster_without_workers_is_an_error(
    open_set: Callable[..., FeatureSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    from distributed import LocalCluster

    monkeypatch.setattr(_workers, "_ANSWER_S", 0.3)
    with (
        LocalCluster(n_workers=0, processes=False, protocol="tcp://", dashboard_address="127.0.0.1:0") as empty,
        pytest.raises(DeviceError, match="has no workers: start some with `dask worker tcp://"),
    ):
        list(open_set(cluster(empty.scheduler_address)))


class Cluster:
    """A scheduler and workers as a user starts them, each a process of its own."""

    def __init__(self, folder: Path, workers: int) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address, self._log = f"tcp://127.0.0.1:{port}", (folder / "dask.log").open("wb")
        self.scheduler = self._start("scheduler", "--port", port)
        self.workers = [self._start("worker", self.address, "--nthreads", 1, "--no-nanny") for _ in range(workers)]

    def _start(self, *arguments: object) -> "subprocess.Popen[bytes]":
        path = {"PYTHONPATH": str(Path(__file__).parent)}  # of the recipe
        command = [sys.executable, "-m", "dask", *map(str, arguments), "--no-dashboard"]
        return subprocess.Popen(command, env=os.environ | path, stdout=self._log, stderr=self._log)

    def close(self) -> None:
        for process in (*self.workers, self.scheduler):
            process.kill()
            process.wait()
        self._log.close()


@pytest.fixture
def start_cluster(tmp_path: Path) -> Iterator[Callable[[int], Cluster]]:
    started: list[Cluster] = []

    def start(workers: int) -> Cluster:
        from distributed import Client

        started.append(Cluster(tmp_path, workers))
        with Client(started[-1].address, timeout=120, set_as_default=False) as client:
            client.wait_for_workers(workers, timeout=120)
        return started[-1]

    yield start
    for one in started:
        one.close()


@pytest.mark.slow
def test_a_killed_worker_loses_nothing_and_gives_nothing_twice(
    open_set: Callable[..., FeatureSet], start_cluster: Callable[[int], Cluster], tmp_path: Path
) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    dask, computed = start_cluster(3), open_set(None)
    slow = open_set(cluster(dask.address), Brightness("slow", str(marks)))
    assert slow.compute is not None
    written: list[str] = []

    def watched(samples):
        """Kills the worker that works, once two videos are back."""
        for sample, rows in slow.compute(samples):
            written.append(sample.id)
            if len(written) == 2:
                dask.workers[0].send_signal(signal.SIGKILL)
            yield sample, rows

    found = list(dataclasses.replace(slow, compute=watched))
    assert dask.workers[0].wait() == -signal.SIGKILL
    assert (marks / str(dask.workers[0].pid)).exists()  # it was at work
    assert sorted(written) == [sample.id for sample in slow.dataset.samples]
    _assert_same(found, list(computed))


@pytest.mark.slow
def test_a_video_that_kills_every_worker_is_named(
    open_set: Callable[..., FeatureSet], start_cluster: Callable[[int], Cluster], deadly: Brightness
) -> None:
    dask = start_cluster(5)
    with pytest.raises(DeviceError, match=r"down/01\.mp4: every worker that computed it died"):
        list(open_set(cluster(dask.address), deadly))


@pytest.mark.slow
def test_a_cluster_that_goes_away_is_an_error(
    open_set: Callable[..., FeatureSet], start_cluster: Callable[[int], Cluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_workers, "_ANSWER_S", 5)
    for victims, message in (("workers", "no worker is left"), ("scheduler", "went away; what is finished is kept")):
        dask = start_cluster(2)
        slow = open_set(cluster(dask.address), Brightness("slow"))
        computed = slow.compute(slow.dataset.samples)
        next(computed)
        for process in dask.workers if victims == "workers" else [dask.scheduler]:
            process.kill()
        with pytest.raises(DeviceError, match=message):
            list(computed)


@pytest.mark.slow
def test_processes_end_with_the_one_that_started_them(videos: Path, tmp_path: Path) -> None:
    """After kill -9 of it no worker stays, and what was finished is not computed again."""
    marks = tmp_path / "marks"
    marks.mkdir()
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\n"
        "from pathlib import Path\n"
        "from feature_recipes import DIGEST, Brightness\n"
        "from test_workers import HOP, SPEC\n"
        "from edgeact._sources import find_videos\n"
        "from edgeact._workers import Elsewhere, processes\n"
        "from edgeact.features import FeatureSet\n"
        "if __name__ == '__main__':\n"
        "    recipe = Brightness('slow', sys.argv[1])\n"
        "    there = Elsewhere(recipe, processes(2)).workers(DIGEST, SPEC, HOP)\n"
        "    dataset = find_videos(sys.argv[2])\n"
        "    cache = Path(sys.argv[3])\n"
        "    list(FeatureSet(dataset, None, DIGEST, 'mean', SPEC, HOP, cache=cache, compute=there))\n"
    )
    cache = tmp_path / "elsewhere"
    command = [sys.executable, str(program), str(marks), str(videos), str(cache)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    client = subprocess.Popen(command, env=environment)
    while len(list(cache.rglob("*.json"))) < 3 and client.poll() is None:
        time.sleep(0.02)
    client.kill()
    assert client.wait() == -signal.SIGKILL
    workers = [int(mark.name) for mark in marks.iterdir()]
    assert workers
    until = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < until:
        time.sleep(0.05)
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]
    finished = {file: file.stat().st_mtime_ns for file in cache.rglob("*.f32")}
    assert 0 < len(finished) < len(find_videos(videos).samples)
    subprocess.run(command, env=environment, check=True)
    assert all(file.stat().st_mtime_ns == before for file, before in finished.items())
    assert len(list(cache.rglob("*.json"))) == len(find_videos(videos).samples)
