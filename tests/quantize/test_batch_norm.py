import pytest
import torch
from torch import Tensor, nn

from edgeact.quantize.batch_norm import as_convolutions, fold_batch_norm


def randomize_(model: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
            if module.affine:
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
    return model.eval()


class Shared(nn.Module):
    """One convolution's weights used by two layers: folding either would change the other."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn1, self.bn2 = nn.Conv3d(3, 3, 1), nn.BatchNorm3d(3), nn.BatchNorm3d(3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn2(self.conv(self.bn1(self.conv(x))))
        return y


class Branch(nn.Module):
    """A convolution whose output is used beside the BatchNorm as well."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv3d(3, 4, 3), nn.BatchNorm3d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        z: Tensor = self.bn(y) + y
        return z


class Tokens(nn.Module):
    """A linear layer over the last dimension of `[B, N, C]`, and a norm over dimension 1."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.bn = nn.Linear(5, 4), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn(self.linear(x[:, 0, :, 0].repeat(1, 1, 1)))
        return y


class Computed(nn.Module):
    """A norm whose scale is not a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv3d(3, 4, 1), nn.BatchNorm3d(4)

    def forward(self, x: Tensor) -> Tensor:
        bn = self.bn
        return nn.functional.batch_norm(self.conv(x), bn.running_mean, bn.running_var, bn.weight * 2, bn.bias)


@pytest.mark.parametrize(
    ("model", "folds", "left"),
    [
        (nn.Sequential(nn.Conv3d(3, 8, 3, bias=False), nn.BatchNorm3d(8, eps=1e-3), nn.ReLU()), 1, 0),
        (nn.Sequential(nn.Conv3d(3, 6, 3, groups=3), nn.BatchNorm3d(6, affine=False)), 1, 0),
        (nn.Sequential(nn.BatchNorm3d(3), nn.Conv3d(3, 4, 1), nn.BatchNorm3d(4)), 1, 1),
        (nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 5 * 5, 7), nn.BatchNorm1d(7)), 1, 0),
        (Shared(), 0, 2),
        (Branch(), 0, 1),
        (Tokens(), 0, 1),
        (Computed(), 0, 1),
    ],
)
def test_folding_changes_nothing_but_the_graph(model: nn.Module, folds: int, left: int) -> None:
    randomize_(model)
    x = torch.randn(2, 3, 4, 5, 5)
    with torch.no_grad():
        graph = torch.export.export(model, (x,)).module(check_guards=False)
        assert fold_batch_norm(graph) == folds
        norms = [node for node in graph.graph.nodes if node.target is torch.ops.aten.batch_norm.default]
        assert len(norms) == left
        torch.testing.assert_close(graph(x), model(x), rtol=1e-4, atol=1e-5)
        as_convolutions(graph)
        norms = [node for node in graph.graph.nodes if node.target is torch.ops.aten.batch_norm.default]
        assert len(norms) == isinstance(model, Tokens | Computed), "no images, and no constant"
        torch.testing.assert_close(graph(x), model(x), rtol=1e-4, atol=1e-5)
