"""The targets whose programs are lowered, on a network small enough to convert in seconds."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from int8_networks import calibrated
from torch import Tensor, nn

import edgeact
from edgeact._capture import behind_uint8, eager, fold, lower_and_prove, quiet_torchao, run_program
from edgeact.clip import ClipSpec
from edgeact.errors import InputError, MissingDependencyError, ToolchainError, UnknownNameError
from edgeact.forecast import forecast
from edgeact.numerics import Numerics, compare_outputs
from edgeact.parity import Gates, NotMeasured
from edgeact.placement import IN_FLOAT, Placement, read_placement, write_placement
from edgeact.quantize.options import Calibration, Int8
from edgeact.runtime import is_installed, load_runner
from edgeact.targets import Request, check_options, get_target

LOWERED = [
    pytest.param("android", "fp32", marks=pytest.mark.slow),
    pytest.param("android", "fp16", marks=pytest.mark.slow),
    pytest.param("android", "int8", marks=pytest.mark.slow),  # in parts: the test of int8 on Android below
    pytest.param("litert", "fp32", marks=pytest.mark.slow),
    pytest.param("litert", "fp16", marks=pytest.mark.slow),
    pytest.param("litert", "int8", marks=pytest.mark.slow),  # in parts: test_litert_int8
]


class Small(nn.Module):
    """A stem, a padded pooling, a depthwise block with a residual, and a head: every kind of op that CSN has."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(
            nn.Conv3d(3, 8, (3, 5, 5), (1, 2, 2), (1, 2, 2), bias=False),
            nn.BatchNorm3d(8),
            nn.ReLU(),
            nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)),
        )
        self.block = nn.Sequential(nn.Conv3d(8, 8, 1), nn.ReLU(), nn.Conv3d(8, 8, 3, 1, 1, groups=8))
        self.head = nn.Linear(8, 12)

    def forward(self, clip: Tensor) -> Tensor:
        x = self.stem(clip)
        out: Tensor = self.head((x + self.block(x)).relu().mean((2, 3, 4)))
        return out


@pytest.mark.parametrize(("target", "precision"), LOWERED)
def test_a_lowered_network_on_its_target(
    target: str, precision: str, videos: Path, tiny_spec: ClipSpec, tmp_path: Path
) -> None:
    gates = dataclasses.replace(Gates.defaults(precision), min_agreement=0, max_drop_pt=100)  # untrained weights
    settings: dict[str, Any] = {"data": videos, "clips": 12, "threads": 1, "rounds": 1, "gates": gates}
    bundle = edgeact.export(Small(), target=target, precision=precision, spec=tiny_spec, out=tmp_path, **settings)
    report = bundle.report()
    assert report.held, report.failures
    assert report.form == "unrolled"
    assert isinstance(report.numerics, Numerics)
    rungs = ["folded", *["quantized"] * (precision == "int8"), "lowered", "artifact"]
    assert [rung.name for rung in report.numerics.rungs] == rungs
    assert isinstance(report.placement, Placement)
    assert report.placement.fallback_ops == 0
    if target == "android":
        assert len({unit for layer in report.placement.layers for unit in layer.units}) == 1, "one delegate"
        assert report.placement.macs == (forecast(Small(), target=target, spec=tiny_spec).macs(), 0)
    outside = [name for name in report.placement.kernels if name.startswith("outside")]
    assert len(outside) == 1, "the cast of the uint8 clip alone"
    assert edgeact.validate(bundle, threads=1, rounds=1).held
    if target == "litert":
        assert_runs_without_torch(bundle)


@pytest.mark.parametrize("target", [pytest.param("litert", marks=pytest.mark.slow), "openvino"])
def test_every_form_gives_the_same_logits(target: str, tiny_spec: ClipSpec, tmp_path: Path) -> None:
    model = Small().eval()
    clip = np.random.default_rng(0).integers(0, 256, (1, *tiny_spec.clip_shape), dtype=np.uint8)
    expected = eager(model, tiny_spec)(clip)
    for form in get_target(target).forms:
        folder = tmp_path / form
        folder.mkdir()
        program = lower_and_prove(behind_uint8(fold(model, tiny_spec), tiny_spec), form, clip)
        get_target(target).compile(program, folder, Request("fp32", check_options(target, {})))
        runner = load_runner(get_target(target).runtime, folder, tiny_spec, 1)
        np.testing.assert_allclose(runner(clip), expected, rtol=1e-4, atol=1e-5)


def test_openvino_reports_its_use_to_nobody(
    tiny_spec: ClipSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino_telemetry")
    monkeypatch.delenv("CI", raising=False)
    started = []
    monkeypatch.setattr("multiprocessing.Process", lambda **of: started.append(of))
    clip = np.zeros((1, *tiny_spec.clip_shape), np.uint8)
    program = lower_and_prove(behind_uint8(fold(Small().eval(), tiny_spec), tiny_spec), "volumetric", clip)
    get_target("openvino").compile(program, tmp_path, Request("fp32"))
    assert (tmp_path / "model.xml").is_file()
    assert not started
    assert "CI" not in os.environ


class Mixed(nn.Module):
    """As MiCT begins: one padded clip goes through 3-D convolutions and, frame by frame, 2-D ones."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.volume, self.image = nn.Conv3d(3, 8, (7, 7, 7), (1, 2, 2)), nn.Conv2d(3, 8, 7, 2, 3)
        self.head = nn.Linear(8, 12)

    def forward(self, clip: Tensor) -> Tensor:
        motion = nn.functional.max_pool3d(self.volume(nn.functional.pad(clip, (3, 3, 3, 3, 0, 6))).relu(), 3, 2, 1)
        image = self.image(clip[:, :, ::2].transpose(1, 2).flatten(0, 1)).relu()
        image = nn.functional.max_pool2d(image, 3, 2, 1).unflatten(0, (1, -1)).transpose(1, 2)
        out: Tensor = self.head((motion + image).mean((2, 3, 4)))
        return out


@pytest.mark.parametrize("form", ["unrolled", pytest.param("folded", marks=pytest.mark.slow)])
@pytest.mark.parametrize("network", [pytest.param(Small, marks=pytest.mark.slow), Mixed])
def test_int8_on_android_is_what_the_lowered_program_says(
    network: type[nn.Module], form: str, tiny_spec: ClipSpec, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    clips = [rng.integers(0, 256, (1, *tiny_spec.clip_shape), dtype=np.uint8) for _ in range(4)]
    android = get_target("android")
    graph = calibrated(network(), clips, tiny_spec, android.scheme)  # type: ignore[arg-type]
    program = lower_and_prove(behind_uint8(graph, tiny_spec), form, clips[0])
    android.compile(program, tmp_path, Request("int8", check_options("android", {})))
    runner, simulated = load_runner(android.runtime, tmp_path, tiny_spec, 1), run_program(program)
    found, expected = (np.concatenate([run(clip) for clip in clips]) for run in (runner, simulated))
    sqnr_db, _, _ = compare_outputs(expected, found)
    assert sqnr_db > 40, "a value on the edge of two levels may fall on either side"
    placement = read_placement(tmp_path)
    outside = {name for name in placement.kernels if name.startswith("outside")}
    strided = form == "folded" and network is Mixed  # every second frame is cut from the batch
    cast = "outside dim_order_ops._to_dim_order_copy.default"
    assert outside == ({cast, "outside aten.slice_copy.Tensor"} if strided else {cast})
    assert {unit for layer in placement.layers for unit in layer.units} == {f"XNNPACK {i}" for i in range(1 + strided)}


@pytest.mark.parametrize("target", ["android", "litert"])
def test_layers_in_float_between_int8_ones(target: str, tiny_spec: ClipSpec, tmp_path: Path) -> None:
    """What reads floats makes the layer before it a float one; the runtime computes what the program says."""
    with quiet_torchao():
        from edgeact.quantize.annotate import in_float
        from edgeact.quantize.convert import quantize
        from edgeact.quantize.ranges import observe
    rng = np.random.default_rng(0)
    clips = [rng.integers(0, 256, (1, *tiny_spec.clip_shape), dtype=np.uint8) for _ in range(4)]
    network = nn.Sequential(nn.Conv3d(3, 8, 3, 1, 1), nn.ReLU(), nn.Conv3d(8, 8, 3, groups=8), nn.Conv3d(8, 8, 1))
    network.extend([nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(8, 5)])
    graph, found = fold(network.eval(), tiny_spec), get_target(target)
    assert found.scheme is not None
    with quiet_torchao():
        ranges = observe(graph, clips, tiny_spec, found.scheme)["mse"]
        partly = quantize(graph, ranges, found.scheme, keep_float=["conv3d_1"])
    assert in_float(partly, found.scheme) == ["conv3d", "conv3d_1"]
    program = lower_and_prove(behind_uint8(partly, tiny_spec), "unrolled", clips[0])
    found.compile(program, tmp_path, Request("int8", check_options(target, {})))
    runner, simulated = load_runner(found.runtime, tmp_path, tiny_spec, 1), run_program(program)
    given, expected = (np.concatenate([run(clip) for clip in clips]) for run in (runner, simulated))
    assert compare_outputs(expected, given)[0] > 40
    placement = runner.placement()
    assert isinstance(placement, Placement)
    floats = [op for op in placement.fallback if op.endswith(IN_FLOAT)]
    assert len(floats) == placement.fallback_ops
    if target == "litert":
        assert len(floats) == len(in_float(program.graph_module, found.scheme))


def test_a_lowering_that_is_wrong_fails_the_export(tiny_spec: ClipSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgeact.lowering import convolution

    right = convolution._cut

    def wrong(lo: Any, weight: Tensor, taps: list[int]) -> Any:
        return right(lo, weight, taps) * (1 + 1e-3 * len(taps))

    monkeypatch.setattr(convolution, "_cut", wrong)
    program = behind_uint8(fold(Small().eval(), tiny_spec), tiny_spec)
    clip = np.full((1, *tiny_spec.clip_shape), 90, np.uint8)
    with pytest.raises(ToolchainError, match=r"unrolled form is not equal to the network: \d\d\.\d dB on a real clip"):
        lower_and_prove(program, "unrolled", clip)


def assert_runs_without_torch(bundle: edgeact.Bundle) -> None:
    script = (
        "import sys; sys.modules['torch'] = None; import edgeact; bundle = edgeact.open_bundle(sys.argv[1])\n"
        "print(edgeact.load(bundle)(bundle.golden()[0].frames[None]).shape)"
    )
    command = [sys.executable, "-P", "-c", script, str(bundle.path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.strip() == "(1, 12)", done.stderr


def test_what_a_runner_cannot_load(tiny_spec: ClipSpec, tmp_path: Path) -> None:
    (tmp_path / "model.tflite").write_bytes(b"TFL3 is not this")
    with pytest.raises(ToolchainError, match="LiteRT cannot load"):
        load_runner("litert", tmp_path, tiny_spec)
    write_placement(tmp_path, Placement.of((), "measured"))
    (tmp_path / "model.pte").write_bytes(b"ET12 is not this" * 8)
    with pytest.raises(ToolchainError, match="ExecuTorch cannot load"):
        load_runner("executorch", tmp_path, tiny_spec)


def test_a_model_that_executorch_cannot_run(tiny_spec: ClipSpec, tmp_path: Path) -> None:
    clip = np.zeros((1, *tiny_spec.clip_shape), np.uint8)
    program = lower_and_prove(behind_uint8(fold(Small().eval(), tiny_spec), tiny_spec), "unrolled", clip)
    get_target("android").compile(program, tmp_path, Request("fp32", {"backend": "xnnpack"}))
    runner = load_runner("executorch", tmp_path, tiny_spec, 1)
    with pytest.raises(ToolchainError, match="ExecuTorch cannot run this model: "):
        runner(clip[:, :, :-1])


def test_int8_is_for_xnnpack(videos: Path, tiny_spec: ClipSpec, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="int8 with backend vulkan: its int8 goes to the backend xnnpack alone"):
        edgeact.export(
            Small(),
            target="android",
            precision="int8",
            options={"backend": "vulkan"},
            spec=tiny_spec,
            data=videos,
            out=tmp_path / "out",
            int8=Int8(calibration=Calibration(clips=12)),
            clips=12,
        )
    assert not list(tmp_path.glob("out/*"))


def test_vulkan_is_compiled_here_and_measured_on_the_phone(videos: Path, tiny_spec: ClipSpec, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "data": videos,
        "clips": 12,
        "threads": 1,
        "rounds": 1,
        "options": {"backend": "vulkan"},
    }
    bundle = edgeact.export(Small(), target="android", spec=tiny_spec, out=tmp_path, **settings)
    assert bundle.path.name == "Small-android-vulkan-fp32"
    report = bundle.report()
    assert isinstance(report.numerics, Numerics)
    assert [rung.name for rung in report.numerics.rungs] == ["folded", "lowered"]
    why = "the backend vulkan runs on the phone alone"
    assert report.accuracy == report.latency == NotMeasured(why)
    assert f"artifact rung: not measured: {why}" in report.notes
    assert isinstance(report.placement, Placement)
    assert report.placement.fallback_ops == 0
    assert {unit for layer in report.placement.layers for unit in layer.units} == {"Vulkan 0"}
    assert report.held
    validated = edgeact.validate(bundle)
    assert validated.numerics == NotMeasured(why)
    strict = edgeact.validate(bundle, gates=Gates(require_all=True))
    assert strict.failures == tuple(f"{name}: not measured: {why}" for name in ("numerics", "accuracy", "latency"))
    with pytest.raises(ToolchainError, match=f"this bundle cannot be run on this machine: {why}"):
        edgeact.load(bundle)(np.zeros((1, *tiny_spec.clip_shape), np.uint8))


def test_options_that_a_target_does_not_have() -> None:
    assert check_options("android", {}) == {"backend": "xnnpack"}
    with pytest.raises(InputError, match="target 'openvino' has no option 'backend': it has none"):
        check_options("openvino", {"backend": "vulkan"})
    with pytest.raises(InputError, match="target 'android' has no option 'soc': its options: backend"):
        check_options("android", {"soc": "SM8650"})
    with pytest.raises(UnknownNameError, match="unknown backend of target 'android' 'vulcan': did you mean 'vulkan'"):
        check_options("android", {"backend": "vulcan"})


@pytest.mark.parametrize(
    ("module", "action", "extra"),
    [
        ("ai_edge_litert.interpreter", lambda spec, path: load_runner("litert", path, spec), "litert"),
        ("executorch.runtime", lambda spec, path: load_runner("executorch", path, spec), "executorch"),
        (
            "executorch.exir",
            lambda spec, path: get_target("android").compile(
                behind_uint8(fold(Small().eval(), spec), spec), path, Request("fp32", {"backend": "xnnpack"})
            ),
            "executorch",
        ),
    ],
)
def test_a_missing_package_names_its_extra(
    module: str, action: Any, extra: str, tiny_spec: ClipSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # an import that fails half-way would fail in the tests after this one too
    with warnings.catch_warnings(action="ignore"):
        importlib.import_module("executorch.backends.xnnpack.partition.xnnpack_partitioner")
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, "tflite_runtime", None)
    with pytest.raises(MissingDependencyError, match=rf"pip install 'edgeact\[{extra}\]'"):
        action(tiny_spec, tmp_path)


def test_a_missing_converter_names_its_extra(
    tiny_spec: ClipSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    program = behind_uint8(fold(Small().eval(), tiny_spec), tiny_spec)
    with pytest.raises(MissingDependencyError, match=r"pip install 'edgeact\[litert-export\]'"):
        get_target("litert").compile(program, tmp_path, Request("fp32"))
    assert not is_installed("litert")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import os; os.kill(os.getpid(), 11)", r"litert-torch crashed \(SIGSEGV\) on this network"),
        ("import sys; sys.exit('no such op')", "litert-torch could not compile this network: no such op; its log: "),
    ],
)
def test_a_converter_that_fails_or_crashes_is_an_error(
    code: str, message: str, tiny_spec: ClipSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgeact.targets import litert

    run = litert.run_compiler
    monkeypatch.setattr(litert, "run_compiler", lambda _, **more: run([sys.executable, "-c", code], **more))
    with pytest.raises(ToolchainError, match=message):
        get_target("litert").compile(
            behind_uint8(fold(Small().eval(), tiny_spec), tiny_spec), tmp_path, Request("fp32")
        )


@pytest.mark.parametrize(
    ("raised", "message"),
    [(RuntimeError("no such op\nand more"), "network: no such op$"), (RuntimeError(), r"network: RuntimeError\(\)$")],
)
def test_exir_errors_are_translated(
    raised: Exception, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with warnings.catch_warnings(action="ignore"):
        from executorch import exir

    def fail(*_: Any, **__: Any) -> None:
        raise raised

    monkeypatch.setattr(exir, "to_edge_transform_and_lower", fail)
    with pytest.raises(ToolchainError, match=f"ExecuTorch could not compile this {message}"):
        get_target("android").compile(None, tmp_path, Request("fp32", {"backend": "xnnpack"}))  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("ops", "message"),
    [
        (None, "LiteRT cannot load what its converter wrote: "),
        (["CONV_2D", "FlexErf", "CUSTOM"], "ops that LiteRT's own kernels do not have: CUSTOM, FlexErf$"),
    ],
)
def test_what_the_litert_converter_wrote_is_checked(
    ops: list[str] | None, message: str, tiny_spec: ClipSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ai_edge_litert import interpreter

    from edgeact.targets import litert

    class Interpreter:
        def __init__(self, model_path: str) -> None:
            pass

        def _get_ops_details(self) -> list[dict[str, str]]:
            return [{"op_name": op} for op in ops or ()]

    if ops:
        monkeypatch.setattr(interpreter, "Interpreter", Interpreter)
    monkeypatch.setattr(litert, "run_compiler", lambda command, **_: command[-2].write_bytes(b"no model"))
    with pytest.raises(ToolchainError, match=message):
        get_target("litert").compile(
            behind_uint8(fold(Small().eval(), tiny_spec), tiny_spec), tmp_path, Request("fp32")
        )


@pytest.mark.parametrize(
    ("free_bytes", "error", "message"),
    [
        (0, OSError, r"No space left on device: '.*model\.xml'"),
        (1 << 30, ToolchainError, "OpenVINO could not convert this network: the stream is bad"),
    ],
)
def test_openvino_that_cannot_save_says_whether_the_disk_is_full(
    free_bytes: int,
    error: type[Exception],
    message: str,
    tiny_spec: ClipSpec,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import openvino

    from edgeact.targets import openvino as target

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("the stream is bad")

    monkeypatch.setattr(openvino, "save_model", fail)
    monkeypatch.setattr(target.shutil, "disk_usage", lambda path: SimpleNamespace(free=free_bytes))
    with pytest.raises(error, match=message):
        get_target("openvino").compile(
            behind_uint8(fold(Small().eval(), tiny_spec), tiny_spec), tmp_path, Request("fp32")
        )


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info >= (3, 12), reason="tflite-runtime has no wheel for this Python")
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_tflite_runtime_where_only_that_is_installed(
    precision: str, videos: Path, tiny_spec: ClipSpec, tmp_path: Path
) -> None:
    """An environment of its own, as on an old board: numpy 1, tflite_runtime, no torch and no ai_edge_litert."""
    gates = dataclasses.replace(Gates.defaults(precision), min_agreement=0, max_drop_pt=100)
    settings: dict[str, Any] = {"data": videos, "clips": 12, "threads": 1, "rounds": 1, "gates": gates}
    bundle = edgeact.export(Small(), target="litert", precision=precision, spec=tiny_spec, out=tmp_path, **settings)
    root, python = Path(__file__).parents[1], tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(python.parents[1])], check=True)
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", f"{root}[tflite-runtime]"], check=True)
    script = (
        "import sys, numpy; from edgeact.cli import main\n"
        "try: main(['validate', sys.argv[1], '--threads', '1', '--rounds', '1', '--json'])\n"
        "finally: print(numpy.__version__[0], 'torch' in sys.modules, 'ai_edge_litert' in sys.modules)"
    )
    done = subprocess.run([str(python), "-c", script, str(bundle.path)], capture_output=True, text=True)
    report, state = done.stdout.splitlines()
    outside = precision == "int8"  # its XNNPACK takes float alone; TensorFlow Lite's own kernels take int8
    assert done.returncode == outside, done.stdout + done.stderr
    assert [failure.split(":")[0] for failure in json.loads(report)["failures"]] == ["placement"] * outside
    assert state == "1 False False"
    assert (json.loads(report)["placement"]["fallback_ops"] > 0) is outside
