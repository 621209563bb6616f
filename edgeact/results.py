"""results.json: what a program measured when it ran a bundle on a device. A public contract, whoever wrote the program.

results.schema.json beside this file defines and documents it. A file may come from anyone: it is read as data, and
judged only when it is of this very bundle and whole.

Shapes: N clips, K classes.
"""

import datetime
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeact._results_checks import check_results, refuse_duplicates
from edgeact._results_file import check_schema, most_bytes, parse
from edgeact.bundle import Bundle
from edgeact.errors import InputError
from edgeact.parity import NotMeasured
from edgeact.placement import Placement, placement_from
from edgeact.sustained import Sustained, Window

__all__ = [
    "LEFT_OUT",
    "Device",
    "EvaluationOutputs",
    "FrameDifference",
    "GoldenOutput",
    "Results",
    "UsedRuntime",
    "read_results",
    "write_results",
]

SCHEMA = 1
_YEARS = range(1970, 2100)  # a board without a battery begins in 1970 at every start
LEFT_OUT = NotMeasured("the results leave it out")


@dataclass(frozen=True, kw_only=True)
class UsedRuntime:
    """What ran the artifact; `proxy_for` names the runtime that it stood in for."""

    name: str
    version: str
    threads: int | None = None
    proxy_for: str | None = None

    def in_words(self) -> str:
        """Name and version, and that it is a proxy where it is one."""
        return f"{self.name} {self.version}" + (f", proxy for {self.proxy_for}" if self.proxy_for else "")


@dataclass(frozen=True, kw_only=True)
class Device:
    """Where it ran, and what else a reader should know: power mode, clocks, versions."""

    name: str
    facts: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class FrameDifference:
    """A golden video as decoded on the device against the stored frames, in levels of 255; or why it cannot be."""

    mean_levels: float | None = None
    max_levels: float | None = None
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class GoldenOutput:
    """Logits `[K]` of a golden clip; `frames` is None where the device decodes no video."""

    id: str
    logits: NDArray[np.float32] | NotMeasured
    frames: FrameDifference | None = None


@dataclass(frozen=True, kw_only=True)
class EvaluationOutputs:
    """Logits `[N, K]` of the evaluation set, with the digests of the decoded clips where they were taken."""

    ids: tuple[str, ...]
    logits: NDArray[np.float32]
    digests: tuple[str | None, ...]


@dataclass(frozen=True, kw_only=True)
class Results:
    """One run of a bundle on a device; `created` is ISO 8601 with an offset."""

    bundle_name: str
    bundle_digest: str
    created: str
    runtime: UsedRuntime
    device: Device
    golden: tuple[GoldenOutput, ...]
    evaluation: EvaluationOutputs | NotMeasured = LEFT_OUT
    skipped: tuple[str, ...] = ()
    latency_ms: tuple[float, ...] | NotMeasured = LEFT_OUT
    peak_memory_mb: float | None = None
    placement: Placement | NotMeasured = LEFT_OUT
    sustained: Sustained | NotMeasured = LEFT_OUT
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The content of results.json, JSON types only."""
        latency = self.latency_ms
        return {
            "schema": SCHEMA,
            "bundle": {"name": self.bundle_name, "digest": self.bundle_digest},
            "created": self.created,
            "runtime": asdict(self.runtime),
            "device": {"name": self.device.name, "facts": dict(self.device.facts)},
            "golden": [_golden_fields(clip) for clip in self.golden],
            "evaluation": _evaluation_fields(self.evaluation),
            "skipped": list(self.skipped),
            "latency_ms": asdict(latency) if isinstance(latency, NotMeasured) else list(latency),
            "peak_memory_mb": self.peak_memory_mb,
            "placement": asdict(self.placement),
            "sustained": asdict(self.sustained),
            "notes": list(self.notes),
        }


def _golden_fields(clip: GoldenOutput) -> dict[str, Any]:
    logits = asdict(clip.logits) if isinstance(clip.logits, NotMeasured) else clip.logits.tolist()
    fields = {"id": clip.id, "logits": logits}
    if clip.frames is not None:
        fields["frames"] = {name: value for name, value in asdict(clip.frames).items() if value is not None}
    return fields


def _evaluation_fields(evaluation: EvaluationOutputs | NotMeasured) -> Any:
    if isinstance(evaluation, NotMeasured):
        return asdict(evaluation)
    rows = zip(evaluation.ids, evaluation.logits.tolist(), evaluation.digests, strict=True)
    return [{"id": clip, "logits": row} | ({"sha256": digest} if digest else {}) for clip, row, digest in rows]


def write_results(results: Results, path: str | os.PathLike[str]) -> None:
    """Write results.json, beside `path` first and then renamed.

    Raises:
        OSError: The file cannot be written.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        partial.write_text(json.dumps(results.to_dict(), allow_nan=False) + "\n", encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read_results(path: str | os.PathLike[str], bundle: Bundle | None = None) -> Results:
    """Read results.json and check it; with `bundle`, that it is of this bundle and whole.

    Raises:
        InputError: There is no such file, or it is no results.json, hostile, of another bundle or incomplete.
    """
    file = Path(path)
    fields = parse(file, most_bytes(bundle))
    check_schema(file, fields)
    try:
        results = _from_fields(fields)
        if bundle is not None:
            check_results(results, bundle)
    except InputError as exc:
        raise InputError(f"{file}: {exc}") from exc
    return results


def _from_fields(fields: Mapping[str, Any]) -> Results:
    """Results from JSON that the schema allows.

    Raises:
        InputError: A date, a digit or an id that no schema can refuse.
    """
    optional: dict[str, Any] = {"peak_memory_mb": fields.get("peak_memory_mb")}
    optional |= {name: tuple(fields[name]) for name in ("skipped", "notes") if name in fields}
    for name, rebuild in (("evaluation", _evaluation), ("latency_ms", tuple), ("placement", _placement)):
        if name in fields:
            optional[name] = _measured(fields[name], rebuild)
    if "sustained" in fields:
        optional["sustained"] = _measured(fields["sustained"], _sustained)
    golden = tuple(_golden(entry) for entry in fields["golden"])
    refuse_duplicates([clip.id for clip in golden], "golden")
    threads = fields["runtime"].get("threads")
    return Results(
        bundle_name=fields["bundle"]["name"],
        bundle_digest=fields["bundle"]["digest"],
        created=_date(fields["created"]),
        runtime=UsedRuntime(**fields["runtime"] | {"threads": None if threads is None else int(threads)}),
        device=Device(name=fields["device"]["name"], facts=fields["device"].get("facts", {})),
        golden=golden,
        **optional,
    )


def _measured(value: Any, rebuild: Any) -> Any:
    reason = value.get("not_measured") if isinstance(value, dict) else None
    return NotMeasured(reason) if isinstance(reason, str) else rebuild(value)


def _date(text: str) -> str:
    """With an offset for Z, which Python 3.10 does not read, as it does not read every fraction of a second."""
    text = text.strip().replace("Z", "+00:00")
    try:
        year = datetime.datetime.fromisoformat(text[:19] + text[-6:]).year
        if int(text[-2:]) > 59:
            raise ValueError("the minutes of its offset must be in 0..59")
        if year not in _YEARS:
            raise ValueError(f"its year must be in {_YEARS[0]}..{_YEARS[-1]}")
    except ValueError as exc:
        raise InputError(f"created is {text!r}: {exc}") from exc
    return text


def _golden(entry: Mapping[str, Any]) -> GoldenOutput:
    frames = FrameDifference(**entry["frames"]) if "frames" in entry else None
    place = f"golden clip {entry['id']!r}"
    return GoldenOutput(
        id=entry["id"], logits=_measured(entry["logits"], lambda row: _logits([row], place)[0]), frames=frames
    )


def _evaluation(entries: Sequence[Mapping[str, Any]]) -> EvaluationOutputs:
    ids = tuple(entry["id"] for entry in entries)
    refuse_duplicates(ids, "evaluation")
    counts = {len(entry["logits"]) for entry in entries}
    if len(counts) > 1:
        raise InputError(f"evaluation holds logits of {min(counts)} and of {max(counts)} classes: all must be alike")
    logits = _logits([entry["logits"] for entry in entries], "evaluation")
    return EvaluationOutputs(ids=ids, logits=logits, digests=tuple(entry.get("sha256") for entry in entries))


def _logits(rows: list[list[float]], place: str) -> NDArray[np.float32]:
    wide = np.array(rows, np.float64)
    if np.abs(wide).max() > np.finfo(np.float32).max:
        raise InputError(f"{place} holds logits beyond what float32 can: the largest is {np.abs(wide).max():g}")
    return wide.astype(np.float32)


def _placement(fields: Mapping[str, Any]) -> Placement:
    try:
        return placement_from(fields)
    except ValueError as exc:
        raise InputError(str(exc)) from exc


def _sustained(fields: Mapping[str, Any]) -> Sustained:
    return Sustained(
        minutes=fields["minutes"],
        windows=tuple(_window(i, window) for i, window in enumerate(fields["windows"])),
        energy_j_per_clip=fields.get("energy_j_per_clip"),
        throttled_at_s=fields.get("throttled_at_s"),
        not_measured=fields.get("not_measured", {}),
    )


def _window(number: int, fields: Mapping[str, Any]) -> Window:
    percentiles = [fields[name] for name in ("p50_ms", "p95_ms", "p99_ms")]
    if percentiles != sorted(percentiles):
        shown = ", ".join(f"{value:g}" for value in percentiles)
        raise InputError(f"window {number} of sustained has the percentiles {shown} ms: p50 <= p95 <= p99")
    return Window(**{**fields, "clips": int(fields["clips"])})
