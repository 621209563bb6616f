"""Runs an ExecuTorch bundle on this machine's CPU: the same program and XNNPACK kernels as the app on a phone.

ExecuTorch's Python runtime takes and returns torch tensors, so unlike the others this runner needs torch (it comes with
the executorch package). The apps on the phone use ExecuTorch's own C++, Java or Kotlin runtime.
"""

import importlib.metadata
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeact.errors import MissingDependencyError, ToolchainError
from edgeact.placement import Placement, read_placement

__all__ = ["MODULES", "Runner"]

MODULES = ("executorch",)  # one of them must be installed

_VULKAN = b"VulkanBackend"  # the name of its delegates in a program


class Runner:
    """Maps one uint8 clip `[1, T, H, W, 3]` to float32 logits `[1, K]`.

    Args:
        folder: The bundle's folder, already verified.
        shape: The clip's shape.
        threads: CPU threads; 0 takes every core.

    Raises:
        MissingDependencyError: ExecuTorch is not installed.
        ToolchainError: ExecuTorch cannot load the model.
    """

    device = "CPU"

    def __init__(self, folder: Path, shape: tuple[int, ...], threads: int = 0) -> None:
        try:
            import torch

            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # its runtime calls itself experimental; its version is pinned
                from executorch.extension.pybindings import portable_lib
                from executorch.runtime import Runtime
        except ImportError as exc:
            raise MissingDependencyError("executorch", "executorch", "running this bundle") from exc
        self.threads = threads or os.cpu_count() or 1
        self.version = importlib.metadata.version("executorch")
        self._placement = read_placement(folder)
        # The Python package is built without Vulkan; the phone's runtime has it.
        vulkan = _VULKAN in (folder / "model.pte").read_bytes()
        self.missing = "the backend vulkan runs on the phone alone" if vulkan else None
        self._from_numpy = torch.from_numpy
        pool: Any = portable_lib
        pool._unsafe_reset_threadpool(self.threads)  # one pool for the process; nothing runs while a runner is made
        try:
            program = Runtime.get().load_program(folder / "model.pte")
            self._method = None if self.missing else program.load_method("forward")
        except RuntimeError as exc:
            raise ToolchainError(f"ExecuTorch cannot load {folder / 'model.pte'}: {str(exc).splitlines()[0]}") from exc

    def __call__(self, clip: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Logits of one clip; `clip` must have the bundle's shape, uint8, RGB."""
        if self._method is None:
            raise ToolchainError(f"this bundle cannot be run on this machine: {self.missing}")
        try:
            logits: NDArray[np.float32] = self._method.execute([self._from_numpy(clip)])[0].numpy()
        except RuntimeError as exc:
            raise ToolchainError(f"ExecuTorch cannot run this model: {str(exc).splitlines()[0]}") from exc
        return logits

    def layers(self, clip: NDArray[np.uint8]) -> tuple[()]:
        """None: the backend computes the whole network in one op."""
        return ()

    def placement(self) -> Placement:
        """What the backend took, as the compiler wrote it down; it is fixed when the program is compiled."""
        return self._placement
