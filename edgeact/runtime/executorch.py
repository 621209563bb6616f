"""Runs an ExecuTorch bundle on this machine's CPU: the same program and XNNPACK kernels as the app on a phone.

ExecuTorch's Python runtime takes and returns torch tensors, so unlike the others this runner needs torch (it comes with
the executorch package). The apps on the phone use ExecuTorch's own C++, Java or Kotlin runtime.
"""

import importlib.metadata
import json
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeact.errors import BundleError, MissingDependencyError, ToolchainError
from edgeact.parity import Placement

__all__ = ["MODULES", "Runner"]

MODULES = ("executorch",)  # one of them must be installed

# Ops that move or retype data: outside of XNNPACK they cost a copy; anything else there is a fallback.
_MOVEMENT = (
    "_to_dim_order_copy",
    "_to_copy",
    "slice",
    "select",
    "view",
    "permute",
    "cat",
    "clone",
    "expand",
    "squeeze",
)


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
        self._from_numpy = torch.from_numpy
        self._folder = folder
        pool: Any = portable_lib
        pool._unsafe_reset_threadpool(self.threads)  # one pool for the process; nothing runs while a runner is made
        try:
            program = Runtime.get().load_program(folder / "model.pte")
            self._method = program.load_method("forward")
        except RuntimeError as exc:
            raise ToolchainError(f"ExecuTorch cannot load {folder / 'model.pte'}: {str(exc).splitlines()[0]}") from exc

    def __call__(self, clip: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Logits of one clip; `clip` must have the bundle's shape, uint8, RGB."""
        logits: NDArray[np.float32] = self._method.execute([self._from_numpy(clip)])[0].numpy()
        return logits

    def placement(self) -> Placement:
        """What XNNPACK took, as the compiler wrote it down; it is fixed when the program is compiled."""
        file = self._folder / "placement.json"
        try:
            told = json.loads(file.read_text())
            delegates, outside = list(told["delegates"]), dict(told["outside"])
        except (OSError, ValueError, KeyError, TypeError) as exc:
            raise BundleError(f"{file} does not say what was delegated: {exc}") from exc
        kernels: dict[str, int] = {}
        for delegate in delegates:
            for name, count in delegate.items():
                kernels[f"XNNPACK {name}"] = kernels.get(f"XNNPACK {name}", 0) + count
        fallback = {name: n for name, n in outside.items() if not any(word in name for word in _MOVEMENT)}
        return Placement(
            accelerated_ops=sum(kernels.values()),
            fallback_ops=sum(fallback.values()),
            fallback=tuple(f"{name} ({count} times)" for name, count in fallback.items()),
            kind="measured",
            kernels=kernels | {"delegates": len(delegates)} | {f"outside {name}": n for name, n in outside.items()},
        )
