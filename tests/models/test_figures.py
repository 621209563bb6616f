"""Parameters and multiply-accumulates against published figures; everything is counted on the meta device.

A published figure is rounded: half a unit of its last digit is the tolerance, unless a row says another.
"""

import itertools
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from edgeact.models import create_model, list_models

Size = tuple[int, int, int]
CSN_INPUT, MICT_INPUT, C3D_INPUT = (32, 224, 224), (16, 160, 160), (16, 112, 112)


def gmacs(net: nn.Module, size: Size) -> float:
    with FlopCounterMode(display=False) as counter, torch.device("meta"):
        net.eval()(torch.empty(1, 3, *size))
    return float(counter.get_total_flops()) / 2e9


def build(name: str, classes: int, **options: Any) -> nn.Module:
    with torch.device("meta"):
        return create_model(name, num_classes=classes, **options)


def millions(net: nn.Module, *, without: tuple[type[nn.Module], ...] = ()) -> float:
    left_out = sum(p.numel() for m in net.modules() if isinstance(m, without) for p in m.parameters())
    return (sum(p.numel() for p in net.parameters()) - left_out) / 1e6


def test_the_counter_knows_groups_and_depth() -> None:
    with FlopCounterMode(display=False) as counter, torch.device("meta"):
        x = torch.empty(1, 8, 6, 10, 10)
        functional.conv3d(x, torch.empty(8, 1, 3, 3, 3), stride=(2, 2, 2), padding=1, groups=8)
    assert counter.get_total_flops() == 2 * 8 * 27 * (3 * 5 * 5)  # one input channel for each output
    with FlopCounterMode(display=False) as counter, torch.device("meta"):
        functional.conv3d(x, torch.empty(4, 8, 3, 1, 1), padding=(1, 0, 0))
    assert counter.get_total_flops() == 2 * 4 * 8 * 3 * (6 * 10 * 10)


@pytest.mark.parametrize(
    ("name", "options", "classes", "size", "parameters", "macs"),
    [
        # the headers of the model files; the design says 74.1 for ir-152, which counts 74.046
        ("ir_csn_50", {}, 400, CSN_INPUT, 13.13, 42.3),
        ("ir_csn_101", {}, 400, CSN_INPUT, 22.21, 56.5),
        ("ir_csn_152", {}, 400, CSN_INPUT, 29.70, 74.05),
        ("ip_csn_152", {}, 400, CSN_INPUT, 33.02, 83.3),
        ("mict_resnet_18", {}, 101, MICT_INPUT, 16.05, 12.6),
        ("mict_resnet_18", {"version": "v2"}, 101, MICT_INPUT, 16.05, 15.3),
        ("mict_resnet_34", {}, 101, MICT_INPUT, 26.16, 20.5),
        ("c3d", {}, 101, C3D_INPUT, 78.41, 38.5),
        # torchvision/models/video/resnet.py, R3D_18_Weights.KINETICS400_V1: num_params 33371472, _ops 40.697
        ("resnet3d_18", {}, 400, C3D_INPUT, 33.371472, 40.697),
        # no figure is published for these: what was counted, so that a change is seen
        ("ir_csn_26", {}, 400, CSN_INPUT, 8.57, 31.73),
        ("ip_csn_50", {}, 400, CSN_INPUT, 14.40, 47.65),
        ("ip_csn_101", {}, 400, CSN_INPUT, 24.60, 63.56),
        ("mict_resnet_34", {"version": "v1"}, 101, MICT_INPUT, 26.16, 15.56),
    ],
)
def test_parameters_and_gmacs(
    name: str, options: dict[str, Any], classes: int, size: Size, parameters: float, macs: float
) -> None:
    net = build(name, classes, **options)
    assert millions(net) == pytest.approx(parameters, abs=0.005)
    assert gmacs(net, size) == pytest.approx(macs, abs=0.05)


# facebookresearch/VMZ, README.md and its model zoo: "GFLOPs" are multiply-accumulates, and the parameters are those of
# convolutions and classifier, without BatchNorm's. The tables name an input of 32x224x224, but both figures are met at
# 32x256x256 and nowhere near 224, where there are (224 / 256)^2 = 0.766 times as many, 74.05 and 83.29.
@pytest.mark.parametrize(
    ("name", "parameters", "macs"),
    [("ir_csn_152", 29.6, 96.7), ("ip_csn_152", 32.8, 108.8)],
)
def test_csn_as_its_authors_count(name: str, parameters: float, macs: float) -> None:
    net = build(name, 400)
    assert millions(net, without=(nn.BatchNorm3d,)) == pytest.approx(parameters, abs=0.05)
    assert gmacs(net, (32, 256, 256)) == pytest.approx(macs, abs=0.05)


def test_c3d_parameters_by_hand() -> None:
    channels = (3, 64, 128, 256, 256, 512, 512, 512, 512)
    convolutions = sum(27 * a * b + b for a, b in itertools.pairwise(channels))
    dense = sum(a * b + b for a, b in ((512 * 1 * 4 * 4, 4096), (4096, 4096), (4096, 487)))
    assert millions(build("c3d", 487)) * 1e6 == convolutions + dense


@pytest.mark.parametrize("name", ["ir_csn_26", "mict_resnet_18", "c3d", "resnet3d_18"])
def test_width_scales_parameters_by_its_square(name: str) -> None:
    full, half, double = (millions(build(name, 10, width=width)) for width in (1, 0.5, 2))
    assert 0.22 < half / full < 0.30  # depthwise kernels, norms and classifier grow linearly
    assert 3.3 < double / full < 4.0


def test_mict_has_five_volumetric_convolutions_and_no_other() -> None:
    for name in ("mict_resnet_18", "mict_resnet_34"):
        kernels = [m.kernel_size for m in build(name, 2).modules() if isinstance(m, nn.Conv3d)]
        assert kernels == [(7, 7, 7)] + 4 * [(3, 3, 3)]
        assert all(m.bias is None for m in build(name, 2).modules() if isinstance(m, nn.Conv2d | nn.Conv3d))


def test_csn_layers_are_as_many_as_their_names_say() -> None:
    for name in (name for name in list_models() if "csn" in name):
        names = [n for n, m in build(name, 2).named_modules() if isinstance(m, nn.Conv3d | nn.Linear)]
        # the paper counts three layers a bottleneck: ip's second 1x1x1 and the shortcuts are not counted
        counted = [n for n in names if "downsample" not in n and not n.endswith("conv2.0")]
        assert len(counted) == int(name.rpartition("_")[2]), name
