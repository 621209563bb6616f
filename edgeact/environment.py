"""Facts of the machine and the tools, which every measurement carries."""

import contextlib
import datetime
import importlib.metadata
import os
import platform
from pathlib import Path

__all__ = ["busy_note", "cpu_name", "describe_environment", "device_name", "today"]

_TOOLS = ("edgeact", "torch", "openvino", "onnx", "numpy", "av")
_TOOLCHAINS = (  # told where they are
    *("torchao", "executorch", "litert-torch", "ai-edge-litert", "onnxscript", "onnxruntime", "onnxruntime-qnn"),
    *("coremltools", "ethos-u-vela"),
)


def cpu_name() -> str:
    """Model name of the processor, as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model"))]
    return names[0] if names else platform.processor() or platform.machine()


def device_name(device: str) -> str:
    """Name of a runner's device: `CPU` is this machine's processor."""
    return cpu_name() if device == "CPU" else device


def busy_note(*, timed: bool = True) -> tuple[str, ...]:
    """A remark for the report when other programs compete for the cores, which no interleaving can undo.

    Args:
        timed: The report holds a latency.
    """
    cores = os.cpu_count() or 1
    if not timed or not hasattr(os, "getloadavg") or os.getloadavg()[0] <= cores + 0.5:
        return ()
    return (f"the machine was busy (load {os.getloadavg()[0]:.1f} on {cores} cores): its latencies are disturbed",)


def describe_environment() -> dict[str, str]:
    """Processor, cores, system, Python, and the version of each tool that is installed."""
    facts = {
        "cpu": cpu_name(),
        "cores": str(os.cpu_count()),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }
    facts |= dict.fromkeys(_TOOLS, "not installed")
    for tool in (*_TOOLS, *_TOOLCHAINS):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            facts[tool] = importlib.metadata.version(tool)
    return facts


def today() -> str:
    """The date and time of a measurement, UTC, ISO 8601 to the second."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
