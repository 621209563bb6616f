"""Every error edgeact raises on purpose.

EdgeactError
├── InputError (ValueError)            what the user gave cannot be used; the command line exits with 2
│   ├── UnknownNameError (LookupError) a model, target, precision … that does not exist
│   ├── VideoError                     a file that holds no usable video
│   ├── CheckpointError                a file that is no checkpoint, or one of another model
│   ├── BundleError                    a bundle that is damaged, hostile or of another version
│   ├── EngineError                    no engine was compiled for this machine, or one that is not to be trusted
│   └── LoweringError                  a network with an op that has no 2-D form here
├── DeviceError (ConnectionError)       a device cannot be reached, or failed to do its part
├── MissingDependencyError (ImportError)  an optional package is absent; the message names the extra
└── ToolchainError (RuntimeError)      a vendor's converter or runtime failed
"""

import copyreg
import difflib
from collections.abc import Iterable
from typing import Any

__all__ = [
    "BundleError",
    "CheckpointError",
    "DeviceError",
    "EdgeactError",
    "EngineError",
    "InputError",
    "LoweringError",
    "MissingDependencyError",
    "ToolchainError",
    "UnknownNameError",
    "VideoError",
]


class EdgeactError(Exception):
    """Anything edgeact reports on purpose; the message is one line a user can act on."""

    def __reduce__(self) -> tuple[Any, ...]:
        """The class and the message: what crosses from one process to another."""
        return copyreg.__newobj__, (type(self), str(self))  # type: ignore[attr-defined]


class InputError(EdgeactError, ValueError):
    """What the user gave cannot be used."""


class UnknownNameError(InputError, LookupError):
    """A name that is not registered; the message suggests the closest one and never substitutes it."""

    def __init__(self, kind: str, name: object, allowed: Iterable[str]) -> None:
        names = sorted(allowed)
        close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}? " if close else ""
        super().__init__(f"unknown {kind} {name!r}: {hint}allowed: {', '.join(names)}")


class VideoError(InputError):
    """A file that holds no usable video."""


class CheckpointError(InputError):
    """A file that is no checkpoint, or a checkpoint of another model."""


class BundleError(InputError):
    """A bundle that is damaged, hostile or of another schema version."""


class EngineError(InputError):
    """No engine was compiled for this machine, or it changed since; the message names `edgeact compile`."""


class LoweringError(InputError):
    """An op of a network has no 2-D form here; the message names it, its source line and what is supported."""


class DeviceError(EdgeactError, ConnectionError):
    """A device cannot be reached, or failed to do its part; trying again may help."""


class MissingDependencyError(EdgeactError, ImportError):
    """An optional package is absent; the message names the extra that installs it."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs {package}, which is not installed: pip install 'edgeact[{extra}]'")


class ToolchainError(EdgeactError, RuntimeError):
    """A vendor's converter or runtime failed; the message carries its own words."""
