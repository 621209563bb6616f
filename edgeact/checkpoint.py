"""Checkpoints: safetensors with one JSON metadata field. Nothing is unpickled and nothing named inside is imported.

weights.safetensors
├── tensors      the model's state_dict; after quantization-aware training also quantized/…, the int8 network's weights
└── metadata     {"edgeact": '{"version": 1, "model": …, "options": …, "spec": …, "labels": …, "training": …}'}
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeact._safetensors import existing_file, import_safetensors, read_safetensors, write_safetensors
from edgeact.clip import ClipSpec
from edgeact.errors import CheckpointError
from edgeact.quantize.scheme import Scheme
from edgeact.quantize.state import QuantizedState

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = [
    "Checkpoint",
    "load_checkpoint",
    "load_weights_",
    "packaged_checkpoint",
    "read_state_dict",
    "save_checkpoint",
]

_VERSION = 1
_QUANTIZED = "quantized/"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A trained network and the contract it was trained under.

    Attributes:
        model: Registered name, or `package.module:factory` of a user's network (never imported from here).
        options: Options of the preset, such as `width`.
        spec: How a video becomes its input.
        labels: Class names in the order of the logits.
        training: Facts of the training run, free-form JSON; `curves` holds one row per epoch.
        state: The state dict.
        quantized: The int8 network that was trained to follow `state`; None without quantization-aware training.
    """

    model: str
    options: Mapping[str, Any] = field(default_factory=dict)
    spec: ClipSpec
    labels: tuple[str, ...]
    training: Mapping[str, Any] = field(default_factory=dict)
    state: Mapping[str, "Tensor"] = field(repr=False)
    quantized: QuantizedState | None = None


def packaged_checkpoint() -> Path:
    """The checkpoint that ships with edgeact: a compact CSN trained on the synthetic motion set."""
    return Path(__file__).parent / "packaged" / "ir_csn_26-motion.safetensors"


def save_checkpoint(path: str | os.PathLike[str], checkpoint: Checkpoint) -> None:
    """Write `checkpoint` to `path`, beside it first and renamed when whole."""
    fields: dict[str, Any] = {
        "version": _VERSION,
        "model": checkpoint.model,
        "options": dict(checkpoint.options),
        "spec": checkpoint.spec.to_dict(),
        "labels": list(checkpoint.labels),
        "training": dict(checkpoint.training),
    }
    state = dict(checkpoint.state)
    if (quantized := checkpoint.quantized) is not None:
        fields["quantized"] = {"scheme": dataclasses.asdict(quantized.scheme), "ranges": dict(quantized.ranges)}
        state |= {_QUANTIZED + name: tensor for name, tensor in quantized.weights.items()}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    write_safetensors(path, tensors, "edgeact", fields, "pt")


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a checkpoint written by `save_checkpoint`.

    Raises:
        CheckpointError: No such file, not safetensors, or safetensors without edgeact's metadata.
    """
    file = Path(path)
    metadata, state = read_safetensors(file, "edgeact", "pt", kind="safetensors checkpoint", writer="edgeact train")
    if metadata is None:
        raise CheckpointError(
            f"{file} holds tensors but no edgeact metadata: give --model, and labels by --data, to use plain weights"
        )
    try:
        fields = json.loads(metadata)
        if fields["version"] != _VERSION:
            raise CheckpointError(f"{file} has checkpoint version {fields['version']!r}, this edgeact reads {_VERSION}")
        return Checkpoint(
            model=str(fields["model"]),
            options=dict(fields["options"]),
            spec=ClipSpec.from_dict(fields["spec"]),
            labels=tuple(str(label) for label in fields["labels"]),
            training=dict(fields["training"]),
            quantized=_quantized(fields, state),
            state={name: tensor for name, tensor in state.items() if not name.startswith(_QUANTIZED)},
        )
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError, RecursionError) as exc:
        if isinstance(exc, CheckpointError):
            raise
        raise CheckpointError(f"{file} has damaged edgeact metadata: {exc}") from exc


def _quantized(fields: Mapping[str, Any], state: Mapping[str, "Tensor"]) -> QuantizedState | None:
    if "quantized" not in fields:
        if any(name.startswith(_QUANTIZED) for name in state):
            raise ValueError("there are int8 weights, and no ranges")
        return None
    ranges = fields["quantized"]["ranges"]
    return QuantizedState(
        scheme=Scheme.from_dict(fields["quantized"]["scheme"]),
        spec=ClipSpec.from_dict(fields["spec"]),
        ranges={name: (float(low), float(high)) for name, (low, high) in ranges.items()},
        weights={n.removeprefix(_QUANTIZED): tensor for n, tensor in state.items() if n.startswith(_QUANTIZED)},
    )


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, "Tensor"]:
    """Plain weights: a safetensors file, or a `.pt`/`.pth` read with `weights_only` (no code in it runs).

    A dictionary with one entry `state_dict` or `model` that is itself a dictionary is unwrapped, and the `module.`
    prefix of DataParallel is dropped.

    Raises:
        CheckpointError: No such file, or it holds anything but tensors.
    """
    import torch

    file = existing_file(path, "checkpoint")
    try:
        if file.suffix == ".safetensors":
            loaded = import_safetensors("pt").load_file(file)
        else:
            loaded = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as exc:  # torch.load raises UnpicklingError, RuntimeError, EOFError … by the kind of damage
        detail = str(exc).strip().splitlines()[0] if str(exc).strip() else type(exc).__name__
        raise CheckpointError(f"{file} holds no weights that can be read safely ({detail})") from exc
    for key in ("state_dict", "model", "model_state"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not loaded or not all(isinstance(v, torch.Tensor) for v in loaded.values()):
        raise CheckpointError(f"{file} is no state dict: it must map names to tensors")
    return {str(name).removeprefix("module."): tensor for name, tensor in loaded.items()}


def load_weights_(model: "nn.Module", state: Mapping[str, "Tensor"], *, source: str) -> None:
    """Copy `state` into `model`, every tensor of it.

    Raises:
        CheckpointError: Names or shapes differ; the message names the first difference.
    """
    own = model.state_dict()
    missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or unknown:
        raise CheckpointError(
            f"{source} holds weights of another model: {len(missing)} tensors missing (first: "
            f"{missing[0] if missing else 'none'}), {len(unknown)} unknown (first: {unknown[0] if unknown else 'none'})"
        )
    for name, tensor in own.items():
        if tensor.shape != state[name].shape:
            raise CheckpointError(
                f"{source} holds weights of another model: {name} has shape {tuple(state[name].shape)}, "
                f"the model wants {tuple(tensor.shape)}"
            )
    model.load_state_dict(dict(state))
