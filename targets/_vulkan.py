"""What ExecuTorch's Vulkan backend takes of an ATen graph, by the registry that its partitioner asks."""

from collections.abc import Mapping

from torch import fx

from edgeact.targets._refusals import refuse
from edgeact.targets._target import Refusal

__all__ = ["refusals"]

# Under other names, or in parts that are there, when the partitioner sees them.
_BECOMES = {
    "conv2d": "convolution",
    "hardsigmoid": "hardtanh",
    "layer_norm": "native_layer_norm",
    "log_softmax": "_log_softmax",
    "matmul": "bmm",
    "relu6": "hardtanh",
    "scaled_dot_product_attention": "bmm",
    "silu": "sigmoid",
    "softmax": "_softmax",
}


def refusals(graph: fx.GraphModule, *, volumetric: str) -> Mapping[fx.Node, Refusal]:
    """The ops of `graph` that Vulkan does not take; `volumetric` is what becomes of a 3-D op."""
    from executorch.backends.vulkan.op_registry import vulkan_supported_ops

    registered = {str(getattr(op, "_op", op)).removeprefix("aten.").partition(".")[0] for op in vulkan_supported_ops}

    def judge(name: str, node: fx.Node) -> str | None:
        if _BECOMES.get(name, name) not in registered:
            return "not among its ops"
        if name == "conv2d" and node.meta["val"].shape[0] > 1:
            return "a convolution has a batch of 1 alone (check_conv_node)"
        return None

    return refuse(graph, judge, source="executorch/backends/vulkan/op_registry.py", volumetric=volumetric)
