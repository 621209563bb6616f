import dataclasses

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from lowering_checks import assert_lowers, capture, targets
from torch import nn
from torch.nn import functional

from edgeact.lowering import Conv, default_taps, lower


@st.composite
def convolutions(draw):
    groups = draw(st.sampled_from([1, 1, 2, 4]))
    kernel = draw(st.tuples(st.sampled_from([1, 2, 3, 5, 7]), st.integers(1, 3), st.integers(1, 3)))
    conv = nn.Conv3d(
        4,
        groups * draw(st.integers(1, 3)),
        kernel,
        stride=draw(st.tuples(st.integers(1, 3), st.integers(1, 2), st.integers(1, 2))),
        padding=tuple(draw(st.integers(0, 3)) for _ in range(3)),
        dilation=draw(st.tuples(st.integers(1, 2), st.integers(1, 2), st.integers(1, 2))),
        groups=groups,
        bias=draw(st.booleans()),
    )
    return conv, draw(st.integers(1, 8)), draw(st.sampled_from(["stack", "padded", "sum"]))


@given(convolutions())
def test_any_conv3d(case):
    conv, frames, taps = case
    size = [
        (length + 2 * p - d * (k - 1) - 1) // s + 1
        for length, k, s, p, d in zip(
            (frames, 6, 5), conv.kernel_size, conv.stride, conv.padding, conv.dilation, strict=True
        )
    ]
    assume(min(size) > 0)
    assert_lowers(conv, (1, 4, frames, 6, 5), taps=lambda _: taps)


@st.composite
def transposed(draw):
    stride = draw(st.tuples(st.integers(1, 3), st.integers(1, 2), st.integers(1, 2)))
    groups = draw(st.sampled_from([1, 2, 4]))
    conv = nn.ConvTranspose3d(
        4,
        groups * draw(st.integers(1, 2)),
        draw(st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3))),
        stride=stride,
        padding=tuple(draw(st.integers(0, 2)) for _ in range(3)),
        output_padding=tuple(draw(st.integers(0, s - 1)) for s in stride),
        groups=groups,
        dilation=draw(st.tuples(st.integers(1, 2), st.integers(1, 2), st.integers(1, 2))),
        bias=draw(st.booleans()),
    )
    return conv, draw(st.integers(1, 4))


@given(transposed())
def test_any_conv_transpose3d(case):
    conv, frames = case
    size = [
        (length - 1) * s - 2 * p + d * (k - 1) + more + 1
        for length, k, s, p, d, more in zip(
            (frames, 6, 5),
            conv.kernel_size,
            conv.stride,
            conv.padding,
            conv.dilation,
            conv.output_padding,
            strict=True,
        )
    ]
    assume(min(size) > 0)
    assert_lowers(conv, (1, 4, frames, 6, 5))


@pytest.mark.parametrize("groups", [1, 4])
def test_volumes_of_a_batch(groups):
    """Heads of an attention whose keys are pooled by a convolution; the bias and strides as ever."""

    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv3d(4, 4, 3, (1, 2, 2), 1, groups=groups)

        def forward(self, x):
            return self.conv(x.view(1, 2, 4, 5, 6, 6).squeeze(0) * 2)

    assert_lowers(Heads(), (1, 8, 5, 6, 6))


def test_all_frames_in_the_padding():
    conv = nn.Conv3d(4, 8, (1, 1, 4), stride=(3, 4, 2), padding=(1, 0, 3))
    assert_lowers(conv, (1, 4, 1, 4, 4))
    conv.bias = None
    assert_lowers(conv, (1, 4, 1, 4, 4))


def test_frames_of_constant_zeros_are_left_out():
    class Causal(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv3d(3, 4, (3, 1, 1))

        def forward(self, x):
            return self.conv(torch.cat([x.new_zeros(1, 3, 2, 6, 6), x], 2))

    assert_lowers(Causal(), (1, 3, 4, 6, 6))
    lowered = lower(capture(Causal(), torch.zeros(1, 3, 4, 6, 6)), taps=lambda _: "sum")
    assert targets(lowered).count("aten.conv2d.default") == 4 + 3 + 2


def test_a_pad_of_the_kernel_is_not_one_of_the_clip():
    class Reparametrized(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.point = nn.Conv3d(3, 4, 3), nn.Conv3d(3, 4, 1)

        def forward(self, x):
            point = functional.pad(self.point.weight, (1, 1, 1, 1, 1, 1))
            return functional.conv3d(x, point, padding=1) + functional.conv3d(x, self.conv.weight + point, padding=1)

    assert_lowers(Reparametrized(), (1, 3, 4, 6, 6))


@pytest.mark.parametrize("padding", [(3, 3, 3, 3, 0, 6), (1, 1, 1, 1, 0, 2), (0, 1, 2, 0, 2, 0), (1, 1, 1, 1, -1, 3)])
@pytest.mark.parametrize("value", [0.0, 1.5])
def test_asymmetric_padding(padding, value):
    """MiCT pads time at its end alone; with another value than zero the padding is real."""

    class Padded(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv3d(3, 4, 3, bias=True)

        def forward(self, x):
            return self.conv(functional.pad(x, padding, value=value))

    assert_lowers(Padded(), (1, 3, 5, 6, 6))


def test_padding_frames_are_left_out():
    """8 frames, 3 taps, padding 1: 22 of 24 taps are computed, and there is not one tensor of zeros."""
    program = capture(nn.Conv3d(4, 4, 3, padding=1, groups=4), torch.zeros(1, 4, 8, 6, 6))
    ops = targets(lower(program))
    assert ops.count("aten.conv2d.default") == 22
    assert ops.count("aten.add.Tensor") == 14
    stacked = lower(capture(nn.Conv3d(4, 4, 3, padding=1), torch.zeros(1, 4, 8, 6, 6)), taps=lambda _: "stack")
    kernels = sorted(tuple(tensor.shape) for tensor in stacked.state_dict.values() if tensor.ndim == 4)
    assert kernels == [(4, 8, 3, 3), (4, 8, 3, 3), (4, 12, 3, 3)]  # the first frame's, the last one's, all others'
    assert not [op for op in ops if "zeros" in op or "full" in op or "pad" in op]
    padded = lower(capture(nn.Conv3d(4, 4, 3, padding=1), torch.zeros(1, 4, 8, 6, 6)), taps=lambda _: "padded")
    assert targets(padded).count("aten.conv2d.default") == 8
    kernels = [tuple(tensor.shape) for tensor in padded.state_dict.values() if len(tensor) == 4 and tensor.ndim == 4]
    assert kernels == [(4, 12, 3, 3)]


def test_a_frame_of_padding_alone_is_the_bias():
    class Early(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv3d(2, 3, (1, 3, 3))

        def forward(self, x):
            return self.conv(functional.pad(x, (0, 0, 0, 0, 2, 1)))

    assert_lowers(Early(), (1, 2, 3, 5, 5))


def test_weights_are_shared_by_all_frames():
    lowered = lower(capture(nn.Conv3d(3, 8, 1), torch.zeros(1, 3, 16, 4, 4)))
    assert len(lowered.state_dict) == 2


def test_the_rule_for_taps():
    size = {"kernel": (3, 3, 3), "frames_in": 8, "frames_out": 8}
    assert default_taps(Conv(in_channels=64, out_channels=64, groups=1, **size)) == "stack"
    assert default_taps(Conv(in_channels=64, out_channels=64, groups=64, **size)) == "sum"
    large = Conv(in_channels=512, out_channels=512, groups=1, **size)
    assert default_taps(large) == "sum"
    assert default_taps(dataclasses.replace(large, int8=True)) == "padded", "its parts would be rounded"


def test_a_long_stack_is_cut_so_that_backends_can_concatenate_it():
    program = lower(capture(nn.Conv3d(3, 4, (7, 1, 1), padding=(3, 0, 0)), torch.zeros(1, 3, 9, 6, 6)))
    cats = [node for node in program.graph.nodes if str(node.target) == "aten.cat.default"]
    cats = [node for node in cats if node.meta["val"].ndim == 4]  # but for the output, put together
    assert max(len(node.args[0]) for node in cats) == 5
    assert_lowers(nn.Conv3d(3, 4, (11, 1, 1), padding=(5, 0, 0)), (1, 3, 12, 6, 6))
