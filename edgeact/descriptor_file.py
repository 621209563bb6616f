"""Files of descriptors: what `edgeact describe fit` writes, and what a bundle holds of one.

Each may come from anyone: it is parsed and checked, and nothing in it is executed or unpickled.
"""

import dataclasses
import json
import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeact._safetensors import read_safetensors, write_safetensors
from edgeact.clip import ClipSpec
from edgeact.descriptor import Descriptor, Examples, Reading, check_order
from edgeact.errors import CheckpointError, InputError

__all__ = [
    "check_descriptor_path",
    "load_descriptor",
    "read_examples",
    "reading_from_dict",
    "reading_to_dict",
    "save_descriptor",
    "write_examples",
]

_VERSION = 1
_KEY = "edgeact-descriptor"
_TENSORS = {
    "components": ("dims", "features"),
    "mean": ("features",),
    "variances": ("dims",),
    "explained": ("dims",),
    "examples/descriptors": ("examples", "dims"),
    "examples/labels": ("examples",),
    "examples/svm_weights": ("classes", "dims"),
    "examples/svm_bias": ("classes",),
}


def check_descriptor_path(path: str | os.PathLike[str]) -> Path:
    """Refuse a file that `save_descriptor` could not write, before hours of work.

    Raises:
        InputError: It is a folder, or its folder cannot be written to, or made.
    """
    file = Path(path)
    if file.is_dir():
        raise InputError(f"{file} is a folder: give a file, such as {file / 'pca10.safetensors'}")
    folder = next(parent for parent in file.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise InputError(f"{file}: {folder} " + ("cannot be written to" if folder.is_dir() else "is no folder"))
    return file


def save_descriptor(path: str | os.PathLike[str], descriptor: Descriptor) -> None:
    """Write one safetensors file, beside `path` first and renamed when whole."""
    examples = descriptor.examples
    tensors = {name: getattr(descriptor, name) for name in ("components", "mean", "variances", "explained")}
    tensors |= {f"examples/{f.name}": getattr(examples, f.name) for f in dataclasses.fields(examples)}
    fields: dict[str, Any] = {name: getattr(descriptor, name) for name in ("layer", "order", "model", "network", "hop")}
    fields |= {"version": _VERSION, "spec": descriptor.spec.to_dict(), "videos": descriptor.videos}
    fields |= {"labels": list(descriptor.labels), "versions": dict(descriptor.versions)}
    contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    write_safetensors(path, contiguous, _KEY, fields, "np")


def load_descriptor(path: str | os.PathLike[str]) -> Descriptor:
    """Read a file written by `save_descriptor`; nothing in it is executed or imported.

    Raises:
        CheckpointError: No such file, or it is no descriptor, damaged, or of another version.
    """
    file, writer = Path(path), "edgeact describe fit"
    metadata, found = read_safetensors(file, _KEY, "np", kind="descriptor", writer=writer)
    if metadata is None:
        raise CheckpointError(f"{file} holds tensors but no descriptor; `{writer}` writes one")
    tensors = {name: found[name] for name in _TENSORS if name in found}
    try:
        fields = json.loads(metadata)
        if fields["version"] != _VERSION:
            raise CheckpointError(f"{file} has descriptor version {fields['version']!r}, this edgeact reads {_VERSION}")
        labels = tuple(str(label) for label in fields["labels"])
        _check_tensors(tensors, len(labels))
        examples = {name.removeprefix("examples/"): tensor for name, tensor in tensors.items() if "/" in name}
        return Descriptor(
            **{name: tensor for name, tensor in tensors.items() if "/" not in name},
            layer=str(fields["layer"]),
            order=check_order(fields["order"]),
            model=str(fields["model"]),
            network=str(fields["network"]),
            spec=ClipSpec.from_dict(fields["spec"]),
            hop=int(fields["hop"]),
            videos=int(fields["videos"]),
            labels=labels,
            examples=Examples(**examples),
            versions={str(name): str(version) for name, version in fields["versions"].items()},
        )
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError, RecursionError) as exc:
        if isinstance(exc, CheckpointError):
            raise
        raise CheckpointError(f"{file} is a damaged descriptor: {exc}; fit it again") from exc


def _check_tensors(tensors: Mapping[str, NDArray[Any]], classes: int, dims: int | None = None) -> None:
    """Refuse tensors that are missing, not finite, or do not fit one another; with `dims`, those of examples."""
    sizes = {"classes": classes} | ({} if dims is None else {"dims": dims})
    for name, axes in _TENSORS.items():
        if dims is not None and "/" not in name:
            continue
        if name not in tensors:
            raise InputError(f"it lacks {name}")
        tensor, kind = tensors[name], np.int64 if name == "examples/labels" else np.float32
        wanted = tuple(sizes.setdefault(axis, size) for axis, size in zip(axes, tensor.shape, strict=False))
        if tensor.dtype != kind or len(tensor.shape) != len(axes) or tensor.shape != wanted or 0 in wanted:
            raise InputError(f"{name} is {tensor.dtype} {tensor.shape}")
        if not np.isfinite(tensor).all():
            raise InputError(f"{name} holds values that are not finite")
    if dims is None and (tensors["variances"] <= 0).any():
        raise InputError("a component has no variance")
    labels = tensors["examples/labels"]
    if (labels < 0).any() or (labels >= classes).any():
        raise InputError(f"an example is of none of the {classes} classes")


def reading_to_dict(reading: Reading) -> dict[str, Any]:
    """For a manifest: JSON types only."""
    return {"order": reading.order, "scale": [float(scale) for scale in reading.scale]}


def reading_from_dict(fields: Mapping[str, Any], dims: int) -> Reading:
    """From a manifest, which may come from anyone.

    Raises:
        InputError: It is malformed.
    """
    try:
        scale = np.array([float(value) for value in fields["scale"]])
        order = check_order(fields["order"])
    except (KeyError, TypeError, ValueError, OverflowError) as exc:
        raise InputError(f"its outputs cannot be read as descriptors: {exc}") from exc
    if scale.shape != (dims,) or not np.isfinite(scale).all() or (scale <= 0).any():
        raise InputError(f"its outputs cannot be read as descriptors: scale must be {dims} positive numbers")
    return Reading(order=order, scale=scale)


def write_examples(file: Path, examples: Examples) -> None:
    """Write an .npz for a bundle."""
    np.savez(file, **{field.name: getattr(examples, field.name) for field in dataclasses.fields(examples)})


def read_examples(file: Path, dims: int, classes: int) -> Examples:
    """Read what `write_examples` wrote; nothing is unpickled.

    Raises:
        InputError: It is missing, damaged, or of other dimensions or classes.
    """
    names = [field.name for field in dataclasses.fields(Examples)]
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            tensors = {name: arrays[name] for name in names}
        _check_tensors({f"examples/{name}": array for name, array in tensors.items()}, classes, dims)
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error) as exc:
        raise InputError(f"{file} holds no examples of descriptors: {exc}") from exc
    return Examples(**tensors)
