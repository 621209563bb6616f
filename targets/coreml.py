"""Apple's Neural Engine through Core ML: a model.mlpackage (mlprogram) that takes each frame as an image.

An app gives the camera's pixel buffers as they are: `frame_0` … `frame_{T-1}`, RGB; the normalisation is inside. The
engine computes in float16 alone, so there is no fp32. int8 keeps the quantized network's own weights and scales, with
activations in float16 or, `activations` int8, rounded too, in int8 arithmetic from A17 Pro and M4 on (coremltools,
Quantization Overview). The unrolled form is the default: 2-D convolutions of one image, no op that moves data but the
stacking of frames; 3-D ones leave the engine, which `_neural_engine_rules` says with the source. What runs where is an
estimate by these rules until a Mac tells; no number of a Mac or an iPhone is measured where the export runs.
"""

import json
import shutil
import sys
import tempfile
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from edgeact._toolchain import toolchain
from edgeact._vendor_compiler import run_compiler
from edgeact.errors import MissingDependencyError
from edgeact.quantize.scheme import Scheme
from edgeact.targets._neural_engine_rules import MOVES, refused
from edgeact.targets._target import Request, Target

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import GraphModule, Node

    from edgeact.targets._target import Refusal


__all__ = ["TARGET", "CoreML"]

# Operators of MIL by the ATen op they come of, where the names differ.
_KINDS = {
    "_softmax": "softmax",
    "adaptive_avg_pool1d": "avg_pool",
    "adaptive_avg_pool2d": "avg_pool",
    "adaptive_avg_pool3d": "avg_pool",
    "addmm": "linear",
    "amax": "reduce_max",
    "amin": "reduce_min",
    "bmm": "matmul",
    "clamp": "clip",
    "constant_pad_nd": "pad",
    "div": "real_div",
    "hardsigmoid": "sigmoid_hard",
    "hardswish": "mul",
    "hardtanh": "clip",
    "mean": "reduce_mean",
    "mm": "matmul",
    "native_layer_norm": "layer_norm",
    "neg": "mul",
    "rsub": "sub",
    "sum": "reduce_sum",
    "upsample_bilinear2d": "upsample_bilinear",
    "upsample_nearest2d": "upsample_nearest_neighbor",
}
_ATEN_MOVES = """
_assert_tensor_metadata _to_copy alias cat clone contiguous detach expand flatten getitem permute repeat select slice
split_with_sizes t to unsqueeze view
"""
_MOVES = frozenset(_ATEN_MOVES.split())


class CoreML(Target):
    """`model.mlpackage`, `model.operators.json`, `placement.json` and `run_on_mac.py`."""

    summary = "Apple's Neural Engine, through Core ML"
    precisions = ("fp16", "int8")
    forms = ("unrolled", "folded", "volumetric")
    scheme = Scheme(partial_sums=True)
    options: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "deployment": ("iOS17", "iOS18", "iOS26"),
        "activations": ("float16", "int8"),
    }
    runtime = "coreml"
    needs = ("coremltools", "coreml")
    takes_images = True

    def conflict(self, precision: str, options: Mapping[str, str]) -> str:
        """The engine has no float32; activations are in int8 where weights are."""
        if precision == "fp32":
            return "the Neural Engine computes in float16 alone"
        refused = precision == "fp16" and options.get("activations") == "int8"
        return "activations in int8 go with weights in int8: --precision int8" if refused else ""

    def compile(self, program: "ExportedProgram", folder: Path, asked: Request) -> tuple[str, ...]:
        """Convert in a process of its own, and add what runs it on a Mac; see `Target.compile`."""
        import torch

        from edgeact.runtime import _run_on_mac

        self.require_toolchain()
        deployment, activations = asked.options["deployment"], asked.options["activations"]
        with tempfile.TemporaryDirectory(prefix="edgeact-coreml-") as work:
            saved = Path(work) / "program.pt2"
            torch.export.save(program, saved)
            module = "edgeact.targets._coreml_converter"
            command: list[str | Path] = [sys.executable, "-P", "-m", module, saved, folder]
            command += [deployment, activations]
            run_compiler(command, name="coremltools", how=asked.how, environment={"TMPDIR": work})
        shutil.copyfile(_run_on_mac.__file__, folder / "run_on_mac.py")
        counts = json.loads((folder / "model.operators.json").read_text())["operators"]
        rounded = {"fp16": "", "int8": f"int8 weights, activations in {activations}; "}[asked.precision]
        return (
            f"Core ML: {rounded}needs {deployment} or what Apple released beside it; operators of MIL: "
            + ", ".join(f"{count} {kind}" for kind, count in counts.items()),
            "Core ML: where each op runs is estimated by rules; run_on_mac.py of the bundle measures it on a Mac",
        )

    def refusals(self, graph: "GraphModule", asked: Request) -> "tuple[Mapping[Node, Refusal], tuple[str, ...]]":
        """What coremltools has no translation of, and what leaves the Neural Engine; see `Target.refusals`."""
        from edgeact.targets._target import Refusal

        with _toolchain():
            from edgeact.targets._coreml_program import untranslated

            missing = set(untranslated(graph.graph, final=False))
        found: dict[Node, Refusal] = {}
        for node in graph.graph.nodes:
            if node.op != "call_function":
                continue
            name = node.target.__name__.partition(".")[0]
            if node in missing:
                found[node] = Refusal(f"{name}: coremltools has no translation of it", runs=False)
            elif name not in _MOVES and (kind := _kind(name)) not in MOVES:
                if why := refused(kind, _shapes(node), _kernel(node, kind)):
                    found[node] = Refusal(why, runs=True)
        return found, ("an estimate by published rules: a Mac alone tells where Core ML runs an op",)


def _kind(name: str) -> str:
    """Operator of MIL of an ATen op."""
    for family in ("max_pool", "avg_pool", "conv_transpose", "conv"):
        if name.removesuffix("_with_indices")[:-2] == family and name.endswith(("1d", "2d", "3d")):
            return family
    return _KINDS.get(name, name)


def _shapes(node: "Node") -> list[tuple[int, ...]]:
    """Of what it gives, and of what it reads that is computed."""
    values: list[Any] = [each.meta.get("val") for each in (node, *node.all_input_nodes) if each.op != "get_attr"]
    return [tuple(value.shape) for value in values if hasattr(value, "shape")]


def _kernel(node: "Node", kind: str) -> list[int]:
    sizes: Any = ()
    if kind.startswith("conv"):
        sizes = node.args[1].meta["val"].shape[2:]  # type: ignore[union-attr]
    elif kind.endswith("_pool") and not node.target.__name__.startswith("adaptive"):  # type: ignore[union-attr]
        sizes = node.args[1]
    return [sizes] if isinstance(sizes, int) else list(sizes)


def _missing() -> MissingDependencyError:
    return MissingDependencyError("coremltools", "coreml", "exporting to coreml")


def _toolchain() -> AbstractContextManager[None]:
    return toolchain("coremltools could not be asked", _missing())


TARGET = CoreML()
