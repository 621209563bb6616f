"""Qualcomm's Hexagon HTP, the NPU of Snapdragons, through ONNX Runtime's QNN provider: one context binary.

The network is compiled ahead of time for one chip, whole: an op that would stay on the CPU is an error. Compiling takes
seconds as long as every layer with weights is QDQ (see `_htp_graph`): where ONNX Runtime leaves weights
behind a DequantizeLinear of its own, they come to HTP as run-time tensors, and compiling takes minutes, or memory until
it fails. fp16 computes in float16 up to the logits. The bundle holds the binary with its wrapper, and `model.onnx`,
from which a device or another QNN can compile again. Binaries are cached by what they were compiled from.
"""

import importlib.metadata
import json
import shutil
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from edgeact._vendor_compiler import Compilation, run_compiler
from edgeact.engine import Engine, build_engine
from edgeact.placement import PlacedOp, Placement, write_placement
from edgeact.quantize.scheme import AFFINE
from edgeact.targets._htp_rules import FLOAT, placed
from edgeact.targets._target import Request, Target

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch.export import ExportedProgram
    from torch.fx import GraphModule, Node

    from edgeact.targets._target import Refusal


__all__ = ["TARGET", "Qualcomm"]

# QNN's number of the chip and the version of its HTP (pytorch/executorch, backends/qualcomm/serialization/qc_schema.py;
# the numbers as in QnnTypes.h, Qnn_SocModel_t). The default comes first.
_SOCS = {
    "SM8650": (57, 75),  # Snapdragon 8 Gen 3
    "SM8350": (30, 68),  # 888
    "SM8450": (36, 69),  # 8 Gen 1
    "SM8475": (42, 69),  # 8+ Gen 1
    "SM8550": (43, 73),  # 8 Gen 2
    "SM8750": (69, 79),  # 8 Elite
    "SM8845": (97, 81),  # 8 Gen 5
    "SM8850": (87, 81),  # 8 Elite Gen 5
    "QCM6490": (93, 68),
    "QCS6490": (93, 68),  # one chip, without the modem: Qualcomm's QCM6490.LE.1.0 is its release, too (80-70029-300)
    "QCS9100": (77, 73),
    "SA8255": (52, 73),
    "SA8295": (39, 68),
    "SA8797": (72, 81),
}

_NO_FLOAT16 = ("QCM6490", "QCS6490")

# Least SQNR of a binary in QNN's emulator against its graph on a CPU. Of sound ones of int8 the least seen is 27.6 dB,
# of int16 78 dB; of binaries that were compiled wrong 7 and -10 dB.
_LEAST_DB = {"int8": 15.0, "int16": 45.0, "fp16": 40.0}


class Qualcomm(Target):
    """`model.context.bin` and `.onnx`, `model.onnx` and `placement.json`."""

    summary = "Qualcomm Snapdragon NPUs (Hexagon HTP), through ONNX Runtime and QNN"
    precisions = ("int8", "fp16")
    forms = ("unrolled", "folded", "volumetric")
    scheme = AFFINE
    options: ClassVar[Mapping[str, tuple[str, ...]]] = {"soc": tuple(_SOCS), "activations": ("int8", "int16")}
    runtime = "qnn"
    needs = ("onnxruntime_qnn", "qualcomm")

    def conflict(self, precision: str, options: Mapping[str, str]) -> str:
        """Chips without float16; activations in int16 are of an int8 network."""
        if precision != "fp16":
            return ""
        if options.get("soc") in _NO_FLOAT16:
            return "QNN 2.51 takes no float16 for it"
        return (
            "activations in int16 are of int8, and fp16 computes in float16"
            if options.get("activations") == "int16"
            else ""
        )

    def compile(self, program: "ExportedProgram", folder: Path, asked: Request) -> tuple[str, ...]:
        """Write ONNX, compile it in a process of its own, and check the binary; see `Target.compile`."""
        import onnx

        self.require_toolchain()
        from edgeact.targets._onnx import crossing_bytes

        model = _onnx_for(program, asked.precision, asked.options)
        onnx.save(model, folder / "model.onnx")
        kind = "fp16" if asked.precision == "fp16" else asked.options["activations"]
        engine, is_new = _context(folder, kind, asked.options["soc"], asked.how)
        for name in ("model.context.bin", "model.context.onnx"):
            shutil.copyfile(engine.folder / name, folder / name)
        ops = placed(model)
        write_placement(folder, Placement.of(ops, "measured", crossing_bytes(model)))
        told, qnn = json.loads((engine.folder / "checked.json").read_text()), engine.stamp["machine"]["qnn"]
        when = "" if is_new else f", when it was first compiled ({engine.stamp['date']}): the binary is from the cache"
        return (
            f"for {asked.options['soc']}: compiled by QNN {qnn} in {told['seconds']:g} s{when}; in its emulator "
            f"{told['sqnr_db']:g} dB from the same graph on a CPU",
            "every op is on the HTP: its binary is all that the wrapper holds; they are listed as model.onnx has them, "
            "and HTP may join them",
            *_floats_in_words(ops),
        )

    def refusals(self, graph: "GraphModule", asked: Request) -> "tuple[Mapping[Node, Refusal], tuple[str, ...]]":
        """What QNN's provider has no builder for, by the graph's own ONNX; see `Target.refusals`."""
        import torch

        from edgeact.targets._htp_rules import refused_nodes
        from edgeact.targets._onnx import op_of, to_onnx

        clip = next(node.meta["val"] for node in graph.graph.nodes if node.op == "placeholder")
        with torch.no_grad():
            program = torch.export.export(graph, (torch.zeros(tuple(clip.shape), dtype=clip.dtype),))
        own = {node.name: node for node in graph.graph.nodes}
        ops = {  # by their source: of one op with several results more nodes come than there were
            each.name: own[source.name]
            for each in program.graph.nodes
            for source in each.meta.get("from_node", ())[-1:]
            if source.name in own
        }
        by_name = refused_nodes(to_onnx(program, "fp32"))
        found = {ops[op_of(name)]: refusal for name, refusal in by_name.items() if op_of(name) in ops}
        notes = ["the ops that onnxruntime-qnn 2.7 has builders for; the compiler alone knows their sizes"]
        if (soc := asked.options.get("soc")) in _NO_FLOAT16:
            notes.append(f"QNN 2.51 takes no float16 for {soc}: an op without an int8 rule stops it")
        return found, tuple(notes)


def _onnx_for(program: "ExportedProgram", precision: str, options: Mapping[str, str]) -> "ModelProto":
    from edgeact.targets._htp_graph import for_htp, frames_first
    from edgeact.targets._htp_pool import pool_by_axis
    from edgeact.targets._onnx import to_onnx

    model = to_onnx(program, precision)
    if precision == "int8":
        for_htp(model, options["activations"])
    else:
        frames_first(model)
        pool_by_axis(model)
    return model


def _floats_in_words(ops: "list[PlacedOp]") -> tuple[str, ...]:
    """What has no weights and is in float between integers, in an int8 network: no fallback, and not unsaid."""
    kinds = Counter(op.kernel.removesuffix(FLOAT) for op in ops if op.kernel.endswith(FLOAT) and not op.fallback)
    if not kinds:
        return ()
    counted = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    return (f"int8: in float on the HTP, without weights, no rounding between them: {counted}",)


def _context(folder: Path, kind: str, soc: str, how: Compilation) -> tuple[Engine, bool]:
    """The context binary of `model.onnx` in `folder`, and whether it was compiled now, or is from the cache."""
    from onnxruntime_qnn.build_and_package_info import qnn_version

    from edgeact.targets._qnn_compiler import reason

    number, version = _SOCS[soc]
    provider = {"soc_model": str(number), "htp_arch": str(version)}  # without them it is SM8350, and fp16 on the CPU
    facts = {name: importlib.metadata.version(name) for name in ("onnxruntime", "onnxruntime-qnn")}

    is_new = False

    def build(out: Path) -> dict[str, Any]:
        nonlocal is_new
        is_new = True
        command: list[str | Path] = [sys.executable, "-P", "-m", "edgeact.targets._qnn_compiler"]
        command += [folder / "model.onnx", out, str(_LEAST_DB[kind]), *(f"{k}={v}" for k, v in provider.items())]
        run_compiler(command, name="QNN", how=how, in_a_line=reason)
        told: dict[str, Any] = json.loads((out / "checked.json").read_text())
        return told

    return build_engine("qualcomm", folder, facts | {"qnn": qnn_version, "soc": soc} | provider, build), is_new


TARGET = Qualcomm()
