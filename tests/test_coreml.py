"""The coreml target: what coremltools wrote, run by an interpreter of its operators, and what leaves the NPU.

No Mac can be had here: what is tested is all that is not Core ML's.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from int8_networks import calibrated
from mil_interpreter import load, run
from torch import Tensor, nn

import edgeact
from edgeact._capture import behind_uint8, fold, lower_and_prove, quiet_torchao, run_program
from edgeact.bundle import Bundle
from edgeact.clip import ClipSpec
from edgeact.errors import InputError, MissingDependencyError, ToolchainError, UnknownNameError
from edgeact.forecast import forecast
from edgeact.latency import Latency
from edgeact.numerics import compare_outputs
from edgeact.parity import Gates, NotMeasured
from edgeact.placement import Placement, read_placement
from edgeact.quantize.options import Calibration, Int8
from edgeact.runtime import coreml, load_runner
from edgeact.targets import Request, check_options, check_precision, get_target
from edgeact.targets._coreml_program import as_images
from edgeact.targets._neural_engine_rules import refused

SPEC = ClipSpec(frames=3, short_side=24, crop_height=24, crop_width=24)


class Residual(nn.Module):
    """A dense and a depthwise block, each with a residual, a pool over space, and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv3d(3, 8, (3, 5, 5), (1, 2, 2), (1, 2, 2))
        self.pool = nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1))
        self.dense = nn.Sequential(nn.Conv3d(8, 8, 3, 1, 1), nn.ReLU(), nn.Conv3d(8, 8, 1))
        self.depthwise = nn.Sequential(nn.Conv3d(8, 8, 1), nn.ReLU(), nn.Conv3d(8, 8, 3, 1, 1, groups=8))
        self.head = nn.Linear(8, 12)

    def forward(self, clip: Tensor) -> Tensor:
        x = self.pool(self.stem(clip).relu())
        x = (x + self.dense(x)).relu()
        x = (x + self.depthwise(x)).relu()
        logits: Tensor = self.head(x.mean((2, 3, 4)))
        return logits


@pytest.fixture(scope="module")
def clips() -> list[Any]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (1, *SPEC.clip_shape), dtype=np.uint8) for _ in range(3)]


@pytest.fixture(scope="module")
def networks(clips: list[Any]) -> dict[str, Any]:
    return {
        "fp16": fold(Residual().eval(), SPEC),
        "int8": calibrated(Residual(), clips, SPEC, get_target("coreml").scheme),
    }


def convert(program: Any, folder: Path, activations: str, deployment: str = "iOS17") -> Any:
    """As `_coreml_converter` does in a process of its own; the function of MIL as it was saved."""
    from edgeact.targets import _coreml_converter

    torch.export.save(program, folder / "program.pt2")
    with quiet_torchao():
        _coreml_converter.convert(folder / "program.pt2", folder, deployment, activations)
        return load(folder / "model.mlpackage")


@pytest.mark.parametrize("form", ["unrolled", "folded", "volumetric"])
@pytest.mark.parametrize(("precision", "activations"), [("fp16", "float16"), ("int8", "float16"), ("int8", "int8")])
def test_what_coremltools_writes_computes_the_network(
    form: str, precision: str, activations: str, networks: dict[str, Any], clips: list[Any], tmp_path: Path
) -> None:
    program = lower_and_prove(behind_uint8(networks[precision], SPEC), form, clips[0])
    reference = run_program(lower_and_prove(behind_uint8(networks["fp16"], SPEC), form, clips[0]))
    function = convert(program, tmp_path, activations)
    outputs = np.concatenate([run(function, clip) for clip in clips])
    sqnr_db, _, _ = compare_outputs(np.concatenate([reference(clip) for clip in clips]), outputs)
    least = {"float16": 45 if precision == "fp16" else 30, "int8": 20}[activations]
    assert sqnr_db > least
    rounds = {op.op_type for op in function.operations} & {"quantize", "dequantize"}
    assert rounds == ({"quantize", "dequantize"} if activations == "int8" else set())
    if activations == "int8":
        sqnr_db, _, _ = compare_outputs(np.concatenate([run_program(program)(clip) for clip in clips]), outputs)
        assert sqnr_db > 30, "it follows the quantized program"
    placement = read_placement(tmp_path)
    told = json.loads((tmp_path / "model.operators.json").read_text())["operators"]
    assert placement.accelerated_ops + placement.fallback_ops < sum(told.values())
    assert (placement.fallback_ops == 0) == (form != "volumetric")
    assert {"stem", "dense.0", "depthwise.2", "head"} <= {layer.name for layer in placement.layers}
    height, width = SPEC.clip_shape[1:3]
    if form == "unrolled":
        assert placement.crossing_bytes == SPEC.frames * height * width * 4 + 12 * 4
        assert not {"slice_by_index", "transpose"} & set(told), "frames come as images: nothing is cut or turned"


@pytest.mark.parametrize("deployment", ["iOS17", "iOS18"])
def test_weights_and_scales_are_those_of_the_quantized_network(
    deployment: str, networks: dict[str, Any], clips: list[Any], tmp_path: Path
) -> None:
    program = lower_and_prove(behind_uint8(networks["int8"], SPEC), "unrolled", clips[0])
    function = convert(program, tmp_path, "float16", deployment)
    wanted = {
        tuple(tensor.shape): tensor.numpy()
        for tensor in (*program.constants.values(), *program.state_dict.values())
        if tensor.dtype == torch.int8 and tensor.ndim == 4
    }
    kind, name = {
        "iOS17": ("constexpr_affine_dequantize", "quantized_data"),
        "iOS18": ("constexpr_blockwise_shift_scale", "data"),
    }[deployment]
    found = [op for op in function.operations if op.op_type == kind]
    assert found
    weights = [op.inputs[name].val for op in found]
    for weight in wanted.values():
        assert any(np.array_equal(weight, each) for each in weights), weight.shape
    assert all(op.scale.val.size == op.inputs[name].shape[0] for op in found), "a scale per output channel"


def test_frames_that_are_read_as_they_are_not(clips: list[Any], tmp_path: Path) -> None:
    """Nothing of the clip is a frame or a stack of them as the forms want it: the images are put together again."""

    class Rows(nn.Module):
        def forward(self, clip: Tensor) -> Tensor:
            rows: Tensor = clip.float().permute(0, 1, 4, 3, 2).flatten(1)[:, ::500]
            return rows

    program = torch.export.export(Rows(), (torch.from_numpy(clips[0]),))
    images = as_images(program).module(check_guards=False)
    frames = [torch.from_numpy(frame.transpose(2, 0, 1)[None].copy()).float() for frame in clips[0][0]]
    np.testing.assert_array_equal(images(frames), Rows()(torch.from_numpy(clips[0])))


class Strange(nn.Module):
    """Ops that Core ML takes, and some that the Neural Engine does not."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.act, self.fc = nn.Conv3d(3, 8, (1, 15, 15), (1, 2, 2)), nn.Hardswish(), nn.Linear(8, 5)

    def forward(self, clip: Tensor) -> Tensor:
        x = self.act(self.stem(clip)).cumsum(3)
        out: Tensor = self.fc(x.mean((2, 3, 4)))
        return out


@pytest.mark.parametrize("form", ["unrolled", "volumetric"])
@pytest.mark.parametrize("model", [Residual, Strange])
def test_the_forecast_is_what_comes_out(model: type[nn.Module], form: str, clips: list[Any], tmp_path: Path) -> None:
    network = model().eval()
    found = forecast(network, target="coreml", spec=SPEC, form=form)
    assert found.runs
    assert any("Mac" in note for note in found.notes)
    convert(lower_and_prove(behind_uint8(fold(network, SPEC), SPEC), form, clips[0]), tmp_path, "float16")
    placement = read_placement(tmp_path)
    fallen = {layer.name for layer in placement.layers if layer.fallback_ops}
    assert fallen == {layer.name for layer in found.layers if layer.support == "falls back"}
    if form == "unrolled":
        assert fallen == (set() if model is Residual else {"", "stem"})


def test_an_op_that_coremltools_does_not_know(clips: list[Any], tmp_path: Path) -> None:
    class Fold(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.special.i0(x)

    network = nn.Sequential(nn.Conv3d(3, 4, 3), Fold(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 5))
    found = forecast(network, target="coreml", spec=SPEC, form="volumetric")
    assert not found.runs
    (layer,) = [layer for layer in found.layers if layer.support == "cannot run"]
    assert (layer.name, layer.op) == ("1", "i0")
    program = behind_uint8(fold(network.eval(), SPEC), SPEC)
    with pytest.raises(ToolchainError, match=r"could not compile this network: aten\..*i0.* of 1: coremltools has no"):
        get_target("coreml").compile(program, tmp_path, Request("fp16", check_options("coreml", {})))


@pytest.mark.parametrize(
    ("kind", "shape", "kernel", "reason"),
    [
        ("conv", (1, 8, 3, 24, 24), (3, 3, 3), "3-D conv"),
        ("relu", (1, 8, 3, 24, 24), (), "rank 5"),
        ("conv", (1, 8, 24, 24), (15, 15), "a window of 15, and the widest is 13"),
        ("relu", (1, 8, 20000, 24), (), "height 20000, and the most is 16384"),
        ("gather_along_axis", (1, 8), (), "hollance"),
        ("lstm", (1, 8), (), "no hardware"),
        ("cumsum", (1, 8), (), "not among the operators"),
        ("conv", (1, 8, 24, 24), (13, 13), ""),
        ("linear", (1, 8), (), ""),
    ],
)
def test_the_rules_of_the_neural_engine(
    kind: str, shape: tuple[int, ...], kernel: tuple[int, ...], reason: str
) -> None:
    told = refused(kind, [shape], kernel)
    assert (reason in told) if reason else not told


def test_what_it_does_not_export(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'coreml' does not export fp32: .*float16 alone.*: allowed: fp16, int8"):
        check_precision("coreml", "fp32")
    with pytest.raises(InputError, match=r"does not export fp16 with activations int8: .* --precision int8"):
        check_options("coreml", {"activations": "int8"}, "fp16")
    with pytest.raises(UnknownNameError, match="unknown deployment of target 'coreml' 'iOS19': did you mean 'iOS1"):
        check_options("coreml", {"deployment": "iOS19"})
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"exporting to coreml needs coremltools.*edgeact\[coreml\]"):
        get_target("coreml").compile(None, tmp_path, Request("fp16", check_options("coreml", {})))  # type: ignore[arg-type]


STAND_IN = '''"""Stands in for coremltools on a Mac: a golden clip's reference logits, with an error."""
import hashlib, os
from pathlib import Path
from types import SimpleNamespace
import numpy as np
__version__ = "9.0"
class ComputeUnit:
    CPU_AND_NE, ALL, CPU_ONLY, CPU_AND_GPU = "CPU_AND_NE", "ALL", "CPU_ONLY", "CPU_AND_GPU"
class MLModel:
    def __init__(self, path, compute_units):
        assert compute_units == "CPU_AND_NE"
        golden = Path(path).parent / "golden"
        import json
        entries = json.loads((golden / "golden.json").read_text())
        clips = [np.load(golden / entry["frames"]) for entry in entries]
        self.known = {clip.tobytes(): row for clip, row in zip(clips, np.load(golden / "logits.npy"))}
    def predict(self, inputs):
        if os.environ.get("STAND_IN") == "fails":
            raise Exception("Model prediction is only supported on macOS version 10.13 or later.")
        frames = [np.asarray(inputs[f"frame_{t}"]) for t in range(len(inputs))]
        assert all(image.mode == "RGB" for image in inputs.values())
        error = float(os.environ.get("STAND_IN") or 0.0)
        return {"logits": self.known[np.stack(frames).tobytes()][None] + error}
    def get_compiled_model_path(self):
        return "compiled"
from coremltools import models
'''
SYSTEM = "import platform\nplatform.system = lambda: 'Darwin'\n"
PLAN = '''"""Two operators of a plan: one on the Neural Engine, one on the CPU."""
from types import SimpleNamespace
class MLNeuralEngineComputeDevice: ...
class MLCPUComputeDevice: ...
def op(kind, name):
    return SimpleNamespace(operator_name="ios17." + kind, outputs=[SimpleNamespace(name=name)])
OPS = [op("const", "weight"), op("conv", "stem"), op("cast", "half"), op("linear", "head")]
class MLComputePlan:
    @classmethod
    def load_from_path(cls, path, compute_units):
        return cls()
    @property
    def model_structure(self):
        block = SimpleNamespace(operations=OPS)
        return SimpleNamespace(program=SimpleNamespace(functions={"main": SimpleNamespace(block=block)}))
    def get_compute_device_usage_for_mlprogram_operation(self, op):
        device = MLCPUComputeDevice() if op.outputs[0].name == "head" else MLNeuralEngineComputeDevice()
        return SimpleNamespace(preferred_compute_device=device)
'''


@pytest.fixture(scope="module")
def bundle(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    settings: dict[str, Any] = {"data": videos, "clips": 12, "name": "small", "out": tmp_path_factory.mktemp("bundles")}
    gates = Gates(min_sqnr_db=40, min_agreement=0, max_drop_pt=100, max_fallback=1)
    return edgeact.export(Residual(), target="coreml", precision="fp16", spec=SPEC, gates=gates, **settings)


@pytest.fixture
def mac(tmp_path: Path) -> Path:
    """A folder that, on the path, makes this machine look like a Mac with coremltools."""
    package = tmp_path / "mac" / "coremltools"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text(STAND_IN)
    (package / "models" / "__init__.py").write_text("from coremltools import MLModel\n")
    (package / "models" / "compute_plan.py").write_text(PLAN)
    (package.parent / "sitecustomize.py").write_text(SYSTEM)
    return package.parent


def on_mac(bundle: Path, mac: Path, *arguments: object, says: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, bundle / "run_on_mac.py", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(mac), "STAND_IN": says}
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, env=environment)


def test_a_bundle_says_what_it_takes_and_what_is_not_measured(bundle: Bundle) -> None:
    assert bundle.manifest["io"]["input"] == {
        "names": ["frame_0", "frame_1", "frame_2"],
        "dtype": "uint8",
        "shape": [24, 24, 3],
        "layout": "image",
        "color": "RGB",
    }
    assert bundle.manifest["options"] == {"deployment": "iOS17", "activations": "float16"}
    assert "model.mlpackage/Data/com.apple.CoreML/weights/weight.bin" in bundle.manifest["artifact"]
    assert not list(bundle.path.rglob("executorch*"))
    report = edgeact.validate(bundle)
    for measured in (report.accuracy, report.latency):
        assert isinstance(measured, NotMeasured)
        assert "Core ML runs on macOS and iOS alone" in measured.not_measured
    assert isinstance(report.placement, Placement)
    assert report.placement.kind == "estimated"
    runner = load_runner("coreml", bundle.path, SPEC)
    assert runner.layers(np.zeros(1, np.uint8)) == ()
    with pytest.raises(ToolchainError, match="cannot be run on this machine: Core ML runs on macOS and iOS alone"):
        runner(np.zeros((1, *SPEC.clip_shape), np.uint8))
    notes = " ".join(json.loads((bundle.path / "report.json").read_text())["notes"])
    assert "needs iOS17" in notes
    assert "conv" in notes


def test_the_golden_clips_are_run_on_a_mac_and_judged(bundle: Bundle, mac: Path, tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    done = on_mac(bundle.path, mac, "--out", results)
    assert done.returncode == 0, done.stderr
    assert "1 ops fall back" in done.stdout
    report = edgeact.validate(bundle, results=results)
    assert report.held, report.failures
    assert isinstance(report.latency, Latency)
    assert isinstance(report.placement, Placement)
    assert report.placement.kind == "measured"
    assert report.placement.fallback == ("head (linear on the CPU)",)
    assert report.placement.kernels == {"Neural Engine conv": 1, "CPU linear": 1}


def test_a_mac_that_computes_something_else(bundle: Bundle, mac: Path, tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    done = on_mac(bundle.path, mac, "--out", results, says="10")
    assert done.returncode == 1, done.stderr
    assert not edgeact.validate(bundle, results=results).held


@pytest.mark.parametrize(
    ("says", "message"),
    [("fails", "Core ML cannot run it: Model prediction is only supported on macOS"), ("nan", "not finite")],
)
def test_a_run_that_fails_writes_nothing(says: str, message: str, bundle: Bundle, mac: Path, tmp_path: Path) -> None:
    done = on_mac(bundle.path, mac, "--out", tmp_path / "results.json", says=says)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert not (tmp_path / "results.json").exists()


def test_a_bundle_that_is_none_or_damaged(bundle: Bundle, mac: Path, tmp_path: Path) -> None:
    from edgeact.runtime._run_on_mac import RunError, read_bundle, sqnr_db

    with pytest.raises(RunError, match="is not a bundle"):
        read_bundle(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({"files": {"model.bin": "0"}}))
    with pytest.raises(RunError, match=r"is damaged: model\.bin is missing or has changed"):
        read_bundle(tmp_path)
    with pytest.raises(RunError, match=r"gives logits of shape \(1, 2\)"):
        sqnr_db(bundle.path, [{"id": "a", "logits": [0.0, 1.0]}])
    (mac / "sitecustomize.py").write_text(SYSTEM.replace("Darwin", "Linux"))
    done = on_mac(bundle.path, mac)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: Core ML runs on macOS alone, and this is Linux")
    (mac / "sitecustomize.py").write_text(SYSTEM)
    (mac / "coremltools" / "__init__.py").write_text("raise ImportError('no coremltools')")
    done = on_mac(bundle.path, mac)
    assert (done.returncode, done.stdout) == (2, "")
    assert "pip install coremltools pillow" in done.stderr


class OnMac:
    """What `_run_on_mac` gives the runner, of a model that fails or not."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    def predict(self, inputs: dict[str, Any]) -> dict[str, Any]:
        if self.error is not None:
            raise self.error
        return {"logits": np.array([[float(len(inputs))]])}


def test_the_runner_on_a_mac(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgeact.runtime import _run_on_mac

    clip = np.zeros((1, *SPEC.clip_shape), np.uint8)
    monkeypatch.setattr(coreml.sys, "platform", "darwin")
    monkeypatch.setattr(_run_on_mac, "load", lambda package, units: OnMac())
    runner = load_runner("coreml", bundle.path, SPEC)
    assert runner.missing is None
    np.testing.assert_array_equal(runner(clip), [[3.0]])
    monkeypatch.setattr(_run_on_mac, "placement", lambda model, units: None)
    assert runner.placement() == read_placement(bundle.path)
    monkeypatch.setattr(_run_on_mac, "load", lambda package, units: OnMac(Exception("the engine is busy\nhere")))
    with pytest.raises(ToolchainError, match=r"Core ML cannot run this model: the engine is busy$"):
        load_runner("coreml", bundle.path, SPEC)(clip)

    def missing(package: Path, units: str) -> Any:
        raise ImportError("PIL")

    monkeypatch.setattr(_run_on_mac, "load", missing)
    with pytest.raises(MissingDependencyError, match=r"edgeact\[coreml\]"):
        load_runner("coreml", bundle.path, SPEC)

    def damaged(package: Path, units: str) -> Any:
        raise RuntimeError("Error compiling model")

    monkeypatch.setattr(_run_on_mac, "load", damaged)
    with pytest.raises(ToolchainError, match=r"Core ML cannot load .*: Error compiling model"):
        load_runner("coreml", bundle.path, SPEC)


@pytest.mark.slow
@pytest.mark.filterwarnings("error:.*treespec, LeafSpec")  # nothing but errors is for a user's stderr
def test_the_rungs_of_float16_activations_are_of_what_the_artifact_computes(videos: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"data": videos, "clips": 12, "spec": SPEC, "out": tmp_path, "precision": "int8"}
    settings["form"], settings["int8"] = "volumetric", Int8(calibration=Calibration(clips=4, observer="mse"))
    settings["gates"] = Gates(min_sqnr_db=0, min_agreement=0, max_drop_pt=100, max_fallback=99)
    found = {}
    for activations in ("float16", "int8"):
        bundle = edgeact.export(Residual(), target="coreml", options={"activations": activations}, **settings)
        report = json.loads((bundle.path / "report.json").read_text())
        found[activations] = {rung["name"]: rung["sqnr_db"] for rung in report["numerics"]["rungs"]}["quantized"]
    assert found["float16"] > found["int8"] + 3, "weights alone are rounded"
