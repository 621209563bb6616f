"""build_engine.py of a jetson bundle, in a process of its own, with a stand-in for trtexec that ONNX Runtime drives.

No TensorRT can be had here: what is tested is all that is not TensorRT's.
"""

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import edgeact
from edgeact.bundle import Bundle
from edgeact.clip import ClipSpec
from edgeact.latency import Latency
from edgeact.parity import Gates
from edgeact.placement import Placement
from edgeact.runtime._build_engine import BuildError, facts, placement, read_bundle, read_npy, trtexec_command


def oldest_python() -> str:
    """The one of JetPack 5, where there is one."""
    try:
        subprocess.run(["python3.8", "--version"], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return sys.executable
    return "python3.8"


PYTHON = oldest_python()

TRTEXEC = f'''#!{sys.executable}
"""Takes the options that build_engine.py gives to trtexec; ONNX Runtime computes."""
import json, shutil, sys
from pathlib import Path
import numpy as np, onnxruntime as ort
given = dict(option.lstrip("-").partition("=")[::2] for option in sys.argv[1:])
log = Path(__file__).with_suffix(".log")
log.write_text((log.read_text() if log.exists() else "") + json.dumps(sys.argv[1:]) + "\\n")
if Path(__file__).with_suffix(".fails").exists():
    sys.exit("[11/22/2026-09:00:00] [E] Error[10]: Could not find any implementation for node stem/conv2d")
if "onnx" in given:
    shutil.copyfile(given["onnx"], given["saveEngine"])
    Path(given["timingCacheFile"]).write_bytes(b"times")
    layer = {{"Name": "stem/conv2d + relu", "LayerType": "CaskConvolution",
             "Inputs": [{{"Format/Datatype": "Channel major FP16 format where channel % 8 == 0"}}]}}
    wide = dict(layer, Name="head/linear", Inputs=[{{"Format/Datatype": "Row major linear FP32"}}])
    Path(given["exportLayerInfo"]).write_text(json.dumps({{"Layers": [layer, layer, wide]}}))
else:
    session = ort.InferenceSession(given["loadEngine"])
    (clip,) = session.get_inputs()
    frames = np.fromfile(given["loadInputs"].partition(":")[2], np.uint8).reshape(clip.shape)
    logits = session.run(None, {{"clip": frames}})[0]
    values = [float(value) for value in logits.ravel()]
    Path(given["exportOutput"]).write_text(json.dumps([{{"name": "logits", "dimensions": "1x12", "values": values}}]))
    times = [{{"startComputeMs": 150 + 50 * i, "latencyMs": 3.5 + i}} for i in range(4)]
    Path(given["exportTimes"]).write_text(json.dumps(times))
'''


@pytest.fixture
def trtexec(tmp_path: Path) -> Path:
    file = tmp_path / "trtexec"
    file.write_text(TRTEXEC)
    file.chmod(0o755)
    return file


@pytest.fixture(scope="module")
def bundle(videos: Path, tiny_spec: ClipSpec, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    import torch

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv3d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(8, 12))
    gates = Gates(min_sqnr_db=40, min_agreement=0, max_drop_pt=100, max_fallback=1)
    settings: dict[str, Any] = {"data": videos, "clips": 12, "rounds": 1, "gates": gates, "name": "small"}
    out = tmp_path_factory.mktemp("bundles")
    return edgeact.export(model, target="jetson", precision="fp16", spec=tiny_spec, out=out, **settings)


def run(bundle: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [PYTHON, bundle / "build_engine.py", *arguments]
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)


def test_the_engine_is_built_run_and_judged(bundle: Bundle, trtexec: Path, tmp_path: Path) -> None:
    out = tmp_path / "engine"
    done = run(bundle.path, "--trtexec", trtexec, "--out", out, "--workspace-mb", 256)
    assert done.returncode == 0, done.stderr
    assert "1 layers fall back, at most 1" in done.stdout
    assert {file.name for file in out.iterdir()} == {
        "layers.json",
        "model.plan",
        "results.json",
        "stamp.json",
        "timing.cache",
    }
    build, *runs = [json.loads(line) for line in trtexec.with_suffix(".log").read_text().splitlines()]
    assert "--memPoolSize=workspace:256" in build
    assert "--fp16" in build or "--stronglyTyped" in build
    assert len(runs) == len(bundle.golden())
    stamp = json.loads((out / "stamp.json").read_text())
    assert stamp["onnx_sha256"] == bundle.manifest["files"]["model.onnx"]
    assert set(stamp["facts"]) >= {"device", "tensorrt", "cuda", "jetpack", "power_mode"}
    report = edgeact.validate(bundle, results=out / "results.json")
    assert report.held, report.failures
    assert isinstance(report.latency, Latency)
    assert report.latency.artifact_ms == 5.5
    assert isinstance(report.placement, Placement)
    assert report.placement.fallback == ("head/linear (Row major linear FP32, in float)",)
    again = run(bundle.path, "--trtexec", trtexec, "--out", out)
    assert again.returncode == 0, "an older engine is replaced"


def test_an_engine_that_computes_something_else(bundle: Bundle, trtexec: Path, tmp_path: Path) -> None:
    trtexec.write_text(TRTEXEC.replace("for value in logits.ravel()", "for value in -logits.ravel()"))
    done = run(bundle.path, "--trtexec", trtexec, "--out", tmp_path / "engine")
    assert done.returncode == 1, done.stderr
    assert "golden clips -6.0 dB, at least 40;" in done.stdout
    assert not edgeact.validate(bundle, results=tmp_path / "engine" / "results.json").held


@pytest.mark.parametrize("wrong", ["trtexec fails", "no trtexec", "damaged", "another folder", "no bundle"])
def test_what_goes_wrong_is_told_in_a_line(wrong: str, bundle: Bundle, trtexec: Path, tmp_path: Path) -> None:
    place, out = tmp_path / "copy", tmp_path / "engine"
    shutil.copytree(bundle.path, place)
    told = {
        "trtexec fails": "Could not find any implementation for node stem/conv2d",
        "no trtexec": "is no file: give the path of trtexec",
        "damaged": "is damaged: model.onnx is missing or has changed; copy it again",
        "another folder": "holds other files than an engine's: give another --out",
        "no bundle": "is not a bundle",
    }[wrong]
    if wrong == "trtexec fails":
        trtexec.with_suffix(".fails").touch()
    if wrong == "no trtexec":
        trtexec.unlink()
    if wrong == "damaged":
        (place / "model.onnx").write_bytes(b"")
    if wrong == "another folder":
        out.mkdir()
        (out / "stamp.json").touch()
        (out / "mine").touch()
    if wrong == "no bundle":
        (place / "manifest.json").unlink()
    done = run(place, "--trtexec", trtexec, "--out", out)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob(".engine-*"))
    assert (out / "mine").exists() == (wrong == "another folder")


ODD = {
    "logits that are not finite": ("[float(value) for value in logits.ravel()]", '[float("nan")] * 12'),
    "the engine gives 44 logits for 4 clips of 12 classes": ("logits.ravel()]", "logits.ravel()][:-1]"),
    "what trtexec wrote, cannot be read": ('{{"Layers": [layer, layer, wide]}}', "[]"),
    "cannot be read: StopIteration": ('"name": "logits"', '"name": "other"'),
}


@pytest.mark.parametrize("told", ODD)
def test_an_odd_trtexec(told: str, bundle: Bundle, trtexec: Path, tmp_path: Path) -> None:
    text = trtexec.read_text()
    old, new = (part.replace("{{", "{").replace("}}", "}") for part in ODD[told])
    assert old in text
    trtexec.write_text(text.replace(old, new))
    done = run(bundle.path, "--trtexec", trtexec, "--out", tmp_path / "engine")
    assert done.returncode == 2, done.stdout
    assert told in done.stderr
    assert not (tmp_path / "engine").exists()


def test_no_trtexec_at_all(bundle: Bundle, tmp_path: Path) -> None:
    done = run(bundle.path, "--out", tmp_path / "engine")
    assert done.returncode == 2
    assert "sudo apt install libnvinfer-bin, or give --trtexec" in done.stderr


@pytest.mark.parametrize(
    ("version", "precision", "accelerator", "wanted"),
    [
        ("10.3.0", "fp16", "gpu", ["--stronglyTyped"]),
        ("10.3.0", "fp16", "dla", ["--fp16", "--useDLACore=0", "--allowGPUFallback"]),
        ("8.5.2", "int8", "gpu", ["--int8"]),
        ("8.5.2", "fp32", "gpu", ["--noTF32"]),
        ("10.3.0", "fp32", "gpu", ["--stronglyTyped", "--noTF32"]),
        ("not told", "fp16", "gpu", ["--fp16"]),
    ],
)
def test_the_types_are_those_that_were_asked(version: str, precision: str, accelerator: str, wanted: list[str]) -> None:
    command = trtexec_command("trtexec", version, precision, accelerator, 64, Path("out"), Path("model.onnx"))
    assert [option for option in command[1:] if "=" not in option or "DLA" in option] == wanted


def test_it_is_python_of_jetpack_5(bundle: Bundle) -> None:
    source = (bundle.path / "build_engine.py").read_text()
    tree = ast.parse(source, feature_version=(3, 8))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module).partition(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported <= sys.stdlib_module_names


def test_a_dla_leaves_layers_to_the_gpu() -> None:
    layers = [{"Name": "{ForeignNode[stem]}", "LayerType": "DLA"}, {"Name": "head", "LayerType": "CaskConvolution"}]
    found = placement({"Layers": layers}, "fp16", "dla")
    assert (found["fallback_ops"], found["fallback"]) == (1, ["head (CaskConvolution on the GPU)"])


def test_kernels_by_the_layers_that_they_compute() -> None:
    fused = {"Name": "a.conv/conv2d + a.relu/relu", "LayerType": "CaskConvolution"}
    copy = {"Name": "Reformatting CopyNode for Input Tensor 0 to a.conv/conv2d", "LayerType": "Reformat"}
    floats = {"Name": "b/conv2d", "LayerType": "CaskConvolution", "Inputs": [{"Format/Datatype": "Half"}]}
    found = placement({"Layers": [fused, fused, copy, floats]}, "int8", "gpu")
    assert found["layers"] == [
        {"name": "a.conv", "units": {"GPU": 2}, "fallback_ops": 0},
        {"name": "b", "units": {"GPU": 1}, "fallback_ops": 1},
    ]


def test_facts_of_a_machine_without_nvidia() -> None:
    found = facts()
    assert all(isinstance(value, str) and value for value in found.values())


def test_files_that_are_not_what_they_should_be(tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(b"nothing of the kind")
    with pytest.raises(BuildError, match=r"a\.npy is not a \.npy file in C order"):
        read_npy(tmp_path / "a.npy")
    (tmp_path / "manifest.json").write_text('{"files": {"../x": "0"}}')
    with pytest.raises(BuildError, match=r"is damaged: \.\./x is missing or has changed"):
        read_bundle(tmp_path)
    with pytest.raises(BuildError, match="without --profilingVerbosity=detailed"):
        placement({"Layers": ["conv1"]}, "fp16", "gpu")
