"""Public checkpoints: other repositories' weights under our names; `_public_sources.py` lists their layouts.

Which source a checkpoint is from shows in its names. BGR weights become RGB weights: the input channels of the first
convolution are flipped, once.
"""

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from edgeact.checkpoint import load_weights_
from edgeact.clip import ClipSpec
from edgeact.errors import CheckpointError, UnknownNameError
from edgeact.models._public_sources import SOURCES, Source
from edgeact.models._registry import create_model

__all__ = ["PublicWeights", "convert_public", "load_public_", "matching_sources"]

_COUNTER = "num_batches_tracked"  # counts training steps; weights of Caffe origin or before PyTorch 0.4.1 lack it


@dataclass(frozen=True, kw_only=True)
class PublicWeights:
    """A public checkpoint under our names.

    Attributes:
        source: Name of the source, such as `mmaction2`.
        state: State dict of our model.
        num_classes: Classes K of its classifier, in the source's order.
        spec: How the source prepares a video.
        bn_eps: Epsilon of the source's batch normalisation; None where it has none.
        notes: What a reader of a report must know about them.
    """

    source: str
    state: Mapping[str, Tensor] = field(repr=False)
    num_classes: int
    spec: ClipSpec
    bn_eps: float | None
    notes: tuple[str, ...] = ()


def matching_sources(model: str, state: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Names of the sources whose layout of `model` has exactly the tensors of `state`."""
    return tuple(s.name for s in _known(model) if not _differences(s, model, state))


def convert_public(model: str, state: Mapping[str, Tensor], source: str | None = None) -> PublicWeights:
    """A public checkpoint's state dict under our names, with its source's preprocessing.

    Args:
        model: Registered name.
        source: Where the weights are from; by default what their names tell.

    Raises:
        UnknownNameError: No source of that name for this model.
        CheckpointError: No source of this model has these tensors, or several have them.
    """
    known = _known(model)
    if not known:
        raise CheckpointError(f"no public weights of {model!r} are known: give weights under edgeact's own names")
    if source is not None and source not in {s.name for s in known}:
        raise UnknownNameError(f"source of {model} weights", source, [s.name for s in known])
    found = {s.name: _differences(s, model, state) for s in known if source in (None, s.name)}
    fitting = [s for s in known if found.get(s.name) == []]
    if not fitting:
        nearest = min(found, key=lambda name: len(found[name]))
        raise CheckpointError(
            f"these are no weights of {model!r} as {' or '.join(found)} publishes them; nearest is {nearest}, with "
            f"{len(found[nearest])} differences (first: {'; '.join(found[nearest][:2])})"
        )
    if len(fitting) > 1:
        names = [s.name for s in fitting]
        raise CheckpointError(
            f"these weights of {model!r} could be from {' or '.join(names)}, whose preprocessing differs: say which "
            f"(on the command line --option source={names[0]})"
        )
    return _convert(fitting[0], model, state)


def load_public_(network: nn.Module, weights: PublicWeights) -> None:
    """Copy the weights into `network` and give its batch normalisation the epsilon they were trained with.

    Raises:
        CheckpointError: Names or shapes differ, as where the network has another width.
    """
    load_weights_(network, weights.state, source=f"the {weights.source} checkpoint")
    if weights.bn_eps is not None:
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
                module.eps = weights.bn_eps


def _known(model: str) -> list[Source]:
    return [source for source in SOURCES if re.fullmatch(source.models, model)]


@functools.lru_cache(maxsize=32)
def _shapes(model: str) -> Mapping[str, tuple[int, ...]]:
    """Our tensors' shapes, with one class; nothing is allocated."""
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in create_model(model, num_classes=1).state_dict().items()}


def _num_classes(source: Source, state: Mapping[str, Tensor]) -> int:
    bias = state.get(source.theirs(f"{source.head}bias"))
    return bias.shape[0] if bias is not None and bias.ndim == 1 else 1


def _differences(source: Source, model: str, state: Mapping[str, Tensor]) -> list[str]:
    """What keeps `state` from being the source's weights of `model`, in its names; empty where it fits."""
    classes = source.classes or _num_classes(source, state)
    wanted = {
        source.theirs(name): (classes, *shape[1:]) if name.startswith(source.head) else shape
        for name, shape in _shapes(model).items()
    }
    missing = [f"{name} is missing" for name in wanted if name not in state and not name.endswith(_COUNTER)]
    unknown = [f"{name} is unknown" for name in state if name not in wanted]
    shapes = [
        f"{name} has shape {tuple(state[name].shape)} instead of {shape}"
        for name, shape in wanted.items()
        if name in state and tuple(state[name].shape) != shape
    ]
    return [*missing[:1], *unknown[:1], *missing[1:], *unknown[1:], *shapes]


def _convert(source: Source, model: str, state: Mapping[str, Tensor]) -> PublicWeights:
    ours = {}
    for name in _shapes(model):
        tensor = state.get(source.theirs(name))
        if tensor is None:
            tensor = torch.zeros((), dtype=torch.int64)  # a counter: _differences has seen that no other is missing
        ours[name] = tensor.flip(1) if name == source.bgr else tensor
    return PublicWeights(
        source=source.name,
        state=ours,
        num_classes=_num_classes(source, state),
        spec=source.spec,
        bn_eps=source.bn_eps,
        notes=source.notes,
    )
