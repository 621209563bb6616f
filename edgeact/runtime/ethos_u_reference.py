"""Stands in for an Ethos-U: the int8 .tflite before Vela, on LiteRT's reference kernels.

Vela aims at the bits of these kernels, unproven here (see `edgeact.targets.ethos_u`); the optimised ones and XNNPACK
round in other places. Placement is what Vela said when it compiled, its times are estimates; of speed nothing is known.
"""

from pathlib import Path
from typing import Any

from edgeact.errors import MissingDependencyError
from edgeact.placement import Placement, read_placement
from edgeact.runtime import litert

__all__ = ["MODULES", "Runner"]

MODULES = ("ai_edge_litert",)


class Runner(litert.Runner):
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

    def __init__(self, folder: Path, shape: tuple[int, ...], threads: int = 0) -> None:
        self._of_vela = read_placement(folder)
        super().__init__(folder, shape, 1)

    def _kernels(self) -> dict[str, Any]:
        try:
            from ai_edge_litert.interpreter import OpResolverType
        except ImportError as exc:
            raise MissingDependencyError("ai_edge_litert", "litert", "running this bundle on a CPU") from exc
        return {"experimental_op_resolver_type": OpResolverType.BUILTIN_REF}

    def placement(self) -> Placement:
        """Where Vela put each op of `model_vela.tflite`."""
        return self._of_vela
