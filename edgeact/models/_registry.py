"""The model registry: a preset is a function, its name is the name on the command line."""

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

from edgeact.clip import ClipSpec
from edgeact.errors import InputError, UnknownNameError

__all__ = ["create_model", "default_spec", "list_models", "options_for_spec", "register_model"]

Preset = TypeVar("Preset", bound=Callable[..., nn.Module])
_PRESETS: dict[str, tuple[Callable[..., nn.Module], ClipSpec]] = {}


def register_model(spec: ClipSpec) -> Callable[[Preset], Preset]:
    """Register a preset under its function's name, with the ClipSpec of the paper's input.

    Raises:
        InputError: A model of that name is registered already.
    """

    def register(preset: Preset) -> Preset:
        name = preset.__name__
        if name in _PRESETS:
            raise InputError(f"a model named {name!r} is registered already, by {_PRESETS[name][0].__module__}")
        _PRESETS[name] = (preset, spec)
        return preset

    return register


def list_models() -> list[str]:
    """Names that `create_model` takes, sorted."""
    return sorted(_PRESETS)


def _lookup(name: str) -> tuple[Callable[..., nn.Module], ClipSpec]:
    if name not in _PRESETS:
        raise UnknownNameError("model", name, _PRESETS)
    return _PRESETS[name]


def create_model(name: str, *, num_classes: int, **options: Any) -> nn.Module:
    """Build a registered model with random weights: `clip_BCTHW -> logits_BK`, any T, H, W its strides allow.

    Args:
        name: One of `list_models()`.
        num_classes: Classes K.
        **options: The preset's own options, such as `width` (a multiple of the channel counts).

    Raises:
        UnknownNameError: No such model.
        InputError: The preset does not take an option, or its value is out of range.
    """
    preset = _lookup(name)[0]
    if not isinstance(num_classes, int) or isinstance(num_classes, bool) or num_classes < 1:
        raise InputError(f"num_classes is {num_classes!r}: it must be a whole number, at least 1")
    try:
        return preset(num_classes=num_classes, **options)
    except TypeError as exc:
        raise InputError(f"model {name!r} does not take these options: {options!r} ({exc})") from exc


def default_spec(name: str) -> ClipSpec:
    """The ClipSpec of a registered model's paper.

    Raises:
        UnknownNameError: No such model.
    """
    return _lookup(name)[1]


def options_for_spec(name: str, spec: ClipSpec) -> dict[str, Any]:
    """Options of a registered model that follow from the input: `input_size` `[T, H, W]` where layers depend on it.

    Raises:
        UnknownNameError: No such model.
    """
    if "input_size" not in inspect.signature(_lookup(name)[0]).parameters:
        return {}
    return {"input_size": [spec.frames, spec.crop_height, spec.crop_width]}
