"""Runs an OpenVINO bundle on the CPU. Imports numpy and openvino, nothing else."""

import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeact.errors import MissingDependencyError, ToolchainError
from edgeact.parity import IN_FLOAT, Placement

__all__ = ["MODULES", "Runner"]

MODULES = ("openvino",)  # one of them must be installed

# Layers of the runtime model (`layerType`) that compute: one of them on a reference kernel is a fallback.
_WEIGHTED = {"Convolution", "Deconvolution", "FullyConnected", "MatMul"}
_COMPUTE = {"Convolution", "Deconvolution", "FullyConnected", "MatMul", "Pooling", "Reduce", "Eltwise", "Subgraph"}


class Runner:
    """Maps one uint8 clip `[1, T, H, W, 3]` to float32 logits `[1, K]`.

    Args:
        folder: The bundle's folder, already verified.
        shape: The clip's shape.
        threads: CPU threads; 0 takes every core.

    Raises:
        MissingDependencyError: OpenVINO is not installed.
        ToolchainError: OpenVINO cannot load the model.
    """

    device = "CPU"
    missing = None

    def __init__(self, folder: Path, shape: tuple[int, ...], threads: int = 0) -> None:
        try:
            import openvino as ov
        except ImportError as exc:
            raise MissingDependencyError("openvino", "openvino", "running this bundle") from exc
        self.threads = threads or os.cpu_count() or 1
        self.version = str(ov.get_version()).partition("-")[0]  # without the build's hash
        self._tensor = ov.Tensor
        config = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "INFERENCE_NUM_THREADS": str(self.threads),
            "INFERENCE_PRECISION_HINT": "f32",  # without it bf16 may be chosen where the CPU has it
        }
        try:
            core = ov.Core()
            model = core.read_model(folder / "model.xml")
            self._int8 = any(op.get_type_name() == "FakeQuantize" for op in model.get_ops())
            self._compiled = core.compile_model(model, "CPU", config)
        except RuntimeError as exc:
            reason = str(exc).strip().rpartition("\n")[2]
            raise ToolchainError(f"OpenVINO cannot load {folder / 'model.xml'}: {reason}") from exc
        self._request = self._compiled.create_infer_request()
        self._shape = shape
        # The runtime reads the caller's clip and writes these logits: no copy in, one of K floats out.
        self._logits = self._request.get_output_tensor(0).data

    def __call__(self, clip: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Logits of one clip; `clip` must have the bundle's shape, uint8, RGB."""
        self._request.set_input_tensor(0, self._tensor(clip, shared_memory=True))
        self._request.infer()
        return np.array(self._logits)

    def placement(self) -> Placement:
        """Which kernel runs each compute op, read from the compiled model.

        In an int8 model a convolution or linear layer that runs in float is a fallback.
        """
        kernels: Counter[str] = Counter()
        fallback = []
        for op in self._compiled.get_runtime_model().get_ordered_ops():
            info: dict[str, Any] = op.get_rt_info()
            if info["layerType"].value not in _COMPUTE:
                continue
            kernel = f"{info['layerType'].value} {info['primitiveType'].value}"
            kernels[kernel] += 1
            in_float = self._int8 and info["layerType"].value in _WEIGHTED and not kernel.lower().endswith("_i8")
            if in_float or "ref" in info["primitiveType"].value.split("_"):
                fallback.append(f"{op.get_friendly_name()} ({kernel}{IN_FLOAT if in_float else ')'}")
        return Placement(
            accelerated_ops=sum(kernels.values()) - len(fallback),
            fallback_ops=len(fallback),
            fallback=tuple(fallback),
            kind="measured",
            kernels=dict(kernels.most_common()),
        )
