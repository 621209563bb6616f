"""Where the ops of a network run: the ops of an artifact, told by its compiler or runtime, by the layers they compute.

compiler or runtime ─► PlacedOp, PlacedOp, …  ─► Placement.of ─► .with_macs(layers of the network) ─► report

No torch: the same code reads an export and a device.
"""

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from edgeact.errors import BundleError

__all__ = [
    "IN_FLOAT",
    "Kind",
    "PlacedLayer",
    "PlacedOp",
    "Placement",
    "placement_from",
    "read_placement",
    "write_placement",
]

IN_FLOAT = ", in float)"  # ends the `Placement.fallback` of a layer of an int8 model that runs in float

Kind = Literal["measured", "estimated", "proxy"]

_FILE = "placement.json"


@dataclass(frozen=True, kw_only=True)
class PlacedOp:
    """One op of an artifact that computes; ops that only move or retype data are none.

    Attributes:
        name: As the compiler or the runtime calls it.
        kernel: What computes it, such as `Conv2D` or `brgconv_avx512_I8`.
        unit: What it runs on: `NPU`, `GPU`, `CPU`, or the number of its delegate, `XNNPACK 0`.
        layer: Path of the module of the user's network that it computes, such as `layer1.0.conv2`; empty where its own
            forward computes it, None where that is not told.
        fallback: Why it is on no fast kernel of the target; empty where it is on one.
        ms: Time of one run.
    """

    name: str
    kernel: str
    unit: str
    layer: str | None = None
    fallback: str = ""
    ms: float | None = None


@dataclass(frozen=True, kw_only=True)
class PlacedLayer:
    """One layer of the user's network.

    Attributes:
        name: Path of its module.
        units: Where the ops run that came of it, and how many.
        fallback_ops: Those of them on no fast kernel.
        macs: Multiply-accumulates for one clip, of the network as authored; None where they are not told.
        ms: Time of one run; None where it is not told.
    """

    name: str
    units: Mapping[str, int]
    fallback_ops: int = 0
    macs: int | None = None
    ms: float | None = None


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Which ops the runtime's fast kernels took, and which fell back.

    Attributes:
        accelerated_ops: Ops on fast kernels.
        fallback_ops: Ops that fell back.
        fallback: Their names and reasons.
        kind: `measured` (read from what was compiled or ran), `estimated` (a compiler's or a rule's forecast) or
            `proxy` (of another runtime).
        kernels: How many ops each kernel computes.
        layers: The layers of the user's network, in its order; none where the runtime does not tell them.
        crossing_bytes: What goes to and comes from the accelerator in one run, the clip and the logits among it; None
            where that is not told.
    """

    accelerated_ops: int
    fallback_ops: int
    fallback: tuple[str, ...]
    kind: Kind
    kernels: Mapping[str, int]
    layers: tuple[PlacedLayer, ...] = ()
    crossing_bytes: int | None = None

    @classmethod
    def of(
        cls, ops: Iterable[PlacedOp], kind: Kind, crossing_bytes: int | None = None, moving: Iterable[str] = ()
    ) -> "Placement":
        """From what the compiler or the runtime tells.

        Args:
            ops: Every op that computes.
            kind: See `Placement`.
            crossing_bytes: See `Placement`.
            moving: The kernel of each op off the accelerator that only moves or retypes data: told, and no fallback.
        """
        ops = tuple(ops)
        fallen = [op for op in ops if op.fallback]
        kernels = Counter(f"{op.unit} {op.kernel}" for op in ops) + Counter(f"outside {name}" for name in moving)
        return cls(
            accelerated_ops=len(ops) - len(fallen),
            fallback_ops=len(fallen),
            fallback=tuple(f"{op.name} ({op.fallback})" for op in fallen),
            kind=kind,
            kernels=dict(kernels.most_common()),
            layers=_layers(ops),
            crossing_bytes=crossing_bytes,
        )

    def with_macs(self, macs: Mapping[str, int]) -> "Placement":
        """Its layers in the order of `macs`, path of a module to multiply-accumulates, with what each computes."""
        order = {name: i for i, name in enumerate(macs)}
        layers = (dataclasses.replace(layer, macs=macs.get(layer.name, 0)) for layer in self.layers)
        return dataclasses.replace(
            self, layers=tuple(sorted(layers, key=lambda layer: order.get(layer.name, len(order))))
        )

    @property
    def macs(self) -> tuple[int, int] | None:
        """Multiply-accumulates on fast kernels and off them; a layer of which any op falls back is off them."""
        if not self.layers or any(layer.macs is None for layer in self.layers):
            return None
        off = sum(layer.macs or 0 for layer in self.layers if layer.fallback_ops)
        return sum(layer.macs or 0 for layer in self.layers) - off, off


def _layers(ops: Iterable[PlacedOp]) -> tuple[PlacedLayer, ...]:
    by_name: dict[str, list[PlacedOp]] = {}
    for op in ops:
        if op.layer is not None:
            by_name.setdefault(op.layer, []).append(op)
    return tuple(
        PlacedLayer(
            name=name,
            units=dict(Counter(op.unit for op in each).most_common()),
            fallback_ops=sum(bool(op.fallback) for op in each),
            ms=sum(op.ms or 0.0 for op in each) if any(op.ms is not None for op in each) else None,
        )
        for name, each in by_name.items()
    )


def write_placement(folder: Path, placement: Placement) -> None:
    """What the compiler decided, for the runner: a file of the artifact."""
    (folder / _FILE).write_text(json.dumps(dataclasses.asdict(placement), indent=1) + "\n")


def read_placement(folder: Path) -> Placement:
    """What `write_placement` wrote; the file is untrusted.

    Raises:
        BundleError: It does not say where the ops run.
    """
    file = folder / _FILE
    try:
        return placement_from(json.loads(file.read_text()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise BundleError(f"{file} does not say where each op runs: {exc}") from exc


def placement_from(fields: Mapping[str, Any]) -> Placement:
    """Of JSON types.

    Raises:
        ValueError: A value is none that a placement can have; likewise KeyError, TypeError and AttributeError.
    """
    if fields["kind"] not in get_args(Kind):
        raise ValueError(f"kind is {fields['kind']!r}: allowed are {', '.join(get_args(Kind))}")
    fallback, fallback_ops = tuple(fields.get("fallback", ())), _count(fields["fallback_ops"])
    if isinstance(fields.get("fallback"), str) or not all(isinstance(op, str) for op in fallback):
        raise ValueError("fallback must be a list of names")
    if len(fallback) > fallback_ops:
        raise ValueError(f"placement names {len(fallback)} ops that fall back and counts {fallback_ops}")
    crossing = fields.get("crossing_bytes")
    return Placement(
        accelerated_ops=_count(fields["accelerated_ops"]),
        fallback_ops=fallback_ops,
        fallback=fallback,
        kind=fields["kind"],
        kernels=_counts(fields.get("kernels", {})),
        layers=tuple(
            PlacedLayer(
                name=str(layer["name"]),
                units=_counts(layer["units"]),
                fallback_ops=_count(layer.get("fallback_ops", 0)),
                macs=None if layer.get("macs") is None else _count(layer["macs"]),
                ms=None if layer.get("ms") is None else _duration(layer["ms"]),
            )
            for layer in fields.get("layers", ())
        ),
        crossing_bytes=None if crossing is None else _count(crossing),
    )


def _counts(fields: Mapping[str, Any]) -> dict[str, int]:
    return {str(name): _count(count) for name, count in fields.items()}


def _count(value: Any) -> int:
    """How many: neither a fraction, nor 1e400, which JSON reads as infinity."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 2**63 or value != int(value):
        raise ValueError(f"{value!r} is no count")
    return int(value)


def _duration(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{value!r} is no time")
    return float(value)
