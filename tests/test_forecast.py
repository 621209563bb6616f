"""The forecast of `edgeact check`, against what the toolchains then do."""

import json
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from edgeact._capture import behind_uint8, fold, lower_and_prove
from edgeact.clip import ClipSpec
from edgeact.errors import ToolchainError, UnknownNameError
from edgeact.forecast import Forecast, forecast
from edgeact.placement import Placement, read_placement
from edgeact.runtime import load_runner
from edgeact.targets import Request, check_options, get_target

RUNTIMES = {"android": "executorch", "litert": "litert"}


class Mixed(nn.Module):
    """Ops that mobile runtimes take, and some that they do not."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv3d(3, 8, 3, (1, 2, 2), 1), nn.BatchNorm3d(8), nn.Hardswish(), nn.MaxPool3d(2))
        self.act = nn.ELU()
        self.fc = nn.Linear(8, 5)

    def forward(self, clip: Tensor) -> Tensor:
        x = self.act(self.stem(clip))
        x = functional.hardtanh(x * 2 - 1).softmax(1) + torch.where(x > 0, x, x * 0.5)
        x = x * x.sum(1, keepdim=True)
        out: Tensor = self.fc(x.mean((2, 3, 4)))
        return out


class Warp(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return functional.grid_sample(x, x[:, :3].permute(0, 2, 3, 4, 1), align_corners=False)


class CumulativeProduct(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv3d(3, 8, 3)
        self.warp = Warp()

    def forward(self, clip: Tensor) -> Tensor:
        return self.warp(self.stem(clip)).cumprod(2).mean((2, 3, 4))


def fallen(placement: Placement) -> set[str]:
    """Layers of which an op is on no fast kernel."""
    return {layer.name for layer in placement.layers if layer.fallback_ops}


def supports(found: Forecast, support: str) -> set[str]:
    return {layer.op for layer in found.layers if layer.support == support}


@pytest.mark.parametrize("target", ["android", pytest.param("litert", marks=pytest.mark.slow)])
def test_the_forecast_is_what_the_toolchain_does(target: str, tiny_spec: ClipSpec, tmp_path: Path) -> None:
    model = Mixed().eval()
    found = forecast(model, target=target, spec=tiny_spec)
    assert found.runs
    assert supports(found, "lowered") >= {"conv3d", "max_pool3d"}
    clip = torch.zeros(1, *tiny_spec.clip_shape, dtype=torch.uint8).numpy()
    program = lower_and_prove(behind_uint8(fold(model, tiny_spec), tiny_spec), found.form, clip)
    get_target(target).compile(program, tmp_path, Request("fp32", check_options(target, {})))
    placement = load_runner(RUNTIMES[target], tmp_path, tiny_spec, 1).placement()
    assert isinstance(placement, Placement)
    if target == "android":
        outside = {name.split(".")[1].lstrip("_") for name in placement.fallback}  # aten_gt (aten.gt.Scalar, outside …)
        assert outside == supports(found, "falls back") == {"elu", "gt", "softmax", "sum", "where"}
        assert fallen(placement) == {layer.name for layer in found.layers if layer.support == "falls back"}
    else:
        outside = {re.findall(r"\((\w+), outside of XNNPACK\)", name)[0] for name in placement.fallback}
        assert outside == {"GREATER", "GREATER_EQUAL", "SELECT"}
        assert fallen(placement) == {layer.name for layer in found.layers if layer.support == "falls back"}
        assert supports(found, "falls back") == {"elu", "gt", "where"}


def test_the_forecast_of_a_jetson_is_what_the_export_says(tiny_spec: ClipSpec, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv3d(3, 8, 3, 1, 1), nn.Conv3d(8, 8, 3, 1, 1, groups=8), nn.AdaptiveAvgPool3d(1))
    model.extend([nn.Flatten(), nn.Linear(8, 5)])
    found = forecast(model, target="jetson", spec=tiny_spec, form="volumetric", precision="fp16")
    program = behind_uint8(fold(model, tiny_spec), tiny_spec)
    get_target("jetson").compile(program, tmp_path, Request("fp16", check_options("jetson", {})))
    macs = {layer.name: layer.macs for layer in found.layers}
    placement = read_placement(tmp_path).with_macs(macs)
    assert fallen(placement) == {layer.name for layer in found.layers if layer.support == "falls back"} == {"1"}
    assert placement.macs == (found.macs("native"), macs["1"])


@pytest.mark.parametrize(("form", "falling_back"), [("folded", {"conv3d"}), ("unrolled", set())])
@pytest.mark.slow
def test_the_forecast_is_what_vulkan_takes(
    form: str, falling_back: set[str], tiny_spec: ClipSpec, tmp_path: Path
) -> None:
    model, options = Mixed().eval(), {"backend": "vulkan"}
    found = forecast(model, target="android", spec=tiny_spec, form=form, options=options)
    assert supports(found, "falls back") == {"elu", "max_pool3d"} | falling_back
    clip = torch.zeros(1, *tiny_spec.clip_shape, dtype=torch.uint8).numpy()
    program = lower_and_prove(behind_uint8(fold(model, tiny_spec), tiny_spec), form, clip)
    get_target("android").compile(program, tmp_path, Request("fp32", options))
    outside = {op.split(".")[1] for op in read_placement(tmp_path).fallback}
    parts = {"max_pool3d": "maximum", "conv3d": "convolution"}
    assert outside == {parts.get(op, op) for op in supports(found, "falls back")}


@pytest.mark.parametrize("target", ["openvino", "android", "litert"])
def test_every_multiplication_is_counted(target: str, tiny_spec: ClipSpec) -> None:
    model = Mixed().eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, tiny_spec.frames, tiny_spec.crop_height, tiny_spec.crop_width))
    found = forecast(model, target=target, spec=tiny_spec)
    assert found.macs() == counter.get_total_flops() // 2 > 0
    assert found.macs("native", "lowered") == found.macs()
    convolution = next(layer for layer in found.layers if layer.op == "conv3d")
    assert convolution.name == "stem.0"
    assert convolution.macs == 8 * 3 * 27 * torch.Size(convolution.shape[2:]).numel()
    assert json.loads(json.dumps(found.to_dict()))["accelerated_macs"] == found.macs()


def test_openvino_takes_3d_as_it_is(tiny_spec: ClipSpec) -> None:
    assert supports(forecast(Mixed(), target="openvino", spec=tiny_spec), "native") >= {"conv3d", "max_pool3d"}


@pytest.mark.parametrize("form", ["unrolled", "folded"])
def test_everything_that_cannot_run_is_listed(form: str, tiny_spec: ClipSpec) -> None:
    found = forecast(CumulativeProduct(), target="android", spec=tiny_spec, form=form)
    assert not found.runs
    assert supports(found, "cannot run") == {"grid_sampler_3d", "cumprod"}
    assert supports(found, "lowered") >= {"conv3d"}
    (refused,) = [layer for layer in found.layers if layer.op == "cumprod"]
    assert "test_forecast.py" in refused.reason, "the user's source line"
    assert "no rule for this op on a tensor with time" in refused.reason
    (refused,) = [layer for layer in found.layers if layer.op == "grid_sampler_3d"]
    assert refused.name == "warp"


def test_what_openvino_cannot_translate(tiny_spec: ClipSpec) -> None:
    class Shift(nn.Module):
        def forward(self, clip: Tensor) -> Tensor:
            return torch.bitwise_left_shift(clip.mean((2, 3, 4)).to(torch.int32), 2).float()

    found = forecast(Shift(), target="openvino", spec=tiny_spec)
    (refused,) = [layer for layer in found.layers if layer.support == "cannot run"]
    assert refused.op == "bitwise_left_shift"
    assert "OpenVINO's PyTorch frontend has no translation" in refused.reason


def test_a_target_or_form_that_is_not_there(tiny_spec: ClipSpec) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'android'"):
        forecast(Mixed(), target="andriod", spec=tiny_spec)
    with pytest.raises(UnknownNameError, match="unknown form of target 'android' 'volumetric'"):
        forecast(Mixed(), target="android", spec=tiny_spec, form="volumetric")


def test_powers_and_uneven_bins_fall_back(tiny_spec: ClipSpec) -> None:
    class Powers(nn.Module):
        def forward(self, clip: Tensor) -> Tensor:
            x = functional.adaptive_avg_pool3d(clip**2, (4, 16, 16))  # 32 pixels into 16 equal bins
            return (functional.adaptive_avg_pool3d(x, (1, 5, 5)) ** 3).mean((2, 3, 4))

    found = forecast(Powers(), target="android", spec=tiny_spec)
    behind = [(layer.op, layer.shape) for layer in found.layers if layer.support == "falls back"]
    assert behind == [("adaptive_avg_pool3d", (1, 3, 1, 5, 5)), ("pow", (1, 3, 1, 5, 5))]


class Averages(nn.Module):
    """Every average of a volume: without padding all of them are what XNNPACK takes."""

    def forward(self, clip: Tensor) -> Tensor:
        x = functional.avg_pool3d(clip, (2, 3, 3), (1, 2, 2))
        x = functional.avg_pool2d(x[0].transpose(0, 1), 3).transpose(0, 1)[None]
        return functional.adaptive_avg_pool3d(x, (1, 1, 5)).mean((2, 3, 4))


def test_averages_are_delegated(tiny_spec: ClipSpec, tmp_path: Path) -> None:
    found = forecast(Averages(), target="android", spec=tiny_spec)
    assert not supports(found, "falls back")
    clip = torch.zeros(1, *tiny_spec.clip_shape, dtype=torch.uint8).numpy()
    program = lower_and_prove(behind_uint8(fold(Averages().eval(), tiny_spec), tiny_spec), "unrolled", clip)
    get_target("android").compile(program, tmp_path, Request("fp32", check_options("android", {})))
    placement = load_runner("executorch", tmp_path, tiny_spec, 1).placement()
    assert isinstance(placement, Placement)
    assert not placement.fallback


class MatrixExponential(nn.Module):
    """An op that PyTorch runs, and a bundle has no word for, beside composite ones that it takes apart."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 5)

    def forward(self, clip: Tensor) -> Tensor:
        x = functional.silu(clip).mean((2, 3, 4))
        x = torch.linalg.matrix_exp(x[:, :, None] @ x[:, None]).sum(1)
        out: Tensor = self.fc(functional.layer_norm(x, (3,)))
        return out


def test_what_a_gpu_bundle_has_no_word_for_cannot_run(tiny_spec: ClipSpec, tmp_path: Path) -> None:
    found = forecast(MatrixExponential(), target="gpu", spec=tiny_spec)
    assert supports(found, "cannot run") == {"linalg_matrix_exp"}
    (reason,) = {layer.reason for layer in found.layers if layer.reason}
    program = behind_uint8(fold(MatrixExponential().eval(), tiny_spec), tiny_spec)
    with pytest.raises(ToolchainError) as refused:
        get_target("gpu").compile(program, tmp_path, Request("fp32"))
    assert str(refused.value) == reason
    assert reason.startswith("a bundle has no word for the op aten.linalg_matrix_exp.default: ")
    for form in get_target("gpu").forms:
        assert not supports(forecast(Mixed(), target="gpu", spec=tiny_spec, form=form), "cannot run")


def test_a_refused_part_is_told_of_the_op_that_it_is_of(tiny_spec: ClipSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeact._program._REFUSED", re.compile("native_layer_norm|sigmoid"))
    found = forecast(MatrixExponential(), target="gpu", spec=tiny_spec)
    refused = {layer.op: layer.reason for layer in found.layers if layer.reason}
    assert list(refused) == ["silu", "linalg_matrix_exp", "layer_norm"]
    assert "native_layer_norm" in refused["layer_norm"]
