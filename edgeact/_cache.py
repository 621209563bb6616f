"""Decoded videos on disk: one .npy per video and ClipSpec, written beside and renamed when whole."""

import hashlib
import json
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
_FORMAT_VERSION = 1

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


def _load(file: Path, notes_file: Path) -> Decoded | None:
    """A cached video, memory-mapped; None where it is absent or damaged."""
    try:
        frames = np.load(file, mmap_mode="r", allow_pickle=False)
        notes = json.loads(notes_file.read_text()) if notes_file.exists() else []
    except (FileNotFoundError, EOFError, ValueError):
        return None
    whole = frames.dtype == np.uint8 and frames.ndim == 4 and frames.shape[-1] == 3 and len(frames) > 0
    return (frames, tuple(map(str, notes))) if whole else None


def _write(file: Path, write: Callable[[Path], None]) -> None:
    partial = file.with_name(f".{file.name}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        write(partial)
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
    file = cache / key[:2] / f"{key}.npy"
    notes_file = file.with_suffix(".json")
    if (found := _load(file, notes_file)) is not None:
        return found
    frames, notes = decode()
    file.parent.mkdir(parents=True, exist_ok=True)
    if notes:  # first, so that an array is never found without its notes
        _write(notes_file, lambda partial: _write_text(partial, json.dumps(notes)))
    _write(file, lambda partial: _save_array(partial, frames))
    return _load(file, notes_file) or (frames, notes)


def _write_text(partial: Path, text: str) -> None:
    partial.write_text(text)


def _save_array(partial: Path, frames: NDArray[np.uint8]) -> None:
    with partial.open("wb") as stream:
        np.save(stream, frames, allow_pickle=False)
