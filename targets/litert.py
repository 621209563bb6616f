"""LiteRT (TensorFlow Lite): a .tflite whose compute runs in XNNPACK, on phones and single-board computers.

The stock converter has no depthwise Conv3d and gives dense ones to a slow CONV_3D, so time is lowered; unrolled, all
compute is one or two XNNPACK delegates. fp16 stores weights as float16, half the file; XNNPACK computes in fp32 from
them. int8 keeps the scales of the graph; XNNPACK computes in int8 from the normalised frames to the logits. Neither
TensorFlow Select nor custom ops are ever written: a network that would need them is refused.

With `npu`, the int8 file is held against the rules of LiteRT's compiler for that NPU; with the vendor's SDK beside it,
that compiler compiles it for one chip. What runs here, and is timed, is XNNPACK all the same.
"""

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from edgeact._vendor_compiler import Compilation, run_compiler
from edgeact.errors import ToolchainError
from edgeact.placement import write_placement
from edgeact.quantize.scheme import Scheme
from edgeact.targets import _litert_aot
from edgeact.targets._litert_npu_rules import NPUS, estimate, of_no_rule
from edgeact.targets._target import Request, Target

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import GraphModule, Node

    from edgeact.targets._target import Refusal


__all__ = ["TARGET", "LiteRT", "convert"]


class LiteRT(Target):
    """`model.tflite`; for an NPU `placement.json`, and `model_<npu>_<soc>.tflite` where its vendor's SDK is given."""

    summary = "phones and boards, through LiteRT (TensorFlow Lite) and XNNPACK"
    precisions = ("fp32", "fp16", "int8")
    forms = ("unrolled", "folded")
    scheme = Scheme(partial_sums=True)
    options: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "npu": ("none", *NPUS),
        "soc": ("none", *(soc for npu in NPUS.values() for soc in npu.socs)),
    }
    runtime = "litert"
    needs = ("litert_torch", "litert-export")

    def conflict(self, precision: str, options: Mapping[str, str]) -> str:
        """The rules of NPUs are of int8, and a chip is of its vendor's NPU."""
        npu, soc = options.get("npu", "none"), options.get("soc", "none")
        if npu != "none" and precision not in ("", "int8"):
            return "the rules are held against integers: --precision int8"
        if soc == "none" or (npu != "none" and soc in NPUS[npu].socs):
            return ""
        if npu == "none":
            return f"a chip is of an NPU: give --npu, one of {', '.join(NPUS)}"
        return f"{soc} is of another vendor than {npu}, which has {', '.join(NPUS[npu].socs)}"

    def check_sdk(self, options: Mapping[str, str], sdk: Path | None) -> None:
        """An SDK goes with an NPU and a chip; see `Target.check_sdk`."""
        _litert_aot.check(options["npu"], options["soc"], sdk)

    def compile(self, program: "ExportedProgram", folder: Path, asked: Request) -> tuple[str, ...]:
        """Convert, and hold it against an NPU's rules where one is asked for; see `Target.compile`."""
        npu, soc = asked.options.get("npu", "none"), asked.options.get("soc", "none")
        _litert_aot.check(npu, soc, asked.how.sdk)
        self.require_toolchain()
        model = folder / "model.tflite"
        convert(program, model, asked.precision, asked.how, integers=npu != "none")
        if npu == "none":
            return ()
        told = f"{npu}: compiled for no chip: that needs the vendor's SDK (--sdk); held against {NPUS[npu].source}"
        placement = estimate(model, npu)
        if asked.how.sdk is not None:
            placement = _litert_aot.compile_for(model, folder / f"model_{npu}_{soc}.tflite", npu, soc, asked.how)
            told = f"{npu}: LiteRT's compiler made model_{npu}_{soc}.tflite with the SDK; it has not run on any {soc}"
        write_placement(folder, placement)
        unsure = [f"{npu}: no rule says whether it takes what is {what}" for what in of_no_rule(model)]
        return (told, *unsure, f"{npu}: accuracy and time are of model.tflite on this CPU (XNNPACK), not of the NPU")

    def refusals(self, graph: "GraphModule", asked: Request) -> "tuple[Mapping[Node, Refusal], tuple[str, ...]]":
        """What the XNNPACK delegate, or the compiler for the NPU, leaves out; see `Target.refusals`."""
        from edgeact.targets import _litert_npu_graph, _xnnpack

        npu = asked.options.get("npu", "none")
        if npu != "none":
            notes = [f"{npu}: {NPUS[npu].source}"]
            if (soc := asked.options.get("soc", "none")) != "none":
                notes.append(f"{npu}: these rules are of all its chips; of {soc} its SDK alone tells more")
            return _litert_npu_graph.refusals(graph, npu), tuple(notes)
        found = _xnnpack.refusals(
            graph,
            more="amax amin cos layer_norm log_softmax mean rsub sin softmax sum upsample_bilinear2d",
            source="tensorflow/lite/delegates/xnnpack/README.md",
            volumetric="no grouped CONV_3D, no delegate for it (tensorflow/lite/kernels/conv3d.cc) and no MAX_POOL_3D",
        )
        return found, ()


def convert(program: "ExportedProgram", artifact: Path, precision: str, how: Compilation, *, integers: bool) -> None:
    """Write the .tflite, and check what came out; in a process that may crash, whose JAX forbids its caller to fork.

    Args:
        program: Lowered: uint8 `clip_BTHWC` -> float32 `logits_BK`.
        artifact: The .tflite.
        precision: `fp32`, `fp16` or `int8`.
        how: The time limit.
        integers: Of int8: nothing between pixels and logits may be in float, as on NPUs; a gate is rounded once more.

    Raises:
        ToolchainError: The converter failed, or wrote ops that LiteRT's own kernels do not have.
    """
    import torch

    module = "edgeact.targets._litert_converter"
    with tempfile.TemporaryDirectory(prefix="edgeact-litert-") as work:
        saved = Path(work) / "program.pt2"
        torch.export.save(program, saved)
        command: list[str | Path] = [sys.executable, "-P", "-m", module, saved, artifact, precision]
        run_compiler([*command, "integers"] if integers else command, name="litert-torch", how=how)
    _refuse_foreign_ops(artifact)


def _refuse_foreign_ops(path: Path) -> None:
    """TensorFlow Select ("Flex…") and custom ops need more than the runtime that apps embed."""
    from ai_edge_litert.interpreter import Interpreter

    try:
        ops = {op["op_name"] for op in Interpreter(model_path=str(path))._get_ops_details()}
    except (ValueError, RuntimeError) as exc:  # the interpreter cannot even prepare a custom op
        raise ToolchainError(f"LiteRT cannot load what its converter wrote: {str(exc).splitlines()[0]}") from exc
    foreign = sorted(op for op in ops if op.startswith(("Flex", "CUSTOM", "stablehlo", "STABLEHLO")))
    if foreign:
        raise ToolchainError(f"this network needs ops that LiteRT's own kernels do not have: {', '.join(foreign)}")


TARGET = LiteRT()
