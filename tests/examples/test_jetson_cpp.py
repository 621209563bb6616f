"""The C++ sample of examples/jetson, compiled with the OpenVINO backend and run on bundles of a tiny network."""

import dataclasses
import fcntl
import importlib.util
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import edgeact
from edgeact._decode import decoded, open_video, rgb_converter
from edgeact.clip import ClipSpec
from edgeact.errors import InputError
from edgeact.parity import Gates
from edgeact.quantize.options import Calibration, Int8
from edgeact.results import read_results
from edgeact.video import iter_windows, write_video

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "examples" / "jetson"
FPS = 24


def lacking() -> str | None:
    """What stands in the way of a build."""
    if shutil.which("cmake") is None:
        return "no CMake"
    if not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        return "no C++ compiler"
    if not any(Path(place, "nlohmann/json.hpp").is_file() for place in ("/usr/include", "/usr/local/include")):
        return "no nlohmann-json: apt install nlohmann-json3-dev"
    found = importlib.util.find_spec("openvino")
    if found is None or found.origin is None or not Path(found.origin).with_name("include").is_dir():
        return "no OpenVINO with its C++ headers"
    return None


REASON = lacking()
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv3d(3, 8, (3, 5, 5), (1, 2, 2), (1, 2, 2))
        self.block = nn.Conv3d(8, 8, 3, 1, 1, groups=8)
        self.head = nn.Linear(8, 12)

    def forward(self, clip: Tensor) -> Tensor:
        x = self.stem(clip).relu()
        out: Tensor = self.head((x + self.block(x)).relu().mean((2, 3, 4)))
        return out


def call(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the programs, compiled once for all test processes, with warnings as errors."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "jetson_cpp"
    folder.mkdir(exist_ok=True)
    origin = importlib.util.find_spec("openvino").origin  # type: ignore[union-attr]
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "edgeact_jetson").is_file():
            options = ["-DBACKEND=openvino", f"-DOpenVINO_DIR={Path(str(origin)).parent / 'cmake'}"]
            options += ["-DEDGEACT_TESTS=ON", "-DCMAKE_BUILD_TYPE=Debug", "-DCMAKE_CXX_FLAGS=-Werror -O0 -g0"]
            configured = call("cmake", "-S", SAMPLE, "-B", folder, *options)
            assert configured.returncode == 0, configured.stderr
            compiled = call("cmake", "--build", folder, "--parallel", "2")
            assert compiled.returncode == 0, compiled.stdout + compiled.stderr
    return folder


def export(precision: str, videos: Path, spec: ClipSpec, out: Path) -> edgeact.Bundle:
    gates = dataclasses.replace(Gates.defaults(precision), min_agreement=0, max_drop_pt=100)  # untrained weights
    more: dict[str, Any] = {"int8": Int8(calibration=Calibration(clips=12))} if precision == "int8" else {}
    return edgeact.export(
        Tiny(), target="jetson", precision=precision, spec=spec, data=videos, out=out, clips=12, gates=gates, **more
    )


@pytest.fixture(scope="module")
def bundle(videos: Path, tiny_spec: ClipSpec, tmp_path_factory: pytest.TempPathFactory) -> edgeact.Bundle:
    return export("fp32", videos, tiny_spec, tmp_path_factory.mktemp("bundles"))


@pytest.fixture
def copy(bundle: edgeact.Bundle, tmp_path: Path) -> Path:
    """A bundle that a test may damage."""
    return Path(shutil.copytree(bundle.path, tmp_path / "copy"))


def change(file: Path, **fields: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


@pytest.mark.parametrize("precision", ["fp32", "fp16", pytest.param("int8", marks=pytest.mark.slow)])
def test_what_it_measures_is_judged(
    precision: str, bundle: edgeact.Bundle, videos: Path, tiny_spec: ClipSpec, built: Path, tmp_path: Path
) -> None:
    if precision != "fp32":
        bundle = export(precision, videos, tiny_spec, tmp_path)
    file = tmp_path / "results.json"
    done = call(built / "edgeact_jetson", "golden", bundle.path, "--results", file, "--rounds", "5", "--threads", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    report = edgeact.validate(bundle, results=file)
    assert report.held, report.failures
    assert f"held: all clips {report.numerics.sqnr_db:.1f} dB" in done.stdout  # type: ignore[union-attr]
    results = read_results(file, bundle)
    assert (results.runtime.name, results.runtime.proxy_for, results.runtime.threads) == ("openvino", "tensorrt", 1)
    assert len(results.latency_ms) == 5  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.glob("results*")] == ["results.json"]


def test_its_readme_names_what_there_is(built: Path) -> None:
    readme = (SAMPLE / "README.md").read_text()
    lines = [line for line in readme.splitlines() if line.startswith("build/edgeact_jetson")]
    known = call(built / "edgeact_jetson", "--help").stdout
    assert lines
    assert all(option in known for line in lines for option in re.findall(r" (--[a-z]+)", line))
    table = set(re.findall(r"([a-z]+\.(?:cpp|h))`", readme)) - {"tensorrt.cpp"}
    assert table <= {file.name for file in (SAMPLE / "src").iterdir()}


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("-DCMAKE_DISABLE_FIND_PACKAGE_nlohmann_json=TRUE", "sudo apt install nlohmann-json3-dev"),
        ("-DBACKEND=onnx", "BACKEND is onnx: it is tensorrt or openvino"),
        ("-DTENSORRT_INCLUDE=TENSORRT_INCLUDE-NOTFOUND", "sudo apt install nvidia-jetpack"),
        ("-DBACKEND=openvino -DCMAKE_DISABLE_FIND_PACKAGE_OpenVINO=TRUE", "pip install openvino"),
    ],
)
def test_what_a_build_lacks_is_named(option: str, words: str, tmp_path: Path) -> None:
    if "TENSORRT" in option and any(Path("/usr/include").rglob("NvInfer.h")):
        pytest.skip("TensorRT is installed")
    done = call("cmake", "-S", SAMPLE, "-B", tmp_path, *option.split())
    assert done.returncode != 0
    assert words in " ".join(done.stderr.split())


def test_golden_clips_that_fall_short(copy: Path, built: Path, tmp_path: Path) -> None:
    logits = np.load(copy / "golden" / "logits.npy")
    np.save(copy / "golden" / "logits.npy", -logits)
    file = tmp_path / "results.json"
    done = call(built / "edgeact_jetson", "golden", copy, "--rounds", "1", "--results", file)
    assert (done.returncode, done.stderr) == (1, "")
    assert "fell short: all clips -6.0 dB, at least 80 wanted" in done.stdout
    assert file.is_file()


def test_results_of_other_logits_fall_short(bundle: edgeact.Bundle, built: Path, tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    assert call(built / "edgeact_jetson", "golden", bundle.path, "--rounds", "1", "--results", file).returncode == 0
    golden = json.loads(file.read_text())["golden"]
    change(file, golden=[{"id": clip["id"], "logits": [-x for x in clip["logits"]]} for clip in golden])
    assert not edgeact.validate(bundle, results=file).held
    change(file, bundle={"name": "other", "digest": "0" * 64})
    with pytest.raises(InputError, match="run this bundle on the device"):
        edgeact.validate(bundle, results=file)


def damage_header(folder: Path) -> None:
    (folder / "golden" / "clip_0.npy").write_bytes(b"\x93NUMPY\x01\x00\xff\xff")


def cut_short(folder: Path) -> None:
    file = folder / "golden" / "clip_0.npy"
    file.write_bytes(file.read_bytes()[:-1])


def leave(folder: Path) -> None:
    entries = json.loads((folder / "golden" / "golden.json").read_text())
    entries[0]["frames"] = "../../clip_0.npy"
    (folder / "golden" / "golden.json").write_text(json.dumps(entries))


DAMAGES: dict[str, Any] = {
    "is not a bundle: it holds no manifest.json": lambda folder: (folder / "manifest.json").unlink(),
    "is not JSON": lambda folder: (folder / "manifest.json").write_text("{"),
    "has schema 2, this program reads 1": lambda folder: change(folder / "manifest.json", schema=2),
    "has no usable 'digest'": lambda folder: change(folder / "manifest.json", digest=None),
    "a bundle for 'android'": lambda folder: change(folder / "manifest.json", target="android"),
    "has no labels": lambda folder: change(folder / "manifest.json", labels=[]),
    "has no usable 'frames'": lambda folder: change(folder / "manifest.json", spec={}),
    "logits for 4 clips of 1 labels": lambda folder: change(folder / "manifest.json", labels=["a"]),
    "it has a damaged header": damage_header,
    "is cut short": cut_short,
    "points outside its folder": leave,
    "not '|u1' of 4 dimensions": lambda folder: np.save(folder / "golden" / "clip_0.npy", np.zeros((2, 3), np.float32)),
    "is 4 x 32 x 33 x 3, and clips are": lambda f: np.save(f / "golden" / "clip_0.npy", np.zeros((4, 32, 33, 3), "u1")),
    "logits.npy is not a file that opens": lambda folder: (folder / "golden" / "logits.npy").unlink(),
    "OpenVINO cannot load": lambda folder: (folder / "model.onnx").write_bytes(b"no network"),
}


@pytest.mark.parametrize("words", DAMAGES)
def test_a_damaged_bundle_is_refused_in_a_line(words: str, copy: Path, built: Path) -> None:
    DAMAGES[words](copy)
    done = call(built / "edgeact_jetson", "golden", copy)
    assert (done.returncode, done.stdout) == (2, "")
    lines = done.stderr.splitlines()
    assert lines[-1].startswith("error: ")
    assert words in lines[-1]
    assert len(lines) == 1 or words.startswith("OpenVINO"), "OpenVINO's parser of ONNX writes lines of its own"


def test_what_cannot_be_asked(bundle: edgeact.Bundle, built: Path, tmp_path: Path) -> None:
    place = str(bundle.path)
    asked = {
        ("golden", "nowhere"): "nowhere is not a bundle",
        ("golden", place, "--engine", "e"): "--engine is of the tensorrt backend",
        ("golden", place, "--results", f"{place}/r.json"): "lies inside the bundle",
        ("golden", place, "--results", str(tmp_path / "no" / "r.json")): "its folder is not there",
        ("golden", place, "--results", str(tmp_path)): "is a folder: give a file",
        ("golden", place, "--rounds", "0"): "--rounds is '0'",
        ("golden", place, "--rounds"): "--rounds needs a value",
        ("golden", place, "--hop", "2"): "`golden` has no option --hop",
        ("golden",): "`golden` takes BUNDLE, found 0 arguments",
        ("run", place): "`run` takes BUNDLE and SOURCE, found 1 arguments",
        ("run", place, "frames.npy"): "give their rate with --fps",
        ("run", place, "frames.npy", "--fps", "-1"): "--fps is '-1'",
        ("run", place, "frames.npy", "--fps", "24"): "frames.npy is not a file that opens",
        ("run", place, "video.mp4", "--fps", "24"): "--fps is the rate of a .npy",
        ("validate", place): "the first argument is golden or run, found 'validate'",
        (): "the first argument is golden or run, found ''",
    }
    for arguments, words in asked.items():
        done = call(built / "edgeact_jetson", *arguments)
        assert (done.returncode, done.stdout) == (2, ""), arguments
        assert words in done.stderr
    assert "Exit status" in call(built / "edgeact_jetson", "--help").stdout


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A video of 31 frames, and the frames that it decodes to as .npy."""
    folder = tmp_path_factory.mktemp("video")
    noise = np.random.default_rng(0).integers(0, 256, (31, 12, 17, 3), dtype=np.uint8)
    write_video(folder / "noise.mp4", noise.repeat(6, axis=1).repeat(6, axis=2), FPS, crf=10)
    with open_video(folder / "noise.mp4") as opened:
        convert = rgb_converter()
        np.save(folder / "noise.npy", np.stack([convert(frame) for _, frame in decoded(opened)]))
    return folder / "noise.mp4", folder / "noise.npy"


SPECS = {
    "every frame": ({"frame_stride": 1}, 4),
    "a stride that leaves a rest": ({"frame_stride": 3, "short_side": 50}, 3),
    "a rate below the video's": ({"sample_fps": 10.0, "short_side": 40}, 2),
    "a rate above the video's": ({"sample_fps": 30.0}, 5),
    "a clip that is longer than the video": ({"frames": 24, "frame_stride": 2, "short_side": 72}, 7),
}


@pytest.mark.parametrize("name", SPECS)
def test_windows_are_those_of_edgeact_to_the_bit(name: str, video: tuple[Path, Path], copy: Path, built: Path) -> None:
    fields, hop = SPECS[name]
    spec = dataclasses.replace(ClipSpec(frames=6, short_side=36, crop_height=32, crop_width=34), **fields)  # type: ignore[arg-type]
    change(copy / "manifest.json", spec=spec.to_dict())
    command = [built / "pieces", "windows", copy, video[1], str(FPS), str(hop)]
    done = subprocess.run(command, capture_output=True, check=True)
    expected = list(iter_windows(video[0], spec, hop))
    found = np.frombuffer(done.stdout, np.uint8).reshape(-1, *spec.clip_shape)
    np.testing.assert_array_equal(found, np.stack([window.clip for window in expected]))
    times = [[float(time) for time in line.split()] for line in done.stderr.decode().splitlines()]
    np.testing.assert_allclose(times, [(window.start_s, window.end_s) for window in expected], atol=1e-4)


def test_labels_of_a_video(bundle: edgeact.Bundle, video: tuple[Path, Path], built: Path) -> None:
    """Those of `edgeact run`, and through OpenCV, where the sample was built with it, the same."""
    from edgeact.run import classify_video
    from edgeact.runtime import load

    predictions = list(classify_video(load(bundle), str(video[0]), hop=3, top=2))
    program = [built / "edgeact_jetson", "run", bundle.path, "--hop", "3", "--top", "2"]
    done = call(*program, video[1], "--fps", str(FPS))
    assert done.returncode == 0, done.stderr
    lines = [line.split("s  ", 1) for line in done.stdout.splitlines()]
    assert len(lines) == len(predictions) > 2
    for (times, scores), prediction in zip(lines, predictions, strict=True):
        assert [float(time) for time in times.split(" - ")] == pytest.approx(
            [prediction.start_s, prediction.end_s], abs=0.006
        )
        words = scores.split()
        assert words[::2] == [label for label, _ in prediction.scores]
        assert [float(word) for word in words[1::2]] == pytest.approx([s for _, s in prediction.scores], abs=0.0015)
    through = call(*program, video[0])
    if "built without OpenCV" in through.stderr:
        assert through.returncode == 2
    else:
        assert (through.returncode, len(through.stdout.splitlines())) == (0, len(predictions))


STAMP = {
    "facts": {"device": "NVIDIA Jetson Orin Nano", "tensorrt": "10.3.0", "cuda": "12.6", "jetpack": "6.2"},
    "onnx_sha256": "abc",
}


@pytest.mark.parametrize(
    ("fact", "there", "words"),
    [
        ("device", "NVIDIA Jetson AGX Orin", "is for the device 'NVIDIA Jetson AGX Orin', and here it is 'NVIDIA Je"),
        ("device", "not told", "is for the device 'not told'"),
        ("tensorrt", "8.5.2", "is for the tensorrt '8.5.2', and here it is '10.3.0'"),
        ("cuda", "11.4", "is for the cuda '11.4', and here it is '12.6'"),
        ("onnx_sha256", "def", "is for the model.onnx with the sha256 'def', and here it is 'abc'"),
        ("cuda", None, "has no usable 'cuda'"),
    ],
)
def test_an_engine_of_another_machine(fact: str, there: str | None, words: str, built: Path, tmp_path: Path) -> None:
    facts: dict[str, Any] = dict(STAMP["facts"])  # type: ignore[call-overload]
    stamp: dict[str, Any] = {**STAMP, "facts": facts}
    (tmp_path / "stamp.json").write_text(json.dumps(stamp))
    taken = call(built / "pieces", "stamp", tmp_path)
    assert (taken.returncode, taken.stdout) == (0, "10.3.0 8.5.2\n"), taken.stderr
    (stamp if fact in stamp else facts)[fact] = there
    (tmp_path / "stamp.json").write_text(json.dumps(stamp))
    refused = call(built / "pieces", "stamp", tmp_path)
    assert refused.returncode == 2
    assert words in refused.stderr
    assert there is None or "python3 bundle/build_engine.py" in refused.stderr


def test_no_engine(built: Path, tmp_path: Path) -> None:
    refused = call(built / "pieces", "stamp", tmp_path)
    assert refused.returncode == 2
    assert "holds no engine (stamp.json): run `python3 bundle/build_engine.py` on this machine" in refused.stderr
