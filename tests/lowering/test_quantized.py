"""The lowered int8 graph: every op between a dequantize and a quantize, and no value rounded more than it must be."""

import numpy as np
import pytest
import torch
from int8_networks import calibrated
from lowering_checks import FORMS
from torch import nn
from torch.nn import functional

from edgeact._capture import behind_uint8, eager, fold, lower_and_prove, run_program
from edgeact.clip import ClipSpec
from edgeact.numerics import compare_outputs
from edgeact.quantize.scheme import Scheme

SPEC = ClipSpec(frames=4, short_side=16, crop_height=16, crop_width=16)
QUANTIZE = "quantized_decomposed.quantize_per_tensor.default"
DEQUANTIZE = "quantized_decomposed.dequantize_per_tensor.default"


class Block(nn.Module):
    """A dense stem over time, a padded pool over time, a depthwise block with a residual, and a head."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv3d(3, 8, (7, 3, 3), padding=(3, 1, 1))  # more taps than are stacked
        self.depthwise = nn.Conv3d(8, 8, 3, padding=1, groups=8)
        self.point, self.fc = nn.Conv3d(8, 8, 1), nn.Linear(8, 5)

    def forward(self, clip):
        x = functional.max_pool3d(self.stem(clip).relu(), 3, (1, 2, 2), 1)
        x = (self.point(self.depthwise(x).relu()) + x).relu()
        return self.fc(self.depthwise(x).mean((2, 3, 4)))


@pytest.fixture(scope="module")
def clips():
    return [np.random.default_rng(i).integers(0, 256, (1, *SPEC.clip_shape), dtype=np.uint8) for i in range(4)]


@pytest.fixture(scope="module")
def quantized(clips):
    return int8(Block(), clips)


@pytest.mark.parametrize("form", FORMS)
def test_the_parts_of_a_large_kernel_are_not_rounded(form, clips):
    """Its taps lie side by side, on zeros where they fall on padding: one convolution a frame, and no sum."""

    class Large(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.stem, self.fc = nn.Conv3d(3, 256, 1), nn.Linear(256, 5)
            self.conv = nn.Conv3d(256, 256, 3, (1, 8, 8), 1)

        def forward(self, clip):
            return self.fc(self.conv(self.stem(clip)).relu().mean((2, 3, 4)))

    quantized = int8(Large(), clips)
    ops = [str(node.target) for node in lower_and_prove(behind_uint8(quantized, SPEC), form, clips[0]).graph.nodes]
    frames = SPEC.frames if form == "unrolled" else 1
    assert ops.count("aten.conv2d.default") == 2 * frames
    assert ops.count("aten.cat.default") >= frames


@pytest.mark.parametrize("form", FORMS)
def test_every_convolution_pool_and_sum_of_taps_is_int8(form, quantized, clips):
    program = lower_and_prove(behind_uint8(quantized, SPEC), form, clips[0])
    counted = dict.fromkeys(("conv2d", "linear", "max_pool2d", "maximum", "cat", "taps"), 0)
    for node in program.graph.nodes:
        name = str(node.target).removeprefix("aten.").partition(".")[0]
        users = {str(user.target) for user in node.users}
        taps = name == "add" and all("dequantize" in str(n.target) for n in node.all_input_nodes)
        if taps and len({n.args[1] for n in node.all_input_nodes}) == 1:
            counted["taps"] += 1
        if name in counted:
            counted[name] += 1
            assert all("dequantize" in str(n.target) for n in node.all_input_nodes[:2]), node
            assert users <= {QUANTIZE, "aten.relu.default"}, node
    assert all(counted[name] for name in ("conv2d", "linear", "max_pool2d", "maximum", "taps"))


class Forked(nn.Module):
    """Squeeze-excitation right after a depthwise convolution, as in X3D: its sum of taps has two users."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.depthwise = nn.Conv3d(3, 8, 1), nn.Conv3d(8, 8, 3, padding=1, groups=8)
        self.gate, self.fc = nn.Conv3d(8, 8, 1), nn.Linear(8, 5)

    def forward(self, clip):
        x = self.depthwise(self.stem(clip))
        gated = x * self.gate(x.mean((2, 3, 4), keepdim=True)).sigmoid()
        y = self.depthwise(gated.relu())
        return self.fc((y.relu() + y).mean((2, 3, 4)))


@pytest.mark.parametrize("form", FORMS)
def test_taps_may_have_several_users(form, clips):
    quantized = int8(Forked(), clips)
    lowered = run_program(lower_and_prove(behind_uint8(quantized, SPEC), form, clips[0]))
    simulated, found = (np.concatenate([run(clip) for clip in clips]) for run in (eager(quantized, SPEC), lowered))
    assert compare_outputs(simulated, found)[0] > 25


@pytest.mark.parametrize("form", FORMS)
def test_it_follows_the_simulation(form, quantized, clips):
    lowered = run_program(lower_and_prove(behind_uint8(quantized, SPEC), form, clips[0]))
    simulated, found = (np.concatenate([run(clip) for clip in clips]) for run in (eager(quantized, SPEC), lowered))
    sqnr_db, _, _ = compare_outputs(simulated, found)
    assert sqnr_db > 25


def test_what_moves_keeps_its_scale(quantized, clips):
    program = lower_and_prove(behind_uint8(quantized, SPEC), "unrolled", clips[0])
    moved = [n for n in program.graph.nodes if str(n.target) in ("aten.cat.default", "aten.max_pool2d.default")]
    assert len(moved) >= 8
    for node in moved:
        (quantize,) = node.users
        assert quantize.args[1:] == node.all_input_nodes[0].args[1:6]


class Padded(nn.Module):
    """Pads as MiCT has them: pixels all around, and time at its end."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.deep = nn.Conv3d(3, 8, (7, 3, 3), stride=(1, 2, 2)), nn.Conv3d(8, 8, 3)
        self.flat, self.fc = nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(8, 5)

    def forward(self, clip):
        x = self.stem(functional.pad(clip, (1, 1, 1, 1, 0, 6))).relu()
        x = x + self.flat(clip.transpose(1, 2).flatten(0, 1)).relu().unflatten(0, (1, -1)).transpose(1, 2)
        return self.fc(self.deep(functional.pad(x, (1, 1, 1, 1, 0, 2))).relu().mean((2, 3, 4)))


def int8(model, clips):
    return calibrated(model, clips, SPEC, Scheme(partial_sums=True))


@pytest.mark.parametrize("form", FORMS)
def test_a_pad_is_the_convolutions_own_in_int8_too(form, clips):
    graph = int8(Padded(), clips)
    program = lower_and_prove(behind_uint8(graph, SPEC), form, clips[0])
    in_float = lower_and_prove(behind_uint8(fold(Padded().eval(), SPEC), SPEC), form, clips[0])
    assert "aten.constant_pad_nd.default" not in {str(node.target) for node in program.graph.nodes}
    kernels, expected = (
        [tuple(n.args[1].meta["val"].shape) for n in p.graph.nodes if "conv2d" in str(n.target)]
        for p in (program, in_float)
    )
    assert kernels == expected, "taps on absent frames are left out"
    assert eager(graph, SPEC)(clips[0]) == pytest.approx(run_program(program)(clips[0]), abs=1e-6)


class PaddedForTwo(Padded):
    """A pad that cannot be a convolution's own: more on one side, and read by another op."""

    def forward(self, clip):
        x = self.stem(functional.pad(clip, (1, 1, 1, 1, 0, 6))).relu()
        padded = functional.pad(x, (0, 1, 1, 1, 1, 1))
        return self.fc(self.deep(padded).relu().mean((2, 3, 4)) + padded.mean((2, 3, 4)))


@pytest.mark.parametrize("form", FORMS)
def test_other_pads_stay(form, clips):
    graph = int8(PaddedForTwo(), clips)
    program = lower_and_prove(behind_uint8(graph, SPEC), form, clips[0])
    pads = [node for node in program.graph.nodes if node.target is torch.ops.aten.constant_pad_nd.default]
    assert pads
    for pad in pads:
        (quantize,) = pad.users
        assert quantize.args[1:] == pad.all_input_nodes[0].args[1:6]
    assert eager(graph, SPEC)(clips[0]) == pytest.approx(run_program(program)(clips[0]), abs=0.05)


@pytest.mark.parametrize("form", FORMS)
def test_each_use_of_a_value_dequantizes_it(form, quantized, clips):
    program = lower_and_prove(behind_uint8(quantized, SPEC), form, clips[0])
    dequantized = [node for node in program.graph.nodes if str(node.target) == DEQUANTIZE]
    assert dequantized
    assert {len(node.users) for node in dequantized} == {1}


class OneFrame(Padded):
    """A frame alone, as MiCT's last stage gets of a short clip; the zeros after it are not computed either."""

    def forward(self, clip):
        x = self.flat(clip[:, :, 0]).relu()
        x = x.reshape(-1, 1, *x.shape[1:]).transpose(1, 2)
        return self.fc(self.deep(functional.pad(x, (1, 1, 1, 1, 0, 2))).relu().mean((2, 3, 4)))


@pytest.mark.parametrize("form", FORMS)
def test_a_pad_of_one_frame(form, clips):
    graph = int8(OneFrame(), clips)
    program = lower_and_prove(behind_uint8(graph, SPEC), form, clips[0])
    assert "aten.constant_pad_nd.default" not in {str(node.target) for node in program.graph.nodes}
    assert eager(graph, SPEC)(clips[0]) == pytest.approx(run_program(program)(clips[0]), abs=1e-6)
