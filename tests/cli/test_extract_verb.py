"""`edgeact describe extract`: the same descriptors from folders, lists and streams, wherever they are computed."""

import json
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_calls import call_cli
from long_videos import write_long_videos
from safetensors.torch import save_file

import edgeact
from edgeact import extract as extraction
from edgeact._feature_layer import feature_network
from edgeact._manifest import read_manifest, write_manifest
from edgeact.clip import ClipSpec, normalize
from edgeact.descriptor import unit
from edgeact.descriptor_file import load_descriptor
from edgeact.descriptor_table import Table, read_table
from edgeact.errors import VideoError
from edgeact.video import iter_windows, write_video

SPEC = ClipSpec(frames=16, frame_stride=1, short_side=18, crop_height=16, crop_width=16)
DIMS = 3

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = call_cli("describe", "extract", *arguments, "--quiet")
        return status, *capsys.readouterr()

    return call


class Made:
    """Videos, a network of random weights, its descriptor, and their bundle."""

    def __init__(self, folder: Path) -> None:
        self.videos = write_long_videos(folder / "videos", train=4, test=1)
        self.weights, self.pca = folder / "weights.safetensors", folder / "pca.safetensors"
        torch.manual_seed(0)
        self.model = edgeact.create_model("c3d", num_classes=3, width=0.125, input_size=[16, 16, 16]).eval()
        save_file(self.model.state_dict(), self.weights)
        options = ("--model", "c3d", "--option", "width=0.125", "--option", "source=edgeact")
        self.network = (*options, "--checkpoint", self.weights)
        tiny = (*self.network, "--data", self.videos, "--short-side", 18, "--crop", 16, "--quiet")
        assert call_cli("describe", "fit", *tiny, "--workers", 1, "--dims", DIMS, "--out", self.pca) == 0
        export = ("export", "--target", "openvino", "--threads", 1, "--rounds", 1, "--out", folder / "bundles")
        assert call_cli(*export, *tiny, "--descriptor", self.pca) == 0
        self.bundle = folder / "bundles" / f"c3d_pca{DIMS}-openvino-fp32"
        self.by_network = (*self.network, "--descriptor", self.pca, "--workers", 1)

    def clips(self, video: Path) -> tuple[np.ndarray, np.ndarray]:
        """PCA coordinates and times of a video's clips, step by step."""
        found, network = load_descriptor(self.pca), feature_network(self.model, SPEC, "fc6")
        windows = list(iter_windows(video, SPEC, 8))
        with torch.inference_mode():
            features = [network(torch.from_numpy(normalize(window.clip[None], SPEC))).numpy()[0] for window in windows]
        return found.project(np.stack(features)), np.array([[window.start_s, window.end_s] for window in windows])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("made"))


def _same(one: Table, other: Table) -> bool:
    arrays = ("descriptors", "start_s", "end_s")
    return one.ids == other.ids and all(
        getattr(one, name).tobytes() == getattr(other, name).tobytes() for name in arrays
    )


def test_a_folder_gives_a_row_for_each_clip_or_video(run: Run, made: Made, tmp_path: Path) -> None:
    status, said, _ = run(made.videos, *made.by_network, "--out", tmp_path / "clips.parquet", "--json")
    told, table = json.loads(said), read_table(tmp_path / "clips.parquet")
    assert (status, told["videos"], told["rows"], told["skipped"]) == (0, 15, len(table), [])
    assert (told["layer"], told["hop"], told["computed_by"], told["dims"]) == ("fc6", 8, "PyTorch", DIMS)
    assert table.labels == tuple(id.split("/")[0] for id in table.ids)
    assert (table.fields.root, table.fields.descriptor) == (str(made.videos), load_descriptor(made.pca).digest)
    assert run(made.videos, *made.by_network, "--per", "video", "--out", tmp_path / "videos.npz")[0] == 0
    whole = read_table(tmp_path / "videos.npz")
    assert whole.ids == tuple(sorted(set(table.ids)))
    for row, id in enumerate(whole.ids):
        coordinates, times = made.clips(made.videos / id)
        rows = [i for i, found in enumerate(table.ids) if found == id]
        assert rows == list(range(rows[0], rows[0] + len(times)))
        assert len(times) > 1
        np.testing.assert_allclose(table.descriptors[rows], unit(coordinates), atol=1e-5)
        np.testing.assert_array_equal(np.stack([table.start_s[rows], table.end_s[rows]], 1), times)
        np.testing.assert_allclose(whole.descriptors[row], unit(coordinates.mean(0)), atol=1e-5)
        assert (whole.start_s[row], whole.end_s[row]) == (times[0, 0], times[-1, 1])


def test_a_bundle_computes_the_same(run: Run, made: Made, tmp_path: Path) -> None:
    assert run(made.videos, *made.by_network, "--out", tmp_path / "a.npz")[0] == 0
    status, said, _ = run(made.videos, "--bundle", made.bundle, "--workers", 1, "--out", tmp_path / "b.npz")
    assert status == 0
    assert "openvino fp32" in " ".join(said.split())
    ours, theirs = read_table(tmp_path / "a.npz"), read_table(tmp_path / "b.npz")
    np.testing.assert_allclose(ours.descriptors, theirs.descriptors, atol=2e-4)
    assert ours.fields.to_dict() | {"computed_by": "openvino fp32"} == theirs.fields.to_dict()


def test_a_device_needs_numpy_and_its_runtime_alone(made: Made, tmp_path: Path) -> None:
    absent = ("torch", "safetensors", "sklearn", "pyarrow", "distributed", "jinja2", "matplotlib", "PIL", "onnx")
    blocked = f"import sys\nfor name in {absent}: sys.modules[name] = None\n"
    program = blocked + "from edgeact.cli import main\nmain(sys.argv[1:])"
    extract = ("describe", "extract", made.videos, "--bundle", made.bundle, "--workers", 1, "--quiet", "--out")
    command = [sys.executable, "-c", program, *map(str, extract)]
    done = subprocess.run([*command, tmp_path / "t.npz"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(set(read_table(tmp_path / "t.npz").ids)) == 15
    done = subprocess.run([*command, tmp_path / "t.parquet"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "a file .parquet, not .npz, needs pyarrow" in done.stderr


@pytest.mark.parametrize("by", ["network", "bundle"])
def test_processes_compute_the_same_bits(
    run: Run, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    how = made.by_network[:-2] if by == "network" else ("--bundle", made.bundle)
    for workers in (1, 2):
        monkeypatch.setenv("EDGEACT_CACHE", str(tmp_path / f"cache{workers}"))
        assert run(made.videos, *how, "--workers", workers, "--out", tmp_path / f"{workers}.npz")[0] == 0
    assert _same(read_table(tmp_path / "1.npz"), read_table(tmp_path / "2.npz"))


def test_a_cluster_fits_and_extracts_the_same_bits(
    run: Run, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from distributed import LocalCluster

    assert run(made.videos, *made.by_network, "--out", tmp_path / "a.npz")[0] == 0
    monkeypatch.setenv("EDGEACT_CACHE", str(tmp_path / "cache"))
    here = {"processes": False, "protocol": "tcp://", "dashboard_address": "127.0.0.1:0"}
    with LocalCluster(n_workers=1, threads_per_worker=2, **here) as dask:
        there = ("--scheduler", dask.scheduler_address)
        fit = ("describe", "fit", *made.network, "--data", made.videos, "--short-side", 18, "--crop", 16, *there)
        assert call_cli(*fit, "--dims", DIMS, "--out", tmp_path / "pca.safetensors", "--quiet") == 0
        assert (tmp_path / "pca.safetensors").read_bytes() == made.pca.read_bytes()
        assert run(made.videos, *made.by_network[:-2], *there, "--out", tmp_path / "b.npz")[0] == 0
        assert _same(read_table(tmp_path / "a.npz"), read_table(tmp_path / "b.npz"))


def test_lists_and_single_videos_have_ids_of_their_own(run: Run, made: Made, tmp_path: Path) -> None:
    shutil.copytree(made.videos, tmp_path / "v")
    shutil.copy(made.videos / "still" / "00.mp4", tmp_path / "v" / "unlisted.mp4")
    (tmp_path / "list.txt").write_text(f"v/down/01.mp4\n\n{tmp_path / 'v' / 'across' / '02.mp4'}\n")
    assert run(tmp_path / "list.txt", *made.by_network, "--per", "video", "--out", tmp_path / "list.npz")[0] == 0
    listed = read_table(tmp_path / "list.npz")
    assert (listed.ids, listed.labels) == (("across/02.mp4", "down/01.mp4"), None)
    assert listed.fields.root == str(tmp_path / "v")
    assert (
        run(tmp_path / "v" / "down" / "01.mp4", *made.by_network, "--per", "video", "--out", tmp_path / "1.npz")[0] == 0
    )
    single = read_table(tmp_path / "1.npz")
    assert (single.ids, single.fields.root) == (("01.mp4",), str(tmp_path / "v" / "down"))
    np.testing.assert_array_equal(single.descriptors[0], listed.descriptors[1])
    (tmp_path / "v" / "split.csv").unlink()
    (tmp_path / "v" / ".hidden.mp4").write_bytes(b"")
    assert run(tmp_path / "v", *made.by_network, "--per", "video", "--out", tmp_path / "v.npz")[0] == 0
    walked = read_table(tmp_path / "v.npz")
    assert (len(walked), walked.ids[-1], walked.labels) == (16, "unlisted.mp4", None)


def test_videos_that_cannot_be_used_are_listed(run: Run, made: Made, tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    for i in range(3):
        shutil.copy(made.videos / "down" / f"0{i}.mp4", tmp_path / "v")
    (tmp_path / "v" / "01.mp4").write_bytes(b"no video")
    (tmp_path / "list.txt").write_text("v/00.mp4\nv/gone.mp4\n")
    arguments = (tmp_path / "v", *made.by_network, "--per", "video", "--out", tmp_path / "t.npz")
    status, said, _ = run(*arguments)
    assert status == 1
    assert "01.mp4" in "".join(said.split())
    assert read_table(tmp_path / "t.npz").ids == ("00.mp4", "02.mp4")
    status, said, _ = run(*arguments, "--skip-corrupt", "--json")
    assert status == 0
    assert len(json.loads(said)["skipped"]) == 1
    status, said, _ = run(tmp_path / "list.txt", *arguments[1:], "--json")
    assert (status, read_table(tmp_path / "t.npz").ids) == (1, ("00.mp4",))
    assert "gone.mp4: no such file" in json.loads(said)["skipped"][0]
    (tmp_path / "t.npz").unlink()
    status, _, said = run(tmp_path / "v" / "01.mp4", *arguments[1:])
    assert status == 2
    assert "none of its videos can be used" in said
    assert not (tmp_path / "t.npz").exists()


def test_names_that_no_table_can_hold_are_refused_first(run: Run, made: Made, tmp_path: Path) -> None:
    try:
        (tmp_path / "v\udcff.mp4").write_bytes(b"")
    except OSError:
        pytest.skip("this file system has no such names")
    status, _, said = run(tmp_path, *made.by_network, "--out", tmp_path / "t.npz")
    assert status == 2
    assert "names of videos that are not UTF-8" in said


def test_what_is_finished_is_not_computed_again(
    run: Run, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEACT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "v").mkdir()
    for i in range(3):
        shutil.copy(made.videos / "down" / f"0{i}.mp4", tmp_path / "v")
    arguments = (tmp_path / "v", *made.by_network, "--out", tmp_path / "t.npz")
    assert run(*arguments)[0] == 0
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").rglob("*.f32")}
    shutil.copy(made.videos / "across" / "00.mp4", tmp_path / "v" / "new.mp4")
    said = run(*arguments)[1]
    assert "1 of 4 videos computed; what was computed before is kept" in " ".join(said.split())
    after = {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").rglob("*.f32")}
    assert len(after) == len(before) + 1
    assert before.items() <= after.items()
    assert len(set(read_table(tmp_path / "t.npz").ids)) == 4


def _stream(file: Path) -> str:
    """A URL: read once, as it comes."""
    return f"file://{file}"


def test_a_stream_gives_rows_as_its_file_does(run: Run, made: Made, tmp_path: Path) -> None:
    file = made.videos / "down" / "01.mp4"
    how = (*made.by_network[:-2], "--out")
    assert run(file, *how, tmp_path / "file.npz", "--workers", 1)[0] == 0
    assert run(_stream(file), *how, tmp_path / "live.npz")[0] == 0
    stored, live = read_table(tmp_path / "file.npz"), read_table(tmp_path / "live.npz")
    assert set(live.ids) == {_stream(file)}
    assert live.fields.root is None
    np.testing.assert_array_equal(live.start_s, stored.start_s)
    np.testing.assert_allclose(live.descriptors, stored.descriptors, atol=1e-6)
    seconds = float(stored.end_s[1])
    assert run(_stream(file), *how, tmp_path / "live.npz", "--seconds", seconds)[0] == 0
    np.testing.assert_array_equal(read_table(tmp_path / "live.npz").end_s, stored.end_s[:2])
    assert run(_stream(file), "--bundle", made.bundle, "--per", "video", "--out", tmp_path / "v.parquet")[0] == 0
    whole = read_table(tmp_path / "v.parquet")
    np.testing.assert_allclose(whole.descriptors[0], unit(made.clips(file)[0].mean(0)), atol=2e-4)
    status, _, said = run(_stream(file), *how, tmp_path / "none.npz", "--seconds", 0.1)
    assert status == 2
    assert "no clip ends within 0.1 s" in said
    assert not (tmp_path / "none.npz").exists()


@pytest.mark.parametrize("every_s", [0, 1000])
def test_what_a_stream_gave_is_written_however_it_ends(
    run: Run, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every_s: float
) -> None:
    file, out, whole = made.videos / "down" / "01.mp4", tmp_path / "t.npz", extraction.compute_rows
    monkeypatch.setattr(extraction, "_WRITE_EVERY_S", every_s)

    def ending(error: BaseException) -> Any:
        def rows(*given: Any, **options: Any) -> Iterator[Any]:
            for count, row in enumerate(whole(*given, **options)):
                if count == 2:
                    assert out.exists() == (every_s == 0)  # as it goes
                    raise error
                yield row

        return rows

    monkeypatch.setattr(extraction, "compute_rows", ending(KeyboardInterrupt()))
    status, _, _ = run(_stream(file), *made.by_network[:-2], "--out", out)
    assert (status, len(read_table(out))) == (0, 2)
    out.unlink()
    monkeypatch.setattr(extraction, "compute_rows", ending(VideoError("the stream broke off")))
    status, _, said = run(_stream(file), *made.by_network[:-2], "--out", out)
    assert (status, len(read_table(out))) == (2, 2)
    assert "the stream broke off" in said

    def stopped(*given: Any, **options: Any) -> Iterator[Any]:
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(extraction, "compute_rows", stopped)
    status, _, said = run(_stream(file), *made.by_network[:-2], "--out", out)
    assert status == 2  # the table that is there is of an earlier run
    assert "stopped before its first clip ended; nothing is written" in said


def test_a_stream_that_falls_silent_is_an_error_after_what_it_gave(
    run: Run, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """^C is not heard while a read waits, so none waits forever."""
    monkeypatch.setattr("edgeact._decode._SILENCE_S", 0.5)
    frames = np.random.default_rng(0).integers(0, 256, (200, 24, 24, 3), dtype=np.uint8)
    write_video(tmp_path / "v.mkv", frames, 25, codec="mpeg4")
    sent = (tmp_path / "v.mkv").read_bytes()

    def serve() -> None:
        connection, _ = server.accept()
        connection.sendall(sent[: 3 * len(sent) // 4])
        over.wait()
        connection.close()

    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:
        speaker = threading.Thread(target=serve)
        speaker.start()
        source = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        status, _, said = run(source, *made.by_network[:-2], "--out", tmp_path / "t.npz")
        over.set()
        speaker.join()
    assert status == 2
    assert "nothing came for 0.5 s" in said
    assert len(read_table(tmp_path / "t.npz")) > 3


def test_the_password_of_a_url_is_not_written(run: Run, made: Made, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    source = f"tcp://me:se@cret@127.0.0.1:{port}"  # nobody listens
    status, _, said = run(source, *made.by_network[:-2], "--out", tmp_path / "t.npz")
    assert status == 2
    assert said.startswith(f"error: tcp://127.0.0.1:{port}: ")
    assert extraction.public_name("rtsp://me:secret@host/a@b") == "rtsp://host/a@b"
    assert extraction.public_name("/dev/video0") == "/dev/video0"


@pytest.mark.parametrize(
    ("source", "arguments", "message"),
    [
        ("VIDEOS", ("--out", "t.csv"), "unknown suffix of a file of descriptors '.csv'"),
        ("VIDEOS", ("--out", "no/folder/t.npz"), "the folder no/folder does not exist"),
        ("VIDEOS", ("--out", "t.npz"), "say what describes: --descriptor FILE"),
        ("VIDEOS", ("--out", "t.npz", "--bundle", "BUNDLE", "--model", "c3d"), "--bundle holds network and descriptor"),
        ("VIDEOS", ("--out", "t.npz", "--bundle", "VIDEOS"), "is not a bundle"),
        ("VIDEOS", ("--out", "t.npz", "--bundle", "BUNDLE", "--seconds", "3"), "--seconds is of a camera"),
        (
            "VIDEOS",
            ("--out", "t.npz", "--bundle", "BUNDLE", "--workers", "1", "--scheduler", "tcp://x:1"),
            "--workers are processes of this machine",
        ),
        ("0", ("--out", "t.npz", "--bundle", "BUNDLE", "--workers", "2"), "leave --workers and --scheduler out"),
        ("missing", ("--out", "t.npz", "--bundle", "BUNDLE"), "missing: no such file or folder"),
        ("EMPTY", ("--out", "t.npz", "--bundle", "BUNDLE"), "no videos in this folder"),
        ("VIDEOS", ("--out", "t.npz", "--descriptor", "WEIGHTS"), "holds tensors but no descriptor"),
        ("VIDEOS", ("--out", "t.npz", "--descriptor", "PCA", "--model", "c3d"), "the descriptor is of another network"),
        ("VIDEOS", ("--out", "t.npz", "--descriptor", "PCA"), "unknown feature layer 'fc6'"),
    ],
)
def test_what_cannot_be_done_is_refused_in_a_line(
    run: Run,
    made: Made,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    source: str,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    names = {"VIDEOS": made.videos, "BUNDLE": made.bundle, "WEIGHTS": made.weights, "PCA": made.pca, "EMPTY": "empty"}
    status, _, said = run(names.get(source, source), *(names.get(part, part) for part in arguments))
    assert status == 2
    assert said.startswith("error: ")
    assert message in said
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "lists no videos; write one path a line"),
        (b"\xff\xfe\x00", "it is no UTF-8 text"),
        (b"a\0b", "it holds binary data"),
        (b"a.mp4\nb.mp4", r"none of its 2 files exists, as .*a\.mp4; paths are relative to the list's folder"),
        (b"list.txt\n./list.txt", r"list\.txt' more than once"),
    ],
)
def test_lists_that_cannot_be_read_are_refused(
    run: Run, made: Made, tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "list.txt").write_bytes(content)
    status, _, said = run(tmp_path / "list.txt", "--bundle", made.bundle, "--out", tmp_path / "t.npz")
    assert status == 2
    assert re.search(message, said)


def test_a_bundle_that_does_not_say_what_it_describes_is_refused(run: Run, made: Made, tmp_path: Path) -> None:
    def changed(name: str, change: Callable[[dict[str, Any]], object]) -> Path:
        folder = shutil.copytree(made.bundle, tmp_path / name)
        manifest = read_manifest(folder)
        change(manifest)
        write_manifest(folder, {key: manifest[key] for key in manifest if key not in ("schema", "files", "digest")})
        return folder

    old = changed("old", lambda manifest: manifest["facts"]["descriptor"].pop("digest"))
    logits = changed("logits", lambda manifest: manifest["io"]["output"].update(content="logits"))
    for bundle, message in ((old, "does not say what its descriptors are of"), (logits, "gives logits, and no descri")):
        status, _, said = run(made.videos, "--bundle", bundle, "--out", tmp_path / "t.npz")
        assert status == 2
        assert message in said


def test_features_that_are_not_finite_are_refused(
    run: Run, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nan(features: Any, spec: ClipSpec) -> Any:
        return lambda clip: np.full((1, 512), np.nan, np.float32)

    monkeypatch.setenv("EDGEACT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("edgeact._feature_layer.feature_extractor", nan)
    status, _, said = run(made.videos, *made.by_network, "--out", tmp_path / "t.npz")
    assert status == 2
    assert "features of across/00.mp4 are not finite" in said
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]


def test_pytorch_is_needed_for_a_descriptor_alone(
    run: Run, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    status, _, said = run(made.videos, *made.by_network, "--out", tmp_path / "t.npz")
    assert status == 2
    assert "edgeact[export]" in said
    assert not list(tmp_path.iterdir())
