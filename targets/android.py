"""Android phones through ExecuTorch: a .pte whose compute runs in XNNPACK (CPU) or Vulkan (GPU).

Neither has 3-D kernels: a stock 3-D network fails when it is loaded (`aten::max_pool3d_with_indices.out`) or run (5-D
convolution), so time is lowered. The unrolled form goes to either as one delegate; the cast of the uint8 clip is
outside, since neither has one. fp16 computes in float16 throughout: logits alone are cast back; ExecuTorch keeps the
weights of convolutions in float32 (op_conv2d.py, force_fp32), so the file is not smaller. int8 computes in XNNPACK's
qs8 kernels, up to the logits. `placement.json` lists what was delegated and what was not, as read from the program.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from edgeact._macs import layer_of
from edgeact._toolchain import toolchain
from edgeact.errors import MissingDependencyError
from edgeact.placement import PlacedOp, Placement, write_placement
from edgeact.quantize.scheme import Scheme
from edgeact.targets._target import Request, Target

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import GraphModule, Node

    from edgeact.targets._target import Refusal


__all__ = ["TARGET", "Android"]

_BACKENDS = {"xnnpack": "XNNPACK", "vulkan": "Vulkan"}
_OPS_THAT_MOVE = """
_to_copy _to_dim_order_copy cat clone expand pad permute quantize_per select slice squeeze view
"""
# Parts of the names of ops that move or retype data: outside of a delegate they cost a copy.
_MOVEMENT = _OPS_THAT_MOVE.split()


class Android(Target):
    """`model.pte` and `placement.json`."""

    summary = "Android CPUs and GPUs, through ExecuTorch"
    precisions = ("fp32", "fp16", "int8")
    forms = ("unrolled", "folded")
    scheme = Scheme(partial_sums=True)
    options: ClassVar[Mapping[str, tuple[str, ...]]] = {"backend": ("xnnpack", "vulkan")}
    runtime = "executorch"
    needs = ("executorch", "executorch")

    def conflict(self, precision: str, options: Mapping[str, str]) -> str:
        """An int8 network goes to XNNPACK."""
        refused = precision == "int8" and options.get("backend") == "vulkan"
        return "its int8 goes to the backend xnnpack alone" if refused else ""

    def compile(self, program: "ExportedProgram", folder: Path, asked: Request) -> tuple[str, ...]:
        """Delegate to the backend and write the program; see `Target.compile`."""
        backend, half = asked.options["backend"], asked.precision == "fp16"
        with _toolchain():
            from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower

            from edgeact.targets._float16 import in_float16

            edge = to_edge_transform_and_lower(
                in_float16(program) if half and backend == "xnnpack" else program,
                partitioner=[_partitioner(backend, half=half)],
                compile_config=EdgeCompileConfig(_check_ir_validity=False),  # one more pass over thousands of nodes
            )
            placement = _placement(edge.exported_program().graph_module, backend)
            buffer = edge.to_executorch().buffer
        (folder / "model.pte").write_bytes(buffer)
        write_placement(folder, placement)
        return ()

    def refusals(self, graph: "GraphModule", asked: Request) -> "tuple[Mapping[Node, Refusal], tuple[str, ...]]":
        """What the backend's partitioner leaves out; see `Target.refusals`."""
        from edgeact.targets import _vulkan, _xnnpack

        no_3d = "ExecuTorch has no 3-D kernels (executorch/kernels/portable/functions.yaml, op_convolution.cpp)"
        if asked.options["backend"] == "vulkan":
            with _toolchain():
                return _vulkan.refusals(graph, volumetric=no_3d), ()
        found = _xnnpack.refusals(
            graph,
            more="cos sin upsample_bilinear2d",
            source="executorch/backends/xnnpack/partition/config",
            volumetric=no_3d,
        )
        return found, ()


def _partitioner(backend: str, *, half: bool) -> Any:
    if backend == "vulkan":
        from executorch.backends.vulkan.partitioner.vulkan_partitioner import VulkanPartitioner

        return VulkanPartitioner({"force_fp16": half})
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from torch.fx.passes.infra.partitioner import Partition

    from edgeact.targets._delegates import levels

    class Levels(XnnpackPartitioner):  # type: ignore[misc]
        def generate_partitions(self, ep: Any) -> Any:
            """The same ops as ExecuTorch's, in as few delegates as can be."""
            found = levels(ep.graph, self.get_matched_nodes_from_configs(ep))
            if found is None:
                return super().generate_partitions(ep)
            return [Partition(id=i, nodes=dict.fromkeys(nodes)) for i, nodes in enumerate(found)]

    return Levels()


def _placement(graph: "GraphModule", backend: str) -> Placement:
    moving = (_name(node) for node in graph.graph.nodes if _moves(node))
    return Placement.of(_placed(graph, backend), "measured", _crossing_bytes(graph), moving)


def _placed(graph: "GraphModule", backend: str) -> Iterator[PlacedOp]:
    """The ops that compute in each delegate, and outside of all of them, of the lowered graph."""
    delegates = 0
    for node in graph.graph.nodes:
        if _computes(node):
            yield PlacedOp(
                name=node.name,
                kernel=_name(node),
                unit="CPU",
                layer=layer_of(node),
                fallback=f"{_name(node)}, outside the delegates",
            )
        elif _is_delegate(node):
            inner = getattr(graph, str(node.args[0].target)).original_module.graph_module
            for op in filter(_computes, inner.graph.nodes):
                yield PlacedOp(
                    name=op.name, kernel=_name(op), unit=f"{_BACKENDS[backend]} {delegates}", layer=layer_of(op)
                )
            delegates += 1


def _crossing_bytes(graph: "GraphModule") -> int:
    """Of the tensors that go into delegates and come out of them."""
    from torch.utils._pytree import tree_leaves

    delegates = [node for node in graph.graph.nodes if _is_delegate(node)]
    crossing = [node.meta["val"] for delegate in delegates for node in (delegate, *delegate.args[1:])]
    return sum(value.numel() * value.element_size() for value in tree_leaves(crossing))


def _is_delegate(node: "Node") -> bool:
    return str(node.target) == "executorch_call_delegate"


def _computes(node: "Node") -> bool:
    return _is_op(node) and not _moves(node)


def _moves(node: "Node") -> bool:
    """Whether it moves or retypes data and computes nothing."""
    return _is_op(node) and any(word in _name(node) for word in _MOVEMENT)


def _is_op(node: "Node") -> bool:
    named = getattr(node.target, "__name__", "") != "getitem"  # which takes one of several results
    return node.op == "call_function" and named and not _is_delegate(node)


def _name(node: Any) -> str:
    """`aten.conv2d.default` of an op of any dialect."""
    return str(getattr(node.target, "_op", node.target))


def _toolchain() -> AbstractContextManager[None]:
    missing = MissingDependencyError("executorch", "executorch", "exporting to android")
    return toolchain("ExecuTorch could not compile this network", missing)


TARGET = Android()
