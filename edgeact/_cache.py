"""Decoded videos on disk: raw frames and a .json per video and ClipSpec, written beside and renamed when whole.

No .npy: numpy reads its header by `ast.literal_eval`, which fails at random in threads (CPython 3.11, gh-106905).
"""

import hashlib
import json
import math
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgeact.clip import ClipSpec

__all__ = ["cache_dir", "cached"]

# Raise it when decoding, sampling or resizing changes what a file decodes to.
_FORMAT_VERSION = 2

Decoded = tuple[NDArray[np.uint8], tuple[str, ...]]


def cache_dir() -> Path:
    """`$EDGEACT_CACHE`, or `edgeact` in `$XDG_CACHE_HOME`, or `~/.cache/edgeact`. It may not exist yet."""
    if own := os.environ.get("EDGEACT_CACHE"):
        return Path(own)
    xdg = os.environ.get("XDG_CACHE_HOME")
    return (Path(xdg) if xdg else Path.home() / ".cache") / "edgeact"


def _key(path: Path, spec: ClipSpec, kind: Literal["clip", "grid"]) -> str:
    """Changes whenever the file, or what of the ClipSpec shapes the frames, changes (mean and std do not)."""
    status = path.stat()
    fields = {"frame_stride": spec.frame_stride, "sample_fps": spec.sample_fps, "short_side": spec.short_side}
    if kind == "clip":
        fields |= {"frames": spec.frames, "crop_height": spec.crop_height, "crop_width": spec.crop_width}
    identity = [_FORMAT_VERSION, kind, str(path.resolve()), status.st_size, status.st_mtime_ns, fields]
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def _load(file: Path) -> Decoded | None:
    """A cached video, memory-mapped; None where it is absent or damaged."""
    try:
        entry = json.loads(file.with_suffix(".json").read_text())
        shape, notes = tuple(entry["shape"]), tuple(map(str, entry["notes"]))
        if len(shape) != 4 or file.stat().st_size != math.prod(shape):
            return None
        return np.memmap(file, np.uint8, "r", shape=shape), notes
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _write(file: Path, content: bytes | memoryview) -> None:
    partial = file.with_name(f".{file.name}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        partial.write_bytes(content)
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def cached(
    path: Path, spec: ClipSpec, kind: Literal["clip", "grid"], cache: Path | None, decode: Callable[[], Decoded]
) -> Decoded:
    """Frames and notes of a video: from `cache` (memory-mapped), or decoded now and stored there.

    Raises:
        OSError: The cache cannot be written (a full disk); nothing half-written stays behind.
    """
    if cache is None or not path.exists():
        return decode()
    key = _key(path, spec, kind)
    file = cache / key[:2] / f"{key}.rgb"
    if (found := _load(file)) is not None:
        return found
    frames, notes = decode()
    file.parent.mkdir(parents=True, exist_ok=True)
    _write(file, np.ascontiguousarray(frames).data)
    _write(file.with_suffix(".json"), json.dumps({"shape": frames.shape, "notes": notes}).encode())  # the seal
    return _load(file) or (frames, notes)
