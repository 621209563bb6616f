"""What a target is: five members. Adding a target is adding one file next to this one."""

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch.export import ExportedProgram

__all__ = ["Target"]


class Target(Protocol):
    """One file of `targets/` holds one of these as `TARGET`; the file's stem is its name on the command line.

    Attributes:
        summary: One line for `edgeact targets`.
        precisions: What `compile` takes; anything else is refused, never replaced.
        forms: How time may be held in the program that `compile` gets, the best first: volumetric, folded, unrolled.
        runtime: Name of the runner in `edgeact.runtime` that executes the artifact, and of the extra that installs it.
    """

    summary: str
    precisions: tuple[str, ...]
    forms: tuple[str, ...]
    runtime: str

    def compile(self, program: "ExportedProgram", folder: Path, precision: str) -> None:
        """Write the artifact's files `model.*` into `folder`.

        Args:
            program: uint8 `clip_BTHWC` with B=1 -> float32 `logits_BK`, static shapes, in one of `forms`.
            folder: An existing, empty folder.
            precision: One of `precisions`.

        Raises:
            MissingDependencyError: The toolchain is not installed.
            ToolchainError: The toolchain failed, in its own words.
        """
