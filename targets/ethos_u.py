"""Arm Ethos-U: a .tflite that Vela compiles for the NPU, beside the portable one that it came from.

`model_vela.tflite` is for TensorFlow Lite Micro and Arm's driver: one custom op, int8 logits. `model.tflite` is the
same network before Vela, which runs here on LiteRT's reference kernels. Vela aims at their bits: its sources say so of
single ops ("to produce bit exact results", tflite_graph_optimiser.py), and no NPU is here to prove it of a network. An
Ethos-U has no 3-D convolution and computes in integers alone, so time is lowered and the clip is normalised in int8.
Time, memory and traffic are Vela's estimates: `estimate.json`, and by layer `placement.json`.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from edgeact.quantize.scheme import AFFINE
from edgeact.targets._ethos_u_configs import CONFIGS, MEMORY_MODES, SYSTEM_CONFIGS, conflict, resolve
from edgeact.targets._target import Request, Target
from edgeact.targets.litert import LiteRT, convert

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import GraphModule, Node

    from edgeact.targets._target import Refusal


__all__ = ["TARGET", "EthosU"]


class EthosU(Target):
    """`model_vela.tflite`, `model.tflite`, `placement.json` and `estimate.json`."""

    summary = "Arm Ethos-U microNPUs, through Vela"
    precisions = ("int8",)
    forms = ("unrolled", "folded")
    scheme = AFFINE
    options: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "config": CONFIGS,
        "system_config": SYSTEM_CONFIGS,
        "memory_mode": MEMORY_MODES,
    }
    runtime = "ethos_u"
    proxy = "ethos_u_reference"
    needs = ("ethosu", "ethos-u")

    def conflict(self, precision: str, options: Mapping[str, str]) -> str:
        """Integers alone, and what Vela knows of a family's memories."""
        if precision not in ("", "int8"):
            return "an Ethos-U computes in integers alone (Vela, SUPPORTED_OPS.md: feature maps have 8, 16 or 32 bits)"
        return conflict(options) if options else ""

    def require_toolchain(self) -> None:
        """Vela, and LiteRT's converter before it; see `Target.require_toolchain`."""
        super().require_toolchain()
        LiteRT().require_toolchain()

    def compile(self, program: "ExportedProgram", folder: Path, asked: Request) -> tuple[str, ...]:
        """Convert to an int8 .tflite, and that to the NPU's commands; see `Target.compile`."""
        self.require_toolchain()
        from edgeact.targets._tflite import with_int8_logits
        from edgeact.targets._vela import compile_for_npu

        convert(program, folder / "model.tflite", asked.precision, asked.how, integers=True)
        with tempfile.TemporaryDirectory(prefix="edgeact-ethos-u-") as work:
            with_int8_logits(folder / "model.tflite", Path(work) / "model.tflite")
            estimate, moved = compile_for_npu(Path(work) / "model.tflite", folder, *resolve(asked.options), asked.how)
        left = ", ".join(f"{count} {op}" for op, count in moved.items())
        return (
            f"estimated, not measured: {estimate}",
            "model_vela.tflite gives int8: output = scale * (value - zero point), of its output tensor",
            *((f"ops that move data stay on the CPU, and cut the network into parts: {left}",) if left else ()),
        )

    def refusals(self, graph: "GraphModule", asked: Request) -> "tuple[Mapping[Node, Refusal], tuple[str, ...]]":
        """What Vela leaves to the CPU, by its documented constraints; see `Target.refusals`."""
        from edgeact.targets._vela_rules import refusals

        config, system_config, memory_mode = resolve(asked.options)
        return refusals(graph, config), (f"Vela 5.2.0's rules for {config}, {system_config}, {memory_mode}",)


TARGET = EthosU()
