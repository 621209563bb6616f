"""The synthetic motion set: real video files whose class is the motion alone.

A textured shape moves over a still textured background. One frame tells nothing of its class, by construction: the
frame is a torus, and in every class and every frame the shape's position is uniform on it, its angle uniform on the
circle and its log-scale uniform on an interval whose ends are joined. Only how these change from frame to frame
differs. Every frame is encoded on its own (no inter prediction, constant quantizer), so that coding artefacts of a
frame tell nothing either.

    left      x falls         zoom_in    scale grows, and starts small again at the largest
    rotate_cw angle grows     shake_…    there and back within a clip      pulse   larger and smaller again
"""

from __future__ import annotations

import csv
import functools
import math
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeact._cache import cache_dir
from edgeact._progress import progress_bar
from edgeact.clip import ClipSpec, resize
from edgeact.errors import InputError, UnknownNameError
from edgeact.video import write_video

__all__ = ["MOTION_CLASSES", "MOTION_SPEC", "REVERSED", "motion_set", "render", "write_motion_set"]

MOTION_SPEC = ClipSpec(
    frames=8,
    frame_stride=1,
    short_side=64,
    crop_height=64,
    crop_width=64,
    mean=(0.5, 0.5, 0.5),
    std=(0.25, 0.25, 0.25),
)

# What a class becomes when time runs backwards.
REVERSED: dict[str, str] = {
    "still": "still",
    "left": "right",
    "right": "left",
    "up": "down",
    "down": "up",
    "rotate_cw": "rotate_ccw",
    "rotate_ccw": "rotate_cw",
    "zoom_in": "zoom_out",
    "zoom_out": "zoom_in",
    "shake_horizontal": "shake_horizontal",
    "shake_vertical": "shake_vertical",
    "pulse": "pulse",
}
MOTION_CLASSES: tuple[str, ...] = tuple(sorted(REVERSED))

_SIDE = 64  # pixels of a frame, both ways: the torus
_FRAMES = 16
_FPS = 24
_TEXTURE = 96  # pixels of the pre-rendered shape, at least one and a half per pixel of the frame
_RADIUS_MIN, _RADIUS_MAX = 12.0, 32.0  # pixels; the log-scale interval whose ends are joined
_SET_VERSION = 1
# A constant quantizer: rate control would let one frame's motion change another frame's artefacts.
_ENCODERS = {
    "libx264": {"crf": "-1", "qp": "22", "preset": "ultrafast"},
    "mpeg4": {"qmin": "4", "qmax": "4"},
}
_SHAPE_SPEC = ClipSpec(frames=1, short_side=_TEXTURE, crop_height=1, crop_width=1)
_GROUND_SPEC = ClipSpec(frames=1, short_side=_SIDE, crop_height=1, crop_width=1)


def _triangle(steps_T: NDArray[np.float64], period: float) -> NDArray[np.float64]:
    """There and back: rises by one per step for half a period, then falls."""
    half = period / 2
    return np.asarray(half - np.abs(steps_T % period - half))


def _poses(name: str, rng: np.random.Generator) -> tuple[NDArray[np.float64], ...]:
    """Position x, y (pixels), angle (radians, clockwise on screen) and radius (pixels) in every frame, `[T]` each.

    All are uniform on their torus in every frame, whatever the class: a uniform start plus anything is uniform.
    """
    steps_T = np.arange(_FRAMES, dtype=np.float64)
    there_and_back_T = _triangle(steps_T + rng.uniform(0, 8), rng.uniform(5, 8))
    log_range = math.log(_RADIUS_MAX / _RADIUS_MIN)
    start = rng.uniform(0, 1, 4) * (_SIDE, _SIDE, 2 * math.pi, log_range)
    pixels, radians, log_scale = rng.uniform(2.0, 4.0), rng.uniform(0.2, 0.4), rng.uniform(0.06, 0.11)
    paths: dict[str, tuple[int, NDArray[np.float64]]] = {
        "left": (0, -pixels * steps_T),
        "right": (0, pixels * steps_T),
        "up": (1, -pixels * steps_T),
        "down": (1, pixels * steps_T),
        "rotate_cw": (2, radians * steps_T),
        "rotate_ccw": (2, -radians * steps_T),
        "zoom_in": (3, log_scale * steps_T),
        "zoom_out": (3, -log_scale * steps_T),
        "shake_horizontal": (0, pixels * there_and_back_T),
        "shake_vertical": (1, pixels * there_and_back_T),
        "pulse": (3, log_scale * there_and_back_T),
        "still": (0, 0 * steps_T),
    }
    axis, path_T = paths[name]
    poses = [np.full(_FRAMES, value) for value in start]
    poses[axis] = poses[axis] + path_T
    x_T, y_T, angle_T, log_T = poses
    return x_T % _SIDE, y_T % _SIDE, angle_T, _RADIUS_MIN * np.exp(log_T % log_range)


def _noise(rng: np.random.Generator, cells: int, spec: ClipSpec, low: int, high: int) -> NDArray[np.uint8]:
    """A smooth random RGB texture, `[S, S, 3]`."""
    return resize(rng.integers(low, high, (cells, cells, 3), dtype=np.uint8, endpoint=True), spec)


@functools.cache
def _polar() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Distance from the centre (1 = half a side) and angle on the canvas of a shape, `[S, S]` each."""
    axis = (np.arange(_TEXTURE, dtype=np.float32) + 0.5) * (2 / _TEXTURE) - 1
    return np.hypot(axis[None, :], axis[:, None]), np.arctan2(axis[:, None], axis[None, :])


def _shape(rng: np.random.Generator) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """A textured blob on its own canvas: colour `[S * S, 3]` and opacity 0..256 `[S * S]`, clear at the border."""
    distance, angle = _polar()
    edge = np.full_like(angle, 0.75)
    for lobes in (2, 3, 5):
        height, phase = rng.uniform(0.02, 0.07), rng.uniform(0, 2 * math.pi)
        edge += np.float32(height) * np.cos(lobes * angle + np.float32(phase))
    opacity = np.rint(np.clip((edge - distance) * 16 + 0.5, 0, 1) * 256)
    return _noise(rng, 6, _SHAPE_SPEC, 0, 255).reshape(-1, 3).astype(np.int32), opacity.astype(np.int32).ravel()


def render(name: str, rng: np.random.Generator) -> NDArray[np.uint8]:
    """One clip of the class `name`, uint8 RGB `[16, 64, 64, 3]`, before it is encoded."""
    if name not in REVERSED:
        raise UnknownNameError("motion class", name, REVERSED)
    x_T, y_T, angle_T, radius_T = (pose_T.astype(np.float32) for pose_T in _poses(name, rng))
    colour, opacity = _shape(rng)
    ground = _noise(rng, 7, _GROUND_SPEC, 90, 165)
    frames_THWC = np.repeat(ground[None], _FRAMES, axis=0)
    pixel, half, centre = np.arange(_SIDE, dtype=np.float32) + 0.5, _SIDE / 2, _TEXTURE / 2
    # Distances on the torus: the shape leaves on one side and comes in on the other.
    dx = ((pixel[None, :] - x_T[:, None] + half) % _SIDE - half)[:, None, :]
    dy = ((pixel[None, :] - y_T[:, None] + half) % _SIDE - half)[:, :, None]
    zoom = centre / radius_T[:, None, None]
    cos, sin = np.cos(angle_T)[:, None, None] * zoom, np.sin(angle_T)[:, None, None] * zoom
    column = np.clip(cos * dx + (sin * dy + centre), 0, _TEXTURE - 1).astype(np.int32)
    row = np.clip((cos * dy + centre) - sin * dx, 0, _TEXTURE - 1).astype(np.int32)
    place = (row * _TEXTURE + column).ravel()
    covered = np.flatnonzero(opacity[place])  # a fifth of the pixels: the others stay ground
    place = place[covered]
    pixels = frames_THWC.reshape(-1, 3)
    under = pixels[covered].astype(np.int32)
    pixels[covered] = under + ((colour[place] - under) * opacity[place, None] >> 8)
    return frames_THWC


def _rows(train_per_class: int, test_per_class: int) -> list[dict[str, str]]:
    """The lines of split.csv: every clip is its own group."""
    rows = []
    for split, count in (("train", train_per_class), ("test", test_per_class)):
        for name in MOTION_CLASSES:
            for number in range(count):
                clip = f"{name}_{split}{number:04d}"
                rows.append({"path": f"{name}/{clip}.mp4", "label": name, "group": clip, "split": split})
    return rows


def write_motion_set(
    root: str | Path,
    *,
    train_per_class: int,
    test_per_class: int,
    seed: int = 0,
    workers: int = 2,
    progress: bool = False,
) -> Path:
    """Render and encode the motion set into the new folder `root`; written beside and renamed when whole.

    The same arguments give the same pixels. A clip depends on its own class, split and number only, so a larger set
    contains a smaller one.

    Args:
        root: A folder that does not exist yet.
        train_per_class: Clips per class to train on.
        test_per_class: Held-out clips per class.
        seed: Another seed gives other clips.
        workers: Threads.
        progress: Show a bar on stderr.

    Raises:
        InputError: `root` exists, or a number is out of range.
    """
    root = Path(root)
    if train_per_class < 0 or test_per_class < 0 or train_per_class + test_per_class == 0 or workers < 1:
        raise InputError(
            f"a motion set of {train_per_class} training and {test_per_class} test clips per class with {workers} "
            "workers cannot be made: counts start at 0 (one of them at 1), workers at 1"
        )
    if root.exists():
        raise InputError(f"{root}: exists already; name a new folder or remove this one")
    rows = _rows(train_per_class, test_per_class)
    root.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{root.name}.", suffix=".part", dir=root.parent))
    try:
        for name in MOTION_CLASSES:
            (partial / name).mkdir()
        _write_clips(partial, rows, seed, workers, progress)
        with (partial / "split.csv").open("w", newline="", encoding="utf-8") as stream:
            table = csv.DictWriter(stream, ("path", "label", "group", "split"), lineterminator="\n")
            table.writeheader()
            table.writerows(rows)
        partial.chmod(0o755)
        partial.rename(root)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return root


def _write_clips(folder: Path, rows: list[dict[str, str]], seed: int, workers: int, progress: bool) -> None:
    import av

    codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"  # wheels without x264 exist for some boards

    def write(row: dict[str, str]) -> None:
        # The clip's own name seeds it: neither the order of threads nor the size of the set matters.
        rng = np.random.default_rng([seed, *row["path"].encode()])
        frames = render(row["label"], rng)
        write_video(folder / row["path"], frames, _FPS, codec=codec, gop=1, threads=1, options=_ENCODERS[codec])

    pool = ThreadPoolExecutor(workers, "edgeact-motion")
    try:
        with progress_bar("motion set", len(rows), progress) as step:
            for _ in pool.map(write, rows):
                step()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def motion_set(*, train_per_class: int = 120, test_per_class: int = 40, progress: bool = False) -> Path:
    """The motion set of this size in `cache_dir()`, made now where it is absent."""
    root = cache_dir() / f"motion-v{_SET_VERSION}-{train_per_class}-{test_per_class}"
    if not (root / "split.csv").is_file():
        try:
            write_motion_set(root, train_per_class=train_per_class, test_per_class=test_per_class, progress=progress)
        except (InputError, OSError):
            if not (root / "split.csv").is_file():  # else another process was faster
                raise
    return root
