"""What each layer of a network computes, counted on shapes alone."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import fx

__all__ = ["layer_of", "macs_by_layer", "macs_by_node"]


def layer_of(node: "fx.Node") -> str:
    """Path of the innermost module of the user's model that `node` belongs to; empty for the model's own forward."""
    stack = node.meta.get("nn_module_stack") or {}
    return str(list(stack.values())[-1][0]) if stack else ""


def macs_by_layer(graph: "fx.GraphModule") -> dict[str, int]:
    """Multiply-accumulates of one run per module of the user's model, in the order in which they first compute."""
    layers: dict[str, int] = {}
    for node, macs in macs_by_node(graph).items():
        if node.op == "call_function":
            layers[layer_of(node)] = layers.get(layer_of(node), 0) + macs
    return layers


def macs_by_node(graph: "fx.GraphModule") -> dict["fx.Node", int]:
    """Multiply-accumulates of one run per node, by torch's own counter.

    Args:
        graph: ATen ops; its inputs have `meta["val"]`.
    """
    import torch
    from torch import fx
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    macs: dict[fx.Node, int] = {}

    class Count(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            before = counter.get_total_flops()
            value = super().run_node(n)
            macs[n] = (counter.get_total_flops() - before) // 2
            return value

    inputs = [node.meta["val"] for node in graph.graph.nodes if node.op == "placeholder"]
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True), counter:
        Count(graph).run(*(torch.zeros(tuple(fake.shape), dtype=fake.dtype) for fake in inputs))
    return macs
