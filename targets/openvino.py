"""OpenVINO on CPUs: an IR with the uint8 clip as input and the normalisation inside the graph.

The CPU plugin has Conv3d, depthwise Conv3d and 3-D pooling kernels (oneDNN's brgconv), so the volumetric form is the
fastest there. fp16 means weights stored as fp16; the CPU computes in fp32 either way (INFERENCE_PRECISION_HINT in the
runner), so an fp16 bundle is half the size at the same speed. int8 runs in int8 kernels throughout, depthwise Conv3d
included.
"""

import errno
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeact._capture import quiet_torchao
from edgeact._macs import layer_of
from edgeact.errors import MissingDependencyError, ToolchainError
from edgeact.quantize.scheme import Scheme
from edgeact.targets._target import Request, Target

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import GraphModule, Node

    from edgeact.targets._target import Refusal


__all__ = ["TARGET", "OpenVINO"]

_FULL_DISK_BYTES = 1 << 16  # what a stream that failed may leave free: less than one of its buffers


class OpenVINO(Target):
    """`model.xml` and `model.bin`."""

    summary = "Intel and AMD CPUs, through OpenVINO"
    precisions = ("fp32", "fp16", "int8")
    forms = ("volumetric", "folded", "unrolled")
    scheme = Scheme()
    runtime = "openvino"
    needs = ("openvino", "openvino")

    def compile(self, program: "ExportedProgram", folder: Path, asked: Request) -> tuple[str, ...]:
        """Convert, fix the shapes, and save; see `Target.compile`."""
        with _toolchain():
            if asked.precision == "int8":
                from edgeact.targets._fake_quantize import with_fake_quantize

                program = with_fake_quantize(program)
            model = _convert(program)
            shape = next(node for node in program.graph.nodes if node.op == "placeholder" and node.name == "clip")
            model.reshape({model.input(0): list(shape.meta["val"].shape)})
            model.input(0).get_tensor().set_names({"clip"})
            model.output(0).get_tensor().set_names({"logits"})
            _save(model, folder / "model.xml", compress_to_fp16=asked.precision == "fp16")
        return ()

    def refusals(self, graph: "GraphModule", asked: Request) -> "tuple[Mapping[Node, Refusal], tuple[str, ...]]":
        """What OpenVINO's own converter cannot translate, as it says when asked; see `Target.refusals`."""
        import torch

        from edgeact.targets._target import Refusal

        clip = next(node.meta["val"] for node in graph.graph.nodes if node.op == "placeholder")
        with _toolchain():
            import openvino as ov

            program = torch.export.export(graph, (torch.zeros(tuple(clip.shape), dtype=clip.dtype),))
            try:
                ov.convert_model(program)
            except ov.frontend.OpConversionFailure as exc:
                unknown = set(re.findall(r"aten\.\w+", str(exc).rpartition("Summary")[2]))
                nodes = [node for node in graph.graph.nodes if str(node.target).rpartition(".")[0] in unknown]
                if not nodes:
                    raise
                reason = (
                    "OpenVINO's PyTorch frontend has no translation (openvino/src/frontends/pytorch/src/op_table.cpp)"
                )
                return {node: Refusal(f"{node.target}: {reason}", runs=False) for node in nodes}, ()
        return {}, ()


def _convert(program: "ExportedProgram") -> Any:
    """An OpenVINO model, whose ops are named by the layers of the user's network: `layer1.0.conv2/convolution_3/…`."""
    import openvino as ov
    from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder

    with quiet_torchao():  # it warns of ops that torch has taken from its table
        decoder = TorchFXPythonDecoder.from_exported_program(program)
    layers = {node.name: layer_of(node) for node in decoder.pt_module.graph.nodes}
    model = ov.convert_model(decoder)
    for op in model.get_ops():
        name = op.get_friendly_name()
        if layer := layers.get(name.partition("/")[0]):
            op.set_friendly_name(f"{layer}/{name}")
    return model


def _save(model: Any, path: Path, *, compress_to_fp16: bool) -> None:
    """Save, or say that the disk is full: OpenVINO's stream error names neither the file nor the reason."""
    import openvino as ov

    try:
        ov.save_model(model, path, compress_to_fp16=compress_to_fp16)
    except RuntimeError as exc:
        if shutil.disk_usage(path.parent).free > _FULL_DISK_BYTES:
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from exc


@contextmanager
def _toolchain() -> Iterator[None]:
    """OpenVINO's exceptions in edgeact's words; its own classes derive from Exception and RuntimeError alike.

    Outside of CI its converter reports every use over the network, unasked, from a forked process that may never end.
    """
    ci = os.environ.get("CI")
    os.environ["CI"] = "true"
    try:
        with warnings.catch_warnings():
            # deep-copying the program trips over a class that torch 2.13 deprecates and still uses
            warnings.filterwarnings("ignore", message=".*treespec, LeafSpec", category=FutureWarning)
            yield
    except ImportError as exc:
        raise MissingDependencyError("openvino", "openvino", "exporting to openvino") from exc
    except OSError:
        raise  # a full or read-only disk is not the converter's
    except Exception as exc:
        lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
        raise ToolchainError(f"OpenVINO could not convert this network: {lines[-1] if lines else repr(exc)}") from exc
    finally:
        os.environ.pop("CI") if ci is None else os.environ.update(CI=ci)


TARGET = OpenVINO()
