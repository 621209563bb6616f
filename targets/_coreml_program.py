"""An exported program as Core ML takes it: each frame an image of its own in place of the clip.

    uint8 clip [1, T, H, W, 3] ─ moves ─► [1, 3, H, W] of each frame          unrolled
                                        ─► [T, 3, H, W]                        folded
                                        ─► [1, 3, T, H, W]                     volumetric

Images `frame_0` … `frame_{T-1}`, float [1, 3, H, W] in 0..255, stand in for what the moves give.
"""

from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram

from edgeact._capture import round_weights_alone

__all__ = ["as_images", "layers_of", "untranslated"]

_aten = torch.ops.aten

_RETYPES = {_aten._to_copy.default, _aten.to.dtype}
_MOVES = {_aten.reshape.default, _aten.view.default, _aten.permute.default, _aten.slice.Tensor}


def _graph(program: ExportedProgram) -> fx.GraphModule:
    module = program.module(check_guards=False)
    assert isinstance(module, fx.GraphModule)
    return module


def as_images(program: ExportedProgram, *, activations: bool = True) -> ExportedProgram:
    """The same network of T images in place of the clip.

    Args:
        program: uint8 `clip_BTHWC` with B=1 -> float32 `logits_BK`, in any form; it is not changed.
        activations: Keep the rounding of an int8 program's activations.

    Returns:
        T tensors, float32 `[1, 3, H, W]` in 0..255 -> `logits_BK`, in the dialect that coremltools reads.
    """
    module = _graph(program) if activations else round_weights_alone(_graph(program))
    clip = next(node for node in module.graph.nodes if node.op == "placeholder")
    _, frames, height, width, _ = clip.meta["val"].shape
    with module.graph.inserting_before(clip):
        images = [module.graph.placeholder(f"frame_{t}") for t in range(frames)]
    _replace(module.graph, clip, images)
    module.recompile()

    class Images(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = module

        def forward(self, images: list[torch.Tensor]) -> Any:
            with fx.traceback.preserve_node_meta():  # layers keep their names
                return fx.Interpreter(self.network).run(*images)

    with torch.no_grad():
        example = [torch.zeros(1, 3, height, width) for _ in range(frames)]
        exported: ExportedProgram = torch.export.export(Images(), (example,)).run_decompositions({})
    return exported


def _replace(graph: fx.Graph, clip: fx.Node, images: list[fx.Node]) -> None:
    """Let what only moves the clip's numbers read the images: whose numbers they are, their indices tell."""
    shape = tuple(clip.meta["val"].shape)
    index_BTHWC = torch.arange(torch.Size(shape).numel()).view(shape)
    index_BTCHW = index_BTHWC.permute(0, 1, 4, 2, 3)
    moved = {clip: index_BTHWC}
    for node in list(graph.nodes):
        if node.op != "call_function" or node.args[:1] == () or node.args[0] not in moved:
            continue
        if node.target in _RETYPES:
            moved[node] = moved[node.args[0]]
        elif node.target in _MOVES:
            moved[node] = node.target(moved[node.args[0]], *node.args[1:])
        elif not node.users:  # an assertion on the clip's type
            graph.erase_node(node)
            continue
        else:
            continue
        with graph.inserting_before(node):
            found = _from_images(graph, moved[node], index_BTCHW, images)
        if found is not None:
            node.replace_all_uses_with(found)
    graph.eliminate_dead_code()
    if clip.users:
        with graph.inserting_before(next(iter(clip.users))):
            frames = [graph.call_function(_aten.permute.default, (image, [0, 2, 3, 1])) for image in images]
            clip.replace_all_uses_with(graph.call_function(_aten.stack.default, (frames, 1)))
    graph.erase_node(clip)


def _from_images(
    graph: fx.Graph, index: torch.Tensor, index_BTCHW: torch.Tensor, images: list[fx.Node]
) -> fx.Node | None:
    """What of the images holds the clip's numbers of these indices in this order; None where nothing simple does."""
    if torch.equal(index, index_BTCHW.transpose(1, 2)):
        return graph.call_function(_aten.stack.default, (images, 2))
    if torch.equal(index, index_BTCHW[0]):
        return images[0] if len(images) == 1 else graph.call_function(_aten.cat.default, (images,))
    return next((images[t] for t in range(len(images)) if torch.equal(index, index_BTCHW[:, t])), None)


def layers_of(program: ExportedProgram) -> dict[str, str]:
    """Path of the innermost module of the user's network by the name of each op, and of the result; or empty."""
    stacks = {node.name: list((node.meta.get("nn_module_stack") or {}).values()) for node in program.graph.nodes}
    layers = {name: str(stack[-1][0]) for name, stack in stacks.items() if stack}
    result: Any = program.graph.output_node().args[0][0]
    while str(result.target).startswith("quantized_decomposed."):  # of no layer
        result = result.args[0]
    return layers | {"logits": layers.get(result.name, "")}


def untranslated(graph: fx.Graph, *, final: bool) -> list[fx.Node]:
    """The ops of ATen that coremltools has no translation of; before the `final` graph, composite ones are let be."""
    from coremltools.converters.mil.frontend.torch.torch_op_registry import _TORCH_OPS_REGISTRY

    skipped = ("_assert_tensor_metadata", "getitem", "to.")  # gone, or part of another op, where coremltools reads them
    ops = [node for node in graph.nodes if node.op == "call_function"]
    return [
        node
        for node in ops
        if not getattr(node.target, "__name__", "").startswith(skipped)
        and (final or not _decomposes(node.target))
        and _TORCH_OPS_REGISTRY.get_func(str(node.target)) is None
    ]


def _decomposes(op: Any) -> bool:
    """Whether `run_decompositions` writes it as other ops."""
    key = "CompositeImplicitAutograd"
    if not isinstance(op, torch._ops.OpOverload):
        return False
    return torch._C._dispatch_has_kernel_for_dispatch_key(str(op._name), key)
