"""A program that computes in float16."""

import copy
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

__all__ = ["in_float16", "retyped"]


def in_float16(program: "ExportedProgram") -> "ExportedProgram":
    """`program` with weights and casts in float16; its logits are cast back to float32."""
    import torch

    network = retyped(program, torch.float32, torch.float16)

    class Float32Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, clip: torch.Tensor) -> torch.Tensor:
            with torch.fx.traceback.preserve_node_meta():  # layers keep their names
                logits_BK: torch.Tensor = torch.fx.Interpreter(self.network).run(clip).float()
            return logits_BK

    (clip,) = program.example_inputs[0]
    return torch.export.export(Float32Logits(), (clip,))


def retyped(program: "ExportedProgram", old: "torch.dtype", new: "torch.dtype") -> "torch.fx.GraphModule":
    """A copy of the program's graph with every weight and cast of one float type in another."""
    import torch

    def replaced(value: Any) -> Any:
        return new if value is old else value

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*treespec, LeafSpec", category=FutureWarning)  # torch's own use
        network = copy.deepcopy(program.module(check_guards=False)).to(new)
    assert isinstance(network, torch.fx.GraphModule)
    for node in network.graph.nodes:
        node.args = torch.fx.node.map_aggregate(node.args, replaced)
        node.kwargs = torch.fx.node.map_aggregate(node.kwargs, replaced)
    network.recompile()
    return network
