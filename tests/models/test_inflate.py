import copy

import pytest
import torch
from torch import Tensor, nn

from edgeact.errors import CheckpointError
from edgeact.models._inflate import inflate_, inflate_state_dict
from edgeact.models.csn import CSN


class Residual(nn.Module):
    """A small ResNet of two or three dimensions; in 3D `pad` is the temporal padding of its three 3x3x3 layers."""

    def __init__(self, dims: int, pad: int = 0) -> None:
        super().__init__()
        conv: type[nn.Module] = nn.Conv3d if dims == 3 else nn.Conv2d
        norm: type[nn.Module] = nn.BatchNorm3d if dims == 3 else nn.BatchNorm2d
        padding = (pad, 1, 1) if dims == 3 else 1
        self.stem = conv(3, 8, 3, padding=padding, bias=False)
        self.bn = norm(8)
        self.conv1 = conv(8, 8, 3, padding=padding)
        self.conv2 = conv(8, 8, 3, padding=padding, groups=4)
        self.short = conv(8, 8, 1)
        self.fc = nn.Linear(8, 5)

    def features(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn(self.stem(x)))
        out: Tensor = self.conv2(torch.relu(self.conv1(x)))
        short = self.short(x)
        if out.ndim == 5:  # the shortcut of a valid residual branch is cut to the frames that are left
            cut = (short.shape[2] - out.shape[2]) // 2
            short = short[:, :, cut : cut + out.shape[2]]
        return torch.relu(out + short)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.features(x).flatten(2).mean(2))
        return logits


def trained_2d() -> Residual:
    torch.manual_seed(0)
    net = Residual(2)
    net.train()
    for _ in range(3):  # running statistics away from 0 and 1
        net(torch.randn(4, 3, 10, 12) * 2 + 1)
    return net.eval()


def still(image: Tensor, frames: int) -> Tensor:
    return image.unsqueeze(2).repeat(1, 1, frames, 1, 1)


@pytest.mark.parametrize("frames", [7, 10])
def test_a_still_clip_gives_the_2d_logits_where_time_is_not_padded(frames: int) -> None:
    flat, deep = trained_2d(), Residual(3).eval()
    inflate_(deep, flat.state_dict())
    image = torch.randn(2, 3, 10, 12)
    torch.testing.assert_close(deep(still(image, frames)), flat(image), rtol=1e-5, atol=1e-6)


def test_zero_padding_in_time_spares_the_inner_frames_alone() -> None:
    flat, deep = trained_2d(), Residual(3, pad=1).eval()
    inflate_(deep, flat.state_dict())
    image = torch.randn(2, 3, 10, 12)
    expected, features = flat.features(image), deep.features(still(image, 9))
    for t in range(9):  # three padded convolutions reach three frames in from each end
        same = torch.allclose(features[:, :, t], expected, rtol=1e-5, atol=1e-6)
        assert same == (3 <= t <= 5), t
    assert not torch.allclose(deep(still(image, 9)), flat(image), atol=1e-3)


def flattened(module: nn.Module) -> nn.Module:
    """The 2D twin: every kernel, stride and padding without its first number."""
    for name, child in module.named_children():
        if isinstance(child, nn.Conv3d):
            twin = nn.Conv2d(child.in_channels, child.out_channels, 1, groups=child.groups, bias=child.bias is not None)
            for name_3d in ("kernel_size", "stride", "padding"):
                setattr(twin, name_3d, getattr(child, name_3d)[1:])
            twin.weight = nn.Parameter(child.weight[:, :, 0].detach().clone())
            setattr(module, name, twin)
        elif isinstance(child, nn.BatchNorm3d):
            setattr(module, name, nn.BatchNorm2d(child.num_features, eps=child.eps))
        elif isinstance(child, nn.MaxPool3d):
            setattr(module, name, nn.MaxPool2d(3, 2, 1))
        else:
            flattened(child)
    return module


def test_a_csn_starts_from_its_2d_twin() -> None:
    torch.manual_seed(0)
    deep = CSN(7, (2, 1, 1, 1), preserve=False, width=0.125).eval()
    flat = flattened(copy.deepcopy(deep)).eval()
    inflate_(deep, flat.state_dict())
    image = torch.randn(1, 3, 32, 32)

    def layer1(net: nn.Module, x: Tensor) -> Tensor:
        for name in ("conv1", "bn1", "relu", "maxpool", "layer1"):
            x = net.get_submodule(name)(x)
        return x

    # the stem and two depthwise convolutions have three taps each: frames 3 … 5 of 9 never meet the padding
    middle = layer1(deep, still(image, 9))[:, :, 3:6]
    torch.testing.assert_close(middle, still(layer1(flat, image), 3), rtol=1e-5, atol=1e-5)


def test_shapes_decide_what_is_inflated() -> None:
    flat, deep = trained_2d(), Residual(3)
    state = inflate_state_dict(flat.state_dict(), deep)
    assert {name: tensor.shape for name, tensor in state.items()} == {
        name: tensor.shape for name, tensor in deep.state_dict().items()
    }
    for name in ("stem.weight", "conv1.weight", "conv2.weight"):
        torch.testing.assert_close(state[name].sum(2), flat.state_dict()[name])
    for name in ("conv1.bias", "bn.running_var", "bn.num_batches_tracked", "fc.weight"):
        assert torch.equal(state[name], flat.state_dict()[name])
    state["fc.weight"].zero_()  # a copy, not a view
    assert flat.fc.weight.abs().sum() > 0


def test_a_kept_classifier_stays_the_models_own() -> None:
    deep, state = Residual(3), trained_2d().state_dict()
    state["fc.weight"], state["fc.bias"] = torch.zeros(1000, 8), torch.zeros(1000)
    before = deep.fc.weight.clone()
    inflate_(deep, state, keep=("fc.",))
    assert torch.equal(deep.fc.weight, before)
    del state["fc.weight"], state["bn.num_batches_tracked"]
    inflate_(deep, state, keep=("fc.",))


def test_what_does_not_fit_is_refused() -> None:
    deep, state = Residual(3), dict(trained_2d().state_dict())
    wide = state | {"conv1.weight": torch.zeros(8, 8, 5, 5)}
    with pytest.raises(
        CheckpointError, match=r"conv1\.weight has shape \(8, 8, 5, 5\), the model wants \(8, 8, 3, 3, 3\)"
    ):
        inflate_(deep, wide)
    with pytest.raises(CheckpointError, match=r"fc\.weight has shape \(9, 8\), the model wants \(5, 8\)"):
        inflate_(deep, state | {"fc.weight": torch.zeros(9, 8)})
    del state["bn.weight"]
    with pytest.raises(CheckpointError, match=r"1 tensors missing \(first: bn\.weight\), 1 unknown \(first: extra\)"):
        inflate_(deep, state | {"extra": torch.zeros(1)})
