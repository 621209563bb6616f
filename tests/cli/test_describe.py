"""`edgeact describe`: what it prints and what it refuses."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from long_videos import write_long_videos

from edgeact.cli import main
from edgeact.descriptor import load_descriptor

TINY = ("--model", "c3d", "--option", "width=0.125", "--short-side", "18", "--crop", "16", "--quiet")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_long_videos(tmp_path_factory.mktemp("long") / "videos", train=4, test=1, frames=20)


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """What `main` changes in its process, put back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]):
    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main(["describe", *map(str, arguments)])
        said = capsys.readouterr()
        return stopped.value.code, said.out, said.err

    return call


def test_fit_writes_the_descriptor_and_reports_what_it_keeps(run, videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "pca2.safetensors"
    status, said, _ = run("fit", "--data", videos, *TINY, "--dims", 2, "--out", out, "--json")
    assert status == 0
    told, found = json.loads(said), load_descriptor(out)
    assert told["explained"] == [float(share) for share in found.explained]
    assert told["videos"] == found.videos == 9
    assert (told["model"], told["layer"], told["hop"], told["skipped"]) == ("c3d", "fc6", 8, [])
    status, said, _ = run("fit", "--data", videos, *TINY, "--dims", 2, "--out", out)
    assert status == 0
    assert "explained" in said
    assert "2 of 512 features: relu of fc6" in " ".join(said.split())


def test_fit_lists_what_it_skips(run, tmp_path: Path) -> None:
    videos = write_long_videos(tmp_path / "videos", train=3, test=1, frames=16)
    (videos / "down" / "01.mp4").write_bytes(b"nothing")
    arguments = ("fit", "--data", videos, *TINY, "--dims", 2, "--out", tmp_path / "pca.safetensors")
    status, _, said = run(*arguments)
    assert status == 2
    assert "01.mp4" in said
    status, said, _ = run(*arguments, "--skip-corrupt")
    assert status == 0
    assert "skipped:" in said
    assert "01.mp4" in "".join(said.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--dims", "0"), "--dims 0: a descriptor has at least 1"),
        (("--dims", "9"), "9 usable videos in the training part"),
        (("--layer", "fc66"), "unknown feature layer 'fc66': did you mean 'fc6'?"),
        (("--order", "average"), "unknown order 'average'"),
        (("--out", "."), "--out . is a folder"),
    ],
)
def test_fit_refuses_in_one_line(run, videos: Path, tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    out = tmp_path / "pca.safetensors"
    status, _, said = run("fit", "--data", videos, *TINY, "--out", out, *arguments)
    assert status == 2
    assert said.startswith("error: ")
    assert message in said
    assert not out.exists()


def test_classify_compares_dimensions(run, videos: Path) -> None:
    status, said, _ = run("classify", "--data", videos, *TINY, "--dims", "2,50", "--json")
    assert status == 0
    rows = json.loads(said)["rows"]
    assert [(row["name"], row["dims"]) for row in rows[:3]] == [("PCA", 2), ("PCA", 50), ("all features", 512)]
    assert "not_measured" in rows[1]["accuracy"]
    status, said, _ = run("classify", "--data", videos, *TINY, "--dims", "2,50")
    assert status == 0
    for word in ("all features", "random", "commonest class", "chance", "not measured"):
        assert word in said
    status, _, said = run("classify", "--data", videos, *TINY, "--dims", "2,x")
    assert status == 2
    assert "--dims '2,x'" in said
