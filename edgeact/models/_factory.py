"""User networks: `--model package.module:factory` names a function that returns an `nn.Module`."""

import importlib
import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from edgeact.errors import EdgeactError, InputError
from edgeact.models._registry import create_model

__all__ = ["build_model"]


def build_model(name: str, *, num_classes: int, options: Mapping[str, Any]) -> nn.Module:
    """A registered preset, or a user's network: `clip_BCTHW -> logits_BK`.

    The factory is called with `num_classes` if it takes it, and with `options`. The current folder is importable, as
    for `python -m`. Give only names that you trust: the module is imported.

    Raises:
        UnknownNameError: No registered model of that name.
        InputError: The module cannot be imported, has no such factory, or the factory returns no `nn.Module`.
    """
    if ":" not in name:
        return create_model(name, num_classes=num_classes, **options)
    module_name, _, attribute = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        factory = getattr(importlib.import_module(module_name), attribute)
    except Exception as exc:  # importing runs the user's own code, which may raise anything
        kind = "" if isinstance(exc, ImportError | AttributeError) else f"{type(exc).__name__}: "
        raise InputError(f"--model {name}: {kind}{exc}; write it as package.module:factory") from exc
    if not callable(factory):
        raise InputError(f"--model {name}: {attribute} is a {type(factory).__name__}, not a function or class")
    arguments = dict(options)
    try:
        signature = inspect.signature(factory)
        if "num_classes" in signature.parameters:
            arguments["num_classes"] = num_classes
        signature.bind(**arguments)
    except (TypeError, ValueError) as exc:  # ValueError: a built-in has no signature
        raise InputError(f"--model {name}: the factory does not take {sorted(arguments)} ({exc})") from exc
    try:
        model = factory(**arguments)
    except EdgeactError:
        raise
    except Exception as exc:  # the user's own code may raise anything
        raise InputError(f"--model {name} raised {type(exc).__name__}: {exc}") from exc
    if not isinstance(model, nn.Module):
        raise InputError(f"--model {name} returned a {type(model).__name__}: it must return a torch.nn.Module")
    return model
