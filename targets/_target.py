"""What a target is: ten members. Adding a target is adding one file next to this one."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from edgeact._vendor_compiler import DEFAULT, Compilation

if TYPE_CHECKING:
    from torch import fx
    from torch.export import ExportedProgram

    from edgeact.quantize.scheme import Scheme

__all__ = ["Refusal", "Target"]


@dataclass(frozen=True)
class Refusal:
    """Why a runtime's fast kernels do not take an op.

    Attributes:
        reason: The runtime's rule, with its source.
        runs: Whether a slow kernel of the same runtime takes it instead.
    """

    reason: str
    runs: bool


class Target(Protocol):
    """One file of `targets/` holds one of these as `TARGET`; the file's stem is its name on the command line.

    Attributes:
        summary: One line for `edgeact targets`.
        precisions: What `compile` takes; anything else is refused, never replaced.
        forms: How time may be held in the program that `compile` gets, the best first: volumetric, folded, unrolled.
        scheme: The int8 rule it demands; None where it has no int8.
        options: Further choices by name, each with its allowed values, the default first.
        excluded: Why a precision, or the value of another option, and a value of an option do not go together; with ""
            in the value's place, why the target does not have the precision.
        runtime: Name of the runner in `edgeact.runtime` that executes the artifact, and of the extra that installs it.
        proxy: Name of the runner that stands in for it where the export runs, for the numbers alone; None where the
            runtime itself runs there.
    """

    summary: str
    precisions: tuple[str, ...]
    forms: tuple[str, ...]
    scheme: "Scheme | None"
    options: Mapping[str, tuple[str, ...]]
    excluded: Mapping[tuple[str, str], str]
    runtime: str
    proxy: str | None

    def compile(
        self,
        program: "ExportedProgram",
        folder: Path,
        precision: str,
        options: Mapping[str, str],
        how: Compilation = DEFAULT,
    ) -> tuple[str, ...]:
        """Write the artifact's files `model.*` into `folder`.

        Args:
            program: uint8 `clip_BTHWC` with B=1 -> float32 `logits_BK`, static shapes, in one of `forms`.
            folder: An existing, empty folder.
            precision: One of `precisions`; for int8 the program holds int8 weights and quantize and dequantize ops.
            options: A value for each of `options`.
            how: The time limit of a vendor's compiler and what else the artifact does not depend on.

        Returns:
            Remarks for the report.

        Raises:
            InputError: The network, or what was asked, is not for this target.
            MissingDependencyError: The toolchain is not installed.
            ToolchainError: The toolchain failed, in its own words.
        """

    def refusals(
        self, graph: "fx.GraphModule", options: Mapping[str, str], precision: str
    ) -> "tuple[Mapping[fx.Node, Refusal], tuple[str, ...]]":
        """The ops of an ATen graph, volumetric or 2-D, that the fast kernels do not take: a forecast, nothing compiled.

        Ops that only move or retype data are never among them. And remarks on what it rests on. The graph is of the
        float network whatever the `precision`.

        Raises:
            MissingDependencyError: The forecast asks the toolchain, which is not installed.
        """
