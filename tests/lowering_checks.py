"""What every test of the lowering asks: the same outputs, and nothing volumetric left."""

import warnings

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.utils._pytree import tree_leaves

from edgeact.lowering import default_taps
from edgeact.lowering._lower import rewrite
from edgeact.lowering._prepare import prepare

FORMS = ("unrolled", "folded")


def capture(module: nn.Module, clip: torch.Tensor) -> ExportedProgram:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.filterwarnings("ignore", message=".*treespec, LeafSpec", category=FutureWarning)
        return torch.export.export(module.eval(), (clip,))


def targets(program: ExportedProgram) -> list[str]:
    return [str(node.target) for node in program.graph.nodes if node.op == "call_function"]


def assert_lowers(
    module: nn.Module,
    shape: tuple[int, ...],
    *,
    forms=FORMS,
    taps=default_taps,
    tolerance=2e-6,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Lowered in each form, `module` maps a random clip to the same values and types, up to float32 rounding."""
    clip = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    program = capture(module, clip)
    with torch.no_grad():
        expected = module(clip)
    graph = prepare(program)
    for form in forms:
        lowered, _ = rewrite(graph, form, taps)  # `lower` exports this once more
        assert not [node for node in lowered.graph.nodes if "3d" in str(node.target)], form
        with torch.no_grad():
            leaves = lowered(clip)
        assert len(leaves) == len(tree_leaves(expected)), form
        for found, value in zip(leaves, tree_leaves(expected), strict=True):
            assert (found.shape, found.dtype) == (value.shape, value.dtype), form
            error = (found.double() - value.double()).abs().max() / value.double().abs().max().clamp(min=1e-6)
            assert error <= tolerance, f"{form}: relative error {error:.1e}"


def randomize_norms_(module: nn.Module) -> nn.Module:
    """Statistics that a fresh BatchNorm lacks: with mean 0 and variance 1 it hides mistakes."""
    torch.manual_seed(1)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm3d | nn.BatchNorm2d):
            assert part.running_mean is not None
            assert part.running_var is not None
            part.running_mean.uniform_(-1, 1)
            part.running_var.uniform_(0.5, 2)
            with torch.no_grad():
                part.weight.uniform_(0.5, 1.5)
                part.bias.uniform_(-1, 1)
    return module
