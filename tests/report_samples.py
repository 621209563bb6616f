"""Reports to show: synthetic, with every measurement or with none."""

import dataclasses
from typing import Any

import numpy as np

from edgeact.accuracy import Accuracy, compare_accuracy
from edgeact.latency import summarize
from edgeact.numerics import ladder
from edgeact.parity import Gates, NotMeasured, Report, judge
from edgeact.placement import PlacedLayer, Placement
from edgeact.sustained import Sustained, Window

EVIL = "<script>alert('x')</script>\"><img src=//evil onerror=x>[red]&\x1b[31m"


def accuracy(classes: int, noise: float, labels: tuple[str, ...] | None = None) -> Accuracy:
    rng = np.random.default_rng(0)
    truth = np.repeat(np.arange(classes), 5)
    reference = rng.normal(0, 1, (len(truth), classes)) + 4.0 * np.eye(classes)[truth]
    return compare_accuracy(
        reference,
        reference + noise * rng.normal(0, 1, reference.shape),
        truth,
        clips=[f"clip{i:04d}" for i in range(len(truth))],
        labels=labels or tuple(f"class {i}" for i in range(classes)),
        max_drop_pt=0.5,
    )


def report(*, held: bool = True, classes: int = 12, **changes: Any) -> Report:
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 1, (16, classes))
    gates = Gates(min_sqnr_db=45.0, min_agreement=0.99, max_drop_pt=0.5)
    parts: dict[str, Any] = {
        "numerics": ladder(
            [("fp32", logits), ("folded", logits + 1e-7), ("artifact", logits + (1e-4 if held else 1.0))]
        ),
        "accuracy": accuracy(classes, 0.0 if held else 1.0),
        "latency": summarize(
            {"artifact": rng.normal(151, 3, 30).tolist(), "reference": rng.normal(412, 9, 30).tolist()},
            threads=8,
            runtime="openvino 2026.4.1",
            device="A processor",
            peak_memory_mb=312.4,
        ),
        "placement": Placement(
            accelerated_ops=61,
            fallback_ops=0 if held else 1,
            fallback=() if held else ("MaxPool3d",),
            kind="measured",
            kernels={"brgconv": 50, "jit": 11},
            layers=tuple(
                PlacedLayer(
                    name=f"layer{i}.conv",
                    units={"NPU": 1} if held or i else {"CPU": 1},
                    fallback_ops=int(not held and not i),
                    macs=10**i,
                    ms=i / 10,
                )
                for i in range(9)
            ),
            crossing_bytes=602_112,
        ),
    }
    failures = judge(gates, **parts)
    base = Report(
        bundle="bundles/ir_csn_26-openvino-fp16",
        target="openvino",
        model="ir_csn_26",
        precision="fp16",
        form="volumetric",
        held=not failures,
        failures=failures,
        artifact={"files": ["model.bin", "model.xml"], "size_mb": 12.13},
        gates=gates,
        notes=("random weights: accuracy means nothing",),
        environment={"cpu": "A processor", "openvino": "2026.4.1"},
        date="2026-07-13T10:00:00+00:00",
        **parts,
    )
    return dataclasses.replace(base, **changes)


def unmeasured() -> Report:
    reasons: dict[str, Any] = {
        name: NotMeasured(f"no {name} here") for name in ("numerics", "accuracy", "latency", "placement")
    }
    return report(artifact={}, **reasons)


def without_reference() -> Report:
    latency = summarize(
        {"artifact": [9.0, 10.0]}, threads=1, runtime="r 1", device="d", reference_missing="PyTorch is not used here"
    )
    return report(latency=latency)


def sustained(windows: int = 40, *, sensors: bool = True, reason: str = "no power sensor") -> Sustained:
    """Minutes of runs that slow down halfway."""
    return Sustained(
        minutes=windows / 6,
        windows=tuple(
            Window(
                start_s=10.0 * i,
                clips=100,
                p50_ms=10.0 + 5 * (i > windows / 2),
                p95_ms=12.0 + 5 * (i > windows / 2),
                p99_ms=13.0,
                temperature_c=40.0 + i if sensors else None,
                clock_mhz=1300.5 if sensors else None,
            )
            for i in range(windows)
        ),
        energy_j_per_clip=None,
        throttled_at_s=10.0 * (windows // 2 + 1),
        not_measured={"power_w": reason},
    )
