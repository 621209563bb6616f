"""NVIDIA Jetson through TensorRT: an ONNX that its parser takes, and the recipe to build the engine on the device.

An engine belongs to one device, TensorRT and JetPack, so the bundle holds `model.onnx` and `build_engine.py`, which
needs nothing but the device's own TensorRT. The folded form is the default: 2D convolutions, one launch for all frames;
depthwise 3D ones have no int8 kernel and slow ones in float (NVIDIA/TensorRT#1198, #1409), and the DLA takes 2D alone.
fp16 computes in float16 up to the logits. int8 is explicit: symmetric Q/DQ, weights per output channel, bias in float.
`placement.json` says what NVIDIA's documented rules say of each node, `model.conformance.json` which rules those are;
here ONNX Runtime on the CPU stands in for TensorRT, for the numbers alone.
"""

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from edgeact.errors import InputError, ToolchainError
from edgeact.placement import PlacedOp, Placement, write_placement
from edgeact.quantize.scheme import PORTABLE
from edgeact.targets._target import Request, Target

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch.export import ExportedProgram
    from torch.fx import GraphModule, Node

    from edgeact.targets._target import Refusal


__all__ = ["TARGET", "Jetson"]


class Jetson(Target):
    """`model.onnx`, `placement.json`, `model.conformance.json` and `build_engine.py`."""

    summary = "NVIDIA Jetson, through TensorRT"
    precisions = ("fp16", "int8", "fp32")
    forms = ("folded", "unrolled", "volumetric")
    scheme = PORTABLE
    options: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "jetpack": ("6.2", "6.1", "6.0", "5.1"),
        "accelerator": ("gpu", "dla"),
    }
    runtime = "tensorrt"
    proxy = "onnxruntime"
    needs = ("onnxscript", "export")

    def conflict(self, precision: str, options: Mapping[str, str]) -> str:
        """What a DLA has no arithmetic for (NVIDIA, Working with DLA)."""
        if options.get("accelerator") != "dla" or precision in ("", "fp16"):
            return ""
        if precision == "int8":
            return "a DLA reads no Q/DQ (NVIDIA, Working with DLA)"
        return "a DLA computes in fp16 and int8 alone (NVIDIA, Working with DLA)"

    def compile(self, program: "ExportedProgram", folder: Path, asked: Request) -> tuple[str, ...]:
        """Write ONNX, hold it against the rules and a real parser, and add the recipe; see `Target.compile`."""
        import onnx

        from edgeact.runtime import _build_engine
        from edgeact.targets._dla import for_dla
        from edgeact.targets._onnx import to_onnx
        from edgeact.targets._qdq import float_weights, fuse
        from edgeact.targets._tensorrt_rtx import parser_name, refused
        from edgeact.targets._tensorrt_rules import RELEASES

        model = to_onnx(program, asked.precision)
        if asked.precision == "int8":
            fuse(model)
            if RELEASES[asked.options["jetpack"]].tensorrt.startswith("8."):
                float_weights(model)
        if asked.options["accelerator"] == "dla":
            for_dla(model)
        _check_opset(model, asked.options)
        placement = _placement(model, asked.options)
        told = {
            "jetpack": asked.options["jetpack"],
            "tensorrt": RELEASES[asked.options["jetpack"]].tensorrt,
            "accelerator": asked.options["accelerator"],
            "precision": asked.precision,
            "parsed_by": parser_name(),
        }
        onnx.save(model, folder / "model.onnx")
        if (stopped := refused(folder / "model.onnx")) is not None:
            raise ToolchainError(f"{parser_name()} cannot parse node {stopped[0]!r}: {stopped[1]}")
        (folder / "model.conformance.json").write_text(json.dumps(told, indent=1) + "\n")
        write_placement(folder, placement)
        shutil.copyfile(_build_engine.__file__, folder / "build_engine.py")
        opset, nodes = model.opset_import[0].version, len(model.graph.node)
        return (f"ONNX of opset {opset}, {nodes} nodes, held against {_authority(asked.options)}",)

    def refusals(self, graph: "GraphModule", asked: Request) -> "tuple[Mapping[Node, Refusal], tuple[str, ...]]":
        """What the rules say of the graph's own ONNX; see `Target.refusals`."""
        import onnx
        import torch

        from edgeact.targets._dla import for_dla
        from edgeact.targets._onnx import op_of, to_onnx
        from edgeact.targets._target import Refusal
        from edgeact.targets._tensorrt_rtx import parser_name, refused
        from edgeact.targets._tensorrt_rules import RELEASES, refused_nodes

        clip = next(node.meta["val"] for node in graph.graph.nodes if node.op == "placeholder")
        with torch.no_grad():
            program = torch.export.export(graph, (torch.zeros(tuple(clip.shape), dtype=clip.dtype),))
        model = to_onnx(program, "fp32")
        if asked.options["accelerator"] == "dla":
            for_dla(model)
        _check_opset(model, asked.options)
        release, int8 = RELEASES[asked.options["jetpack"]], asked.precision == "int8"
        by_name = refused_nodes(model, release, asked.options["accelerator"], int8=int8)
        with tempfile.TemporaryDirectory(prefix="edgeact-jetson-") as folder:
            onnx.save(model, Path(folder) / "model.onnx")
            if (stopped := refused(Path(folder) / "model.onnx")) is not None:
                by_name[stopped[0]] = Refusal(f"{stopped[1]} ({parser_name()}, its ONNX parser)", runs=False)
        calls = ([node for node in each.nodes if node.op == "call_function"] for each in (program.graph, graph.graph))
        ops = {exported.name: node for exported, node in zip(*calls, strict=True)}
        found: dict[Node, Refusal] = {}
        for name, refusal in by_name.items():
            node = ops.get(op_of(name))
            if node is not None and (node not in found or found[node].runs):
                found[node] = refusal
        return found, (_authority(asked.options),)


def _authority(options: Mapping[str, str]) -> str:
    """What a network is held against."""
    from edgeact.targets._tensorrt_rtx import parser_name
    from edgeact.targets._tensorrt_rules import RELEASES

    release = RELEASES[options["jetpack"]]
    parser = f"the parser of {parser_name()}"
    if parser_name() is None:
        parser = "no real parser: pip install 'edgeact[tensorrt-rtx]' adds one that needs no GPU"
    return f"NVIDIA's rules for TensorRT {release.tensorrt} (JetPack {options['jetpack']}), and {parser}"


def _check_opset(model: "ModelProto", options: Mapping[str, str]) -> None:
    from edgeact.targets._tensorrt_rules import RELEASES

    newest, opset = RELEASES[options["jetpack"]].opset, model.opset_import[0].version
    if opset > newest:
        raise InputError(
            f"this network needs ONNX opset {opset}, and JetPack {options['jetpack']} reads up to {newest}: choose a "
            "newer --jetpack"
        )


def _placement(model: "ModelProto", options: Mapping[str, str]) -> Placement:
    """Where the device's TensorRT would run each node, by its rules.

    Raises:
        InputError: A node that it would refuse.
    """
    from edgeact.targets._onnx import crossing_bytes, layer_of
    from edgeact.targets._tensorrt_rules import RELEASES, compute_ops, refused_nodes

    release, unit = RELEASES[options["jetpack"]], options["accelerator"].upper()
    refused = refused_nodes(model, release, options["accelerator"])
    cannot = {name: refusal for name, refusal in refused.items() if not refusal.runs}
    if cannot:
        name, refusal = next(iter(cannot.items()))
        raise InputError(
            f"TensorRT {release.tensorrt} of JetPack {options['jetpack']} would not build {len(cannot)} of "
            f"{len(model.graph.node)} nodes, first {name}: {refusal.reason}"
        )
    kinds = dict(compute_ops(model)) | {node.name: node.op_type for node in model.graph.node if node.name in refused}
    return Placement.of(
        (
            PlacedOp(name=name, kernel=kind, unit=unit, layer=layer_of(name), fallback=_reason(refused.get(name)))
            for name, kind in kinds.items()
        ),
        "estimated",
        crossing_bytes(model),
    )


def _reason(refusal: "Refusal | None") -> str:
    if refusal is None:
        return ""
    return f"{refusal.reason}, in float" if "runs in float" in refusal.reason else refusal.reason


TARGET = Jetson()
