"""What a target is, with defaults for what few of them have. Adding a target is adding one file next to this one."""

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from edgeact._vendor_compiler import DEFAULT, Compilation
from edgeact.errors import InputError, MissingDependencyError

if TYPE_CHECKING:
    from torch import fx
    from torch.export import ExportedProgram

    from edgeact.quantize.scheme import Scheme

__all__ = ["Refusal", "Request", "Target"]


@dataclass(frozen=True)
class Refusal:
    """Why a runtime's fast kernels do not take an op.

    Attributes:
        reason: The runtime's rule, with its source.
        runs: Whether a slow kernel of the same runtime takes it instead.
    """

    reason: str
    runs: bool


@dataclass(frozen=True)
class Request:
    """What is asked of a target.

    Attributes:
        precision: One of its precisions.
        options: A value for each of its options.
        how: The time limit of a vendor's compiler and what else the artifact does not depend on.
    """

    precision: str
    options: Mapping[str, str] = field(default_factory=dict)
    how: Compilation = DEFAULT


class Target(ABC):
    """One file of `targets/` holds one of these as `TARGET`; the file's stem is its name on the command line.

    Attributes:
        summary: One line for `edgeact targets`.
        precisions: What `compile` takes; anything else is refused, never replaced.
        forms: How time may be held in the program that `compile` gets, the best first: volumetric, folded, unrolled.
        scheme: The int8 rule it demands; None where it has no int8.
        options: Further choices by name, each with its allowed values, the default first.
        runtime: Name of the runner in `edgeact.runtime` that executes the artifact, and of the extra that installs it.
        proxy: Name of the runner that stands in for it where the export runs, for the numbers alone; None where the
            runtime itself runs there.
        needs: The package that compiles, and the extra that installs it.
        takes_images: The artifact's inputs are images `frame_0`, `frame_1` … in place of one clip.
    """

    summary: ClassVar[str]
    precisions: ClassVar[tuple[str, ...]]
    forms: ClassVar[tuple[str, ...]]
    scheme: "ClassVar[Scheme | None]" = None
    options: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    runtime: ClassVar[str]
    proxy: ClassVar[str | None] = None
    needs: ClassVar[tuple[str, str]]
    takes_images: ClassVar[bool] = False

    @property
    def _name(self) -> str:
        return type(self).__module__.rpartition(".")[2]

    def conflict(self, precision: str, options: Mapping[str, str]) -> str:
        """Why these do not go together; empty where they do.

        Args:
            precision: Any, or "" where none is chosen yet.
            options: A value for each of `options`; none where only the precision is asked about.
        """
        return ""

    def check_sdk(self, options: Mapping[str, str], sdk: Path | None) -> None:
        """Refuse a vendor's SDK that the target cannot use, or that does not go with its options.

        Raises:
            InputError: It has no use for one, or not for this one, or its options need one.
        """
        if sdk is not None:
            raise InputError(
                f"target {self._name!r} uses no vendor's SDK: leave --sdk out, or export for litert with --npu"
            )

    def require_toolchain(self) -> None:
        """Refuse to go on without what compiles.

        Raises:
            MissingDependencyError: It is not installed.
        """
        package, extra = self.needs
        if importlib.util.find_spec(package) is None:
            raise MissingDependencyError(package, extra, f"exporting to {self._name}")

    @abstractmethod
    def compile(self, program: "ExportedProgram", folder: Path, asked: Request) -> tuple[str, ...]:
        """Write the artifact's files `model.*` into `folder`.

        Args:
            program: uint8 `clip_BTHWC` with B=1 -> float32 `logits_BK`, static shapes, in one of `forms`; for int8 with
                int8 weights and quantize and dequantize ops.
            folder: An existing, empty folder.
            asked: What was checked by `check_options`.

        Returns:
            Remarks for the report.

        Raises:
            InputError: The network, or what was asked, is not for this target.
            MissingDependencyError: The toolchain is not installed.
            ToolchainError: The toolchain failed, in its own words.
        """

    @abstractmethod
    def refusals(self, graph: "fx.GraphModule", asked: Request) -> "tuple[Mapping[fx.Node, Refusal], tuple[str, ...]]":
        """The ops of an ATen graph, volumetric or 2-D, that the fast kernels do not take: a forecast, nothing compiled.

        Ops that only move or retype data are never among them. And remarks on what it rests on. The graph is of the
        float network whatever the precision.

        Raises:
            MissingDependencyError: The forecast asks the toolchain, which is not installed.
        """
