"""What was lost on the way: the report with every measurement, and the gates that judge it.

No torch: the same code judges an export and a device.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgeact.accuracy import Accuracy, Flip
from edgeact.descriptor_parity import Descriptors, Neighbours
from edgeact.errors import InputError
from edgeact.latency import Latency
from edgeact.numerics import Numerics, Rung
from edgeact.placement import Placement, placement_from
from edgeact.sustained import Sustained, Window
from edgeact.whitening import Whitening

__all__ = ["NOT_ASKED", "Gates", "NotMeasured", "Report", "judge"]


@dataclass(frozen=True)
class NotMeasured:
    """A number that could not be had, and why: never a guess."""

    not_measured: str


NOT_ASKED = NotMeasured("give --minutes")  # of a sustained run that nobody asked for: no remark says so


@dataclass(frozen=True, kw_only=True)
class Gates:
    """Limits an export must hold; `defaults` states them per precision.

    Attributes:
        min_sqnr_db: Lowest SQNR of the artifact against the reference.
        min_agreement: Lowest share of clips with the same top-1 class.
        max_drop_pt: Highest drop of top-1 accuracy in percentage points.
        max_fallback: Most compute ops outside the target's fast kernels.
        min_speedup: Lowest speed-up against PyTorch eager; None does not judge latency (machines are noisy).
        min_cosine: Of descriptors: lowest cosine of the artifact's and the reference's, averaged over clips.
        min_neighbours: Of descriptors: lowest share of the ten nearest clips that both have in common.
        require_all: A measurement that was not made is a failure, not a remark.
    """

    min_sqnr_db: float = 80.0
    min_agreement: float = 1.0
    max_drop_pt: float = 0.0
    max_fallback: int = 0
    min_speedup: float | None = None
    require_all: bool = False
    min_cosine: float = 0.0
    min_neighbours: float = 0.0

    def __post_init__(self) -> None:
        shares = {"min_agreement": "a share of clips", "min_cosine": "a cosine", "min_neighbours": "a share of clips"}
        for name, what in shares.items():
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} is {getattr(self, name)}: it is {what} from 0 to 1")
        for name in ("min_sqnr_db", "max_drop_pt", "max_fallback", "min_speedup"):
            value = getattr(self, name)
            if value is not None and (not math.isfinite(value) or value < 0):
                raise InputError(f"{name} is {value}: it must be a finite number that is not negative")

    @classmethod
    def defaults(cls, precision: str) -> "Gates":
        """What is usual per precision.

        fp32 is float rounding only. fp16 loses 11-bit rounding of the weights and nothing a viewer would see. int8
        logits of trained networks lie 15 to 25 dB from the reference; what counts there is the answer.
        """
        return {
            "fp32": cls(),
            "fp16": cls(min_sqnr_db=45.0, min_agreement=0.99, max_drop_pt=0.5),
            "int8": cls(min_sqnr_db=10.0, min_agreement=0.97, max_drop_pt=1.0),
        }[precision]

    @classmethod
    def for_descriptors(cls, precision: str) -> "Gates":
        """What is usual of a network that ends in a descriptor, whose answers are those of the linear SVM on it.

        SQNR over all components does not tell: the small ones of a whitened descriptor hold the noise, and weigh
        little in it. Which class a clip near the border of two gets, rounding may change: the drop is judged, not that.
        """
        return {
            "fp32": cls(min_sqnr_db=0.0, min_cosine=0.9999),
            "fp16": cls(min_sqnr_db=0.0, min_agreement=0.0, max_drop_pt=0.5, min_cosine=0.999),
            "int8": cls(min_sqnr_db=0.0, min_agreement=0.0, max_drop_pt=1.0, min_neighbours=0.9),
        }[precision]


@dataclass(frozen=True, kw_only=True)
class Report:
    """The verdict on a bundle, with every measurement behind it; `to_dict` is the `--json` contract of DESIGN.md."""

    bundle: str
    target: str
    model: str
    precision: str
    form: str
    held: bool
    failures: tuple[str, ...]
    artifact: dict[str, Any]
    numerics: Numerics | NotMeasured
    accuracy: Accuracy | NotMeasured
    latency: Latency | NotMeasured
    placement: Placement | NotMeasured
    gates: Gates
    notes: tuple[str, ...]
    environment: dict[str, str]
    date: str
    sustained: Sustained | NotMeasured = NOT_ASKED
    descriptors: Descriptors | NotMeasured | None = None  # None: the network classifies
    whitening: Whitening | NotMeasured | None = None  # None: nothing is whitened and in int8, or a device ran it

    def to_dict(self) -> dict[str, Any]:
        """JSON types only; keys as pinned by the public contract."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Report":
        """Rebuild a report from `to_dict()` or its JSON.

        Raises:
            InputError: Fields are missing or unknown.
        """
        try:
            parts = dict(fields)
            for name, kind in (("numerics", Numerics), ("accuracy", Accuracy), ("latency", Latency)):
                parts[name] = _rebuild(kind, parts[name])
            where = parts["placement"]
            parts["placement"] = _rebuild(NotMeasured, where) if "not_measured" in where else placement_from(where)
            if "sustained" in parts:  # reports of bundles from before it was measured lack it
                parts["sustained"] = _rebuild(Sustained, parts["sustained"])
            if parts.get("descriptors") is not None:
                parts["descriptors"] = _rebuild(Descriptors, parts["descriptors"])
            if parts.get("whitening") is not None:
                parts["whitening"] = _rebuild(Whitening, parts["whitening"])
            parts["gates"] = Gates(**parts["gates"])
            parts |= {name: tuple(parts[name]) for name in ("failures", "notes")}
            return cls(**parts)
        except (TypeError, ValueError, KeyError, AttributeError) as exc:
            raise InputError(f"not a report of this version of edgeact: {exc}") from exc


def _rebuild(kind: type[Any], fields: Mapping[str, Any]) -> Any:
    """A measurement from JSON: lists become tuples, rungs, flips and windows their own classes."""
    if set(fields) == {"not_measured"}:
        return NotMeasured(**fields)
    parts: dict[str, Any] = {key: _tuples(value) for key, value in fields.items()}
    for name, item in (("rungs", Rung), ("flips", Flip), ("windows", Window), ("neighbours", Neighbours)):
        if name in parts:
            parts[name] = tuple(item(**entry) for entry in fields[name])
    return kind(**parts)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def judge(
    gates: Gates,
    numerics: Numerics | NotMeasured,
    accuracy: Accuracy | NotMeasured,
    latency: Latency | NotMeasured,
    placement: Placement | NotMeasured,
    descriptors: Descriptors | NotMeasured | None = None,
) -> tuple[str, ...]:
    """Failures in words, empty when every gate holds. What was not measured fails where all is required."""
    failures = []
    measured: dict[str, Any] = {"numerics": numerics, "accuracy": accuracy, "latency": latency, "placement": placement}
    measured |= {} if descriptors is None else {"descriptors": descriptors}
    for name, measure in measured.items():
        if gates.require_all and isinstance(measure, NotMeasured):
            failures.append(f"{name}: not measured: {measure.not_measured}")
    if isinstance(numerics, Numerics) and numerics.sqnr_db < gates.min_sqnr_db:
        worst = min(numerics.rungs, key=lambda rung: rung.step_sqnr_db)
        failures.append(
            f"numerics: SQNR {numerics.sqnr_db:.1f} dB is below {gates.min_sqnr_db:g} dB; "
            f"the largest step is at the rung {worst.name!r} ({worst.step_sqnr_db:.1f} dB)"
        )
    if isinstance(accuracy, Accuracy):
        if accuracy.agreement < gates.min_agreement:
            failures.append(
                f"accuracy: top-1 agreement {accuracy.agreement:.2%} is below {gates.min_agreement:.2%} "
                f"({len(accuracy.flips)} of {accuracy.n} clips flip)"
            )
        if accuracy.drop_pt > gates.max_drop_pt:
            failures.append(
                f"accuracy: top-1 drops {accuracy.drop_pt:.2f} points, more than {gates.max_drop_pt:g} "
                f"(95 % interval {accuracy.drop_ci95_pt[0]:.2f} … {accuracy.drop_ci95_pt[1]:.2f})"
            )
    if isinstance(descriptors, Descriptors):
        failures += _judge_descriptors(gates, descriptors)
    if isinstance(placement, Placement) and placement.fallback_ops > gates.max_fallback:
        failures.append(
            f"placement: {placement.fallback_ops} ops fall back, more than {gates.max_fallback}: "
            + ", ".join(placement.fallback[:5])
        )
    if gates.min_speedup is not None and isinstance(latency, Latency):
        if latency.speedup is None and gates.require_all:
            failures.append(f"latency: speed-up not measured: {latency.reference_missing}")
        if latency.speedup is not None and latency.speedup < gates.min_speedup:
            failures.append(f"latency: {latency.speedup:.2f}x of PyTorch eager is below {gates.min_speedup:g}x")
    return tuple(failures)


def _judge_descriptors(gates: Gates, found: Descriptors) -> list[str]:
    failures = []
    if found.cosine < gates.min_cosine:
        failures.append(
            f"descriptors: cosine {found.cosine:.6f} is below {gates.min_cosine:g}; it is lowest for "
            f"{found.lowest_clip}, {found.cosine_lowest:.6f}"
        )
    if not found.neighbours and gates.min_neighbours > 0:
        failures.append(f"descriptors: {found.n} clips have no neighbours to agree on: compare more")
    if found.neighbours and (last := found.neighbours[-1]).agreement < gates.min_neighbours:
        low, high = last.agreement_ci95
        failures.append(
            f"descriptors: {last.agreement:.2%} of the {last.k} nearest clips are the reference's, below "
            f"{gates.min_neighbours:.2%} (95 % interval {low:.2%} … {high:.2%})"
        )
    return failures
