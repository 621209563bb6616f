"""Which network a command means: a checkpoint, public weights, a registered name, or a user's factory."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeact.checkpoint import (
    Checkpoint,
    load_checkpoint,
    load_weights_,
    packaged_checkpoint,
    read_state_dict,
)
from edgeact.cli._options import make_spec
from edgeact.clip import ClipSpec
from edgeact.data import open_dataset
from edgeact.errors import CheckpointError, InputError, MissingDependencyError
from edgeact.evaluate import dataset_root
from edgeact.quantize.state import QuantizedState

if TYPE_CHECKING:
    from torch import nn

    from edgeact.descriptor import Described
    from edgeact.models._public import PublicWeights

__all__ = ["Network", "before_descriptor", "count_classes", "end_in_descriptor", "find_network", "require_torch"]


_KINETICS = 400  # classes


@dataclass(frozen=True)
class Network:
    """A model with its contract. `notes` say what a reader of its report must know."""

    model: "nn.Module"
    name: str
    options: Mapping[str, Any]
    spec: ClipSpec
    labels: tuple[str, ...] | None
    training: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    quantized: QuantizedState | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


def find_network(
    *,
    name: str | None,
    checkpoint: str | None,
    options: dict[str, Any],
    num_classes: int | None,
    data: str | int | None,
    given: dict[str, Any] | ClipSpec,
    base: ClipSpec | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Network:
    """The network that `--model` and `--checkpoint` name; without either, the packaged checkpoint.

    Args:
        data: Labelled videos, whose classes are counted where the weights and `num_classes` leave that open, or their
            number; None takes Kinetics' 400.
        given: The command's remaining options; those of the ClipSpec are taken out. Or the ClipSpec itself.
        base: ClipSpec of a network without a checkpoint; the paper's by default.
        seed: Of weights that no checkpoint gives: the same command gives the same network, here and on a worker.

    Raises:
        InputError: The two do not fit each other, or what they name cannot be used.
    """
    require_torch()
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if checkpoint is None and name is not None:
            return _untrained(name, options, num_classes, data, given, base, progress)
        file = Path(checkpoint) if checkpoint is not None else packaged_checkpoint()
        if file.suffix in {".pt", ".pth", ".tar", ".bin"} or (name is not None and _plain_safetensors(file)):
            return _public(file, name, options, num_classes, data, given, progress)
        return _trained(load_checkpoint(file), file, name, options, num_classes, given)


def before_descriptor(name: str | None, file: str | None) -> str | None:
    """The network that is to end in the descriptor in `file`: c3d of c3d_pca10; any other name as it is.

    Raises:
        InputError: The name has a descriptor, and no file was given, or one of other dimensions.
        CheckpointError: The file is no descriptor.
    """
    from edgeact.descriptor_file import load_descriptor

    parts = re.fullmatch(r"(\w+)_pca(\d+)", name or "")
    if parts is None:
        return name
    network, dims = parts[1], int(parts[2])
    if file is None:
        raise InputError(
            f"{name} is {network} that ends in {dims} numbers, which are fitted first: `edgeact describe fit --model "
            f"{network} --dims {dims} --out pca{dims}.safetensors …`, then --descriptor pca{dims}.safetensors"
        )
    if (found := load_descriptor(file).dims) != dims:
        raise InputError(f"--model {name} asks for {dims} numbers, and {file} has {found}: correct one of them")
    return network


def end_in_descriptor(network: Network, file: str, *, whitened: bool) -> tuple[Network, "Described"]:
    """`network` ended in the descriptor in `file`, and what its outputs mean.

    Raises:
        CheckpointError: The file is no descriptor, or one of another network.
    """
    from edgeact._feature_layer import descriptor_network
    from edgeact.descriptor_file import load_descriptor

    found = load_descriptor(file)
    if network.quantized is not None:
        raise CheckpointError(
            "the checkpoint was trained for int8 with its classes: give the one before, without --qat"
        )
    facts = {name: getattr(found, name) for name in ("digest", "layer", "order", "hop", "videos", "network")}
    facts |= {"dims": found.dims, "whitened": whitened, "explained": [float(share) for share in found.explained]}
    ended = replace(
        network,
        model=descriptor_network(network.model, network.spec, found, whitened=whitened),
        name=f"{network.name}_pca{found.dims}",
        labels=found.labels,
        facts={"descriptor": facts},
    )
    return ended, found.described(whitened=whitened)


def _plain_safetensors(file: Path) -> bool:
    """Whether these are tensors without edgeact's metadata; what cannot be read is left for `load_checkpoint`."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as reader:
            return "edgeact" not in (reader.metadata() or {})
    except (OSError, SafetensorError):
        return False


def require_torch() -> None:
    try:
        import torch  # noqa: F401
    except ImportError as exc:
        raise MissingDependencyError("torch", "export", "building a network") from exc


def _trained(
    checkpoint: Checkpoint,
    file: Path,
    name: str | None,
    options: dict[str, Any],
    num_classes: int | None,
    given: dict[str, Any] | ClipSpec,
) -> Network:
    from edgeact.models import build_model

    if name is not None and name != checkpoint.model:
        raise CheckpointError(f"{file} holds a {checkpoint.model!r}, not a {name!r}: leave --model out, or correct it")
    if name is None and ":" in checkpoint.model:
        raise CheckpointError(f"{file} names code of its own: allow it with --model {checkpoint.model}")
    if options:
        raise InputError(f"{file} fixes the model's options ({dict(checkpoint.options)}): leave --option out")
    if num_classes is not None and num_classes != len(checkpoint.labels):
        raise InputError(f"{file} tells {len(checkpoint.labels)} classes apart: leave --num-classes out")
    spec = make_spec(checkpoint.spec, given)
    model = build_model(checkpoint.model, num_classes=len(checkpoint.labels), options=checkpoint.options)
    load_weights_(model, checkpoint.state, source=str(file))
    changed = () if spec == checkpoint.spec else ("the ClipSpec differs from the checkpoint's: it was changed here",)
    given_by = (checkpoint.model, checkpoint.options, spec, checkpoint.labels, checkpoint.training)
    return Network(model, *given_by, notes=changed, quantized=checkpoint.quantized)


def _classes(data: str | int | None, num_classes: int | None, progress: bool) -> int | None:
    if num_classes is not None or data is None:
        return num_classes
    return data if isinstance(data, int) else count_classes(data, progress=progress)


def count_classes(data: str, *, progress: bool = False) -> int:
    """How many classes labelled videos have."""
    return len(open_dataset(dataset_root(data, progress=progress), split="all").labels)


def _paper_spec(name: str) -> ClipSpec:
    from edgeact.models import default_spec

    return ClipSpec() if ":" in name else default_spec(name)


def _untrained(
    name: str,
    options: dict[str, Any],
    num_classes: int | None,
    data: str | int | None,
    given: dict[str, Any] | ClipSpec,
    base: ClipSpec | None,
    progress: bool,
) -> Network:
    from edgeact.models import build_model, options_for_spec

    spec = make_spec(base or _paper_spec(name), given)
    if ":" not in name:
        options = options_for_spec(name, spec) | options
    model = build_model(name, num_classes=_classes(data, num_classes, progress) or _KINETICS, options=options)
    note = (
        "no checkpoint was given: the weights are what the factory returns; where it draws them, it is with one seed, "
        "and accuracy says nothing"
    )
    return Network(model, name, options, spec, None, {}, (note,))


def _public(
    file: Path,
    name: str | None,
    options: dict[str, Any],
    num_classes: int | None,
    data: str | int | None,
    given: dict[str, Any] | ClipSpec,
    progress: bool,
) -> Network:
    """Plain weights: a user's own state dict, or a public checkpoint whose names are converted.

    Where the names fit both, `--option source=` says which it is: `edgeact`, or a source of `convert_public`.
    """
    from edgeact.models._public import convert_public, matching_sources

    if name is None:
        raise InputError(f"{file} holds weights alone: give --model (see `edgeact models`)")
    state = read_state_dict(file)
    options = dict(options)
    source = "edgeact" if ":" in name else options.pop("source", None)
    if source is None and _own_names(name, options) == state.keys():
        fitting = matching_sources(name, state)
        if fitting:
            raise CheckpointError(
                f"{file} could be edgeact's own {name} or a port of {' or '.join(fitting)}, which prepare videos "
                f"differently: say which with --option source=edgeact or --option source={fitting[0]}"
            )
        source = "edgeact"
    if source == "edgeact":
        network = _untrained(name, options, num_classes, data, given, None, progress)
        load_weights_(network.model, state, source=str(file))
        return Network(network.model, name, network.options, network.spec, None, {})
    try:
        weights = convert_public(name, state, None if source is None else str(source))
    except CheckpointError as exc:
        raise CheckpointError(f"{file}: {exc}") from exc
    return _converted(file, name, options, weights, _classes(data, num_classes, progress), given)


def _own_names(name: str, options: dict[str, Any]) -> set[str]:
    """Names of the tensors of a registered model; nothing is allocated."""
    import torch

    from edgeact.models import build_model

    with torch.device("meta"):
        return set(build_model(name, num_classes=1, options=options).state_dict())


def _converted(
    file: Path,
    name: str,
    options: dict[str, Any],
    weights: "PublicWeights",
    num_classes: int | None,
    given: dict[str, Any] | ClipSpec,
) -> Network:
    from edgeact.models import build_model, options_for_spec
    from edgeact.models._public import load_public_

    if num_classes not in (None, weights.num_classes):
        raise CheckpointError(
            f"{file} tells {weights.num_classes} classes apart, {num_classes} were asked for (those of --data, or "
            "--num-classes): give --data whose labels are the checkpoint's classes, in its order"
        )
    spec = make_spec(weights.spec, given)
    options = options_for_spec(name, spec) | options
    model = build_model(name, num_classes=weights.num_classes, options=options)
    load_public_(model, weights)
    notes = [
        f"public weights from {weights.source}: the labels of the data are taken in the order of its classes",
        *weights.notes,
    ]
    if spec != weights.spec:
        notes.append(f"the ClipSpec differs from that of {weights.source}: it was changed here")
    return Network(model, name, options, spec, None, {}, tuple(notes))
