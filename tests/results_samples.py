"""Bundles of plain files and the results of running them: nothing is exported, so that a test takes no time."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeact.bundle import (
    Bundle,
    GoldenClip,
    ReferenceSet,
    clip_digest,
    create_bundle,
    open_bundle,
    write_golden,
    write_manifest,
    write_reference,
)
from edgeact.clip import ClipSpec
from edgeact.latency import summarize
from edgeact.parity import Gates, NotMeasured, Report
from edgeact.placement import Placement

SPEC = ClipSpec(frames=2, short_side=8, crop_height=8, crop_width=8)
LABELS = ("left", "right", "still")
IDS = tuple(f"{label}/{i}.mp4" for label in LABELS for i in range(4))
TRUTH = np.repeat(np.arange(3), 4)
GATES = {"min_sqnr_db": 10.0, "min_agreement": 0.9, "max_drop_pt": 10.0}


def logits(noise: float = 0.0, flipped: int = 0) -> NDArray[np.float32]:
    """Those of a network that is right on all clips but the first `flipped`, with noise."""
    answers = np.where(np.arange(len(IDS)) < flipped, (TRUTH + 1) % 3, TRUTH)
    shape = (len(IDS), len(LABELS))
    return (4 * np.eye(3)[answers] + noise * np.random.default_rng(0).normal(0, 1, shape)).astype(np.float32)


def write_bundle(
    out: Path,
    name: str = "small",
    *,
    artifact: NDArray[np.float32] | None = None,
    labels: tuple[str, ...] = LABELS,
    ids: tuple[str, ...] = IDS,
    latency_ms: float | None = 10.0,
    kernels: dict[str, int] | None = None,
    facts: dict[str, Any] | None = None,
) -> Bundle:
    """A bundle with two golden clips, which are the first and the last of its evaluation set."""
    video = out / "clip.mp4"
    video.write_bytes(b"no video")
    frames = np.zeros(SPEC.clip_shape, np.uint8)
    reference = ReferenceSet(ids, TRUTH, (clip_digest(frames),) * len(ids), logits(), artifact)
    golden = [GoldenClip(ids[i], labels[TRUTH[i]], video, frames, reference.logits[i]) for i in (0, -1)]
    with create_bundle(out, name) as draft:
        (draft.folder / "model.bin").write_bytes(b"weights")
        write_golden(draft.folder, golden)
        write_reference(draft.folder, reference)
        report = stored_report(name, latency_ms, kernels or {"gemm": 9})
        (draft.folder / "report.json").write_text(json.dumps(report.to_dict()))
        fields = {"model": "m", "target": "openvino", "precision": "fp32", "form": "volumetric", "runtime": "openvino"}
        more = {"artifact": ["model.bin"], "spec": SPEC.to_dict(), "labels": list(labels), "io": {}, "gates": GATES}
        write_manifest(draft.folder, {"name": name, **fields, **more, "facts": facts or {}})
    return open_bundle(out / name)


def stored_report(name: str, latency_ms: float | None, kernels: dict[str, int]) -> Report:
    none = NotMeasured("not asked")
    latency = summarize({"artifact": [latency_ms]}, threads=1, runtime="r 1", device="d") if latency_ms else none
    return Report(
        bundle=name,
        target="openvino",
        model="m",
        precision="fp32",
        form="volumetric",
        held=True,
        failures=(),
        artifact={"files": ["model.bin"], "size_mb": 7e-6},
        numerics=none,
        accuracy=none,
        latency=latency,
        placement=Placement(accelerated_ops=9, fallback_ops=0, fallback=(), kind="measured", kernels=kernels),
        gates=Gates(**GATES),
        notes=(),
        environment={},
        date="2026-01-01T00:00:00+00:00",
    )


def results_fields(bundle: Bundle, outputs: NDArray[np.float32] | None = None) -> dict[str, Any]:
    """All that a device can say of the bundle, as JSON."""
    rows = (logits() if outputs is None else outputs).tolist()
    ids, digest = bundle.reference().ids, bundle.reference().digests[0]
    return {
        "schema": 1,
        "bundle": {"name": bundle.name, "digest": bundle.manifest["digest"]},
        "created": "2026-11-22T09:00:00Z",
        "runtime": {"name": "tensorrt", "version": "10.3", "threads": None, "proxy_for": None},
        "device": {"name": "Jetson Orin Nano", "facts": {"power mode": "15W"}},
        "golden": [{"id": ids[i], "logits": rows[i], "frames": {"mean_levels": 0.0, "max_levels": 0}} for i in (0, -1)],
        "evaluation": [{"id": clip, "logits": row, "sha256": digest} for clip, row in zip(ids, rows, strict=True)],
        "skipped": [],
        "latency_ms": [11, 12.5, 13.0],
        "peak_memory_mb": 100.5,
        "placement": {
            "accelerated_ops": 9,
            "fallback_ops": 1,
            "fallback": ["pool"],
            "kind": "measured",
            "kernels": {"conv": 9.0},
        },
        "sustained": {
            "minutes": 0.5,
            "windows": [{"start_s": 0, "clips": 10, "p50_ms": 9.0, "p95_ms": 9.5, "p99_ms": 10.0, "clock_mhz": 900}],
            "throttled_at_s": None,
            "not_measured": {"power_w": "no sensor"},
        },
        "notes": ["fan on"],
    }


def write_fields(file: Path, fields: Any) -> Path:
    file.write_text(fields if isinstance(fields, str) else json.dumps(fields))
    return file


def without(fields: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in names}
