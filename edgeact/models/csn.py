"""CSN: channel-separated convolutional networks (Tran, Wang, Torresani, Feiszli 2019, https://arxiv.org/abs/1904.02811).

Channel interactions and local space-time interactions are separated: 1x1x1 convolutions mix channels, depthwise 3x3x3
convolutions look around. `ir` (interaction-reduced) replaces the 3x3x3 of a ResNet3D bottleneck by a depthwise one;
`ip` (interaction-preserved) puts a 1x1x1 convolution before it.

               parameters   GMACs at 32x224^2, K=400
    ir_csn_50    13.13 M      42.3
    ir_csn_101   22.21 M      56.5
    ir_csn_152   29.70 M      74.0
    ip_csn_152   33.02 M      83.3

The authors publish 29.6 M and 96.7 GFLOPs for ir-152, 32.8 M and 108.8 for ip-152 (README.md of facebookresearch/VMZ):
parameters without BatchNorm's, and multiply-accumulates that are met at 32x256^2, not at the 32x224^2 of their table.

`ir_csn_26` is the compact member: blocks (2, 2, 2, 2), 26 = 2 + 3 * 8 layers as the paper counts them (figure 3).

Shapes: B clips, C channels, T frames, H x W pixels, K classes.
"""

import torch
from torch import Tensor, nn

from edgeact.clip import ClipSpec
from edgeact.models._options import check_options, scale_channels
from edgeact.models._registry import register_model

__all__ = ["CSN", "ip_csn_50", "ip_csn_101", "ip_csn_152", "ir_csn_26", "ir_csn_50", "ir_csn_101", "ir_csn_152"]

_EXPANSION = 4


def _norm(channels: int) -> nn.BatchNorm3d:
    # eps of the published weights: Caffe2's spatial_bn_epsilon in VMZ, bn_epsilon of mmaction2's ResNet3dCSN
    return nn.BatchNorm3d(channels, eps=1e-3)


class Bottleneck(nn.Module):
    """1x1x1 -> [1x1x1] -> depthwise 3x3x3 -> 1x1x1, added to the shortcut; the depthwise carries the stride."""

    def __init__(self, channels_in: int, channels: int, stride: int, preserve: bool) -> None:
        super().__init__()
        channels_out = channels * _EXPANSION
        self.conv1 = nn.Conv3d(channels_in, channels, 1, bias=False)
        self.bn1 = _norm(channels)
        depthwise = nn.Conv3d(channels, channels, 3, stride, 1, groups=channels, bias=False)
        if preserve:  # no ReLU between the two, as in VMZ's create_model "3d-sep-ip"
            self.conv2: nn.Module = nn.Sequential(
                nn.Conv3d(channels, channels, 1, bias=False), _norm(channels), depthwise
            )
        else:
            self.conv2 = depthwise
        self.bn2 = _norm(channels)
        self.conv3 = nn.Conv3d(channels, channels_out, 1, bias=False)
        self.bn3 = _norm(channels_out)
        self.relu = nn.ReLU()
        self.downsample = (
            nn.Sequential(nn.Conv3d(channels_in, channels_out, 1, stride, bias=False), _norm(channels_out))
            if stride != 1 or channels_in != channels_out
            else nn.Identity()
        )

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """`[B, C_in, T, H, W] -> [B, 4 * channels, T / stride, H / stride, W / stride]`."""
        out = self.relu(self.bn1(self.conv1(x_BCTHW)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        sum_BCTHW: Tensor = self.relu(out + self.downsample(x_BCTHW))
        return sum_BCTHW


class CSN(nn.Module):
    """The network of the presets below.

    Args:
        num_classes: Classes K.
        blocks: Bottlenecks of the four stages.
        preserve: Interaction-preserved (`ip`) bottlenecks.
        width: Multiple of the channel counts 64, 64, 128, 256, 512, rounded to multiples of 8.
        dropout: Share of features dropped before the classifier.

    Raises:
        InputError: `width` or `dropout` is out of range.
    """

    def __init__(
        self,
        num_classes: int,
        blocks: tuple[int, int, int, int],
        *,
        preserve: bool,
        width: float = 1.0,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        check_options(width, dropout)
        stem, *widths = scale_channels(width, 64, 64, 128, 256, 512)
        self.conv1 = nn.Conv3d(3, stem, (3, 7, 7), (1, 2, 2), (1, 3, 3), bias=False)
        self.bn1 = _norm(stem)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1))
        stages, channels_in = [], stem
        for i, (channels, count) in enumerate(zip(widths, blocks, strict=True)):
            stage = []
            for j in range(count):
                stage.append(Bottleneck(channels_in, channels, 2 if i > 0 and j == 0 else 1, preserve))
                channels_in = channels * _EXPANSION
            stages.append(nn.Sequential(*stage))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels_in, num_classes)
        self._initialize_()

    def _initialize_(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)

    def forward(self, clip_BCTHW: Tensor) -> Tensor:
        """`clip_BCTHW -> logits_BK`; any T, H, W."""
        x_BCTHW = self.maxpool(self.relu(self.bn1(self.conv1(clip_BCTHW))))
        x_BCTHW = self.layer4(self.layer3(self.layer2(self.layer1(x_BCTHW))))
        features_BC = torch.mean(x_BCTHW, dim=(2, 3, 4))
        logits_BK: Tensor = self.fc(self.dropout(features_BC))
        return logits_BK


# VMZ's fine-tuned CSNs: 32 frames, every second one, 224^2 out of a short side of 256 (mmaction2 csn configs).
_SPEC = ClipSpec(frames=32, frame_stride=2, short_side=256, crop_height=224, crop_width=224)


@register_model(_SPEC)
def ir_csn_26(num_classes: int, *, width: float = 1.0, dropout: float = 0.5) -> CSN:
    """The compact interaction-reduced CSN."""
    return CSN(num_classes, (2, 2, 2, 2), preserve=False, width=width, dropout=dropout)


@register_model(_SPEC)
def ir_csn_50(num_classes: int, *, width: float = 1.0, dropout: float = 0.5) -> CSN:
    """Interaction-reduced CSN of 50 layers."""
    return CSN(num_classes, (3, 4, 6, 3), preserve=False, width=width, dropout=dropout)


@register_model(_SPEC)
def ir_csn_101(num_classes: int, *, width: float = 1.0, dropout: float = 0.5) -> CSN:
    """Interaction-reduced CSN of 101 layers."""
    return CSN(num_classes, (3, 4, 23, 3), preserve=False, width=width, dropout=dropout)


@register_model(_SPEC)
def ir_csn_152(num_classes: int, *, width: float = 1.0, dropout: float = 0.5) -> CSN:
    """Interaction-reduced CSN of 152 layers."""
    return CSN(num_classes, (3, 8, 36, 3), preserve=False, width=width, dropout=dropout)


@register_model(_SPEC)
def ip_csn_50(num_classes: int, *, width: float = 1.0, dropout: float = 0.5) -> CSN:
    """Interaction-preserved CSN of 50 layers."""
    return CSN(num_classes, (3, 4, 6, 3), preserve=True, width=width, dropout=dropout)


@register_model(_SPEC)
def ip_csn_101(num_classes: int, *, width: float = 1.0, dropout: float = 0.5) -> CSN:
    """Interaction-preserved CSN of 101 layers."""
    return CSN(num_classes, (3, 4, 23, 3), preserve=True, width=width, dropout=dropout)


@register_model(_SPEC)
def ip_csn_152(num_classes: int, *, width: float = 1.0, dropout: float = 0.5) -> CSN:
    """Interaction-preserved CSN of 152 layers."""
    return CSN(num_classes, (3, 8, 36, 3), preserve=True, width=width, dropout=dropout)
