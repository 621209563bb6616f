"""How a video becomes a clip: one object, and one numpy implementation for training, export, validation and device.

Shapes: N grid frames, T frames of a clip, H, W pixels, C = 3 (RGB), B batch.

A video is first sampled on a *grid* (every k-th frame, or a fixed rate by timestamps); a clip is T consecutive grid
frames, the middle ones unless a window is asked for. A video with fewer grid frames is looped, as the papers do:

    video    0 1 2 3 4 5 6 7 8 9 …        frame_stride = 2
    grid     0   2   4   6   8            N = 5
    clip         2   4   6                T = 3, start = (N - T) // 2 = 1
    looped   0 2 4 6 8 0 2 4              T = 8 > N
"""

import dataclasses
import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeact.errors import InputError

__all__ = [
    "ClipSpec",
    "crop_center",
    "normalize",
    "resize",
    "resize_and_crop",
    "resize_window",
    "resized_shape",
    "scale_and_offset",
    "window_indices",
]

# Fixed-point bilinear weights of 11 bits, the precision of OpenCV's INTER_LINEAR (INTER_RESIZE_COEF_BITS in
# opencv/modules/imgproc/src/resize.cpp): the same bits on every machine and easy to repeat in C++ or Kotlin.
_WEIGHT_BITS = 11


@dataclass(frozen=True, kw_only=True)
class ClipSpec:
    """The contract between a video and a network; it travels in checkpoints and bundles.

    Attributes:
        frames: Frames T of a clip.
        frame_stride: Take every k-th frame of the video. Exactly one of `frame_stride` and `sample_fps` is used:
            a given `sample_fps` replaces the stride.
        sample_fps: Take frames at this rate (frames per second) by their timestamps; None means by index.
        short_side: The shorter side is resized to this many pixels, keeping the aspect ratio.
        crop_height: Height in pixels of the centre crop.
        crop_width: Width in pixels of the centre crop.
        mean: Per-channel RGB mean, on the scale 0..1.
        std: Per-channel RGB standard deviation, on the scale 0..1.

    Raises:
        InputError: A value is out of range, or the crop is larger than the resized short side.
    """

    frames: int = 16
    frame_stride: int = 2
    sample_fps: float | None = None
    short_side: int = 128
    crop_height: int = 112
    crop_width: int = 112
    # ImageNet statistics, as in torchvision's video models and mmaction2's CSN configs (123.675/255, 58.395/255 …).
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        for name in ("frames", "frame_stride", "short_side", "crop_height", "crop_width"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 65536:
                raise InputError(f"ClipSpec.{name} is {value!r}: it must be a whole number from 1 to 65536")
        fps = self.sample_fps
        if fps is not None and not (isinstance(fps, int | float) and math.isfinite(fps) and fps > 0):
            raise InputError(f"ClipSpec.sample_fps is {fps!r}: it must be a positive rate in frames per second")
        if max(self.crop_height, self.crop_width) > self.short_side:
            raise InputError(
                f"ClipSpec crops {self.crop_height}x{self.crop_width} out of a short side of {self.short_side} pixels: "
                "the crop must not be larger than short_side"
            )
        for name in ("mean", "std"):
            values = tuple(getattr(self, name))
            if len(values) != 3 or not all(isinstance(v, int | float) and math.isfinite(v) for v in values):
                raise InputError(f"ClipSpec.{name} is {values!r}: it must be three finite numbers (R, G, B)")
            object.__setattr__(self, name, tuple(float(v) for v in values))
        if min(self.std) <= 0:
            raise InputError(f"ClipSpec.std is {self.std!r}: every value must be positive")

    @property
    def clip_shape(self) -> tuple[int, int, int, int]:
        """Shape `(T, H, W, 3)` of one clip."""
        return (self.frames, self.crop_height, self.crop_width, 3)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, as stored in checkpoints and manifests."""
        return dataclasses.asdict(self) | {"mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, fields: Any) -> "ClipSpec":
        """Rebuild a spec from `to_dict()`; refuses unknown and missing fields, since a silent default changes input.

        Raises:
            InputError: Fields are missing, unknown or out of range.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(fields, dict) or set(fields) != known:
            found = sorted(fields) if isinstance(fields, dict) else fields
            raise InputError(f"a ClipSpec has the fields {sorted(known)}, found {found!r}")
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()
        }
        return cls(**values)


def window_indices(num_grid_frames: int, frames: int, start: int | None = None) -> NDArray[np.int64]:
    """Grid positions of a clip of `frames` frames: from `start`, or the middle; looped where the video ends.

    Args:
        num_grid_frames: Frames N on the grid, at least 1.
        frames: Frames T of the clip.
        start: First grid position; None takes the middle window.
    """
    assert num_grid_frames > 0, "a video without frames is refused where it is decoded"
    if start is None:
        start = max(0, (num_grid_frames - frames) // 2)
    return (start + np.arange(frames)) % num_grid_frames


def resized_shape(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Height and width after the shorter side became `short_side` pixels (the longer one rounded half up)."""
    if height <= width:
        return short_side, max(short_side, (2 * width * short_side + height) // (2 * height))
    return max(short_side, (2 * height * short_side + width) // (2 * width)), short_side


@functools.lru_cache(maxsize=64)
def _taps(size_in: int, size_out: int, first: int, count: int) -> tuple[NDArray[np.intp], NDArray[np.intp], Any]:
    """Left neighbour, right neighbour and the right one's weight for output pixels `first … first + count`.

    Half-pixel centres: output pixel i looks at (i + 0.5) * size_in / size_out - 0.5, clamped to the image.
    """
    position = (np.arange(first, first + count) + 0.5) * (size_in / size_out) - 0.5
    position = np.clip(position, 0, size_in - 1)
    left = np.floor(position).astype(np.intp)
    weight = np.rint((position - left) * (1 << _WEIGHT_BITS)).astype(np.int32)
    return left, np.minimum(left + 1, size_in - 1), weight


@functools.lru_cache(maxsize=64)
def _channel_taps(size_in: int, size_out: int, first: int, count: int) -> tuple[Any, Any, Any]:
    """`_taps` along a row whose three channels are interleaved: positions in `[W * 3]`."""
    left, right, weight = _taps(size_in, size_out, first, count)
    channel = np.arange(3)
    return (left[:, None] * 3 + channel).ravel(), (right[:, None] * 3 + channel).ravel(), np.repeat(weight, 3)


def _bilinear(frame_HWC: NDArray[np.uint8], shape: tuple[int, int], window: tuple[int, int, int, int]) -> Any:
    """The `window` (top, left, height, width) of `frame_HWC` resized to `shape`; nothing outside it is computed."""
    top, left, height, width = window
    if frame_HWC.shape[:2] == shape:
        return frame_HWC[top : top + height, left : left + width].copy()
    y0, y1, wy = _taps(frame_HWC.shape[0], shape[0], top, height)
    x0, x1, wx = _channel_taps(frame_HWC.shape[1], shape[1], left, width)

    def across(rows: NDArray[np.intp]) -> Any:
        strip = frame_HWC[rows].reshape(height, -1)
        near = strip.take(x0, axis=1).astype(np.int32)
        step = np.subtract(strip.take(x1, axis=1), near, dtype=np.int32)
        near <<= _WEIGHT_BITS
        near += np.multiply(step, wx, out=step)
        return near  # near * (1 - wx) + far * wx, at most 255 * 2^11

    blend, below = across(y0), across(y1)
    below -= blend
    below *= wy[:, None]
    blend <<= _WEIGHT_BITS
    blend += below  # at most 255 * 2^22: fits int32
    blend += 1 << (2 * _WEIGHT_BITS - 1)
    blend >>= 2 * _WEIGHT_BITS
    return blend.astype(np.uint8).reshape(height, width, 3)


def resize(frame: NDArray[np.uint8], spec: ClipSpec) -> NDArray[np.uint8]:
    """One `[H, W, 3]` frame with its shorter side at `spec.short_side`; bilinear, half-pixel centres, no antialias."""
    shape = resized_shape(frame.shape[0], frame.shape[1], spec.short_side)
    return np.asarray(_bilinear(frame, shape, (0, 0, *shape)))


def resize_window(frame: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """One `[H, W, 3]` frame at exactly `height x width` pixels (the aspect ratio is the caller's); bilinear."""
    return np.asarray(_bilinear(frame, (height, width), (0, 0, height, width)))


def crop_center(frames: NDArray[np.uint8], spec: ClipSpec) -> NDArray[np.uint8]:
    """The centre `crop_height x crop_width` of `[..., H, W, 3]` (a view)."""
    top = (frames.shape[-3] - spec.crop_height) // 2
    left = (frames.shape[-2] - spec.crop_width) // 2
    return frames[..., top : top + spec.crop_height, left : left + spec.crop_width, :]


def resize_and_crop(frame: NDArray[np.uint8], spec: ClipSpec) -> NDArray[np.uint8]:
    """Equal to `crop_center(resize(frame, spec), spec)` for one `[H, W, 3]` frame, computing the crop alone."""
    height, width = resized_shape(frame.shape[0], frame.shape[1], spec.short_side)
    top, left = (height - spec.crop_height) // 2, (width - spec.crop_width) // 2
    return np.asarray(_bilinear(frame, (height, width), (top, left, spec.crop_height, spec.crop_width)))


def normalize(clip: NDArray[np.uint8], spec: ClipSpec) -> NDArray[np.float32]:
    """uint8 `clip_BTHWC` to the float32 `clip_BCTHW` a network takes: (x / 255 - mean) / std per channel."""
    scale, offset = scale_and_offset(spec)
    return np.ascontiguousarray((clip * scale + offset).transpose(0, 4, 1, 2, 3))


def scale_and_offset(spec: ClipSpec) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Normalisation as one multiply and one add per channel: `x * scale + offset`, float32 `[3]` each."""
    std = np.asarray(spec.std, np.float64)
    scale = 1 / (255 * std)
    return scale.astype(np.float32), (-np.asarray(spec.mean, np.float64) / std).astype(np.float32)
