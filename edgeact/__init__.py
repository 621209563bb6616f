"""edgeact ships action-recognition networks to edge devices and proves that nothing was lost on the way.

Importing it loads numpy and nothing heavier: torch, PyAV and the runtimes arrive when a function needs them.
"""

from typing import TYPE_CHECKING, Any

from edgeact.bundle import Bundle, open_bundle
from edgeact.checkpoint import load_checkpoint, save_checkpoint
from edgeact.clip import ClipSpec
from edgeact.errors import EdgeactError, InputError
from edgeact.export import export
from edgeact.parity import Gates, Report
from edgeact.runtime import load
from edgeact.targets import list_targets
from edgeact.validate import validate

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram

__all__ = [
    "Bundle",
    "ClipSpec",
    "EdgeactError",
    "Gates",
    "InputError",
    "Report",
    "create_model",
    "export",
    "list_models",
    "list_targets",
    "load",
    "load_checkpoint",
    "lower",
    "open_bundle",
    "save_checkpoint",
    "validate",
]
__version__ = "0.1.0"


def list_models() -> list[str]:
    """Names that `create_model` takes, sorted; needs torch."""
    from edgeact.models import list_models as names

    return names()


def create_model(name: str, *, num_classes: int, **options: Any) -> "nn.Module":
    """Build a registered model with random weights: `clip_BCTHW -> logits_BK`; see `edgeact.models.create_model`."""
    from edgeact.models import create_model as create

    return create(name, num_classes=num_classes, **options)


def lower(program: "ExportedProgram", *, form: str = "unrolled") -> "ExportedProgram":
    """Rewrite a 3-D network into an equal one of 2-D ops, "unrolled" or "folded"; see `edgeact.lowering.lower`."""
    from edgeact.lowering import lower as rewrite

    return rewrite(program, form=form)  # type: ignore[arg-type]
