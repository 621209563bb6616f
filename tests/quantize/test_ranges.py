"""Int8 by calibration: where the graph is quantized, what the ranges hold, and what is refused."""

from typing import Any

import numpy as np
import pytest
import torch
from int8_networks import calibrated
from torch import Tensor, fx, nn
from torch.nn import functional

import edgeact
from edgeact._capture import eager, fold, quiet_torchao
from edgeact.clip import ClipSpec, normalize
from edgeact.errors import InputError
from edgeact.models import options_for_spec
from edgeact.numerics import compare_outputs
from edgeact.quantize.scheme import Scheme

with quiet_torchao():
    from edgeact.quantize.annotate import adds_taps, is_weighted

SPEC = ClipSpec(frames=16, short_side=48, crop_height=48, crop_width=48)
SMALL = ClipSpec(frames=4, short_side=16, crop_height=16, crop_width=16)
QUANTIZE, DEQUANTIZE = "quantized_decomposed.quantize_per_tensor", "quantized_decomposed.dequantize_per_tensor"


def clips(spec: ClipSpec, count: int = 3) -> list[Any]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (1, *spec.clip_shape), dtype=np.uint8) for _ in range(count)]


def int8(model: nn.Module, spec: ClipSpec = SMALL, scheme: Scheme | None = None) -> fx.GraphModule:
    return calibrated(model, clips(spec), spec, scheme or Scheme())


def nodes(graph: fx.GraphModule, name: str) -> list[Any]:
    return [node for node in graph.graph.nodes if str(node.target).startswith(name)]


class Every(nn.Module):
    """A depthwise block with a residual, a pool and a head: every way in which a scale is shared or fused."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.depthwise = nn.Conv3d(3, 8, 3, padding=1), nn.Conv3d(8, 8, 3, padding=1, groups=8)
        self.point, self.fc = nn.Conv3d(8, 8, 1), nn.Linear(16, 5)

    def forward(self, clip: Tensor) -> Tensor:
        x = functional.max_pool3d(self.stem(clip).relu(), 2)
        x = (self.point(self.depthwise(x).relu()) + x).relu()
        x = torch.cat([x, x.flip(2)], 1)
        logits: Tensor = self.fc(x.mean((2, 3, 4)))
        return logits


@pytest.mark.parametrize("name", ["ir_csn_26", "ip_csn_50", "mict_resnet_18", "c3d", "resnet3d_18"])
@pytest.mark.parametrize("scheme", [Scheme(), Scheme(symmetric=True, partial_sums=True)])
def test_no_convolution_is_left_in_float(name: str, scheme: Scheme) -> None:
    torch.manual_seed(0)
    model = edgeact.create_model(name, num_classes=5, width=0.125, **options_for_spec(name, SPEC)).eval()
    graph = int8(model, SPEC, scheme)
    weighted = [node for node in graph.graph.nodes if is_weighted(node)]
    assert len(weighted) == sum(isinstance(m, nn.Conv3d | nn.Conv2d | nn.Linear) for m in model.modules())
    for node in weighted:
        x, weight = node.all_input_nodes[:2]
        assert str(x.target).startswith(DEQUANTIZE), node
        assert str(weight.target) == "quantized_decomposed.dequantize_per_channel.default", node
        assert graph.get_buffer(str(weight.all_input_nodes[0].target)).dtype == torch.int8
    if scheme.symmetric:
        assert {node.args[2] for node in nodes(graph, QUANTIZE)} == {0}
    clip = clips(SPEC)[0]
    sqnr_db, _, _ = compare_outputs(eager(model, SPEC)(clip), eager(graph, SPEC)(clip))
    assert 18 < sqnr_db < 80


def test_what_shares_a_scale_and_what_is_fused() -> None:
    graph = int8(Every())
    scale: dict[Any, Any] = {node.args[0]: node.args[1] for node in nodes(graph, QUANTIZE)}
    (pool,), (cat,), (flip,) = (nodes(graph, f"aten.{op}") for op in ("max_pool3d", "cat", "flip"))
    for moved in (pool, cat, flip):
        assert scale[moved] == moved.all_input_nodes[0].args[1]
    stem, depthwise, point = nodes(graph, "aten.conv3d")
    for fused in (stem, depthwise, *nodes(graph, "aten.add")):
        (relu,) = fused.users
        assert str(relu.target) == "aten.relu.default"
        assert relu in scale
    assert point in scale, "its sum with the residual is an op of its own"
    assert {str(node.target) for node in scale if node.op == "call_function"} >= {
        "aten.mean.dim",
        "aten.linear.default",
    }


def test_partial_sums_have_a_scale_that_holds_them() -> None:
    model = Every()
    folded = fold(model.eval(), SMALL)
    assert [node.name for node in folded.graph.nodes if adds_taps(node)] == ["conv3d_1"]
    graph = int8(model, scheme=Scheme(partial_sums=True))
    (depthwise,) = (node for node in nodes(graph, "aten.conv3d") if len(node.args) > 6)
    (quantize,) = depthwise.users
    low, high = ((bound - quantize.args[2]) * quantize.args[1] for bound in (-128, 127))
    seen: list[Tensor] = []
    model.depthwise.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model(torch.from_numpy(normalize(clips(SMALL)[0], SMALL)))
    for k in range(3):
        weight = torch.zeros_like(model.depthwise.weight)
        weight[:, :, : k + 1] = model.depthwise.weight[:, :, : k + 1]
        partial = functional.conv3d(seen[0], weight, model.depthwise.bias, padding=1, groups=8)
        assert low - 0.05 * (high - low) < partial.min() < partial.max() < high + 0.05 * (high - low)


def test_pixels_have_a_range_of_their_own() -> None:
    spec = ClipSpec(frames=2, short_side=8, crop_height=8, crop_width=8, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    dark = [np.full((1, *spec.clip_shape), value, np.uint8) for value in (9, 12)]
    graph = calibrated(nn.Sequential(nn.Conv3d(3, 4, 1), Mean()), dark, spec, Scheme())
    scale = nodes(graph, QUANTIZE)[0].args[1]
    assert scale == pytest.approx(1.02 * 4 / 255, rel=1e-3), "white and black are in range, whatever the clips"


def test_observers_leave_out_what_is_rare() -> None:
    """One pixel in ten thousand lies far outside: the range of the extremes holds it, the others cut it off."""
    with quiet_torchao():
        from edgeact.quantize.ranges import observe
    spec = ClipSpec(frames=4, short_side=64, crop_height=64, crop_width=64)
    clip = np.full((1, *spec.clip_shape), 100, np.uint8) + np.arange(64, dtype=np.uint8).reshape(1, 1, 1, 64, 1)
    clip[0, 0, 0, 0] = 255
    model = nn.Sequential(nn.Conv3d(3, 4, 1), nn.ReLU(), nn.Conv3d(4, 4, 1), Mean())
    with torch.no_grad():
        model[0].weight.abs_()  # type: ignore[union-attr]
    with quiet_torchao():
        graph = fold(model.eval(), spec)
        high = {name: found["relu_0"][1] for name, found in observe(graph, [clip], spec, Scheme()).items()}
    assert high["percentile"] < 0.8 * high["min-max"]
    assert high["percentile"] <= high["mse"] <= 1.01 * high["min-max"]


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3, 4))


def broken(value: float, module: str) -> nn.Module:
    model = Every()
    with torch.no_grad():
        getattr(model, module).weight.fill_(value)
        getattr(model, module).bias.fill_(value)
    return model


def silent() -> nn.Module:
    convolution = nn.Conv3d(3, 4, 1)
    with torch.no_grad():
        nn.init.constant_(convolution.bias, -1e3)  # type: ignore[arg-type]
    return nn.Sequential(convolution, nn.ReLU(), Mean())


def test_a_weight_may_be_constant() -> None:
    """As of a blur: its scale holds it exactly."""
    blur = nn.Conv3d(3, 3, 3, groups=3, bias=False)
    nn.init.constant_(blur.weight, 1 / 27)
    model = nn.Sequential(blur, Mean()).eval()
    clip = clips(SMALL)[0]
    assert compare_outputs(eager(model, SMALL)(clip), eager(int8(model), SMALL)(clip))[0] > 30


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (broken(float("nan"), "point"), r"weight .*is not finite \(NaN or infinity\) on the 3 calibration clips"),
        (silent(), r"the activation relu \(module 1\) is always 0 on the 3 calibration clips"),
        (
            broken(0.0, "stem"),
            r"the activation .* is always 0 on the 3 calibration clips: int8 cannot hold it; look at the weights",
        ),
        (
            nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv3d(3, 4, 1)), Mean()),
            r"the weight of .* is computed for every clip .*: int8 stores weights; fold what computes it",
        ),
    ],
)
def test_activations_that_int8_cannot_hold(model: nn.Module, message: str) -> None:
    with pytest.raises(InputError, match=message):
        int8(model)


def test_without_clips_there_are_no_ranges() -> None:
    with pytest.raises(InputError, match="no clips to calibrate on"):
        calibrated(Every(), [], SMALL, Scheme())
