"""Every other op of a 3-D network, one line each."""

import pytest
import torch
from lowering_checks import FORMS, assert_lowers, capture, randomize_norms_
from torch import nn
from torch.nn import functional

from edgeact.errors import LoweringError
from edgeact.lowering import lower


class Op(nn.Module):
    """A convolution, so that time is cut, then the op."""

    def __init__(self, op):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv3d(3, 4, (3, 1, 1), padding=(1, 0, 0))
        self.scale = nn.Parameter(torch.randn(1, 4, 1, 1, 1))
        self.place = nn.Parameter(torch.randn(1, 4, 5, 1, 1))
        self.linear = nn.Linear(4, 6)
        self.norm = nn.LayerNorm(4)
        self.conv2d = nn.Conv2d(4, 2, 3, padding=1)
        self.op = op

    def forward(self, x):
        return self.op(self, self.conv(x))


def write(x, places, value):
    x = x.clone()
    x[places] = value
    return x * 2


def temporal_shift(module, x):
    """A quarter of the channels from the next frame, a quarter from the one before (Lin et al. 2019)."""
    x = x.transpose(1, 2)
    shifted = torch.zeros_like(x)
    shifted[:, :-1, :1] = x[:, 1:, :1]
    shifted[:, 1:, 1:2] = x[:, :-1, 1:2]
    shifted[:, :, 2:] = x[:, :, 2:]
    return module.conv2d(shifted.flatten(0, 1))


OPS = {
    "relu": lambda m, x: functional.relu(x),
    "relu6": lambda m, x: functional.relu6(x * 4),
    "sigmoid": lambda m, x: x.sigmoid(),
    "silu": lambda m, x: functional.silu(x),
    "hardswish": lambda m, x: functional.hardswish(x * 3),
    "hardsigmoid": lambda m, x: functional.hardsigmoid(x),
    "gelu": lambda m, x: functional.gelu(x),
    "gelu tanh": lambda m, x: functional.gelu(x, approximate="tanh"),
    "clamp": lambda m, x: x.clamp(-0.5, 0.5),
    "leaky_relu": lambda m, x: functional.leaky_relu(x, 0.1),
    "elu": lambda m, x: functional.elu(x),
    "prelu": lambda m, x: functional.prelu(x, m.scale.flatten()),
    "softplus": lambda m, x: functional.softplus(x),
    "group_norm": lambda m, x: functional.group_norm(x, 2, m.scale.flatten(), m.scale.flatten()),
    "group_norm of frames": lambda m, x: functional.group_norm(x[0].transpose(0, 1), 2),
    "group_norm of one group": lambda m, x: functional.group_norm(x.clone(), 1, None, m.scale.flatten()),
    "instance_norm": lambda m, x: functional.instance_norm(x, weight=m.scale.flatten()),
    "group_norm of a clip's features": lambda m, x: functional.group_norm(x.mean((2, 3, 4)), 2),
    "temporal shift": temporal_shift,
    "a frame twice": lambda m, x: x[:, :, [0, 0, 1, 2, 3]] - x,
    "frames twice by index_select": lambda m, x: torch.index_select(x, 2, torch.tensor([0, 0, 2, 2, 4])),
    "a channel four times": lambda m, x: x[:, [0, 0, 0, 0]],
    "conv3d same": lambda m, x: functional.conv3d(x, torch.ones(2, 4, 3, 2, 3), padding="same"),
    "conv3d same, odd in time": lambda m, x: functional.conv3d(x, torch.ones(2, 4, 2, 3, 3), padding="same"),
    "conv3d valid": lambda m, x: functional.conv3d(x, torch.ones(2, 4, 3, 3, 3), padding="valid", stride=2),
    "conv2d same": lambda m, x: functional.conv2d(x[0].transpose(0, 1), torch.ones(2, 4, 4, 4), padding="same"),
    "adaptive_avg_pool3d in equal bins": lambda m, x: functional.adaptive_avg_pool3d(x, (2, 3, 2)),
    "write a number": lambda m, x: write(x, (slice(None), slice(1, 3)), 2.0),
    "write a frame": lambda m, x: write(x, (slice(None), slice(None), -1), x[:, :, 0] * 2),
    "write a channel": lambda m, x: write(x, (0, 1), x[0, 2]),
    "write to every other frame": lambda m, x: write(x, (slice(None), slice(None), slice(None, None, 2)), 1.0),
    "write to every other row": lambda m, x: write(x, (..., slice(1, None, 2), slice(None)), x[..., ::2, :]),
    "write to no frame": lambda m, x: write(x, (slice(None), slice(None), slice(5, None)), 1.0),
    "write into zeros": lambda m, x: write(torch.zeros_like(x), (slice(None), slice(None), slice(1, -1)), x[:, :, :3]),
    "where": lambda m, x: torch.where(x > 0, x, x * 2),
    "relu_ in place": lambda m, x: x.clone().relu_(),
    "add": lambda m, x: x + x.sigmoid(),
    "add of a frame": lambda m, x: x + x[:, :, :1],
    "add of a number": lambda m, x: 1 - x,
    "mul by a channel": lambda m, x: x * m.scale,
    "mul by a channel, low rank": lambda m, x: x * m.scale[0],
    "position in time": lambda m, x: x + m.place,
    "squeeze-excitation": lambda m, x: x * x.mean((2, 3, 4), keepdim=True).sigmoid(),
    "squeeze-excitation per frame": lambda m, x: x * x.mean((3, 4), keepdim=True).sigmoid(),
    "squeeze in time": lambda m, x: x * x.mean(2, keepdim=True),
    "outer product": lambda m, x: x.mean((1, 3, 4), keepdim=True) * m.scale,
    "div": lambda m, x: x / (1 + x.abs()),
    "mean of time": lambda m, x: x.mean(2),
    "mean of time and pixels": lambda m, x: x.mean((2, 3, 4)),
    "mean of pixels": lambda m, x: x.mean((-1, -2)),
    "mean of all": lambda m, x: x.mean(),
    "sum of channels": lambda m, x: x.sum(1),
    "sum of all": lambda m, x: x.sum(),
    "amax": lambda m, x: x.amax((2, 3)),
    "amin of time": lambda m, x: x.amin(2, keepdim=True),
    "max of time": lambda m, x: x.max(2).values,
    "min of channels": lambda m, x: x.min(1, keepdim=True)[0],
    "max of all": lambda m, x: x.max(),
    "variance of time and pixels": lambda m, x: x.var((2, 3, 4)),
    "standard deviation of time, uncorrected": lambda m, x: x.std(2, correction=0),
    "normalize over channels": lambda m, x: functional.normalize(x, dim=1),
    "normalize over time": lambda m, x: functional.normalize(x, dim=2),
    "1-norm": lambda m, x: x.norm(p=1, dim=(2, 3)),
    "position in time of one frame": lambda m, x: x.mean(2, keepdim=True) + m.place,
    "repeat": lambda m, x: x.repeat(1, 2, 2, 1, 3),
    "repeat in a new dimension": lambda m, x: x[0].repeat(1, 1, 1, 1, 1),
    "conv1d over time": lambda m, x: functional.conv1d(x.mean((3, 4)), torch.ones(2, 4, 3), padding=1),
    "max_pool1d over time": lambda m, x: functional.max_pool1d(x.mean((3, 4)), 2),
    "adaptive_max_pool2d of frames": lambda m, x: functional.adaptive_max_pool2d(x[0].transpose(0, 1), 2),
    "adaptive_max_pool2d of an image": lambda m, x: functional.adaptive_max_pool2d(x.mean(2), 2),
    "max_pool3d, its values of two": lambda m, x: functional.max_pool3d(x, 2, return_indices=True)[0],
    "upsample nearest": lambda m, x: functional.interpolate(x, scale_factor=2),
    "upsample nearest to a size": lambda m, x: functional.interpolate(x, size=(3, 6, 6)),
    "upsample nearest by uneven factors": lambda m, x: functional.interpolate(x, scale_factor=(1.5, 1, 0.5)),
    "upsample trilinear": lambda m, x: functional.interpolate(x, scale_factor=(2.0, 1.5, 2.0), mode="trilinear"),
    "upsample trilinear to a size": lambda m, x: functional.interpolate(x, size=(3, 7, 5), mode="trilinear"),
    "upsample trilinear from corner to corner": lambda m, x: functional.interpolate(
        x, size=(7, 6, 6), mode="trilinear", align_corners=True
    ),
    "upsample trilinear to one frame": lambda m, x: functional.interpolate(
        x, size=(1, 8, 8), mode="trilinear", align_corners=True
    ),
    "no frame and all": lambda m, x: torch.cat([x[:, :, 5:], x], 2),
    "cat of channels": lambda m, x: torch.cat([x, x.relu()], 1),
    "cat in time": lambda m, x: torch.cat([x, x[:, :, 1:3]], 2),
    "cat in height": lambda m, x: torch.cat([x, x], 3),
    "cat in the batch": lambda m, x: torch.cat([x, x.relu()], 0).sum(0, keepdim=True),
    "stack": lambda m, x: torch.stack([x, x.relu()], 2).mean(2),
    "slice in time": lambda m, x: x[:, :, 1::2],
    "slice of pixels": lambda m, x: x[..., 1:-1, ::2],
    "slice of channels": lambda m, x: x[:, 1:3],
    "select a frame": lambda m, x: x[:, :, 2],
    "select the last frame": lambda m, x: x[:, :, -1],
    "select a channel": lambda m, x: x[:, 1],
    "select the batch": lambda m, x: x[0],
    "index_select in time": lambda m, x: x.index_select(2, torch.tensor([4, 0, 0])),
    "index_select of channels": lambda m, x: x.index_select(1, torch.tensor([2, 1])),
    "index in time": lambda m, x: x[:, :, [3, 1]],
    "flip": lambda m, x: x.flip(2, 4),
    "split in time": lambda m, x: torch.cat(torch.split(x, [2, 3], 2)[::-1], 2),
    "split of channels": lambda m, x: x.split(2, 1)[1],
    "chunk": lambda m, x: x.chunk(2, 1)[0] * x.chunk(2, 1)[1],
    "unbind": lambda m, x: x.unbind(2)[1] + x.unbind(2)[3],
    "narrow": lambda m, x: x.narrow(2, 1, 3),
    "pad pixels": lambda m, x: functional.pad(x, (1, 2, 0, 1)),
    "pad in time": lambda m, x: functional.pad(x, (0, 0, 0, 0, 1, 2)) + 1,
    "pad with a value": lambda m, x: functional.pad(x, (1, 0, 0, 0, 2, 0), value=3.0),
    "replicate": lambda m, x: functional.pad(x, (1, 1, 2, 0, 1, 2), mode="replicate"),
    "max_pool of a padded volume": lambda m, x: functional.max_pool3d(functional.pad(x, (0, 0, 0, 0, 1, 1)), (2, 1, 1)),
    "permute": lambda m, x: x.permute(0, 2, 3, 4, 1),
    "permute of the batch": lambda m, x: x.permute(1, 0, 2, 3, 4),
    "transpose": lambda m, x: x.transpose(1, 2),
    "unsqueeze": lambda m, x: x.unsqueeze(0),
    "squeeze": lambda m, x: x[:, :1].squeeze(),
    "reshape to frames": lambda m, x: m.conv2d(x.transpose(1, 2).reshape(5, 4, 6, 6)),
    "reshape to frames and back": lambda m, x: (
        m.conv2d(x.transpose(1, 2).flatten(0, 1)).view(1, 5, 2, 6, 6).transpose(1, 2)
    ),
    "flatten": lambda m, x: x.flatten(1),
    "flatten pixels": lambda m, x: x.flatten(3).softmax(-1),
    "view positions": lambda m, x: x.view(1, 4, -1).softmax(-1),
    "expand": lambda m, x: x.mean(2, keepdim=True).expand(-1, -1, 7, -1, -1),
    "expand of channels": lambda m, x: x[:, :1].expand(1, 3, 5, 6, 6),
    "dropout": lambda m, x: functional.dropout3d(functional.dropout(x, training=False), training=False),
    "linear": lambda m, x: m.linear(x.permute(0, 2, 3, 4, 1)),
    "linear after the mean": lambda m, x: m.linear(x.mean((2, 3, 4))).softmax(-1),
    "linear per frame, then mean": lambda m, x: m.linear(x.mean((3, 4)).transpose(1, 2)).mean(1),
    "layer_norm, channels last": lambda m, x: m.norm(x.permute(0, 2, 3, 4, 1)).permute(0, 4, 1, 2, 3),
    "softmax of channels": lambda m, x: x.softmax(1),
    "softmax of time": lambda m, x: x.softmax(2),
    "log_softmax": lambda m, x: x.log_softmax(1),
    "max_pool2d of frames": lambda m, x: functional.max_pool2d(x.transpose(1, 2).flatten(0, 1), 2),
    "bilinear of frames": lambda m, x: functional.interpolate(x[0].transpose(0, 1), scale_factor=2.0, mode="bilinear"),
    "to": lambda m, x: x.to(torch.float64).to(torch.float32),
    "conv3d again": lambda m, x: functional.conv3d(x.permute(0, 1, 4, 2, 3), torch.ones(2, 4, 3, 1, 1)),
    "scaled_dot_product_attention of frames": lambda m, x: functional.scaled_dot_product_attention(
        *[x[0].permute(1, 2, 3, 0)] * 3
    ),
    "scaled_dot_product_attention, causal": lambda m, x: functional.scaled_dot_product_attention(
        *[x[0].permute(2, 3, 1, 0)] * 3, is_causal=True
    ),
    "scaled_dot_product_attention": lambda m, x: (
        functional.scaled_dot_product_attention(*[x.flatten(2).transpose(1, 2)] * 3).transpose(1, 2).view(1, 4, 5, 6, 6)
    ),
    "max_pool3d without a batch": lambda m, x: functional.max_pool3d(x[0], 2),
    "adaptive pools of two volumes": lambda m, x: functional.adaptive_max_pool3d(x.view(2, 2, 5, 6, 6), 2),
    "conv3d without a batch": lambda m, x: functional.conv3d(x[0], torch.ones(2, 4, 3, 1, 1)),
    "conv3d of two volumes": lambda m, x: m.conv(torch.cat([x[:, :3], x[:, 1:]])),
    "conv3d of a constant volume": lambda m, x: x + m.conv(torch.ones(1, 3, 5, 6, 6)),
    "conv3d by a computed kernel": lambda m, x: functional.conv3d(
        x, x.mean((3, 4)).view(4, 1, 5, 1, 1), x.mean((2, 3, 4))[0], padding=(2, 0, 0), groups=4
    ),
    "conv2d by a computed kernel": lambda m, x: functional.conv2d(
        x.flatten(3), x.mean((3, 4)).view(4, 1, 5, 1), padding=(2, 0), groups=4
    ),
    "conv1d by a computed kernel": lambda m, x: functional.conv1d(x.mean((3, 4)), x.mean((2, 3, 4)).view(1, 4, 1)),
    "conv1d without a batch": lambda m, x: functional.conv1d(x.mean((3, 4))[0], torch.ones(2, 4, 3)),
    "conv_transpose1d": lambda m, x: functional.conv_transpose1d(x.mean((3, 4)), torch.ones(4, 2, 3), stride=2),
    "sum of truth values": lambda m, x: ((x > 0).sum(2), (x > 0).sum((2, 3)), (x > 0).sum()),
    "sum of bytes": lambda m, x: (x.abs() * 99).to(torch.uint8).sum(2),
    "sum and mean in another type": lambda m, x: (
        x.sum((2, 3), dtype=torch.float64),
        x.mean(dtype=torch.float64),
        (x.abs() * 99).to(torch.uint8).mean((2, 3, 4), dtype=torch.float32),
    ),
    "any": lambda m, x: ((x > 0).any(2), x.any(), (x > 1).any(1)),
    "cumsum": lambda m, x: (x.cumsum(2), x.cumsum(1), (x > 0).cumsum(2), x.mean((3, 4)).cumsum(0)),
    "var_mean and std_mean": lambda m, x: (torch.var_mean(x, (2, 3)), torch.std_mean(x, 2, keepdim=True)),
    "attention without a batch": lambda m, x: functional.scaled_dot_product_attention(
        *[x.mean((3, 4))[0].transpose(0, 1)] * 3
    ),
    "attention of all frames to one": lambda m, x: functional.scaled_dot_product_attention(
        x[0].flatten(2).permute(1, 2, 0), *[x[0].flatten(2).permute(1, 2, 0)[:1]] * 2
    ),
    "cat of several types": lambda m, x: (torch.cat([x.half(), x], 2), torch.cat([x.double(), x], 1)),
    "cat of nothing": lambda m, x: torch.cat([torch.empty(0), x], 2),
    "cat of a batch": lambda m, x: torch.cat([torch.cat([x, x * 2]), x]),
    "one of a batch": lambda m, x: torch.cat([x, x * 2])[1:].mean((3, 4)),
    "padding alone, of another type": lambda m, x: functional.pad(x.double(), (0, 0, 0, 0, 2, 0))[:, :, :2],
    "write of another type": lambda m, x: write(
        torch.zeros_like(x), (slice(None), slice(None), slice(1, 3)), x[:, :, :2].double()
    ),
    "write of a channel": lambda m, x: write(x, (0, 0), 7.0),
    "write of a mask": lambda m, x: (write(x, x < 0, 0.0), write(x.mean((2, 3)), x.mean((2, 3)) < 0, 0.0)),
    "write of several indices after the mean": lambda m, x: write(x.mean(2), (0, [0, 1], [1, 2]), 0.0),
    "write of some frames": lambda m, x: write(x, (slice(None), slice(None), [0, -2]), x[:, :, :1]),
    "upsample nearest-exact": lambda m, x: functional.interpolate(x, scale_factor=(1.7, 2, 2), mode="nearest-exact"),
    "upsample nearest to the same size": lambda m, x: functional.interpolate(x, scale_factor=(1.0, 1.15, 1.15)),
    "upsample trilinear to the same size": lambda m, x: functional.interpolate(
        x, scale_factor=(1.15, 1.15, 1.0), mode="trilinear"
    ),
    "half precision through a float norm": lambda m, x: functional.batch_norm(
        x.half(), torch.zeros(4), torch.ones(4), m.scale.flatten(), None
    ),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("name", OPS)
def test_op(name):
    assert_lowers(Op(OPS[name]), (1, 3, 5, 6, 6))


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact", "trilinear"])
def test_every_ratio_of_frames(mode):
    """Torch rounds places in float32: 14 frames to 46, or 26 to 22, are not what the reals say."""
    for frames, asked in [(14, 46), (26, 22), (28, 46), (3, 7), (8, 5)]:
        to = Resize(mode, size=(asked, 2, 2))
        assert_lowers(to, (1, 1, frames, 2, 2))
    for factor in (1.1, 1.3, 1 / 3, 0.7):
        assert_lowers(Resize(mode, scale_factor=(factor, 1.0, 1.0)), (1, 1, 31, 2, 2))


class Resize(nn.Module):
    def __init__(self, mode, **how):
        super().__init__()
        self.how = how | {"mode": mode}

    def forward(self, x):
        return functional.interpolate(x, **self.how)


@pytest.mark.parametrize(
    "op",
    [
        lambda x: (x + 3000).mean((2, 3, 4)),
        lambda x: functional.adaptive_avg_pool3d(x + 3000, 1),
        lambda x: functional.group_norm(x * 100, 1),
        lambda x: (x * 100).std((2, 3, 4)),
    ],
)
def test_half_precision_does_not_overflow(op):
    class Half(nn.Module):
        def forward(self, x):
            return op(x)

    assert_lowers(Half(), (1, 3, 32, 4, 4), dtype=torch.float16, tolerance=2e-3)


def per_channel(module, x):
    import torch.ao.quantization.fx._decomposed  # registers the ops

    scales, zeros = module.scale.flatten().abs(), torch.zeros(4, dtype=torch.int64)
    return torch.ops.quantized_decomposed.quantize_per_channel(x, scales, zeros, 1, -127, 127, torch.int8)


@pytest.mark.parametrize(
    ("op", "message"),
    [
        (lambda m, x: functional.dropout(x, 0.5, True), r"dropout in training mode: call \.eval\(\) before the export"),
        (
            lambda m, x: functional.dropout3d(x, 0.5, True),
            r"dropout in training mode: call \.eval\(\) before the export",
        ),
        (lambda m, x: functional.dropout(x.mean((2, 3, 4)), 0.5, True), "dropout in training mode"),
        (lambda m, x: x + torch.rand_like(x), "its values are random"),
        (lambda m, x: x * torch.rand(4, 1, 1, 1), "its values are random"),
        (lambda m, x: x.expand(2, -1, -1, -1, -1), "expand of the batch to 2: an edge graph has a batch of 1"),
        (lambda m, x: x[1:], r"the batch of 1 cannot give the places \[\]"),
        (lambda m, x: x[[0, 0]], r"the batch of 1 cannot give the places \[0, 0\]"),
        (per_channel, "activations quantized per channel"),
        (
            lambda m, x: write(x, (slice(None), [0, 1], [1, 2]), 0.0),
            "a write to places that are computed, or given by several tensors",
        ),
        (lambda m, x: x.max(2)[1] * 2, "its values alone are computed, not their indices"),
        (lambda m, x: functional.max_pool3d(x, 2, return_indices=True)[1] * 2, "its values alone are computed"),
        (lambda m, x: x[:, :, :1].var(2), "the variance of 1 values with a correction of 1: it is not a number"),
        (
            lambda m, x: functional.max_pool3d(x[:, :, :1], (2, 1, 1), (1, 1, 1), (1, 0, 0), (2, 1, 1)),
            "a window that lies in the padding alone: its maximum is minus infinity",
        ),
        (
            lambda m, x: functional.scaled_dot_product_attention(*[x.flatten(2)] * 3, dropout_p=0.5),
            "dropout in training mode",
        ),
        (
            lambda m, x: functional.batch_norm(x[0].transpose(0, 1), None, None, training=True),
            "a norm by the statistics of a batch: an edge graph has a batch of 1",
        ),
    ],
)
def test_what_an_op_refuses(op, message):
    with pytest.raises(LoweringError, match=rf"test_ops\.py:\d+\) cannot be lowered: {message}"):
        lower(capture(Op(op), torch.zeros(1, 3, 5, 6, 6)))


def test_batch_norm_without_a_convolution():
    net = nn.Sequential(nn.BatchNorm3d(3), nn.ReLU(), nn.Conv3d(3, 4, 3, padding=1), nn.ReLU(), nn.BatchNorm3d(4))
    assert_lowers(randomize_norms_(net), (1, 3, 5, 6, 6))
    assert_lowers(nn.Sequential(nn.Conv3d(3, 4, 1), nn.ReLU(), nn.BatchNorm3d(4, affine=False)), (1, 3, 2, 3, 3))


def test_several_outputs_keep_their_structure():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv3d(3, 4, 3)

        def forward(self, x):
            y = self.conv(x)
            return {"volume": y, "heads": (y.mean((2, 3, 4)), y.amax((2, 3, 4)))}

    clip = torch.randn(1, 3, 4, 5, 5)
    module = Heads()
    expected = module(clip)
    for form in FORMS:
        found = lower(capture(module, clip), form=form).module(check_guards=False)(clip)
        assert found.keys() == expected.keys()
        torch.testing.assert_close(found["volume"], expected["volume"])
        torch.testing.assert_close(found["heads"], expected["heads"])


class Streams(nn.Module):
    """Two pathways, as in SlowFast (Feichtenhofer et al. 2019), handed over in containers."""

    def __init__(self):
        super().__init__()
        self.slow, self.fast = nn.Conv3d(3, 4, 1), nn.Conv3d(3, 4, 3, padding=1)

    def forward(self, clips, *, scale):
        slow, fast = clips["pathways"]
        return [self.slow(slow).mean((2, 3, 4)) * scale, (self.fast(fast).mean((2, 3, 4)), None, 3)]


@pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec")
@pytest.mark.parametrize("form", FORMS)
def test_inputs_and_outputs_keep_their_structure(form):
    torch.manual_seed(0)
    module = Streams().eval()
    args = ({"pathways": [torch.randn(1, 3, 2, 5, 5), torch.randn(1, 3, 8, 5, 5)]},)
    kwargs = {"scale": torch.tensor([2.0])}
    lowered = lower(torch.export.export(module, args, kwargs), form=form).module(check_guards=False)
    expected, found = module(*args, **kwargs), lowered(*args, **kwargs)
    assert type(found) is list
    assert found[1][1:] == (None, 3)
    torch.testing.assert_close(found[0], expected[0])
    torch.testing.assert_close(found[1][0], expected[1][0])


class EveryConstant(nn.Module):
    """Ops whose lowering makes constants: absent frames, borders, divisors, group means."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv3d(3, 4, 3, padding=(3, 1, 1), bias=False), nn.GroupNorm(2, 4)

    def forward(self, x):
        x = functional.pad(self.norm(self.conv(x)), (0, 0, 0, 0, 1, 0))
        return functional.pad(functional.adaptive_avg_pool3d(x, (3, 1, 1)), (0, 0, 0, 0, 1, 1), value=0.5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 5e-3), (torch.float64, 1e-12)])
@pytest.mark.parametrize("form", FORMS)
def test_a_network_of_another_precision_keeps_it(form, dtype, tolerance):
    torch.manual_seed(0)
    module = EveryConstant().to(dtype).eval()
    clip = torch.randn(1, 3, 4, 5, 5, dtype=dtype)
    lowered = lower(capture(module, clip), form=form)
    types = {node.meta["val"].dtype for node in lowered.graph.nodes if isinstance(node.meta.get("val"), torch.Tensor)}
    statistics = {torch.float32} if dtype is torch.float16 else set()  # a norm has them in float32, as in torch
    assert types == {dtype} | statistics
    torch.testing.assert_close(lowered.module(check_guards=False)(clip), module(clip), rtol=tolerance, atol=tolerance)
