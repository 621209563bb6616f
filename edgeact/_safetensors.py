"""Files of tensors and one JSON text that says what they are: checkpoints and descriptors.

Nothing in them is unpickled, executed or imported.
"""

import importlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from edgeact.errors import CheckpointError, MissingDependencyError

__all__ = ["existing_file", "import_safetensors", "read_safetensors", "write_safetensors"]

Framework = Literal["np", "pt"]  # of the tensors: numpy, or PyTorch


def import_safetensors(framework: Framework) -> Any:
    """The module that reads and writes tensors of `framework`.

    Raises:
        MissingDependencyError: safetensors is not installed.
    """
    try:
        import safetensors  # noqa: F401

        return importlib.import_module({"np": "safetensors.numpy", "pt": "safetensors.torch"}[framework])
    except ImportError as exc:
        extra, what = ("describe", "descriptor") if framework == "np" else ("export", "checkpoint")
        raise MissingDependencyError("safetensors", extra, f"reading or writing a {what}") from exc


def write_safetensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Any], key: str, fields: Mapping[str, Any], framework: Framework
) -> None:
    """Write contiguous `tensors` and, under `key`, the JSON of `fields`: beside `path` first, and renamed when whole.

    Raises:
        CheckpointError: The file cannot be written.
    """
    save_file, target = import_safetensors(framework).save_file, Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        save_file(dict(tensors), partial, metadata={key: json.dumps(fields)})
        partial.replace(target)
    except OSError:
        raise
    except Exception as exc:  # safetensors reports a full disk by its own SafetensorError
        raise CheckpointError(f"{target} cannot be written: {exc}") from exc
    finally:
        partial.unlink(missing_ok=True)


def read_safetensors(
    path: str | os.PathLike[str], key: str, framework: Framework, *, kind: str, writer: str
) -> tuple[str | None, dict[str, Any]]:
    """The text under `key`, None where there is none, and all tensors.

    Raises:
        CheckpointError: No such file, or no safetensors; the message says what `kind` was wanted and what writes one.
    """
    import_safetensors(framework)
    from safetensors import safe_open

    file = existing_file(path, kind)
    try:
        with safe_open(file, framework=framework) as reader:
            text = (reader.metadata() or {}).get(key)
            return text, {name: reader.get_tensor(name) for name in reader.keys()}  # noqa: SIM118 (no mapping)
    except Exception as exc:  # safetensors raises its own SafetensorError, which derives from Exception alone
        raise CheckpointError(f"{file} is not a {kind} ({exc}); `{writer}` writes one") from exc


def existing_file(path: str | os.PathLike[str], kind: str) -> Path:
    """`path`, of a file.

    Raises:
        CheckpointError: There is none.
    """
    file = Path(path)
    if not file.is_file():
        raise CheckpointError(f"{kind} {file} " + ("is a folder, not a file" if file.is_dir() else "does not exist"))
    return file
