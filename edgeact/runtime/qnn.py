"""Runs a Qualcomm bundle on the Hexagon HTP, or on a PC in QNN's emulator of one, through onnxruntime_qnn.

What runs is the context binary that the device gets. The x86 library of QNN has the HTP's instructions in software and
takes seconds a clip: its numbers count, its time says nothing.
"""

import contextlib
import ctypes
import importlib.metadata
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeact.errors import MissingDependencyError, ToolchainError
from edgeact.placement import Placement, read_placement
from edgeact.runtime._onnxruntime import import_onnxruntime, session_options

__all__ = ["MODULES", "Runner", "emulation", "open_session", "sample"]

MODULES = ("onnxruntime_qnn",)  # one of them must be installed

_PROVIDER = "QNNExecutionProvider"
_SAMPLE = 64


def _is_emulated() -> bool:
    return platform.machine().lower() in ("x86_64", "amd64")


def emulation() -> str | None:
    """What computes here in place of the HTP; None on the device."""
    return "QNN's x86 library in place of a Hexagon HTP" if _is_emulated() else None


def sample() -> int | None:
    """Most clips to judge an export by, where a clip takes a second; None where it does not."""
    return _SAMPLE if _is_emulated() else None


class Runner:
    """Maps one uint8 clip `[1, T, H, W, 3]` to float32 logits `[1, K]`.

    Args:
        folder: The bundle's folder, already verified.
        shape: The clip's shape.
        threads: CPU threads of what is around the HTP; 0 takes every core.

    Raises:
        MissingDependencyError: ONNX Runtime or its QNN provider is not installed.
        ToolchainError: The context binary cannot be loaded here.
    """

    device = "CPU"
    missing = None

    def __init__(self, folder: Path, shape: tuple[int, ...], threads: int = 0) -> None:
        self.threads = threads or os.cpu_count() or 1
        model = folder / "model.context.onnx"
        self._session = open_session(model, {}, threads=self.threads)
        self.version = f"{importlib.metadata.version('onnxruntime-qnn')} (onnxruntime-qnn, QNN {_qnn_version()})"
        self.emulation = emulation()
        self._placement = read_placement(folder)

    def __call__(self, clip: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Logits of one clip; `clip` must have the bundle's shape, uint8, RGB."""
        try:
            logits: NDArray[np.float32] = self._session.run(["logits"], {"clip": clip})[0]
        except Exception as exc:
            raise ToolchainError(f"QNN cannot run this model: {_first_line(exc)}") from exc
        return logits

    def layers(self, clip: NDArray[np.uint8]) -> tuple[()]:
        """None: the whole network is one binary."""
        return ()

    def placement(self) -> Placement:
        """Where each op runs, as the compiler told."""
        return self._placement


def open_session(
    model: Path, provider: Mapping[str, str], entries: Mapping[str, str] | None = None, *, threads: int, log: int = 3
) -> Any:
    """A session of `model` on the HTP, whose every op runs there.

    Args:
        model: An ONNX: a network, which is compiled, or the wrapper of a context binary.
        provider: Options of QNN's provider.
        entries: Options of the session.
        threads: Of the CPU, around the HTP.
        log: Least severity of what ONNX Runtime logs: 0 is everything, 3 errors.

    Raises:
        MissingDependencyError: ONNX Runtime or its QNN provider is not installed.
        ToolchainError: QNN refuses it.
    """
    try:
        import onnxruntime_qnn

        ort = import_onnxruntime()
    except ImportError as exc:
        raise MissingDependencyError("onnxruntime_qnn", "qualcomm", "running this bundle") from exc
    options = session_options(threads)
    options.log_severity_level = log
    for name, value in {"session.disable_cpu_ep_fallback": "1", **(entries or {})}.items():
        options.add_session_config_entry(name, value)
    try:
        if not _devices(ort):
            ort.register_execution_provider_library(_PROVIDER, onnxruntime_qnn.get_library_path())
        backend = {"backend_path": onnxruntime_qnn.get_qnn_htp_path(), **provider}
        options.add_provider_for_devices(_devices(ort), backend)
        with _greeting_aside():
            return ort.InferenceSession(model, options)
    except Exception as exc:  # of many classes of its own, all derived from Exception alone
        raise ToolchainError(f"QNN cannot load {model}: {_first_line(exc)}") from exc


@contextlib.contextmanager
def _greeting_aside() -> Iterator[None]:
    """What the emulator prints on stdout, where a caller's own output goes, to stderr."""
    if not _is_emulated() or sys.platform == "win32":
        yield
        return
    flush = ctypes.CDLL(None).fflush
    sys.stdout.flush()
    flush(None)
    own = os.dup(1)
    try:
        os.dup2(2, 1)
        yield
    finally:
        flush(None)
        os.dup2(own, 1)
        os.close(own)


def _qnn_version() -> str:
    from onnxruntime_qnn.build_and_package_info import qnn_version

    return str(qnn_version)


def _devices(ort: Any) -> list[Any]:
    return [device for device in ort.get_ep_devices() if device.ep_name == _PROVIDER]


def _first_line(exc: Exception) -> str:
    return (str(exc).splitlines() or [type(exc).__name__])[0]
