"""NVIDIA workstations and servers: the network as data, compiled by AOTInductor on the machine where it runs.

The volumetric form is the fastest: cuDNN has 3-D convolutions. fp16 is stored and computed in float16; logits alone are
cast back. What executes it is compiled by `edgeact compile` on the device: AOTInductor's library, or ONNX Runtime with
the same network where that is faster (see `edgeact.runtime.aotinductor`); without a GPU, for the CPU by the same code
path.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from edgeact._macs import layer_of
from edgeact._program import unwritable, write_program
from edgeact._toolchain import toolchain
from edgeact.errors import ToolchainError
from edgeact.placement import PlacedOp, Placement, write_placement
from edgeact.targets._float16 import in_float16
from edgeact.targets._refusals import MOVES
from edgeact.targets._target import Request, Target

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import GraphModule, Node

    from edgeact.targets._target import Refusal


__all__ = ["GPU", "TARGET"]


class GPU(Target):
    """`model.json`, `model.safetensors` and `placement.json` for AOTInductor, `model.onnx` for ONNX Runtime."""

    summary = "NVIDIA GPUs of workstations and servers, through AOTInductor"
    precisions = ("fp32", "fp16")
    forms = ("volumetric", "folded", "unrolled")
    scheme = None
    runtime = "aotinductor"
    needs = ("onnxscript", "export")

    def compile(self, program: "ExportedProgram", folder: Path, asked: Request) -> tuple[str, ...]:
        """Write the program, and as ONNX what ONNX can say; see `Target.compile`."""
        import onnx

        from edgeact.targets._onnx import to_onnx

        with toolchain("PyTorch could not write this network"):
            write_program(in_float16(program) if asked.precision == "fp16" else program, folder)
        write_placement(folder, Placement.of(_ops(program), "estimated", _crossing_bytes(program)))
        try:
            onnx.save(to_onnx(program, asked.precision), folder / "model.onnx")
        except ToolchainError as exc:
            return (f"without model.onnx, so ONNX Runtime is no candidate: {exc}",)
        return ()

    def refusals(self, graph: "GraphModule", asked: Request) -> "tuple[Mapping[Node, Refusal], tuple[str, ...]]":
        """What the bundle has no word for: PyTorch has a GPU kernel for every op; see `Target.refusals`."""
        import torch

        from edgeact.targets._target import Refusal

        nodes = {node.name: node for node in graph.graph.nodes if node.op == "call_function"}
        clip = next(node.meta["val"] for node in graph.graph.nodes if node.op == "placeholder")
        found: dict[Node, Refusal] = {}
        with toolchain("PyTorch could not write this network"):
            program = torch.export.export(graph, (torch.zeros(tuple(clip.shape), dtype=clip.dtype),))
            for part, reason in unwritable(program).items():
                node = next(nodes[name] for name in _origins(part) if name in nodes)
                found.setdefault(node, Refusal(reason, runs=False))
        return found, ()


def _ops(program: "ExportedProgram") -> Iterator[PlacedOp]:
    """Each op that computes: a library holds the whole network, so all run where it runs."""
    for node in program.graph.nodes:
        kernel = str(node.target).removeprefix("aten.")
        if node.op == "call_function" and kernel.partition(".")[0] not in MOVES:
            yield PlacedOp(name=node.name, kernel=kernel, unit="GPU", layer=layer_of(node))


def _crossing_bytes(program: "ExportedProgram") -> int:
    """The clip and the logits."""
    (clip,) = (node for node in program.graph.nodes if node.name in program.graph_signature.user_inputs)
    (logits,) = program.graph.output_node().args[0]
    return sum(node.meta["val"].numel() * node.meta["val"].element_size() for node in (clip, logits))


def _origins(node: "Node") -> Iterator[str]:
    """Names of the nodes that a decomposition made `node` of, and its own."""
    seen = list(node.meta.get("from_node", ()))
    for source in seen:
        yield from (before.name for before in source.from_node)
        seen += source.from_node
    yield node.name


TARGET = GPU()
