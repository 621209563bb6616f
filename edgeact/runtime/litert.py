"""Runs a LiteRT bundle on the CPU. Imports numpy and ai_edge_litert, or tflite_runtime where only that is installed."""

import importlib.metadata
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeact.errors import MissingDependencyError, ToolchainError
from edgeact.placement import IN_FLOAT, PlacedOp, Placement, read_placement

__all__ = ["MODULES", "Runner"]

MODULES = ("ai_edge_litert", "tflite_runtime")  # one of them must be installed

# Ops that move or retype data: outside of XNNPACK they cost a copy; anything else there is a fallback.
_MOVEMENT = {"CAST", "RESHAPE", "SLICE", "STRIDED_SLICE", "TRANSPOSE", "CONCATENATION", "PAD", "PADV2"}
_MOVEMENT |= {"DEQUANTIZE", "QUANTIZE", "EXPAND_DIMS", "SQUEEZE", "SPLIT"}

# In an int8 model one of them in float is a fallback.
_WEIGHTED = {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV", "CONV_3D", "BATCH_MATMUL"}


def _interpreter() -> tuple[Any, str]:
    """The interpreter's class and its distribution."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        try:
            from tflite_runtime.interpreter import Interpreter  # its predecessor, on boards with numpy < 2
        except ImportError as exc:
            raise MissingDependencyError("ai_edge_litert", "litert", "running this bundle") from exc
        return Interpreter, "tflite-runtime"
    return Interpreter, "ai-edge-litert"


class Runner:
    """Maps one uint8 clip `[1, T, H, W, 3]` to float32 logits `[1, K]`.

    Args:
        folder: The bundle's folder, already verified.
        shape: The clip's shape.
        threads: CPU threads; 0 takes every core.

    Raises:
        MissingDependencyError: LiteRT is not installed.
        ToolchainError: LiteRT cannot load the model.
    """

    device = "CPU"
    missing = None

    def __init__(self, folder: Path, shape: tuple[int, ...], threads: int = 0) -> None:
        interpreter, distribution = _interpreter()
        self.threads = threads or os.cpu_count() or 1
        self._for_npu = read_placement(folder) if (folder / "placement.json").exists() else None
        self.version = importlib.metadata.version(distribution) + f" ({distribution})"
        try:
            model = str(folder / "model.tflite")
            self._interpreter = interpreter(model_path=model, num_threads=self.threads, **self._kernels())
            self._interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as exc:
            raise ToolchainError(f"LiteRT cannot load {folder / 'model.tflite'}: {str(exc).splitlines()[-1]}") from exc
        self._input = self._interpreter.get_input_details()[0]["index"]
        self._output = self._interpreter.get_output_details()[0]["index"]

    def __call__(self, clip: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Logits of one clip; `clip` must have the bundle's shape, uint8, RGB."""
        try:
            self._interpreter.set_tensor(self._input, clip)
            self._interpreter.invoke()
        except (ValueError, RuntimeError) as exc:
            raise ToolchainError(f"LiteRT cannot run this model: {str(exc).splitlines()[-1]}") from exc
        logits: NDArray[np.float32] = self._interpreter.get_tensor(self._output)
        return logits

    def _kernels(self) -> dict[str, Any]:
        """What chooses the interpreter's kernels: XNNPACK's where it has them."""
        return {}

    def layers(self, clip: NDArray[np.uint8]) -> tuple[()]:
        """None: XNNPACK computes the whole network in one op."""
        return ()

    def placement(self) -> Placement:
        """Where the NPU's compiler or its rules put each op, of a bundle for one; else which ops XNNPACK took.

        Of XNNPACK: those that the outputs need and no delegate computes are outside.

        The interpreter lists the original ops beside the delegates that replaced them, so the way back from what a
        delegate gives ends at what it takes. In an int8 model a convolution or linear layer in float is a fallback.
        """
        if self._for_npu is not None:
            return self._for_npu
        ops = self._interpreter._get_ops_details()
        delegates = [op for op in ops if op["op_name"] == "DELEGATE"]
        unit, outside = _units(ops, delegates, self._output)
        floats, layers = self._in_float(ops), self._layers()
        placed = [
            PlacedOp(
                name=layers.get(op["outputs"][0]) or f"{op['op_name']} {op['index']}",
                kernel=op["op_name"],
                unit=unit[op["index"]],
                layer=layers.get(op["outputs"][0]),
                fallback=_fallback(op, floats, outside),
            )
            for op in ops
            if op["index"] in unit and op["op_name"] not in _MOVEMENT
        ]
        moving = [op["op_name"] for op in ops if op["index"] in outside and op["op_name"] in _MOVEMENT]
        return Placement.of(placed, "measured", moving=moving)

    def _layers(self) -> dict[int, str]:
        """Layer of the user's network by the tensor that it gives: the export names tensors `layer1.0.conv2/…`."""
        names = {tensor["index"]: str(tensor["name"]) for tensor in self._interpreter.get_tensor_details()}
        return {index: name.rpartition("/")[0] for index, name in names.items() if "/" in name}

    def _in_float(self, ops: list[dict[str, Any]]) -> set[int]:
        """Convolutions and linear layers, by index, that an int8 model computes in float."""
        if not any(op["op_name"] == "QUANTIZE" for op in ops):
            return set()
        int8 = {tensor["index"] for tensor in self._interpreter.get_tensor_details() if tensor["dtype"] is np.int8}
        return {op["index"] for op in ops if op["op_name"] in _WEIGHTED and not int8.issuperset(op["inputs"][:2])}


def _fallback(op: dict[str, Any], floats: Collection[int], outside: Collection[int]) -> str:
    if op["index"] in floats:
        return str(op["op_name"]) + IN_FLOAT.removesuffix(")")
    return f"{op['op_name']}, outside of XNNPACK" if op["index"] in outside else ""


def _units(ops: list[dict[str, Any]], delegates: list[dict[str, Any]], output: int) -> tuple[dict[int, str], set[int]]:
    """What computes each op, by its index, and which of the ops are outside of every delegate."""
    producer = {tensor: op for op in ops if op["op_name"] != "DELEGATE" for tensor in op["outputs"]}

    def behind(wanted: list[int], ends: set[int]) -> set[int]:
        found: set[int] = set()
        while wanted:
            op = producer.get(tensor := wanted.pop())
            if tensor in ends or op is None or op["index"] in found:
                continue
            found.add(op["index"])
            wanted += list(op["inputs"])
        return found

    given = {tensor for delegate in delegates for tensor in delegate["outputs"]}
    taken = [tensor for delegate in delegates for tensor in delegate["inputs"]]
    outside = behind([output, *taken], given)
    unit = dict.fromkeys(outside, "CPU")
    for number, delegate in enumerate(delegates):
        inner = behind(list(delegate["outputs"]), set(delegate["inputs"]))
        unit |= dict.fromkeys(inner - outside, f"XNNPACK {number}")
    return unit, outside
