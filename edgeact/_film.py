"""Clips as pictures in a page: film strips as JPEG data URIs.

Shapes: T frames, H, W pixels, 3 = RGB.
"""

import base64
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

__all__ = ["film_strip"]

_STRIP_FRAMES, _STRIP_GROUP, _THUMB_PX, _STRIP_GAP_PX = 8, 4, 96, 2
_JPEG_QUANTIZER = 6  # 2 is best, 31 worst; 6 leaves no block visible at this size


def film_strip(frames_THW3: NDArray[np.uint8]) -> list[tuple[str, int]]:
    """About eight frames spread over a clip: JPEG data URIs of up to four frames each, and how many those are."""
    import av

    total, height, width = frames_THW3.shape[:3]
    scale = min(1.0, _THUMB_PX / height)
    size = {"width": max(2, round(width * scale / 2) * 2), "height": max(2, round(height * scale / 2) * 2)}
    chosen = np.unique(np.linspace(0, total - 1, min(total, _STRIP_FRAMES)).round().astype(int))
    thumbs: list[NDArray[np.uint8]] = []
    for i in chosen:
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(frames_THW3[i]), format="rgb24")
        thumb = frame.reformat(**size, interpolation="AREA").to_ndarray(format="rgb24")
        thumbs.append(np.pad(thumb.astype(np.uint8, copy=False), ((0, 0), (0, _STRIP_GAP_PX), (0, 0))))
    groups = [thumbs[i : i + _STRIP_GROUP] for i in range(0, len(thumbs), _STRIP_GROUP)]
    return [(_jpeg(np.concatenate(group, axis=1)[:, :-_STRIP_GAP_PX]), len(group)) for group in groups]


def _jpeg(image_HW3: NDArray[np.uint8]) -> str:
    """A JPEG data URI, by FFmpeg's encoder: no further dependency."""
    import av

    codec = av.CodecContext.create("mjpeg", "w")
    assert isinstance(codec, av.VideoCodecContext)
    codec.height, codec.width = image_HW3.shape[:2]
    codec.pix_fmt, codec.time_base = "yuvj420p", Fraction(1, 1)
    codec.qmin = codec.qmax = _JPEG_QUANTIZER
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image_HW3), format="rgb24").reformat(format="yuvj420p")
    frame.pts = 0
    data = b"".join(bytes(packet) for packet in (*codec.encode(frame), *codec.encode(None)))
    return "data:image/jpeg;base64," + base64.b64encode(data).decode("ascii")
