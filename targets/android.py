"""Android CPUs through ExecuTorch: a .pte whose compute runs in XNNPACK.

XNNPACK has 2-D kernels alone: a stock 3-D network fails when it is loaded (`aten::max_pool3d_with_indices.out`) or run
(5-D convolution), so time is lowered. The unrolled form goes to XNNPACK as one delegate; the cast of the uint8 clip is
outside, since XNNPACK has none. `placement.json` lists what was delegated and what was not, as read from the program.
"""

import json
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeact.errors import MissingDependencyError, ToolchainError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch.export import ExportedProgram
    from torch.fx import GraphModule, Node

    from edgeact.targets._target import Refusal

__all__ = ["TARGET", "Android"]


class Android:
    """`model.pte` and `placement.json`."""

    summary = "Android CPUs, through ExecuTorch and XNNPACK"
    precisions = ("fp32",)
    forms = ("unrolled", "folded")
    runtime = "executorch"

    def compile(self, program: "ExportedProgram", folder: Path, precision: str) -> None:
        """Delegate to XNNPACK and write the program; see `Target.compile`."""
        with _toolchain():
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
            from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower

            edge = to_edge_transform_and_lower(
                program,
                partitioner=[XnnpackPartitioner()],
                compile_config=EdgeCompileConfig(_check_ir_validity=False),  # one more pass over thousands of nodes
            )
            placement = _placement(edge.exported_program().graph_module)
            buffer = edge.to_executorch().buffer
        (folder / "model.pte").write_bytes(buffer)
        (folder / "placement.json").write_text(json.dumps(placement, indent=1) + "\n")

    def refusals(self, graph: "GraphModule") -> "Mapping[Node, Refusal]":
        """What XNNPACK's partitioner leaves out; see `Target.refusals`."""
        from edgeact.targets import _xnnpack

        return _xnnpack.refusals(
            graph,
            more="cos sin upsample_bilinear2d",
            source="executorch/backends/xnnpack/partition/config",
            volumetric="ExecuTorch has no 3-D kernels (executorch/kernels/portable/functions.yaml, op_convolution.cpp)",
        )


def _placement(graph: "GraphModule") -> dict[str, Any]:
    """Ops in each delegate, and outside of all of them, by name."""
    outside: Counter[str] = Counter()
    delegates = []
    for node in graph.graph.nodes:
        if node.op != "call_function" or getattr(node.target, "__name__", "") == "getitem":
            continue
        if str(node.target) == "executorch_call_delegate":
            inner = getattr(graph, str(node.args[0].target)).original_module.graph_module.graph
            delegates.append(Counter(_name(op) for op in inner.nodes if op.op == "call_function"))
        else:
            outside[_name(node)] += 1
    return {"delegates": [dict(delegate.most_common()) for delegate in delegates], "outside": dict(outside)}


def _name(node: Any) -> str:
    """`aten.conv2d.default` of an op of any dialect."""
    return str(getattr(node.target, "_op", node.target))


@contextmanager
def _toolchain() -> Iterator[None]:
    """ExecuTorch's exceptions, of many classes, in edgeact's words."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torchao and ExecuTorch warn of their own deprecated calls
            yield
    except ImportError as exc:
        raise MissingDependencyError("executorch", "executorch", "exporting to android") from exc
    except OSError:
        raise
    except Exception as exc:
        lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
        raise ToolchainError(f"ExecuTorch could not compile this network: {lines[0] if lines else repr(exc)}") from exc


TARGET = Android()
