"""Runs an ONNX bundle on the CPU through ONNX Runtime. Imports numpy and onnxruntime, nothing else.

For `jetson` it stands in for TensorRT: the same model, and nothing is said about the device's kernels or speed. int8 is
computed as QuantizeLinear and DequantizeLinear are written, in float between them: ONNX Runtime's own int8 kernels
saturate on CPUs without VNNI. Of fp16 the weights, and what passes from layer to layer, are float16.
"""

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeact.errors import MissingDependencyError, ToolchainError
from edgeact.placement import Placement, read_placement
from edgeact.runtime._onnxruntime import import_onnxruntime, session_options

__all__ = ["MODULES", "Runner"]

MODULES = ("onnxruntime",)  # one of them must be installed


class Runner:
    """Maps one uint8 clip `[1, T, H, W, 3]` to float32 logits `[1, K]`.

    Args:
        folder: The bundle's folder, already verified.
        shape: The clip's shape.
        threads: CPU threads; 0 takes every core.

    Raises:
        MissingDependencyError: ONNX Runtime is not installed.
        ToolchainError: ONNX Runtime cannot load the model.
    """

    device = "CPU"
    missing = None

    def __init__(self, folder: Path, shape: tuple[int, ...], threads: int = 0) -> None:
        try:
            ort = import_onnxruntime()
        except ImportError as exc:
            raise MissingDependencyError("onnxruntime", "onnxruntime", "running this bundle on a CPU") from exc
        self.threads = threads or os.cpu_count() or 1
        self.version = str(ort.__version__)
        self._placement = read_placement(folder)
        options = session_options(self.threads)
        options.log_severity_level = 3  # errors, which it also raises
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        try:
            self._session = ort.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
        except Exception as exc:  # of many classes of its own, all derived from Exception alone
            raise ToolchainError(f"ONNX Runtime cannot load {folder / 'model.onnx'}: {_first_line(exc)}") from exc

    def __call__(self, clip: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Logits of one clip; `clip` must have the bundle's shape, uint8, RGB."""
        try:
            logits: NDArray[np.float32] = self._session.run(["logits"], {"clip": clip})[0]
        except Exception as exc:
            raise ToolchainError(f"ONNX Runtime cannot run this model: {_first_line(exc)}") from exc
        return logits

    def layers(self, clip: NDArray[np.uint8]) -> tuple[()]:
        """None: ONNX Runtime fuses them."""
        return ()

    def placement(self) -> Placement:
        """Where the device's TensorRT would run each op, by the rules that the export asked: estimated."""
        return self._placement


def _first_line(exc: Exception) -> str:
    return (str(exc).splitlines() or [type(exc).__name__])[0]
