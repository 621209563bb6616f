"""MiCT-ResNet: mixed 2D/3D convolutional tubes (Zhou, Sun, Zha, Zeng 2018, CVPR), as in Mahoudeau's MiCT-Net-PyTorch.

A 2D ResNet runs on every frame; five 3D convolutions beside it add motion. All temporal padding lies at the end, so
that a 3D branch looks at the present and the future:

    frames of the 3D branch   0 1 2 3 4 5 6 7 + 6 zero frames (stem, 7 deep) or + 2 (stages, 3 deep)
    output frame t            sees t … t + 6, or t … t + 2

                           parameters   GMACs at 16x160^2, K=101
    mict_resnet_18  v1       16.05 M       12.6
    mict_resnet_18  v2       16.05 M       15.3
    mict_resnet_34  v2       26.16 M       20.5
    (parameters: 16.05M and 26.2M in MiCT-Net-PyTorch's README; GMACs are published nowhere, they are counted)

Shapes: B clips, C channels, T frames, H x W pixels, K classes; N = B * T frames.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeact.clip import ClipSpec
from edgeact.errors import InputError
from edgeact.models._options import check_options, scale_channels
from edgeact.models._registry import register_model

__all__ = ["MiCTResNet", "mict_resnet_18", "mict_resnet_34"]

# Temporal strides of the stem and the four stages (MiCT-Net-PyTorch, mictresnet.py).
_TEMPORAL_STRIDES = {"v1": (1, 1, 2, 2, 2), "v2": (1, 1, 1, 2, 1)}


class BasicBlock(nn.Module):
    """The 2D residual block of ResNet-18/34 (He 2016)."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.downsample = (
            nn.Sequential(nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))
            if stride != 1 or channels_in != channels
            else nn.Identity()
        )

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """`[N, C_in, H, W] -> [N, C, H / stride, W / stride]`."""
        out = self.relu(self.bn1(self.conv1(x_NCHW)))
        out = self.bn2(self.conv2(out)) + self.downsample(x_NCHW)
        result: Tensor = self.relu(out)
        return result


def _frames_to_batch(x_BCTHW: Tensor) -> Tensor:
    batch, channels, frames, height, width = x_BCTHW.shape
    return x_BCTHW.transpose(1, 2).reshape(batch * frames, channels, height, width)


def _batch_to_frames(x_NCHW: Tensor, frames: int) -> Tensor:
    return x_NCHW.reshape(-1, frames, *x_NCHW.shape[1:]).transpose(1, 2)


class MiCTStage(nn.Module):
    """relu(bn(conv3d)) + first 2D block on every `stride_t`-th frame, then the remaining 2D blocks."""

    def __init__(self, channels_in: int, channels: int, blocks: int, stride: int, stride_t: int) -> None:
        super().__init__()
        self.stride_t = stride_t
        self.conv = nn.Conv3d(channels_in, channels, 3, (stride_t, stride, stride), 0, bias=False)
        self.bn = nn.BatchNorm3d(channels)
        self.relu = nn.ReLU()
        self.bottlenecks = nn.ModuleList(
            BasicBlock(channels_in if i == 0 else channels, channels, stride if i == 0 else 1) for i in range(blocks)
        )

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """`[B, C_in, T, H, W] -> [B, C, ceil(T / stride_t), H / stride, W / stride]`."""
        motion_BCTHW = self.relu(self.bn(self.conv(functional.pad(x_BCTHW, (1, 1, 1, 1, 0, 2)))))
        frames = motion_BCTHW.shape[2]
        x_NCHW = self.bottlenecks[0](_frames_to_batch(x_BCTHW[:, :, :: self.stride_t]))
        x_NCHW = x_NCHW + _frames_to_batch(motion_BCTHW)
        for block in self.bottlenecks[1:]:
            x_NCHW = block(x_NCHW)
        return _batch_to_frames(x_NCHW, frames)


class MiCTResNet(nn.Module):
    """The network of the presets below.

    Args:
        num_classes: Classes K.
        blocks: 2D blocks of the four stages.
        version: Temporal strides, "v1" or "v2" of the reference repository.
        width: Multiple of the channel counts 64, 64, 128, 256, 512, rounded to multiples of 8.
        dropout: Share of features dropped before the classifier.

    Raises:
        InputError: An option is out of range.
    """

    def __init__(
        self,
        num_classes: int,
        blocks: tuple[int, int, int, int],
        *,
        version: Literal["v1", "v2"] = "v1",
        width: float = 1.0,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        if version not in _TEMPORAL_STRIDES:
            raise InputError(f"version is {version!r}: allowed: {', '.join(_TEMPORAL_STRIDES)}")
        check_options(width, dropout)
        self.stem_stride_t, *strides_t = _TEMPORAL_STRIDES[version]
        stem, *widths = scale_channels(width, 64, 64, 128, 256, 512)
        self.conv1 = nn.Conv2d(3, stem, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.maxpool1 = nn.MaxPool2d(3, 2, 1)
        self.conv2 = nn.Conv3d(3, stem, 7, (self.stem_stride_t, 2, 2), 0, bias=False)
        self.bn2 = nn.BatchNorm3d(stem)
        # stride 2 in time as well: the 2D branch takes every second frame to match
        self.maxpool2 = nn.MaxPool3d(3, 2, 1)
        self.relu = nn.ReLU()
        stages, channels_in = [], stem
        for i, (channels, count, stride_t) in enumerate(zip(widths, blocks, strides_t, strict=True)):
            stages.append(MiCTStage(channels_in, channels, count, 1 if i == 0 else 2, stride_t))
            channels_in = channels
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels_in, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, clip_BCTHW: Tensor) -> Tensor:
        """`clip_BCTHW -> logits_BK`; any T, H, W."""
        motion_BCTHW = self.conv2(functional.pad(clip_BCTHW, (3, 3, 3, 3, 0, 6)))
        motion_BCTHW = self.maxpool2(self.relu(self.bn2(motion_BCTHW)))
        every = 2 * self.stem_stride_t
        x_NCHW = self.maxpool1(self.relu(self.bn1(self.conv1(_frames_to_batch(clip_BCTHW[:, :, ::every])))))
        x_BCTHW = motion_BCTHW + _batch_to_frames(x_NCHW, motion_BCTHW.shape[2])
        x_BCTHW = self.layer4(self.layer3(self.layer2(self.layer1(x_BCTHW))))
        # FC of the mean over time = mean over time of the FC, since the FC is affine
        features_BC = torch.mean(x_BCTHW, dim=(2, 3, 4))
        logits_BK: Tensor = self.fc(self.dropout(features_BC))
        return logits_BK


# MiCT-Net-PyTorch's README: 16 frames in a row, 256x192, crops of 160 x 160.
_SPEC = ClipSpec(frames=16, frame_stride=1, short_side=192, crop_height=160, crop_width=160)


@register_model(_SPEC)
def mict_resnet_18(
    num_classes: int, *, version: Literal["v1", "v2"] = "v1", width: float = 1.0, dropout: float = 0.5
) -> MiCTResNet:
    """MiCT-ResNet of 18 layers."""
    return MiCTResNet(num_classes, (2, 2, 2, 2), version=version, width=width, dropout=dropout)


@register_model(_SPEC)
def mict_resnet_34(
    num_classes: int, *, version: Literal["v1", "v2"] = "v2", width: float = 1.0, dropout: float = 0.5
) -> MiCTResNet:
    """MiCT-ResNet of 34 layers."""
    return MiCTResNet(num_classes, (3, 4, 6, 3), version=version, width=width, dropout=dropout)
