"""Small data and models that many tests share."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import torch
from cli_calls import call_cli
from hypothesis import HealthCheck, settings

from edgeact.clip import ClipSpec
from edgeact.motion import write_motion_set

pytest_plugins = ["ssh_server"]

# `make test-all` asks for the profile "thorough".
untimed = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("quick", max_examples=10, derandomize=True, **untimed)
settings.register_profile("thorough", max_examples=100, derandomize=True, **untimed)
settings.load_profile("quick")

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # tests import it themselves too

# Two test processes that each use every core wait for one another's threads: milliseconds become seconds.
torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of the test run's own, so that tests never depend on what a user's cache holds."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache"  # one for all workers
    folder.mkdir(exist_ok=True)
    patch = pytest.MonkeyPatch()
    patch.setenv("EDGEACT_CACHE", str(folder))
    # A child started in the checkout would import its edgeact/ folder, which lacks the packages mapped from the root.
    patch.setenv("PYTHONSAFEPATH", "1")
    return folder


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve classes of the motion set, a few real video files each, with split.csv."""
    return write_motion_set(tmp_path_factory.mktemp("videos") / "motion", train_per_class=3, test_per_class=2)


@pytest.fixture(scope="session")
def tiny_spec() -> ClipSpec:
    return ClipSpec(frames=4, frame_stride=2, short_side=36, crop_height=32, crop_width=32)


@pytest.fixture
def full_disk() -> Callable[[], AbstractContextManager[None]]:
    """`with full_disk():` no file grows past 2000 bytes; a write past them fails as on a full disk."""
    resource = pytest.importorskip("resource")

    @contextmanager
    def limited() -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """`run("export", …)` gives the exit status, stdout and stderr of a command."""

    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = call_cli(*arguments)
        return status, *capsys.readouterr()

    return call
