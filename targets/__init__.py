"""The targets: one file each, found by its name."""

import importlib
from collections.abc import Mapping
from pathlib import Path

from edgeact._vendor_compiler import Compilation
from edgeact.errors import InputError, UnknownNameError
from edgeact.targets._target import Refusal, Request, Target

__all__ = [
    "Compilation",
    "Refusal",
    "Request",
    "Target",
    "check_form",
    "check_options",
    "check_precision",
    "get_target",
    "list_targets",
]


def list_targets() -> list[str]:
    """Names that `--target` takes: the files of this folder."""
    return sorted(file.stem for file in Path(__file__).parent.glob("[!_]*.py"))


def get_target(name: str) -> Target:
    """The target of that name.

    Raises:
        UnknownNameError: There is none.
    """
    if name not in list_targets():
        raise UnknownNameError("target", name, list_targets())
    target: Target = importlib.import_module(f"edgeact.targets.{name}").TARGET
    return target


def check_precision(target: str, precision: str) -> None:
    """Refuse a precision that the target does not have.

    Raises:
        UnknownNameError: It is not a precision at all.
        InputError: It is one, but not of this target.
    """
    every = {"fp32", "fp16", "int8"}
    allowed = get_target(target).precisions
    if precision not in every:
        raise UnknownNameError("precision", precision, allowed)
    if precision not in allowed:
        why = get_target(target).conflict(precision, {})
        because = f": {why}" if why else ""
        raise InputError(f"target {target!r} does not export {precision}{because}: allowed: {', '.join(allowed)}")


def check_form(target: str, form: str | None) -> str:
    """The form of time to export in: the one asked for, or the target's own (the first of its forms).

    Raises:
        UnknownNameError: The target has no such form.
    """
    forms = get_target(target).forms
    if form is not None and form not in forms:
        raise UnknownNameError(f"form of target {target!r}", form, forms)
    return form or forms[0]


def check_options(target: str, given: Mapping[str, str], precision: str | None = None) -> dict[str, str]:
    """A value for each option of the target: the one asked for, or its default.

    Raises:
        InputError: The target has no such option, or what was asked does not go together.
        UnknownNameError: The option has no such value.
    """
    options = get_target(target).options
    for name, value in given.items():
        if name not in options:
            allowed = f"its options: {', '.join(options)}" if options else "it has none"
            raise InputError(f"target {target!r} has no option {name!r}: {allowed}")
        if value not in options[name]:
            raise UnknownNameError(f"{name} of target {target!r}", value, options[name])
    chosen = {name: given.get(name, values[0]) for name, values in options.items()}
    if why := get_target(target).conflict(precision or "", chosen):
        words = ", ".join(f"{name} {value}" for name, value in (given or chosen).items())
        with_precision = f"{precision} with " if precision else ""
        raise InputError(f"target {target!r} does not export {with_precision}{words}: {why}")
    return chosen
