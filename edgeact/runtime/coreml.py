"""Runs a Core ML bundle on a Mac; elsewhere it tells what the rules say. Imports numpy, coremltools and Pillow."""

import importlib.metadata
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeact.errors import MissingDependencyError, ToolchainError
from edgeact.placement import Placement, placement_from, read_placement

__all__ = ["MODULES", "Runner", "cannot_run"]

MODULES = ("coremltools",)  # one of them must be installed

_UNITS = "CPU_AND_NE"  # what the bundle is for; run_on_mac.py takes others


def cannot_run() -> str | None:
    """Why this machine cannot, although coremltools can be installed on it; None on a Mac."""
    return None if sys.platform == "darwin" else "Core ML runs on macOS and iOS alone"


class Runner:
    """Maps one uint8 clip `[1, T, H, W, 3]` to float32 logits `[1, K]`, on the Neural Engine and the CPU.

    Args:
        folder: The bundle's folder, already verified.
        shape: The clip's shape.
        threads: Of no effect: Core ML has its own.

    Raises:
        MissingDependencyError: coremltools or Pillow is not installed.
        ToolchainError: Core ML cannot load the model.
    """

    device = "Neural Engine"

    def __init__(self, folder: Path, shape: tuple[int, ...], threads: int = 0) -> None:
        self._folder, self._model = folder, None
        self.threads = threads or os.cpu_count() or 1
        try:
            self.version = importlib.metadata.version("coremltools") + " (coremltools)"
        except importlib.metadata.PackageNotFoundError as exc:
            raise MissingDependencyError("coremltools", "coreml", "running this bundle") from exc
        self.missing = cannot_run()
        if self.missing is None:
            self._model = self._load(folder / "model.mlpackage")

    def _load(self, package: Path) -> Any:
        from edgeact.runtime import _run_on_mac

        try:
            return _run_on_mac.load(package, _UNITS)
        except ImportError as exc:
            raise MissingDependencyError("coremltools", "coreml", "running this bundle") from exc
        except Exception as exc:  # what coremltools raises has no class of its own
            raise ToolchainError(f"Core ML cannot load {package}: {str(exc).splitlines()[0]}") from exc

    def __call__(self, clip: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Logits of one clip; `clip` must have the bundle's shape, uint8, RGB."""
        if self._model is None:
            raise ToolchainError(f"this bundle cannot be run on this machine: {self.missing}")
        from edgeact.runtime import _run_on_mac

        try:
            logits: NDArray[np.float32] = _run_on_mac.logits(self._model, clip)
        except Exception as exc:  # what coremltools raises has no class of its own
            raise ToolchainError(f"Core ML cannot run this model: {str(exc).splitlines()[0]}") from exc
        return logits

    def layers(self, clip: NDArray[np.uint8]) -> tuple[()]:
        """None: Core ML gives what the network gives."""
        return ()

    def placement(self) -> Placement:
        """As Core ML plans it where it tells (macOS 14.4), else what the rules said at the export."""
        from edgeact.runtime import _run_on_mac

        told = _run_on_mac.placement(self._model, _UNITS) if self._model is not None else None
        return read_placement(self._folder) if told is None else placement_from(told)
