"""A user's own network: a few separable blocks with squeeze-excitation, in the manner of X3D (Feichtenhofer 2020).

edgeact export --target openvino --model examples.tiny_x3d:build --frames 8 --crop 64 --short-side 64
"""

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """1x1x1 -> depthwise 3x3x3 -> squeeze-excitation -> 1x1x1, added to the input."""

    def __init__(self, channels: int, expanded: int) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.Conv3d(channels, expanded, 1, bias=False), nn.BatchNorm3d(expanded), nn.ReLU())
        self.around = nn.Sequential(
            nn.Conv3d(expanded, expanded, 3, padding=1, groups=expanded, bias=False), nn.BatchNorm3d(expanded)
        )
        self.gate = nn.Sequential(nn.Conv3d(expanded, 8, 1), nn.ReLU(), nn.Conv3d(8, expanded, 1), nn.Sigmoid())
        self.project = nn.Sequential(nn.SiLU(), nn.Conv3d(expanded, channels, 1, bias=False), nn.BatchNorm3d(channels))

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, T, H, W]` to the same shape."""
        y = self.around(self.expand(x))
        y = y * self.gate(y.mean((2, 3, 4), keepdim=True))
        return x + torch.as_tensor(self.project(y))


def build(num_classes: int) -> nn.Module:
    """`clip_BCTHW -> logits_BK`."""
    return nn.Sequential(
        nn.Conv3d(3, 24, (5, 3, 3), (1, 4, 4), (2, 1, 1)),
        Block(24, 48),
        Block(24, 48),
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
        nn.Linear(24, num_classes),
    )
