"""Runs an OpenVINO bundle on the CPU. Imports numpy and openvino, nothing else."""

import os
import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeact.errors import MissingDependencyError, ToolchainError
from edgeact.placement import PlacedOp, Placement

__all__ = ["MODULES", "Runner"]

MODULES = ("openvino",)  # one of them must be installed

# Layers of the runtime model (`layerType`) that compute: one of them on a reference kernel is a fallback.
_WEIGHTED = {"Convolution", "Deconvolution", "FullyConnected", "MatMul"}
# What the frontend calls the results of convolutions and linear layers: the first has no number.
_LAYER = re.compile(r"(convolution|linear)(?:_(\d+))?:0")
_LAYERS_BYTES = 1 << 30  # of results that are held at a time

_PROFILED_RUNS = 11

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
        self._config = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "INFERENCE_NUM_THREADS": str(self.threads),
            "INFERENCE_PRECISION_HINT": "f32",  # without it bf16 may be chosen where the CPU has it
        }
        try:
            self._core, self._file = ov.Core(), folder / "model.xml"
            model = self._core.read_model(self._file)
            self._int8 = any(op.get_type_name() == "FakeQuantize" for op in model.get_ops())
            self._compiled = self._core.compile_model(model, "CPU", self._config)
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

    def layers(self, clip: NDArray[np.uint8]) -> Iterator[NDArray[np.float32]]:
        """Results of the convolutions, then of the linear layers, each in the network's order.

        OpenVINO is asked for them by outputs that are added to the model, so an activation that it fuses with a layer
        is apart from it here.
        """
        names = [name for op in self._core.read_model(self._file).get_ops() for name in _result_names(op)]
        found = [(match[1], int(match[2] or 0), name) for name in names if (match := _LAYER.fullmatch(name))]
        batches = self._batches([name for _, _, name in sorted(found)])
        for batch in batches:
            model = self._core.read_model(self._file)
            model.add_outputs(batch)
            results = self._core.compile_model(model, "CPU", self._config)([clip])
            yield from (np.asarray(results[name]) for name in batch)

    def _batches(self, names: list[str]) -> list[list[str]]:
        """`names` in order, parted so that the results of each part can be held."""
        model, total, parts = self._core.read_model(self._file), 0, []
        for name, output in zip(names, model.add_outputs(names), strict=True):
            total += 4 * int(np.prod(list(output.get_shape())))
            parts.append((total // _LAYERS_BYTES, name))
        return [[name for _, name in part] for _, part in groupby(parts, lambda pair: pair[0])]

    def placement(self) -> Placement:
        """Which kernel runs each compute op, read from the compiled model, and its time in a profiled one.

        In an int8 model a convolution or linear layer that runs in float is a fallback.
        """
        times_ms, ops = self._times_ms(), []
        for op in self._compiled.get_runtime_model().get_ordered_ops():
            info: dict[str, Any] = op.get_rt_info()
            kind, primitive = info["layerType"].value, info["primitiveType"].value
            if kind not in _COMPUTE:
                continue
            in_float = self._int8 and kind in _WEIGHTED and not primitive.lower().endswith("_i8")
            reason = f"{kind} {primitive}" if in_float or "ref" in primitive.split("_") else ""
            ops.append(
                PlacedOp(
                    name=op.get_friendly_name(),
                    kernel=f"{kind} {primitive}",
                    unit="CPU",
                    layer=_layer(info["originalLayersNames"].value or op.get_friendly_name()),
                    fallback=f"{reason}, in float" if in_float else reason,
                    ms=times_ms.get(op.get_friendly_name()),
                )
            )
        return Placement.of(ops, "measured", crossing_bytes=0)

    def _times_ms(self) -> dict[str, float]:
        """Median time of each op of the compiled model."""
        model = self._core.read_model(self._file)
        request = self._core.compile_model(model, "CPU", self._config | {"PERF_COUNT": True}).create_infer_request()
        clip, runs = np.zeros(self._shape, np.uint8), []
        for _ in range(_PROFILED_RUNS):
            request.infer([clip])
            runs.append({op.node_name: op.real_time.total_seconds() * 1e3 for op in request.get_profiling_info()})
        return {name: float(np.median([run[name] for run in runs])) for name in runs[0]}


def _layer(names: str) -> str:
    """The layer of the first of the ops that a kernel computes, `layer1.0.conv2/convolution_3/…,layer1.0.relu/…`."""
    return names.partition(",")[0].partition("/aten.")[0].rpartition("/")[0]


def _result_names(op: Any) -> set[str]:
    return {name for output in op.outputs() for name in output.get_names()}
