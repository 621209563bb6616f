"""Ethos-U: what Vela takes of a network, what it says of it, and what is refused before it runs."""

import importlib.util
import json
import math
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from int8_networks import calibrated
from torch import Tensor, nn

from edgeact._capture import behind_uint8, lower_and_prove, run_program
from edgeact._vendor_compiler import Compilation
from edgeact.clip import ClipSpec
from edgeact.errors import BundleError, InputError, MissingDependencyError, ToolchainError, UnknownNameError
from edgeact.forecast import forecast
from edgeact.placement import Placement
from edgeact.runtime import load_runner
from edgeact.targets import Request, _vela, check_options, check_precision, ethos_u, get_target, litert

SPEC = ClipSpec(frames=4, frame_stride=1, short_side=32, crop_height=32, crop_width=32, mean=(0.4, 0.5, 0.6))
CONFIGS = ("ethos-u55-128", "ethos-u65-256", "ethos-u85-256")


class Two(nn.Module):
    """A convolution over time, one per channel with a stride of 4, and a mean over time and space."""

    def __init__(self, stride: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv3d(3, 8, 3, padding=1), nn.ReLU())
        self.depthwise = nn.Conv3d(8, 8, (1, 5, 5), (1, stride, stride), (0, 2, 2), groups=8)
        self.fc = nn.Linear(8, 5)

    def forward(self, clip: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.depthwise(self.stem(clip)).mean((2, 3, 4)))
        return logits


def clips() -> list[Any]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (1, *SPEC.clip_shape), dtype=np.uint8) for _ in range(3)]


def program_of(model: nn.Module, form: str = "unrolled") -> Any:
    target, given = get_target("ethos_u"), clips()
    assert target.scheme is not None
    network = calibrated(model, given, SPEC, target.scheme)
    return lower_and_prove(behind_uint8(network, SPEC), form, given[0])


@pytest.fixture(scope="module", autouse=True)
def converted_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What Vela is given of a program is the same for every configuration, and takes longer than Vela."""
    kept = list[tuple[Any, Path]]()

    def convert(program: Any, artifact: Path, precision: str, how: Compilation, *, integers: bool) -> None:
        for known, model in kept:
            if known is program and how == Compilation():
                shutil.copy(model, artifact)
                return
        litert.convert(program, artifact, precision, how, integers=integers)
        kept.append((program, Path(shutil.copy(artifact, tmp_path_factory.mktemp("converted")))))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ethos_u, "convert", convert)
        yield


@pytest.fixture(scope="module")
def plain() -> Any:
    return program_of(Two())


@pytest.fixture(scope="module")
def strided() -> Any:
    return program_of(Two(stride=4))


def compiled(program: Any, folder: Path, **given: str) -> tuple[tuple[str, ...], Placement]:
    notes = get_target("ethos_u").compile(program, folder, Request("int8", check_options("ethos_u", given, "int8")))
    placement = load_runner("ethos_u_reference", folder, SPEC).placement()
    assert isinstance(placement, Placement)
    return notes, placement


def test_all_of_a_network_is_on_the_npu(plain: Any, tmp_path: Path) -> None:
    notes, placement = compiled(plain, tmp_path)
    assert (placement.fallback_ops, placement.kind) == (0, "estimated")
    assert placement.crossing_bytes == math.prod(SPEC.clip_shape) + 5, "the clip, and an int8 logit of each class"
    assert {kernel.partition(" ")[0] for kernel in placement.kernels} == {"NPU"}, "nothing that moves data is outside"
    layers = {layer.name: layer for layer in placement.layers}
    assert {"stem.0", "depthwise", "fc"} <= set(layers)
    assert all(layer.ms and layer.ms > 0 for layer in layers.values())
    estimate = json.loads((tmp_path / "estimate.json").read_text())
    assert estimate["config"] == "ethos-u85-256"
    assert estimate["system_config"] == "Ethos_U85_SYS_DRAM_Mid"
    assert estimate["ms"] == pytest.approx(estimate["cycles"] / estimate["clock_mhz"] / 1e3, rel=1e-3)
    of_layers = sum(layer.ms or 0.0 for layer in placement.layers)
    assert of_layers + estimate["moving_ms"] == pytest.approx(estimate["ms"], rel=1e-3)
    assert "SRAM" in estimate["memory_kb"]
    assert notes[0].startswith("estimated, not measured: ")
    assert (tmp_path / "model_vela.tflite").stat().st_size > 0


def test_a_frame_that_is_cut_and_put_together_moves_nothing(tmp_path: Path) -> None:
    """As MiCT's two branches do with their last frame: its mean stays one over height and width."""

    class Branches(Two):
        def forward(self, clip: Tensor) -> Tensor:
            x = self.stem(clip)[:, :, ::4]
            images = self.depthwise(x).transpose(1, 2).flatten(0, 1).relu()
            logits: Tensor = self.fc(images.unflatten(0, (1, 1)).transpose(1, 2).mean((2, 3, 4)))
            return logits

    _, placement = compiled(program_of(Branches()), tmp_path)
    assert placement.fallback == ()
    assert not [kernel for kernel in placement.kernels if "Transpose" in kernel or kernel.startswith("outside")]


def test_the_reference_kernels_follow_the_int8_program(plain: Any, tmp_path: Path) -> None:
    compiled(plain, tmp_path, config="ethos-u55-64")
    runner, lowered = load_runner("ethos_u_reference", tmp_path, SPEC), run_program(plain)
    with pytest.raises(ToolchainError, match="LiteRT cannot run this model: "):
        runner(np.zeros((1, 1, *SPEC.clip_shape[1:]), np.uint8))
    expected, found = (np.concatenate([run(clip) for clip in clips()]) for run in (lowered, runner))
    assert found.dtype == np.float32
    assert found.shape == (3, 5)
    step = np.abs(found[found != 0]).min()  # of int8 logits; rounding in other places moves a value by a step or two
    assert np.abs(expected - found).max() <= 2.5 * max(step, np.ptp(expected) / 255)
    assert list(runner.layers(clips()[0])) == []


@pytest.mark.parametrize("config", CONFIGS)
def test_the_forecast_is_what_vela_does(config: str, strided: Any, tmp_path: Path) -> None:
    """A depthwise convolution with a stride of 4 is for Ethos-U85 alone."""
    options = check_options("ethos_u", {"config": config})
    found = forecast(Two(stride=4).eval(), target="ethos_u", spec=SPEC, options=options)
    falls = {layer.name: layer.reason for layer in found.layers if layer.support == "falls back"}
    notes, placement = compiled(strided, tmp_path, config=config)
    assert {layer.name for layer in placement.layers if layer.fallback_ops} == set(falls)
    assert set(falls) == (set() if "u85" in config else {"depthwise"})
    assert all("kernel stride must be in the range (1, 3)" in reason for reason in falls.values())
    assert ("kernel stride: 4" in " ".join(placement.fallback)) is bool(falls)
    whole = math.prod(SPEC.clip_shape) + 5
    assert placement.crossing_bytes is not None
    assert (placement.crossing_bytes > whole) is bool(falls), "what the CPU computes is handed over, and back"
    assert ("ms on the NPU, without what runs on the CPU" in notes[0]) is bool(falls)
    assert json.loads((tmp_path / "estimate.json").read_text())["npu_alone"] is bool(falls)
    assert found.runs


def test_the_forecast_of_a_network_that_fits() -> None:
    found = forecast(Two().eval(), target="ethos_u", spec=SPEC)
    assert {layer.support for layer in found.layers} <= {"native", "lowered"}
    assert "conv3d" in {layer.op for layer in found.layers if layer.support == "lowered"}
    assert any("Vela 5.2.0's rules for ethos-u85-256" in note for note in found.notes)


@pytest.mark.parametrize(
    ("op", "small", "large"),
    [
        (lambda x: x.sin(), True, True),
        (lambda x: x / (x.abs() + 1), True, False),
        (lambda x: x.tanh(), False, False),
        (lambda x: x.tanh().exp(), True, True),  # nothing is rounded between them
    ],
)
def test_ops_by_family(op: Any, small: bool, large: bool) -> None:
    class Net(Two):
        def forward(self, clip: Tensor) -> Tensor:
            logits: Tensor = self.fc(op(self.stem(clip)).mean((2, 3, 4)))
            return logits

    for config, falls in (("ethos-u55-32", small), ("ethos-u85-2048", large)):
        found = forecast(
            Net().eval(), target="ethos_u", spec=SPEC, options=check_options("ethos_u", {"config": config})
        )
        assert any(layer.support == "falls back" for layer in found.layers) is falls


def test_gates_are_on_the_npu(tmp_path: Path) -> None:
    """The reference kernels, which run it here, take a sigmoid, a softmax and a tanh at one scale alone."""
    torch.manual_seed(0)
    gates = (nn.SiLU(), nn.Hardswish(), nn.Hardsigmoid(), nn.Tanh(), nn.Softmax(1), nn.Sigmoid())
    gated = [layer for gate in gates for layer in (nn.Conv3d(8, 8, 1), gate)]
    stem, head = nn.Conv3d(3, 8, (1, 3, 3)), nn.Linear(8, 5)
    model = nn.Sequential(stem, *gated, nn.AdaptiveAvgPool3d(1), nn.Flatten(), head)
    found = forecast(model.eval(), target="ethos_u", spec=SPEC)
    assert [layer.name for layer in found.layers if layer.support == "falls back"] == []
    program = program_of(model)
    _, placement = compiled(program, tmp_path)
    assert (placement.fallback_ops, placement.fallback) == (0, ())
    lowered, runner = run_program(program), load_runner("ethos_u_reference", tmp_path, SPEC)
    expected, artifact = (np.concatenate([run(clip) for clip in clips()]) for run in (lowered, runner))
    assert np.abs(expected - artifact).max() < 0.02 * np.abs(expected).max()


@pytest.mark.slow
def test_what_the_int8_network_has_no_rule_for_is_forecast(tmp_path: Path) -> None:
    """A PReLU, which a lowering writes as several ops, and two ops in a row; one alone is int8."""
    for number, (op, falls) in enumerate(
        ((nn.PReLU(8), True), (nn.Sequential(nn.GELU(), nn.Tanh()), True), (nn.GELU(), False))
    ):
        model = nn.Sequential(nn.Conv3d(3, 8, 3), op, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(8, 5)).eval()
        found = forecast(model, target="ethos_u", spec=SPEC)
        assert any("no int8 rule" in layer.reason for layer in found.layers if layer.support == "falls back") is falls
        (tmp_path / str(number)).mkdir()
        _, placement = compiled(program_of(model), tmp_path / str(number))
        assert bool(placement.fallback_ops) is falls


def test_a_mean_of_many_frames_in_a_batch_or_of_a_long_axis() -> None:
    class Long(nn.Module):
        def forward(self, clip: Tensor) -> Tensor:
            return clip.flatten(3).mean(3).flatten(1)[:, :5]

    spec = ClipSpec(frames=2, frame_stride=1, short_side=64, crop_height=64, crop_width=64)
    found = forecast(Long().eval(), target="ethos_u", spec=spec)
    assert "must be less than 4096" in " ".join(layer.reason for layer in found.layers)
    folded = forecast(Two().eval(), target="ethos_u", spec=SPEC, form="folded")
    assert "batch must be 1" in " ".join(layer.reason for layer in folded.layers if layer.support == "falls back")


def test_a_stride_that_vela_cannot_compile_is_forecast_and_an_error(tmp_path: Path) -> None:
    model = nn.Sequential(
        nn.Conv3d(3, 8, (1, 5, 5), (1, 4, 4), (0, 2, 2)), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten()
    )
    options = check_options("ethos_u", {"config": "ethos-u55-128"})
    found = forecast(model.eval(), target="ethos_u", spec=SPEC, options=options)
    reasons = [layer.reason for layer in found.layers if layer.support == "cannot run"]
    assert len(reasons) == 1
    assert not found.runs
    assert "a stride above 3 is only supported without dilation and padding" in reasons[0]
    with pytest.raises(ToolchainError, match=r"Vela could not compile this network: .*could not run on NPU"):
        get_target("ethos_u").compile(program_of(model), tmp_path, Request("int8", options))
    assert not (tmp_path / "model_vela.tflite").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.Conv3d(8, 8, (1, 3, 3), (1, 4, 4), dilation=(1, 2, 2)), "CONV_2D: stride > 3"),
        (nn.AvgPool3d((1, 4, 4)), "DEPTHWISE_CONV_2D: kernel stride"),
    ],
)
def test_a_long_stride_that_the_cpu_takes(layer: nn.Module, reason: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv3d(3, 8, (1, 3, 3)), layer, nn.AdaptiveAvgPool3d(1), nn.Flatten()).eval()
    options = check_options("ethos_u", {"config": "ethos-u65-256"})
    found = forecast(model, target="ethos_u", spec=SPEC, options=options)
    (falls,) = [layer for layer in found.layers if layer.support == "falls back"]
    assert (falls.name, reason in falls.reason) == ("1", True)
    _, placement = compiled(program_of(model), tmp_path, config="ethos-u65-256")
    assert "Unsupported kernel stride: 4, 4" in " ".join(placement.fallback)


def test_what_is_refused_before_anything_runs() -> None:
    with pytest.raises(InputError, match=r"'ethos_u' does not export fp32: an Ethos-U computes in integers alone"):
        check_precision("ethos_u", "fp32")
    with pytest.raises(UnknownNameError, match=r"ethos-u55-123.*did you mean 'ethos-u55-128'"):
        check_options("ethos_u", {"config": "ethos-u55-123"})
    with pytest.raises(UnknownNameError, match="Ethos_U85_SYS_DRAM_Mid"):
        check_options("ethos_u", {"system_config": "Ethos_U85_SYS_DRAM_Mi"})
    other = {"config": "ethos-u55-128", "system_config": "Ethos_U85_SYS_DRAM_Mid"}
    with pytest.raises(
        InputError, match=r"another family than ethos-u55-128, which has Ethos_U55_High_End_Embedded, Ethos_U55_Deep"
    ):
        check_options("ethos_u", other)
    with pytest.raises(InputError, match=r"does not export config ethos-u55-128, memory_mode Dedicated_Sram: .*flash"):
        check_options("ethos_u", {"config": "ethos-u55-128", "memory_mode": "Dedicated_Sram"})
    flash = {"system_config": "Ethos_U85_SYS_Flash_Low", "memory_mode": "Dedicated_Sram_384KB"}
    with pytest.raises(InputError, match="is flash, which holds no activations"):
        check_options("ethos_u", flash)


def test_what_auto_stands_for() -> None:
    from edgeact.targets._ethos_u_configs import resolve

    by_config = {config: resolve(check_options("ethos_u", {"config": config}))[1:] for config in CONFIGS}
    assert by_config == {
        "ethos-u55-128": ("Ethos_U55_High_End_Embedded", "Shared_Sram"),
        "ethos-u65-256": ("Ethos_U65_High_End", "Dedicated_Sram"),
        "ethos-u85-256": ("Ethos_U85_SYS_DRAM_Mid", "Dedicated_Sram"),
    }
    flash = check_options("ethos_u", {"system_config": "Ethos_U85_SYS_Flash_High"})
    assert resolve(flash)[2] == "Shared_Sram"


def test_every_configuration_is_vela_s_own() -> None:
    import configparser

    import ethosu

    vela = configparser.ConfigParser()
    assert vela.read(Path(ethosu.__path__[0]) / "config_files" / "Arm" / "vela.ini")
    options = get_target("ethos_u").options
    assert {f"System_Config.{name}" for name in options["system_config"][1:]} | {
        f"Memory_Mode.{name}" for name in options["memory_mode"][1:]
    } == set(vela.sections())


def test_vela_that_is_missing_fails_or_runs_too_long(
    plain: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, options = get_target("ethos_u"), check_options("ethos_u", {})
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(MissingDependencyError, match=r"pip install 'edgeact\[ethos-u\]'"):
            target.compile(plain, tmp_path, Request("int8", options))
        patch.setattr(importlib.util, "find_spec", lambda name: None if name == "litert_torch" else name)
        with pytest.raises(MissingDependencyError, match=r"pip install 'edgeact\[litert-export\]'"):
            target.require_toolchain()  # before anything is calibrated
    with pytest.raises(ToolchainError, match=r"was stopped after 0\.05 s, the time limit"):
        target.compile(plain, tmp_path, Request("int8", options, Compilation(time_limit_s=0.05)))
    run = _vela.run_compiler
    for code, message in (("print('nothing')", "wrote no per-layer"), ("import os; os.abort()", "Vela crashed")):
        stub = [sys.executable, "-c", code]
        monkeypatch.setattr(_vela, "run_compiler", lambda _, stub=stub, **more: run(stub, **more))
        with pytest.raises(ToolchainError, match=message):
            target.compile(plain, tmp_path, Request("int8", options))


def test_a_bundle_that_cannot_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BundleError, match="does not say where each op runs"):
        load_runner("ethos_u_reference", tmp_path, SPEC)
    placement = {"accelerated_ops": 0, "fallback_ops": 0, "kind": "estimated"}
    (tmp_path / "placement.json").write_text(json.dumps(placement))
    (tmp_path / "model.tflite").write_bytes(b"not one")
    with pytest.raises(ToolchainError, match="LiteRT cannot load"):
        load_runner("ethos_u_reference", tmp_path, SPEC)
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    with pytest.raises(MissingDependencyError, match=r"edgeact\[litert\]"):
        load_runner("ethos_u_reference", tmp_path, SPEC)
    with pytest.raises(ToolchainError, match="an Ethos-U is run by an app"):
        load_runner("ethos_u", tmp_path, SPEC)


@pytest.mark.slow
def test_an_export_is_held_against_the_reference_kernels(videos: Path, tmp_path: Path) -> None:
    """End to end: the proxy is named, and no latency is told that was not measured."""
    import dataclasses

    import edgeact
    from edgeact.parity import Gates, NotMeasured

    gates = dataclasses.replace(Gates.defaults("int8"), min_agreement=0, max_drop_pt=100)  # untrained weights
    given: dict[str, Any] = {"data": videos, "clips": 12, "threads": 1, "rounds": 1, "gates": gates}
    model = Two()
    model.fc = nn.Linear(8, 12)
    bundle = edgeact.export(model, target="ethos_u", precision="int8", spec=SPEC, out=tmp_path, **given)
    report = bundle.report()
    assert report.held, report.failures
    assert isinstance(report.latency, NotMeasured)
    assert isinstance(report.placement, Placement)
    assert (report.placement.kind, report.placement.fallback_ops) == ("estimated", 0)
    assert any(note.startswith("proxy: ethos_u_reference ") for note in report.notes)
    assert any(note.startswith("estimated, not measured: ") for note in report.notes)
    again = edgeact.validate(bundle, threads=1, rounds=1)
    assert again.held, again.failures
    assert again.placement == report.placement, "Vela's estimate is of the NPU, whatever runs the logits"
