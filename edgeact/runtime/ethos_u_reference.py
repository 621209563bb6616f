"""Stands in for an Ethos-U: the int8 .tflite before Vela, on LiteRT's reference kernels.

Vela aims at the bits of these kernels, unproven here (see `edgeact.targets.ethos_u`); the optimised ones and XNNPACK
round in other places. Placement is what Vela said when it compiled, its times are estimates; of speed nothing is known.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeact.errors import MissingDependencyError, ToolchainError
from edgeact.placement import Placement, read_placement

__all__ = ["MODULES", "Runner"]

MODULES = ("ai_edge_litert",)


class Runner:
    """Maps one uint8 clip `[1, T, H, W, 3]` to float32 logits `[1, K]`.

    Args:
        folder: The bundle's folder, already verified.
        shape: The clip's shape.
        threads: Ignored: the reference kernels take one.

    Raises:
        BundleError: The bundle does not say where its ops run.
        MissingDependencyError: LiteRT is not installed.
        ToolchainError: LiteRT cannot load the model.
    """

    device = "CPU"
    missing = None
    threads = 1

    def __init__(self, folder: Path, shape: tuple[int, ...], threads: int = 0) -> None:
        try:
            from ai_edge_litert import __version__
            from ai_edge_litert.interpreter import Interpreter, OpResolverType
        except ImportError as exc:
            raise MissingDependencyError("ai_edge_litert", "litert", "running this bundle on a CPU") from exc
        self.version = str(__version__)
        self._placement = read_placement(folder)
        try:
            self._interpreter = Interpreter(
                model_path=str(folder / "model.tflite"), experimental_op_resolver_type=OpResolverType.BUILTIN_REF
            )
            self._interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as exc:
            raise ToolchainError(f"LiteRT cannot load {folder / 'model.tflite'}: {str(exc).splitlines()[-1]}") from exc
        self._input = self._interpreter.get_input_details()[0]["index"]
        self._output = self._interpreter.get_output_details()[0]["index"]

    def __call__(self, clip: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Logits of one clip; `clip` must have the bundle's shape, uint8, RGB."""
        self._interpreter.set_tensor(self._input, clip)
        self._interpreter.invoke()
        logits: NDArray[np.float32] = self._interpreter.get_tensor(self._output)
        return logits

    def layers(self, clip: NDArray[np.uint8]) -> tuple[()]:
        """None: the interpreter keeps the results of no layer."""
        return ()

    def placement(self) -> Placement:
        """Where Vela put each op of `model_vela.tflite`."""
        return self._placement
