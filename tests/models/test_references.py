"""Each family against its definition, written down once more: frames and taps in loops, no torch.nn module, no conv3d.

The references read nothing but a state dict and compute in float64, so that a difference is a difference of definition.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeact.models import create_model
from edgeact.models.c3d import C3D

State = Mapping[str, Tensor]
Three = tuple[int, int, int]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """These networks are tiny: a second thread only waits, seconds a test where the cores are shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def conv(x_BCTHW: Tensor, weight: Tensor, stride: Three, pad: Three, *, end: int | None = None) -> Tensor:
    """A 3D convolution as a sum of 2D ones: output frame t is the sum over taps k of conv2d(frame t * stride + k).

    Time is padded by zeros, `pad[0]` before and after, or `end` after alone. Depthwise where the weight says so.
    """
    groups = x_BCTHW.shape[1] // weight.shape[1]
    before, after = (pad[0], pad[0]) if end is None else (0, end)
    blank = torch.zeros_like(x_BCTHW[:, :, 0])
    frames = [blank] * before + list(x_BCTHW.unbind(2)) + [blank] * after
    taps, out, t = weight.unbind(2), [], 0
    while t + len(taps) <= len(frames):
        parts = [
            functional.conv2d(frames[t + k], tap, stride=stride[1:], padding=pad[1:], groups=groups)
            for k, tap in enumerate(taps)
        ]
        out.append(torch.stack(parts).sum(0))
        t += stride[0]
    return torch.stack(out, 2)


def norm(x: Tensor, state: State, name: str, eps: float) -> Tensor:
    """BatchNorm by its formula, over 4-D or 5-D tensors."""
    mean, var, gamma, beta = (
        state[f"{name}.{part}"].reshape(1, -1, *[1] * (x.ndim - 2))
        for part in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / torch.sqrt(var + eps) * gamma + beta


def relu(x: Tensor) -> Tensor:
    return x * (x > 0)


def count(state: State, prefix: str) -> int:
    """Children `prefix.0`, `prefix.1` … of a state dict."""
    return len({name[len(prefix) + 1 :].split(".")[0] for name in state if name.startswith(f"{prefix}.")})


def dense(x: Tensor, state: State, name: str) -> Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def csn(state: State, x: Tensor) -> Tensor:
    def bn(x: Tensor, name: str) -> Tensor:
        return norm(x, state, name, 1e-3)

    x = relu(bn(conv(x, state["conv1.weight"], (1, 2, 2), (1, 3, 3)), "bn1"))
    x = torch.stack([functional.max_pool2d(frame, 3, 2, 1) for frame in x.unbind(2)], 2)
    for stage in (1, 2, 3, 4):
        for i in range(count(state, f"layer{stage}")):
            block, s = f"layer{stage}.{i}", 2 if stage > 1 and i == 0 else 1
            out = relu(bn(conv(x, state[f"{block}.conv1.weight"], (1, 1, 1), (0, 0, 0)), f"{block}.bn1"))
            depthwise = f"{block}.conv2.weight"
            if depthwise not in state:  # ip: 1x1x1 and BatchNorm, no ReLU
                out = conv(out, state[f"{block}.conv2.0.weight"], (1, 1, 1), (0, 0, 0))
                out = bn(out, f"{block}.conv2.1")
                depthwise = f"{block}.conv2.2.weight"
            out = relu(bn(conv(out, state[depthwise], (s, s, s), (1, 1, 1)), f"{block}.bn2"))
            out = bn(conv(out, state[f"{block}.conv3.weight"], (1, 1, 1), (0, 0, 0)), f"{block}.bn3")
            if f"{block}.downsample.0.weight" in state:
                x = bn(conv(x, state[f"{block}.downsample.0.weight"], (s, s, s), (0, 0, 0)), f"{block}.downsample.1")
            x = relu(x + out)
    return dense(x.flatten(2).mean(2), state, "fc")


def resnet3d(state: State, x: Tensor) -> Tensor:
    def layer(x: Tensor, name: str, stride: int, pad: Three) -> Tensor:
        x = conv(x, state[f"{name}.0.weight"], (stride, stride, stride), pad)
        return norm(x, state, f"{name}.1", 1e-5)

    x = relu(norm(conv(x, state["stem.0.weight"], (1, 2, 2), (1, 3, 3)), state, "stem.1", 1e-5))
    for stage in (1, 2, 3, 4):
        for i in range(2):
            block, s = f"layer{stage}.{i}", 2 if stage > 1 and i == 0 else 1
            out = relu(layer(x, f"{block}.conv1", s, (1, 1, 1)))
            out = layer(out, f"{block}.conv2", 1, (1, 1, 1))
            x = relu(out + (layer(x, f"{block}.downsample", s, (0, 0, 0)) if stage > 1 and i == 0 else x))
    return dense(x.flatten(2).mean(2), state, "fc")


def mict(state: State, x: Tensor, strides: tuple[int, ...]) -> Tensor:
    """Frame by frame as MiCT-Net-PyTorch computes, its classifier on every frame included."""

    def bn(x: Tensor, name: str) -> Tensor:
        return norm(x, state, name, 1e-5)

    def block(x_BCHW: Tensor, name: str, stride: int) -> Tensor:
        out = relu(bn(functional.conv2d(x_BCHW, state[f"{name}.conv1.weight"], None, stride, 1), f"{name}.bn1"))
        out = bn(functional.conv2d(out, state[f"{name}.conv2.weight"], None, 1, 1), f"{name}.bn2")
        if f"{name}.downsample.0.weight" in state:
            x_BCHW = functional.conv2d(x_BCHW, state[f"{name}.downsample.0.weight"], None, stride)
            x_BCHW = bn(x_BCHW, f"{name}.downsample.1")
        return relu(out + x_BCHW)

    motion = relu(bn(conv(x, state["conv2.weight"], (strides[0], 2, 2), (0, 3, 3), end=6), "bn2"))
    motion = functional.max_pool3d(motion, 3, 2, 1)
    frames = [
        functional.max_pool2d(relu(bn(functional.conv2d(frame, state["conv1.weight"], None, 2, 3), "bn1")), 3, 2, 1)
        for frame in x.unbind(2)[::2]
    ]
    frames = [frame + motion[:, :, t] for t, frame in enumerate(frames)]
    for stage in (1, 2, 3, 4):
        name, st, s = f"layer{stage}", strides[stage], 1 if stage == 1 else 2
        motion = conv(torch.stack(frames, 2), state[f"{name}.conv.weight"], (st, s, s), (0, 1, 1), end=2)
        motion = relu(bn(motion, f"{name}.bn"))
        frames = [block(frame, f"{name}.bottlenecks.0", s) + motion[:, :, t] for t, frame in enumerate(frames[::st])]
        for i in range(1, count(state, f"{name}.bottlenecks")):
            frames = [block(frame, f"{name}.bottlenecks.{i}", 1) for frame in frames]
    scores = [dense(frame.flatten(2).mean(2), state, "fc") for frame in frames]
    return torch.stack(scores).mean(0)


def c3d(state: State, x: Tensor) -> Tensor:
    layers = (("conv1",), ("conv2",), ("conv3a", "conv3b"), ("conv4a", "conv4b"), ("conv5a", "conv5b"))
    for i, names in enumerate(layers, start=1):
        for name in names:
            x = conv(x, state[f"{name}.weight"], (1, 1, 1), (1, 1, 1))
            x = relu(x + state[f"{name}.bias"].reshape(1, -1, 1, 1, 1))
        if i == 5:  # the border of pool5 is below every activation
            x = functional.pad(x, (1, 1, 1, 1), value=-1.0)
        frames = [functional.max_pool2d(frame, 2, 2) for frame in x.unbind(2)]
        pairs = [frames] if i == 1 else [frames[: len(frames) // 2 * 2 : 2], frames[1::2]]
        x = torch.stack([torch.stack(pair).amax(0) for pair in zip(*pairs, strict=True)], 2)
    x = relu(dense(x.flatten(1), state, "fc6"))
    return dense(relu(dense(x, state, "fc7")), state, "fc8")


def shaken(name: str, **options: Any) -> nn.Module:
    """A network whose every tensor is random, running statistics and biases too, so that a wrong one is seen."""
    torch.manual_seed(0)
    net = create_model(name, num_classes=5, **options).double().eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                assert tensor is not None
                tensor.data.uniform_(0.5, 1.5)
        elif isinstance(module, nn.Conv3d | nn.Linear) and module.bias is not None:
            module.bias.data.normal_()
    return net


Reference = Callable[..., Tensor]


@pytest.mark.parametrize(
    ("name", "options", "reference", "arguments"),
    [
        ("ir_csn_26", {}, csn, ()),
        ("ip_csn_50", {}, csn, ()),
        ("resnet3d_18", {}, resnet3d, ()),
        ("mict_resnet_18", {"version": "v1"}, mict, ((1, 1, 2, 2, 2),)),
        ("mict_resnet_18", {"version": "v2"}, mict, ((1, 1, 1, 2, 1),)),
        ("mict_resnet_34", {}, mict, ((1, 1, 1, 2, 1),)),
    ],
)
@pytest.mark.parametrize("size", [(9, 33, 40), (2, 20, 17), (1, 1, 1)])
def test_the_network_is_its_definition(
    name: str, options: dict[str, Any], reference: Reference, arguments: tuple[Any, ...], size: Three
) -> None:
    net = shaken(name, width=0.125, **options)
    clip = torch.randn(2, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        expected = reference(net.state_dict(), clip, *arguments)
        torch.testing.assert_close(net(clip), expected, rtol=1e-9, atol=1e-9)
    assert expected.shape == (2, 5)


@pytest.mark.parametrize("size", [(16, 32, 48), (16, 16, 16), (20, 40, 33), (33, 47, 48)])
def test_c3d_is_its_definition_at_any_size_it_was_built_for(size: Three) -> None:
    net = shaken("c3d", width=0.0625, input_size=size)
    clip = torch.randn(2, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(net(clip), c3d(net.state_dict(), clip), rtol=1e-9, atol=1e-9)


def test_c3d_features_are_the_descriptor_that_the_classifier_reads() -> None:
    net = shaken("c3d", width=0.0625, input_size=(16, 16, 16))
    clip = torch.randn(2, 3, 16, 16, 16, dtype=torch.float64)
    assert isinstance(net, C3D)
    with torch.no_grad():
        descriptor = net.features(clip)
        state = net.state_dict()
        logits = dense(relu(dense(descriptor, state, "fc7")), state, "fc8")
        torch.testing.assert_close(net(clip), logits, rtol=1e-9, atol=1e-9)
    assert descriptor.shape == (2, 256)
    assert descriptor.min() >= 0
