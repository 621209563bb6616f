"""A float32 program as one that computes in float16."""

import torch
from torch.export import ExportedProgram

__all__ = ["in_float16"]


def in_float16(program: ExportedProgram) -> ExportedProgram:
    """`program` with weights and casts in float16; its logits are cast back to float32."""
    network = program.module(check_guards=False).half()
    assert isinstance(network, torch.fx.GraphModule)
    for node in network.graph.nodes:
        node.kwargs = {name: torch.float16 if value is torch.float32 else value for name, value in node.kwargs.items()}
    network.recompile()

    class Float32Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, clip: torch.Tensor) -> torch.Tensor:
            logits_BK: torch.Tensor = self.network(clip).float()
            return logits_BK

    (clip,) = program.example_inputs[0]
    return torch.export.export(Float32Logits(), (clip,))
