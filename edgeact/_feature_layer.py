"""A network up to one of its layers: the graph that ends in features, and that which ends in a descriptor.

model ─► torch.export ─► cut after the layer ─► relu: features_BD ─► Linear (PCA): outputs_Bd

What follows the layer is gone, with its weights. Shapes: B=1 clip, D features, d dimensions.
"""

import hashlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from edgeact._capture import capture, eager
from edgeact.clip import ClipSpec
from edgeact.descriptor import Descriptor
from edgeact.errors import CheckpointError, InputError, UnknownNameError
from edgeact.features import Extract

__all__ = [
    "DescriptorNetwork",
    "described_features",
    "descriptor_network",
    "feature_extractor",
    "feature_network",
    "network_digest",
]


def feature_extractor(features: fx.GraphModule, spec: ClipSpec) -> Extract:
    """`features` on clips as they are decoded, on one thread: sums in one order give the same bits in every process."""
    call = eager(features, spec)

    def extract(clip: NDArray[np.uint8]) -> NDArray[np.float32]:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return call(clip)
        finally:
            torch.set_num_threads(threads)

    return extract


def feature_network(model: nn.Module, spec: ClipSpec, layer: str) -> fx.GraphModule:
    """`model` up to `layer`, and relu: float `clip_BCTHW -> features_BD` with B=1.

    Args:
        model: Any network that torch.export captures.
        spec: The size of its clips.
        layer: A module's path in `model`, such as "fc6". Where it runs more than once, the last time counts.

    Raises:
        UnknownNameError: No module of that name gives one vector per clip.
        ToolchainError: torch.export cannot capture the network.
    """
    graph = capture(model, spec)
    outputs = _last_nodes(graph)
    if layer in outputs and not _is_vector(outputs[layer]):
        shape = tuple(outputs[layer].meta["val"].shape)
        raise InputError(
            f"layer {layer!r} gives {shape} for one clip: a feature layer gives [1, D]; this network has "
            + (", ".join(name for name, node in outputs.items() if _is_vector(node)) or "none")
        )
    if layer not in outputs:
        raise UnknownNameError("feature layer", layer, (name for name, node in outputs.items() if _is_vector(node)))
    return _cut(graph, outputs[layer])


def _last_nodes(graph: fx.GraphModule) -> dict[str, fx.Node]:
    """The last node that each module of the user's network computed."""
    found: dict[str, fx.Node] = {}
    for node in graph.graph.nodes:
        if node.op == "call_function" and isinstance(node.meta.get("val"), Tensor):
            found |= {path: node for path, _ in (node.meta.get("nn_module_stack") or {}).values() if path}
    return found


def _is_vector(node: fx.Node) -> bool:
    """`[1, D]`, or `[1, D, 1, 1, 1]` as pooling leaves it; of floats."""
    value = node.meta["val"]
    shape = tuple(value.shape)
    return bool(value.is_floating_point() and len(shape) > 1 and shape[0] == 1 and set(shape[2:]) <= {1})


def _cut(graph: fx.GraphModule, last: fx.Node) -> fx.GraphModule:
    """Everything after `last` replaced by a relu."""
    aten, cut = torch.ops.aten, graph.graph
    (output,) = (node for node in cut.nodes if node.op == "output")
    with cut.inserting_before(output):
        features = last
        if len(last.meta["val"].shape) > 2:
            features = cut.call_function(aten.flatten.using_ints, (features, 1))
        features = cut.call_function(aten.relu.default, (features,))
        features.meta["val"] = last.meta["val"].flatten(1)
    output.args = (features,)
    cut.set_codegen(fx.graph.CodeGen())  # that of torch.export holds the structure of the old output
    for node in reversed(list(cut.nodes)):  # eliminate_dead_code keeps dropout, and with it what it reads
        if not node.users and node.op not in ("placeholder", "output"):
            cut.erase_node(node)
    return fx.GraphModule(graph, cut)  # a new one: it takes the weights that are still used


def network_digest(features: fx.GraphModule) -> str:
    """sha256 of a `feature_network`: its ops, and the weights that the features depend on."""
    digest = hashlib.sha256(features.code.encode())
    for name, tensor in sorted(features.state_dict().items()):
        array = np.ascontiguousarray(tensor.detach().cpu().numpy())
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


class DescriptorNetwork(nn.Module):
    """A network that ends in a descriptor: `clip_BCTHW -> outputs_Bd` with B=1.

    The projection is PCA with its mean in the bias, in float64 until it is rounded once; of a whitened output also
    divided by the standard deviation of each component.

    Args:
        features: A `feature_network`.
        descriptor: Its fitted descriptor.
        whitened: Outputs of variance 1, which int8 rounds alike; else PCA coordinates, whose variances differ by
            orders of magnitude.
    """

    def __init__(self, features: fx.GraphModule, descriptor: Descriptor, *, whitened: bool = True) -> None:
        super().__init__()
        dims, width = descriptor.components.shape
        scale_d = descriptor.reading(whitened=whitened).scale
        weight_dD = descriptor.components.astype(np.float64) / scale_d[:, None]
        self.features = features
        self.projection = nn.Linear(width, dims)
        with torch.no_grad():
            self.projection.weight.copy_(torch.from_numpy(weight_dD))
            self.projection.bias.copy_(torch.from_numpy(-weight_dD @ descriptor.mean.astype(np.float64)))

    def forward(self, clip_BCTHW: Tensor) -> Tensor:
        """`clip_BCTHW -> outputs_Bd`."""
        with fx.traceback.preserve_node_meta():  # layers keep the names of the user's network
            features_BD = fx.Interpreter(self.features).run(clip_BCTHW)
        outputs_Bd: Tensor = self.projection(features_BD)
        return outputs_Bd


def described_features(model: nn.Module, spec: ClipSpec, descriptor: Descriptor) -> fx.GraphModule:
    """The `feature_network` of `model` that `descriptor` was fitted with.

    Raises:
        CheckpointError: The descriptor is of another network, or of another ClipSpec.
    """
    if spec != descriptor.spec:
        own, given = descriptor.spec.to_dict(), spec.to_dict()
        other = ", ".join(f"{name} {own[name]}, not {given[name]}" for name in own if own[name] != given[name])
        raise CheckpointError(f"the descriptor was fitted with {other}: keep its ClipSpec, or fit it again")
    features = feature_network(model, spec, descriptor.layer)
    if (found := network_digest(features)) != descriptor.network:
        raise CheckpointError(
            f"the descriptor is of another network: {descriptor.model} up to {descriptor.layer} is "
            f"{descriptor.network[:12]}, this one {found[:12]}; give the checkpoint that it was fitted with, or fit it "
            "again"
        )
    (output,) = (node for node in features.graph.nodes if node.op == "output")
    width = output.args[0].meta["val"].shape[1]
    if width != len(descriptor.mean):
        raise CheckpointError(f"the descriptor is of {len(descriptor.mean)} features, {descriptor.layer} has {width}")
    return features


def descriptor_network(
    model: nn.Module, spec: ClipSpec, descriptor: Descriptor, *, whitened: bool = True
) -> DescriptorNetwork:
    """`model` cut and ended as `descriptor` says.

    Raises:
        CheckpointError: As `described_features`.
    """
    return DescriptorNetwork(described_features(model, spec, descriptor), descriptor, whitened=whitened)
