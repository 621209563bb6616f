"""3D-ResNet-18: every convolution of a ResNet-18 made 3x3x3 (Tran 2018, "R3D", https://arxiv.org/abs/1711.11248).

The layout is that of torchvision's `r3d_18`, whose published figures it must meet:

                  parameters   GMACs at 16x112^2, K=400
    resnet3d_18     33.37 M       40.70   (33371472 and 40.697, R3D_18_Weights of torchvision/models/video/resnet.py)

Shapes: B clips, C channels, T frames, H x W pixels, K classes.
"""

import torch
from torch import Tensor, nn

from edgeact.clip import ClipSpec
from edgeact.models._options import check_options, scale_channels
from edgeact.models._registry import register_model

__all__ = ["ResNet3D", "resnet3d_18"]


def _conv(channels_in: int, channels: int, stride: int) -> nn.Conv3d:
    return nn.Conv3d(channels_in, channels, 3, stride, 1, bias=False)


class BasicBlock(nn.Module):
    """Two 3x3x3 convolutions and a shortcut."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(_conv(channels_in, channels, stride), nn.BatchNorm3d(channels), nn.ReLU())
        self.conv2 = nn.Sequential(_conv(channels, channels, 1), nn.BatchNorm3d(channels))
        self.relu = nn.ReLU()
        self.downsample = (
            nn.Sequential(nn.Conv3d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm3d(channels))
            if stride != 1 or channels_in != channels
            else nn.Identity()
        )

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """`[B, C_in, T, H, W] -> [B, C, T / stride, H / stride, W / stride]`."""
        sum_BCTHW: Tensor = self.relu(self.conv2(self.conv1(x_BCTHW)) + self.downsample(x_BCTHW))
        return sum_BCTHW


class ResNet3D(nn.Module):
    """The network of the preset below.

    Args:
        num_classes: Classes K.
        width: Multiple of the channel counts 64, 64, 128, 256, 512, rounded to multiples of 8.
        dropout: Share of features dropped before the classifier.

    Raises:
        InputError: An option is out of range.
    """

    def __init__(self, num_classes: int, *, width: float = 1.0, dropout: float = 0.0) -> None:
        super().__init__()
        check_options(width, dropout)
        stem, *widths = scale_channels(width, 64, 64, 128, 256, 512)
        self.stem = nn.Sequential(
            nn.Conv3d(3, stem, (3, 7, 7), (1, 2, 2), (1, 3, 3), bias=False), nn.BatchNorm3d(stem), nn.ReLU()
        )
        stages, channels_in = [], stem
        for i, channels in enumerate(widths):
            stages.append(
                nn.Sequential(BasicBlock(channels_in, channels, 1 if i == 0 else 2), BasicBlock(channels, channels, 1))
            )
            channels_in = channels
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels_in, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, clip_BCTHW: Tensor) -> Tensor:
        """`clip_BCTHW -> logits_BK`; any T, H, W."""
        x_BCTHW = self.layer4(self.layer3(self.layer2(self.layer1(self.stem(clip_BCTHW)))))
        logits_BK: Tensor = self.fc(self.dropout(torch.mean(x_BCTHW, dim=(2, 3, 4))))
        return logits_BK


# torchvision's r3d_18: 16 frames at 15 fps, 112^2 out of 128 x 171, Kinetics statistics
# (torchvision/models/video/resnet.py, R3D_18_Weights.KINETICS400_V1).
@register_model(
    ClipSpec(
        frames=16,
        sample_fps=15.0,
        short_side=128,
        crop_height=112,
        crop_width=112,
        mean=(0.43216, 0.394666, 0.37645),
        std=(0.22803, 0.22145, 0.216989),
    )
)
def resnet3d_18(num_classes: int, *, width: float = 1.0, dropout: float = 0.0) -> ResNet3D:
    """3D-ResNet of 18 layers."""
    return ResNet3D(num_classes, width=width, dropout=dropout)
