#!/usr/bin/env python3
"""Builds the TensorRT engine of a bundle on the device where it will run, and runs its golden clips there.

    python3 build_engine.py                      in the bundle's folder, on the device
    edgeact validate BUNDLE --results FILE       anywhere: judges what it measured

Needs Python 3.8 and TensorRT's own trtexec (JetPack: /usr/src/tensorrt/bin), and nothing else. Writes `model.plan`,
`stamp.json` (what the engine is bound to), `layers.json` (where each layer runs), `timing.cache` and `results.json`.
Exit status: 0 the golden clips hold the bundle's gates, 1 they do not, 2 it could not be built or run.

The file is one of edgeact's; edgeact copies it into each bundle and uses it itself.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import hashlib
import json
import math
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

__all__ = ["BOUND", "BuildError", "build", "facts", "find_trtexec", "placement", "trtexec_command"]

BOUND = ("device", "tensorrt", "cuda", "jetpack")  # an engine runs where these are equal (TensorRT Developer Guide)
_TRTEXEC = "/usr/src/tensorrt/bin/trtexec"
_WARM_UP_MS = 200
_FILES = {"layers.json", "model.plan", "results.json", "stamp.json", "timing.cache"}  # of an engine
_TYPES = ("Int8", "FP16", "Half", "FP32", "Float")  # as formats name them
_COMPUTES = ("conv", "gemm", "matmul", "matrix", "fullyconnected", "deconv")


class BuildError(Exception):
    """What kept the engine from being built or run, in a line."""


def digest(file: Path) -> str:
    """sha256 of a file."""
    found = hashlib.sha256()
    with file.open("rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            found.update(block)
    return found.hexdigest()


def read_bundle(folder: Path) -> dict[str, Any]:
    """The manifest of a bundle whose files are as the export wrote them."""
    try:
        manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        files = dict(manifest["files"])
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise BuildError(f"{folder} is not a bundle: {exc}") from exc
    for name, expected in files.items():
        file = folder / str(name)
        if ".." in Path(name).parts or Path(name).is_absolute() or not file.is_file() or digest(file) != expected:
            raise BuildError(f"{folder} is damaged: {name} is missing or has changed; copy it again")
    return manifest


def facts() -> dict[str, str]:
    """The device, TensorRT, CUDA and JetPack an engine is bound to; power mode and clocks it was measured at."""
    found = {
        "device": _text("/proc/device-tree/model") or _said("nvidia-smi", "--query-gpu=name", "--format=csv,noheader"),
        "tensorrt": _tensorrt_version(),
        "cuda": _cuda_version(),
        "jetpack": _said("dpkg-query", "-W", "-f=${Version}", "nvidia-jetpack") or _text("/etc/nv_tegra_release"),
        "power_mode": " ".join(_said("nvpmodel", "-q").split()),
    }
    for file in sorted(Path("/sys/class/devfreq").glob("*gpu*/*_freq")) + sorted(
        Path("/sys/devices/system/cpu/cpu0/cpufreq").glob("scaling_*_freq")
    ):
        found[f"{file.name}_hz" if "gpu" in str(file) else f"cpu_{file.name}_khz"] = _text(str(file))
    return {name: value or "not told" for name, value in found.items()}


def _text(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace").strip("\0\n ").partition("\n")[0]
    except OSError:
        return ""


def _said(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _tensorrt_version() -> str:
    """Of libnvinfer: 8502 is 8.5.2, 100300 is 10.3.0 (NvInferRuntimeBase.h)."""
    for name in ("libnvinfer.so", "libnvinfer.so.10", "libnvinfer.so.8"):
        try:
            number = int(ctypes.CDLL(name).getInferLibVersion())
        except (OSError, AttributeError):
            continue
        major = 10000 if number >= 100000 else 1000
        return f"{number // major}.{number % major // 100}.{number % 100}"
    return ""


def _cuda_version() -> str:
    """Of libcudart: 12060 is 12.6."""
    number = ctypes.c_int()
    for name in ("libcudart.so", "libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0"):
        try:
            ctypes.CDLL(name).cudaRuntimeGetVersion(ctypes.byref(number))
        except (OSError, AttributeError):
            continue
        return f"{number.value // 1000}.{number.value % 1000 // 10}"
    return ""


def find_trtexec(given: str | None = None) -> str:
    """Path of trtexec: the one given, that of the PATH, or JetPack's."""
    for path in (given,) if given else (shutil.which("trtexec"), _TRTEXEC):
        if path and Path(path).is_file():
            return path
    raise BuildError(
        f"{given} is no file: give the path of trtexec"
        if given
        else f"trtexec is neither on the PATH nor {_TRTEXEC}: sudo apt install libnvinfer-bin, or give --trtexec"
    )


def trtexec_command(
    trtexec: str, version: str, precision: str, accelerator: str, workspace_mb: int, folder: Path, onnx: Path
) -> list[str]:
    """The command that builds `folder/model.plan`, of the ONNX's own types, and tells its layers."""
    typed = version.partition(".")[0].isdecimal() and int(version.partition(".")[0]) >= 10 and accelerator == "gpu"
    types = ["--stronglyTyped"] if typed else {"fp16": ["--fp16"], "int8": ["--int8"], "fp32": []}[precision]
    types += ["--noTF32"] if precision == "fp32" else []  # TF32 keeps 10 bits of the mantissa
    return [
        trtexec,
        f"--onnx={onnx}",
        "--saveEngine={}".format(folder / "model.plan"),
        "--timingCacheFile={}".format(folder / "timing.cache"),
        f"--memPoolSize=workspace:{workspace_mb}",
        "--profilingVerbosity=detailed",
        "--exportLayerInfo={}".format(folder / "layers.json"),
        *types,
        *(["--useDLACore=0", "--allowGPUFallback"] if accelerator == "dla" else []),
    ]


def build(bundle: Path, folder: Path, workspace_mb: int, trtexec: str) -> dict[str, Any]:
    """Build the engine into `folder`, stamped; returns the stamp."""
    told = json.loads((bundle / "model.conformance.json").read_text(encoding="utf-8"))
    here = facts()
    precision, accelerator = str(told["precision"]), str(told["accelerator"])
    command = trtexec_command(
        trtexec, here["tensorrt"], precision, accelerator, workspace_mb, folder, bundle / "model.onnx"
    )
    _run([*command, "--duration=0", "--iterations=1"])
    if not (folder / "model.plan").is_file():
        raise BuildError("trtexec ended well and wrote no engine")
    stamp = {"facts": here, "onnx_sha256": digest(bundle / "model.onnx"), "created": _now()}
    (folder / "stamp.json").write_text(json.dumps(stamp, indent=1) + "\n")
    return stamp


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if "[E]" in line or "rror" in line]
        raise BuildError("trtexec failed: {}".format(lines[0].strip() if lines else "it says nothing"))
    return done.stdout


def placement(layers: dict[str, Any], precision: str, accelerator: str) -> dict[str, Any]:
    """Kernels by name, and the layers that compute elsewhere or in a wider type than was asked, as TensorRT tells."""
    kernels: dict[str, int] = {}
    fallback: list[str] = []
    placed: dict[str, dict[str, Any]] = {}
    for layer in layers["Layers"]:
        if not isinstance(layer, dict):
            raise BuildError("the engine was built without --profilingVerbosity=detailed: it does not tell its layers")
        kind = str(layer.get("LayerType", "layer"))
        formats = [str(value.get("Format/Datatype", "")) for value in layer.get("Inputs", [])]
        typed = [kind, *(name for name in _TYPES if formats and name.lower() in formats[0].lower())][:2]
        kernels[" ".join(typed)] = kernels.get(" ".join(typed), 0) + 1
        wanted = {"int8": ("int8",), "fp16": ("fp16", "half", "int8"), "fp32": ("",)}[precision]
        if not any(word in kind.lower() for word in _COMPUTES):
            continue
        name, before = str(layer.get("Name", "?")), len(fallback)
        if accelerator == "dla":  # what it runs is one layer of the type DLA
            fallback.append(f"{name} ({kind} on the GPU)")
        elif formats and not any(word in formats[0].lower() for word in wanted):
            fallback.append(f"{name} ({formats[0]}, in float)")
        path = name.partition(" + ")[0].rpartition("/")[0]  # of the first of the ONNX nodes that it fuses
        entry = placed.setdefault(path, {"name": path, "units": {"GPU": 0}, "fallback_ops": 0})
        entry["units"]["GPU"] += 1
        entry["fallback_ops"] += len(fallback) - before
    return {
        "accelerated_ops": sum(kernels.values()) - len(fallback),
        "fallback_ops": len(fallback),
        "fallback": fallback,
        "kind": "measured",
        "kernels": kernels,
        "layers": [entry for path, entry in placed.items() if path],
    }


def read_npy(file: Path) -> tuple[tuple[int, ...], bytes]:
    """Shape and bytes of a .npy file of version 1, C order (numpy.lib.format)."""
    content = file.read_bytes()
    length = struct.unpack("<H", content[8:10])[0]
    header = content[10 : 10 + length].decode("latin1")
    if content[:6] != b"\x93NUMPY" or "'fortran_order': False" not in header:
        raise BuildError(f"{file} is not a .npy file in C order")
    sizes = header.partition("'shape': (")[2].partition(")")[0]
    return tuple(int(size) for size in sizes.split(",") if size.strip()), content[10 + length :]


def run_golden(bundle: Path, plan: Path, trtexec: str) -> tuple[list[dict[str, Any]], list[float]]:
    """Logits of each golden clip, and milliseconds of the last one's runs."""
    clips, times = [], []
    with tempfile.TemporaryDirectory() as work:
        for entry in json.loads((bundle / "golden" / "golden.json").read_text(encoding="utf-8")):
            frames, out, timed = Path(work) / "frames.bin", Path(work) / "out.json", Path(work) / "times.json"
            frames.write_bytes(read_npy(bundle / "golden" / str(entry["frames"]))[1])
            command = [trtexec, f"--loadEngine={plan}", f"--loadInputs=clip:{frames}"]
            command += [f"--exportOutput={out}", f"--exportTimes={timed}", "--useSpinWait"]
            _run([*command, f"--warmUp={_WARM_UP_MS}", "--duration=1", "--iterations=30", "--useCudaGraph"])
            values = next(value["values"] for value in json.loads(out.read_text()) if value["name"] == "logits")
            clips.append({"id": str(entry["id"]), "logits": [float(value) for value in values]})
            runs = [run for run in json.loads(timed.read_text()) if run["startComputeMs"] >= _WARM_UP_MS]
            times = [float(run["latencyMs"]) for run in runs]
    return clips, times


def check_replaceable(out: Path) -> None:
    """Refuse a folder that holds anything but an engine of this script."""
    if out.exists() and not (out.is_dir() and {file.name for file in out.iterdir()} <= _FILES):
        raise BuildError(f"{out} holds other files than an engine's: give another --out")


def sqnr_db(bundle: Path, clips: list[dict[str, Any]]) -> float:
    """Of the clips' logits against the reference's."""
    (_, classes), content = read_npy(bundle / "golden" / "logits.npy")
    reference = struct.unpack(f"<{len(content) // 4}f", content)
    found = [value for clip in clips for value in clip["logits"]]
    if len(found) != len(reference):
        wanted = f"{len(reference) // classes} clips of {classes} classes"
        raise BuildError(f"the engine gives {len(found)} logits for {wanted}")
    if not all(math.isfinite(value) for value in found):
        raise BuildError("the engine gives logits that are not finite (NaN or infinity)")
    noise = sum((a - b) ** 2 for a, b in zip(reference, found))  # noqa: B905 (strict= came with Python 3.10)
    return 10 * math.log10(sum(a * a for a in reference) / noise) if noise else 150.0


def write_results(
    file: Path,
    manifest: dict[str, Any],
    stamp: dict[str, Any],
    clips: list[dict[str, Any]],
    times: list[float],
    where: dict[str, Any],
) -> None:
    """`results.json`, which `edgeact validate BUNDLE --results FILE` judges."""
    results = {
        "schema": 1,
        "bundle": {"name": manifest["name"], "digest": manifest["digest"]},
        "created": stamp["created"],
        "runtime": {"name": "tensorrt", "version": stamp["facts"]["tensorrt"], "threads": None, "proxy_for": None},
        "device": {"name": stamp["facts"]["device"], "facts": stamp["facts"]},
        "golden": clips,
        "latency_ms": times or {"not_measured": "trtexec told no run after its warm-up"},
        "placement": where,
        "notes": ["measured by trtexec (build_engine.py): host to device, compute and back, in a CUDA graph"],
    }
    file.write_text(json.dumps(results, indent=1) + "\n")


def main() -> int:
    """Build, stamp, run and compare; the exit status."""
    parser = argparse.ArgumentParser(description="Builds the TensorRT engine of this bundle on this device.")
    parser.add_argument("--bundle", type=Path, default=Path(__file__).resolve().parent, help="the bundle's folder")
    parser.add_argument("--out", type=Path, help="folder of the engine [default: BUNDLE.engine, beside the bundle]")
    parser.add_argument("--workspace-mb", type=int, default=1024, help="most memory a kernel may use while it runs")
    parser.add_argument("--trtexec", help="path of trtexec [default: that of the PATH, or JetPack's]")
    given = parser.parse_args()
    if given.workspace_mb < 1:
        parser.error("--workspace-mb is at least 1")
    bundle = given.bundle.resolve()
    out = given.out or bundle.with_name(bundle.name + ".engine")
    try:
        manifest, trtexec = read_bundle(bundle), find_trtexec(given.trtexec)
        check_replaceable(out)
        partial = Path(tempfile.mkdtemp(prefix=".engine-", dir=str(out.resolve().parent)))
        try:
            print("building the engine: minutes ...", file=sys.stderr)
            stamp = build(bundle, partial, given.workspace_mb, trtexec)
            clips, times = run_golden(bundle, partial / "model.plan", trtexec)
            layers = json.loads((partial / "layers.json").read_text())
            where = placement(layers, str(manifest["precision"]), str(manifest["options"]["accelerator"]))
            write_results(partial / "results.json", manifest, stamp, clips, times, where)
            found, wanted = sqnr_db(bundle, clips), float(manifest["gates"]["min_sqnr_db"])
            fallback, most = int(where["fallback_ops"]), int(manifest["gates"]["max_fallback"])
            check_replaceable(out)  # once more: it took minutes
            shutil.rmtree(str(out), ignore_errors=True)
            partial.rename(out)
        finally:
            shutil.rmtree(str(partial), ignore_errors=True)
    except (BuildError, OSError) as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 2
    except (ValueError, KeyError, TypeError, AttributeError, StopIteration) as exc:
        print(f"error: the bundle's files, or what trtexec wrote, cannot be read: {exc!r}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("error: interrupted: nothing half-written was left behind", file=sys.stderr)
        return 2
    print(f"{out}: golden clips {found:.1f} dB, at least {wanted:g}; {fallback} layers fall back, at most {most}")
    print("edgeact validate {} --results {} judges it".format(bundle, out / "results.json"))
    return 0 if found >= wanted and fallback <= most else 1


if __name__ == "__main__":
    sys.exit(main())
