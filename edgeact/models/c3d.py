"""C3D: eight 3x3x3 convolutions (Tran, Bourdev, Fergus, Torresani, Paluri 2015, https://arxiv.org/abs/1412.0767).

No BatchNorm; every convolution has a bias and a ReLU. fc6 is the paper's video descriptor.

           parameters   GMACs at 16x112^2, K=101
    c3d      78.41 M       38.5   (38.5, model zoo of facebookresearch/VMZ; parameters counted by hand)

Shapes: B clips, C channels, T frames, H x W pixels, K classes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from edgeact.clip import ClipSpec
from edgeact.errors import InputError
from edgeact.models._options import check_options, scale_channels
from edgeact.models._registry import register_model

__all__ = ["C3D", "c3d"]


def _conv(channels_in: int, channels: int) -> nn.Conv3d:
    conv = nn.Conv3d(channels_in, channels, 3, padding=1)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv


class C3D(nn.Module):
    """The network of the paper's figure 3; attributes are named as in the public PyTorch ports.

    Args:
        num_classes: Classes K.
        width: Multiple of the channel counts and of fc6 and fc7, rounded to multiples of 8.
        dropout: Share of fc6 and fc7 dropped while training.
        input_size: `(T, H, W)` of the clips, which fixes the size of fc6.

    Raises:
        InputError: An option is out of range.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        width: float = 1.0,
        dropout: float = 0.5,
        input_size: Sequence[int] = (16, 112, 112),
    ) -> None:
        super().__init__()
        check_options(width, dropout)
        if len(input_size) != 3 or input_size[0] < 16 or min(input_size[1:]) < 16:
            raise InputError(
                f"input_size is {tuple(input_size)}: C3D pools T, H and W by 16 to 32, so 16x16x16 at least"
            )
        c1, c2, c3, c4, features = scale_channels(width, 64, 128, 256, 512, 4096)
        self.conv1 = _conv(3, c1)
        self.conv2 = _conv(c1, c2)
        self.conv3a, self.conv3b = _conv(c2, c3), _conv(c3, c3)
        self.conv4a, self.conv4b = _conv(c3, c4), _conv(c4, c4)
        self.conv5a, self.conv5b = _conv(c4, c4), _conv(c4, c4)
        self.pool1 = nn.MaxPool3d((1, 2, 2), (1, 2, 2))
        self.pool = nn.MaxPool3d(2, 2)
        self.pool5 = nn.MaxPool3d(2, 2, padding=(0, 1, 1))
        self.input_size = tuple(input_size)
        self.fc6 = nn.Linear(c4 * self._positions(), features)
        self.fc7 = nn.Linear(features, features)
        self.fc8 = nn.Linear(features, num_classes)
        self.relu = nn.ReLU()
        self.dropout = nn.Dropout(dropout)

    def _positions(self) -> int:
        """Positions T x H x W that pool5 leaves: three poolings by 2, the last one in space padded by 1."""
        frames, height, width = self.input_size
        frames = frames // 16
        height, width = ((side // 16 + 2 - 2) // 2 + 1 for side in (height, width))
        return int(frames * height * width)

    def features(self, clip_BCTHW: Tensor) -> Tensor:
        """relu(fc6), the descriptor of the paper: `clip_BCTHW -> [B, 4096 * width]`.

        Raises:
            InputError: The clip has another size than the network was built for.
        """
        if tuple(clip_BCTHW.shape[2:]) != self.input_size:
            raise InputError(
                f"this C3D was built for clips of {self.input_size} (T, H, W), found {tuple(clip_BCTHW.shape[2:])}: "
                "build it with input_size of the ClipSpec"
            )
        x_BCTHW = self.pool1(self.relu(self.conv1(clip_BCTHW)))
        x_BCTHW = self.pool(self.relu(self.conv2(x_BCTHW)))
        x_BCTHW = self.pool(self.relu(self.conv3b(self.relu(self.conv3a(x_BCTHW)))))
        x_BCTHW = self.pool(self.relu(self.conv4b(self.relu(self.conv4a(x_BCTHW)))))
        x_BCTHW = self.pool5(self.relu(self.conv5b(self.relu(self.conv5a(x_BCTHW)))))
        features_BC: Tensor = self.relu(self.fc6(torch.flatten(x_BCTHW, 1)))
        return features_BC

    def forward(self, clip_BCTHW: Tensor) -> Tensor:
        """`clip_BCTHW -> logits_BK`."""
        x_BC = self.dropout(self.features(clip_BCTHW))
        x_BC = self.dropout(self.relu(self.fc7(x_BC)))
        logits_BK: Tensor = self.fc8(x_BC)
        return logits_BK


# Section 3.3 of the paper: 16 frames, 128 x 171, crops of 112 x 112.
@register_model(ClipSpec(frames=16, frame_stride=1, short_side=128, crop_height=112, crop_width=112))
def c3d(
    num_classes: int, *, width: float = 1.0, dropout: float = 0.5, input_size: Sequence[int] = (16, 112, 112)
) -> C3D:
    """The C3D of the paper."""
    return C3D(num_classes, width=width, dropout=dropout, input_size=input_size)
