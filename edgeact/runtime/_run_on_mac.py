#!/usr/bin/env python3
"""Runs the golden clips of a Core ML bundle on a Mac and writes what it measured.

    pip install coremltools pillow
    python3 run_on_mac.py                        in the bundle's folder, on the Mac
    edgeact validate BUNDLE --results FILE       anywhere: judges what it measured

Needs Python 3.9, macOS, coremltools, Pillow and numpy, and nothing else. Writes `results.json` beside the bundle.
Exit status: 0 the golden clips hold the bundle's gates, 1 they do not, 2 they could not be run.

The file is one of edgeact's; edgeact copies it into each bundle and uses it itself.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["RunError", "load", "logits", "placement"]

_UNITS = ("CPU_AND_NE", "ALL", "CPU_ONLY", "CPU_AND_GPU")
_MOVES = {"cast", "concat", "const", "expand_dims", "identity", "pad", "reshape", "slice_by_index", "slice_by_size"}
_MOVES |= {"split", "squeeze", "stack", "tile", "transpose", "quantize", "dequantize"}
_WARM_UP, _RUNS = 5, 30


class RunError(Exception):
    """What kept the clips from being run, in a line."""


def load(package: Path, units: str) -> Any:
    """Core ML's model of a package, compiled for this Mac."""
    import coremltools

    return coremltools.models.MLModel(str(package), compute_units=getattr(coremltools.ComputeUnit, units))


def images(clip: Any) -> dict[str, Any]:
    """The model's inputs of a uint8 clip `[1, T, H, W, 3]`: an image of each frame."""
    from PIL import Image

    return {f"frame_{t}": Image.fromarray(frame) for t, frame in enumerate(clip[0])}


def logits(model: Any, clip: Any) -> Any:
    """float32 `[1, K]` of a uint8 clip `[1, T, H, W, 3]`."""
    return np.asarray(model.predict(images(clip))["logits"], dtype=np.float32).reshape(1, -1)


def placement(model: Any, units: str) -> dict[str, Any] | None:
    """Where Core ML plans each operator; None where it does not tell, before macOS 14.4."""
    try:
        import coremltools
        from coremltools.models.compute_plan import MLComputePlan

        plan = MLComputePlan.load_from_path(
            path=model.get_compiled_model_path(), compute_units=getattr(coremltools.ComputeUnit, units)
        )
    except (ImportError, RuntimeError, ValueError):
        return None
    program = plan.model_structure.program
    kernels: dict[str, int] = {}
    fallback = []
    for op in program.functions["main"].block.operations:
        kind = op.operator_name.rpartition(".")[2]
        usage = plan.get_compute_device_usage_for_mlprogram_operation(op)
        if kind in _MOVES or kind.startswith("constexpr") or usage is None:
            continue
        unit = type(usage.preferred_compute_device).__name__.removeprefix("ML").removesuffix("ComputeDevice")
        unit = "Neural Engine" if unit == "NeuralEngine" else unit
        kernels[f"{unit} {kind}"] = kernels.get(f"{unit} {kind}", 0) + 1
        if unit != "Neural Engine":
            fallback.append(f"{op.outputs[0].name} ({kind} on the {unit})")
    return {
        "accelerated_ops": sum(kernels.values()) - len(fallback),
        "fallback_ops": len(fallback),
        "fallback": fallback,
        "kind": "measured",
        "kernels": kernels,
    }


def read_bundle(folder: Path) -> dict[str, Any]:
    """The manifest of a bundle whose files are as the export wrote them."""
    try:
        manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        files = dict(manifest["files"])
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise RunError(f"{folder} is not a bundle: {exc}") from exc
    for name, expected in files.items():
        file = folder / str(name)
        plain = ".." not in Path(name).parts and not Path(name).is_absolute() and file.is_file()
        if not plain or hashlib.sha256(file.read_bytes()).hexdigest() != expected:
            raise RunError(f"{folder} is damaged: {name} is missing or has changed; copy it again")
    return manifest


def facts() -> dict[str, str]:
    """The Mac, its macOS and the tools."""
    import coremltools

    named = {"model": "hw.model", "chip": "machdep.cpu.brand_string", "memory_bytes": "hw.memsize"}
    told = {name: _said("sysctl", "-n", key) for name, key in named.items()}
    return {**told, "macos": platform.mac_ver()[0] or "not told", "coremltools": coremltools.__version__}


def _said(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "not told"
    return done.stdout.strip() or "not told"


def run_golden(bundle: Path, model: Any) -> tuple[list[dict[str, Any]], list[float]]:
    """Logits of each golden clip, and milliseconds of the runs of the last one."""
    clips, times = [], []
    for entry in json.loads((bundle / "golden" / "golden.json").read_text(encoding="utf-8")):
        clip = np.load(bundle / "golden" / str(entry["frames"]), allow_pickle=False)
        clip = clip if clip.ndim == 5 else clip[None]
        clips.append({"id": str(entry["id"]), "logits": [float(value) for value in logits(model, clip)[0]]})
    inputs = images(clip)
    for run in range(_WARM_UP + _RUNS):
        began = time.perf_counter()
        model.predict(inputs)
        if run >= _WARM_UP:
            times.append(1000 * (time.perf_counter() - began))
    return clips, times


def sqnr_db(bundle: Path, clips: list[dict[str, Any]]) -> float:
    """Of the clips' logits against the reference's."""
    reference = np.load(bundle / "golden" / "logits.npy", allow_pickle=False).astype(np.float64)
    found = np.array([clip["logits"] for clip in clips], np.float64)
    if found.shape != reference.shape:
        raise RunError(f"the model gives logits of shape {found.shape}, and the golden clips have {reference.shape}")
    if not np.isfinite(found).all():
        raise RunError("the model gives logits that are not finite (NaN or infinity)")
    noise = float(((found - reference) ** 2).sum())
    return 10 * float(np.log10((reference**2).sum() / noise)) if noise else 150.0


def measure(bundle: Path, out: Path, units: str) -> bool:
    """Run the golden clips, write `out`, and tell whether they hold the gates."""
    manifest = read_bundle(bundle)
    if platform.system() != "Darwin":  # coremltools can be imported elsewhere, with a page of warnings
        raise RunError(f"Core ML runs on macOS alone, and this is {platform.system()}: copy {bundle} to a Mac")
    try:
        model = load(bundle / "model.mlpackage", units)
        clips, times = run_golden(bundle, model)
    except ImportError:
        raise
    except Exception as exc:  # what coremltools raises has no class of its own
        raise RunError(f"Core ML cannot run it: {exc}") from exc
    where, here = placement(model, units), facts()
    found, gates = sqnr_db(bundle, clips), manifest["gates"]
    results = {
        "schema": 1,
        "bundle": {"name": manifest["name"], "digest": manifest["digest"]},
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "runtime": {"name": "coreml", "version": f"macOS {here['macos']}", "threads": None, "proxy_for": None},
        "device": {"name": f"{here['model']}, {here['chip']}", "facts": {**here, "compute_units": units}},
        "golden": clips,
        "latency_ms": times,
        "placement": where or {"not_measured": "Core ML tells it from macOS 14.4 on"},
        "notes": ["measured by run_on_mac.py: from images to logits through coremltools, one clip after the other"],
    }
    out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    fallback = where["fallback_ops"] if where else 0
    print(f"{out}: golden clips {found:.1f} dB, at least {gates['min_sqnr_db']:g}; {fallback} ops fall back")
    print(f"edgeact validate {bundle} --results {out} judges it")
    return bool(found >= gates["min_sqnr_db"] and fallback <= gates["max_fallback"])


def main() -> int:
    """Run and compare; the exit status."""
    parser = argparse.ArgumentParser(description="Runs the golden clips of this bundle on this Mac.")
    parser.add_argument("--bundle", type=Path, default=Path(__file__).resolve().parent, help="the bundle's folder")
    parser.add_argument("--out", type=Path, help="the file to write [default: BUNDLE.results.json, beside the bundle]")
    parser.add_argument("--units", choices=_UNITS, default=_UNITS[0], help="what may be used [default: %(default)s]")
    given = parser.parse_args()
    bundle = given.bundle.resolve()
    try:
        return 0 if measure(bundle, given.out or bundle.with_name(bundle.name + ".results.json"), given.units) else 1
    except ImportError as exc:
        print(f"error: {exc}: pip install coremltools pillow", file=sys.stderr)
    except (RunError, OSError, RuntimeError, ValueError, KeyError, TypeError) as exc:
        print(f"error: {str(exc) or repr(exc)}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
