"""BatchNorm folded into the convolution or linear before it: the first rewriting of every export.

In inference BatchNorm is an affine map per channel, so for y = gamma * (conv(x; W, b) - mu) / sqrt(var + eps) + beta

    W' = W * s        b' = (b - mu) * s + beta        s = gamma / sqrt(var + eps)

(Jacob et al. 2018, section 3.2; `torch.nn.utils.fusion` does the arithmetic). It works on the exported ATen graph, so
it finds the pair in any network, whatever its modules are called. A BatchNorm after anything else (a concatenation, a
sum, a layer that others read too) stays as it is; for int8 it becomes a depthwise convolution of one tap, s * x + b'.
"""

import operator
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

__all__ = ["as_convolutions", "fold_batch_norm"]

_aten = torch.ops.aten
# What a BatchNorm can follow, and the rank of its output with the channels on dimension 1: tokens [B, N, C] have not.
_RANKS = {_aten.linear.default: 2, _aten.conv1d.default: 3, _aten.conv2d.default: 4, _aten.conv3d.default: 5}

_CONVOLUTIONS = {2: _aten.conv2d.default, 3: _aten.conv3d.default}  # by the dimensions of their kernels


def fold_batch_norm(graph: fx.GraphModule) -> int:
    """Fold every BatchNorm of `graph` that alone consumes a convolution or linear; in place.

    Args:
        graph: `ExportedProgram.module()` of a network in eval mode.

    Returns:
        How many were folded.
    """
    folded = 0
    for norm in list(graph.graph.nodes):
        if norm.target is not _aten.batch_norm.default:
            continue
        producer = norm.args[0]
        if _foldable(producer, norm):
            _fold(graph, producer, norm)
            folded += 1
    _drop_unused(graph)
    return folded


def as_convolutions(graph: fx.GraphModule) -> None:
    """Every BatchNorm of images or clips that is left, as a depthwise convolution, which has int8 kernels; in place."""
    for norm in list(graph.graph.nodes):
        if norm.target is not _aten.batch_norm.default or not _is_constant(norm):
            continue
        rank = norm.meta["val"].ndim - 2
        if rank not in _CONVOLUTIONS:
            continue
        gamma, beta, mean, variance = (_tensor(graph, argument) for argument in norm.args[1:5])
        scale = torch.rsqrt(variance + norm.args[7]) * (1 if gamma is None else gamma)
        shift = (0 if beta is None else beta) - mean * scale
        weight, bias = _register(graph, norm, scale.view(-1, 1, *[1] * rank), shift)
        every = ([1] * rank, [0] * rank, [1] * rank, len(scale))  # stride, padding, dilation, groups
        with graph.graph.inserting_before(norm):
            layer = graph.graph.call_function(_CONVOLUTIONS[rank], (norm.args[0], weight, bias, *every))
        layer.meta = dict(norm.meta)
        norm.replace_all_uses_with(layer)
    _drop_unused(graph)


def _foldable(producer: fx.Node, norm: fx.Node) -> bool:
    if producer.target not in _RANKS or producer.meta["val"].ndim != _RANKS[producer.target]:
        return False
    return _is_constant(norm) and len(producer.users) == 1 and _weights_are_its_own(producer)


def _is_constant(norm: fx.Node) -> bool:
    """Whether a BatchNorm is an affine map: its statistics are stored, and not those of the batch."""
    statistics: Any = norm.args[1:5]
    return not norm.args[5] and all(argument is None or argument.op == "get_attr" for argument in statistics)


def _weights_are_its_own(producer: fx.Node) -> bool:
    """A weight that two layers share must not be scaled for one of them."""
    weights = [argument for argument in producer.args[1:3] if isinstance(argument, fx.Node)]
    return all(weight.op == "get_attr" and len(weight.users) == 1 for weight in weights)


def _drop_unused(graph: fx.GraphModule) -> None:
    graph.graph.eliminate_dead_code()
    graph.delete_all_unused_submodules()
    graph.recompile()


def _tensor(graph: fx.GraphModule, argument: Any) -> Any:
    return operator.attrgetter(str(argument.target))(graph) if isinstance(argument, fx.Node) else argument


def _fold(graph: fx.GraphModule, producer: fx.Node, norm: fx.Node) -> None:
    weight = _tensor(graph, producer.args[1])
    bias = _tensor(graph, producer.args[2] if len(producer.args) > 2 else None)
    gamma, beta, mean, variance = (_tensor(graph, argument) for argument in norm.args[1:5])
    eps: Any = norm.args[7]
    fuse = fuse_linear_bn_weights if producer.target is _aten.linear.default else fuse_conv_bn_weights
    new_weight, new_bias = fuse(weight, bias, mean, variance, eps, gamma, beta)
    new = _register(graph, producer, new_weight, new_bias)
    producer.args = (producer.args[0], *new, *producer.args[3:])
    norm.replace_all_uses_with(producer)
    graph.graph.erase_node(norm)


def _register(graph: fx.GraphModule, layer: fx.Node, weight: torch.Tensor, bias: torch.Tensor) -> list[fx.Node]:
    """New parameters for `layer`, and the nodes before it that read them."""
    nodes = []
    for part, tensor in (("weight", weight), ("bias", bias)):
        name = f"{layer.name}_folded_{part}"
        graph.register_parameter(name, nn.Parameter(tensor.detach(), requires_grad=False))
        with graph.graph.inserting_before(layer):
            nodes.append(graph.graph.get_attr(name))
        nodes[-1].meta["val"] = tensor.detach()
    return nodes
