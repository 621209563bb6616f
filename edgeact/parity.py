"""What was lost on the way: measurements as dataclasses, and the gates that judge them.

Shapes: N clips, K classes; `logits_NK` float32. No torch: the same code judges an export and a device.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeact._statistics import clips_to_resolve, mcnemar_exact, wilson_interval
from edgeact.errors import InputError
from edgeact.latency import Latency

__all__ = [
    "Accuracy",
    "Flip",
    "Gates",
    "NotMeasured",
    "Numerics",
    "Placement",
    "Report",
    "Rung",
    "compare_accuracy",
    "compare_outputs",
    "judge",
    "ladder",
]

# Outputs that are equal to the last bit have no finite SQNR; 150 dB is beyond what float32 can resolve (24 bits ≈ 144).
EXACT_DB = 150.0
_BOOTSTRAP_ROUNDS = 2000


@dataclass(frozen=True)
class NotMeasured:
    """A number that could not be had, and why: never a guess."""

    not_measured: str


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One stage of the ladder against the full-precision reference, on the golden or evaluation clips.

    `step_sqnr_db` compares with the rung before, so a drop shows where it happened.
    """

    name: str
    sqnr_db: float
    max_abs: float
    cosine: float
    step_sqnr_db: float
    clips: int


@dataclass(frozen=True, kw_only=True)
class Numerics:
    """The artifact's outputs against the reference's, and every rung between."""

    sqnr_db: float
    max_abs: float
    cosine: float
    rungs: tuple[Rung, ...]


@dataclass(frozen=True, kw_only=True)
class Flip:
    """A clip on which reference and artifact disagree (labels by name)."""

    clip: str
    label: str
    reference: str
    artifact: str


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Reference and artifact on the same labelled clips.

    Attributes:
        n: Clips compared.
        drop_pt: top-1 of the reference minus top-1 of the artifact, in percentage points.
        drop_ci95_pt: 95 % interval of the drop: paired bootstrap over clips (Efron 1979, percentile).
        agreement: Share of clips with the same top-1 class, right or wrong.
        lost: Clips the reference has right and the artifact wrong; `gained` is the reverse.
        mcnemar_p: Exact two-sided McNemar test of lost against gained (McNemar 1947).
        clips_to_resolve: Clips needed to resolve `max_drop_pt` with 80 % power at 5 %, given the flips seen.
        confusion: `confusion[true][predicted]`, counts of the artifact.
    """

    n: int
    top1_reference: float
    top1_artifact: float
    top5_reference: float
    top5_artifact: float
    top1_ci95: tuple[float, float]
    drop_pt: float
    drop_ci95_pt: tuple[float, float]
    agreement: float
    lost: int
    gained: int
    mcnemar_p: float
    clips_to_resolve: int
    labels: tuple[str, ...]
    confusion: tuple[tuple[int, ...], ...]
    flips: tuple[Flip, ...]


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Which ops the runtime's fast kernels took, and which fell back.

    `kind` is `measured` (read from the compiled model), `estimated` or `proxy`.
    """

    accelerated_ops: int
    fallback_ops: int
    fallback: tuple[str, ...]
    kind: str
    kernels: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Gates:
    """Limits an export must hold; `defaults` states them per precision.

    Attributes:
        min_sqnr_db: Lowest SQNR of the artifact against the reference.
        min_agreement: Lowest share of clips with the same top-1 class.
        max_drop_pt: Highest drop of top-1 accuracy in percentage points.
        max_fallback: Most compute ops outside the target's fast kernels.
        min_speedup: Lowest speed-up against PyTorch eager; None does not judge latency (machines are noisy).
    """

    min_sqnr_db: float = 80.0
    min_agreement: float = 1.0
    max_drop_pt: float = 0.0
    max_fallback: int = 0
    min_speedup: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.min_agreement <= 1:
            raise InputError(f"min_agreement is {self.min_agreement}: it is a share of clips from 0 to 1")
        for name in ("min_sqnr_db", "max_drop_pt", "max_fallback", "min_speedup"):
            value = getattr(self, name)
            if value is not None and (not math.isfinite(value) or value < 0):
                raise InputError(f"{name} is {value}: it must be a finite number that is not negative")

    @classmethod
    def defaults(cls, precision: str) -> "Gates":
        """fp32 is float rounding only; fp16 loses 11-bit rounding of the weights and nothing a viewer would see."""
        return {
            "fp32": cls(),
            "fp16": cls(min_sqnr_db=45.0, min_agreement=0.99, max_drop_pt=0.5),
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
            parts["placement"] = _rebuild(Placement, parts["placement"])
            parts["gates"] = Gates(**parts["gates"])
            parts |= {name: tuple(parts[name]) for name in ("failures", "notes")}
            return cls(**parts)
        except (TypeError, KeyError, AttributeError) as exc:
            raise InputError(f"not a report of this version of edgeact: {exc}") from exc


def _rebuild(kind: type[Any], fields: Mapping[str, Any]) -> Any:
    """A measurement from JSON: lists become tuples, rungs and flips their own classes."""
    if set(fields) == {"not_measured"}:
        return NotMeasured(**fields)
    parts: dict[str, Any] = {key: _tuples(value) for key, value in fields.items()}
    for name, item in (("rungs", Rung), ("flips", Flip)):
        if name in parts:
            parts[name] = tuple(item(**entry) for entry in fields[name])
    return kind(**parts)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def compare_outputs(reference: NDArray[Any], outputs: NDArray[Any]) -> tuple[float, float, float]:
    """SQNR in dB, largest absolute difference and cosine of two equally shaped arrays.

    SQNR = 10 log10(sum reference^2 / sum (reference - outputs)^2), over all values at once.

    Raises:
        InputError: The shapes differ, or a value is not finite.
    """
    if reference.shape != outputs.shape:
        raise InputError(f"outputs have shape {outputs.shape}, the reference {reference.shape}: they must be equal")
    if not (np.isfinite(reference).all() and np.isfinite(outputs).all()):
        raise InputError(
            "outputs hold values that are not finite (NaN or infinity): the model overflows on these clips"
        )
    a, b = reference.astype(np.float64).ravel(), outputs.astype(np.float64).ravel()
    signal, noise = float(a @ a), float((a - b) @ (a - b))
    norms = math.sqrt(signal * float(b @ b))
    if noise == 0:
        return EXACT_DB, 0.0, 1.0
    sqnr = 10 * math.log10(signal / noise) if signal > 0 else -EXACT_DB
    return min(sqnr, EXACT_DB), float(np.abs(a - b).max()), float(a @ b) / norms if norms > 0 else 0.0


def ladder(outputs: Sequence[tuple[str, NDArray[Any]]]) -> Numerics:
    """Numerics of the rungs `(name, logits_NK)`; the first is the reference, the last the artifact."""
    reference = outputs[0][1]
    rungs = []
    for (name, logits), (_, before) in zip(outputs[1:], outputs[:-1], strict=True):
        sqnr_db, max_abs, cosine = compare_outputs(reference, logits)
        step_db = compare_outputs(before, logits)[0]
        rungs.append(
            Rung(
                name=name,
                sqnr_db=sqnr_db,
                max_abs=max_abs,
                cosine=cosine,
                step_sqnr_db=step_db,
                clips=len(logits),
            )
        )
    last = rungs[-1]
    return Numerics(sqnr_db=last.sqnr_db, max_abs=last.max_abs, cosine=last.cosine, rungs=tuple(rungs))


def _top_share(logits_NK: NDArray[Any], labels_N: NDArray[Any], k: int) -> float:
    top = np.argsort(-logits_NK, axis=1, kind="stable")[:, :k]
    return float((top == labels_N[:, None]).any(axis=1).mean())


def compare_accuracy(
    reference: NDArray[Any],
    artifact: NDArray[Any],
    truth: NDArray[Any],
    *,
    clips: Sequence[str],
    labels: Sequence[str],
    max_drop_pt: float,
    seed: int = 0,
) -> Accuracy:
    """Accuracy of both models on the same clips: `reference` and `artifact` are `logits_NK`, `truth` classes `[N]`.

    Raises:
        InputError: There are no clips.
    """
    n = len(truth)
    if n == 0:
        raise InputError("accuracy needs at least one labelled clip, found none")
    predicted_r, predicted_a = reference.argmax(1), artifact.argmax(1)
    right_r, right_a = predicted_r == truth, predicted_a == truth
    lost, gained = int((right_r & ~right_a).sum()), int((~right_r & right_a).sum())
    # Resampling clips is drawing their three outcomes from a multinomial; n draws per round would take gigabytes.
    shares = np.array([lost, gained, n - lost - gained]) / n
    drawn = np.random.default_rng(seed).multinomial(n, shares, _BOOTSTRAP_ROUNDS)
    low, high = np.percentile((drawn[:, 0] - drawn[:, 1]) * 100 / n, [2.5, 97.5])
    confusion = np.zeros((len(labels), len(labels)), np.int64)
    np.add.at(confusion, (truth, predicted_a), 1)
    flipped = np.flatnonzero(predicted_r != predicted_a)
    return Accuracy(
        n=n,
        top1_reference=float(right_r.mean()),
        top1_artifact=float(right_a.mean()),
        top5_reference=_top_share(reference, truth, 5),
        top5_artifact=_top_share(artifact, truth, 5),
        top1_ci95=wilson_interval(int(right_a.sum()), n),
        drop_pt=(lost - gained) * 100 / n,  # rounded once: 7 of 100 clips are not more than 7 points
        drop_ci95_pt=(float(low), float(high)),
        agreement=float((predicted_r == predicted_a).mean()),
        lost=lost,
        gained=gained,
        mcnemar_p=mcnemar_exact(lost, gained),
        clips_to_resolve=clips_to_resolve(lost, gained, n, max_drop_pt),
        labels=tuple(labels),
        confusion=tuple(tuple(int(count) for count in row) for row in confusion),
        flips=tuple(
            Flip(
                clip=clips[i],
                label=labels[int(truth[i])],
                reference=labels[int(predicted_r[i])],
                artifact=labels[int(predicted_a[i])],
            )
            for i in flipped.tolist()
        ),
    )


def judge(
    gates: Gates,
    numerics: Numerics | NotMeasured,
    accuracy: Accuracy | NotMeasured,
    latency: Latency | NotMeasured,
    placement: Placement | NotMeasured,
) -> tuple[str, ...]:
    """Failures in words, empty when every gate holds. What was not measured cannot fail, and stays visible as such."""
    failures = []
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
    if isinstance(placement, Placement) and placement.fallback_ops > gates.max_fallback:
        failures.append(
            f"placement: {placement.fallback_ops} ops fall back, more than {gates.max_fallback}: "
            + ", ".join(placement.fallback[:5])
        )
    if gates.min_speedup is not None and isinstance(latency, Latency) and latency.speedup is not None:
        if latency.speedup < gates.min_speedup:
            failures.append(f"latency: {latency.speedup:.2f}x of PyTorch eager is below {gates.min_speedup:g}x")
    return tuple(failures)
