"""Video files and cameras to clips and back: PyAV decoding with the sampling that ClipSpec says.

A file is decoded from the keyframe before the first needed frame to the last needed one; only needed frames are
converted to RGB, and each is resized at once, so memory holds one clip however long the video is. The result equals
a full sequential decode.

Shapes: N grid frames, T frames of a clip, H, W pixels, 3 = RGB.
"""

from __future__ import annotations

import io
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from edgeact._decode import (
    Opened,
    Timeline,
    decoded,
    grid_of,
    open_video,
    packet_timeline,
    public_name,
    rgb_converter,
    sampled,
)
from edgeact.clip import ClipSpec, resize, resize_and_crop, window_indices
from edgeact.errors import InputError, VideoError

if TYPE_CHECKING:
    from av.container import OutputContainer
    from av.video.stream import VideoStream

__all__ = ["DecodedClip", "Window", "check_suffix", "iter_windows", "read_clip", "read_grid", "write_video"]

# Grid frames kept while a video of unknown length is decoded; a longer one is decoded twice.
_BUFFER_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True)
class DecodedClip:
    """One clip of a video.

    Attributes:
        frames: uint8 RGB `[T, H, W, 3]`, resized and cropped.
        notes: What a user should know, such as "looped: 12 grid frames for a clip of 16".
    """

    frames: NDArray[np.uint8]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Window:
    """One clip of a longer video and the time it covers, in seconds from the first frame.

    Attributes:
        start_s: Time of the first frame.
        end_s: Time of the last frame that was there (a looped clip shows earlier ones again).
        clip: uint8 RGB `[T, H, W, 3]`.
    """

    start_s: float
    end_s: float
    clip: NDArray[np.uint8]


def read_clip(path: str | Path, spec: ClipSpec, start: int | None = None) -> DecodedClip:
    """Decode one clip of a video file, `[T, H, W, 3]`.

    Args:
        path: Any file FFmpeg reads.
        spec: Sampling and preprocessing.
        start: First grid position; None takes the middle window. Positions past the end loop to the beginning.

    Raises:
        VideoError: The file holds no usable video.
    """
    if start is not None and start < 0:
        raise InputError(f"start is {start}: a grid position counts from 0")
    with open_video(path) as video:
        timeline = packet_timeline(video)
        if timeline is not None:
            ranks = grid_of(timeline.pts, spec, video.time_base)
            wanted = window_indices(len(ranks), spec.frames, start)
            frames = _seek_and_decode(video, timeline, ranks[wanted], spec)
            if frames is not None:
                return DecodedClip(frames, _looped(len(ranks), wanted, spec))
    return _decode_all(path, spec, start)


def _looped(num_grid: int, wanted: NDArray[np.int64], spec: ClipSpec) -> tuple[str, ...]:
    """A note where the video ended before the clip did."""
    if int(wanted[0]) + spec.frames <= num_grid:
        return ()
    return (f"looped: {num_grid} grid frames for a clip of {spec.frames}",)


def _seek_and_decode(
    video: Opened, timeline: Timeline, ranks_T: NDArray[np.int64], spec: ClipSpec
) -> NDArray[np.uint8] | None:
    """The frames at display positions `ranks_T`; None where the decoder contradicts the packets' timeline."""
    first, last = int(ranks_T.min()), int(ranks_T.max())
    key_pts, key_dts = max(key for key in timeline.keys if key[0] <= timeline.pts[first])
    rank = int(np.searchsorted(timeline.pts, key_pts))
    video.container.seek(key_dts, stream=video.stream)
    needed, convert = set(ranks_T.tolist()), rgb_converter()
    kept: dict[int, NDArray[np.uint8]] = {}
    for ticks, frame in decoded(video):
        if ticks < key_pts:  # frames before an open group of pictures
            continue
        if ticks != timeline.pts[rank] or video.damaged:
            return None
        if rank in needed:
            kept[rank] = resize_and_crop(convert(frame), spec)
        if rank == last:
            return np.stack([kept[rank] for rank in ranks_T.tolist()])
        rank += 1
    return None


def _decode_all(path: str | Path, spec: ClipSpec, start: int | None) -> DecodedClip:
    """The clip by decoding every frame, for files whose length only decoding tells."""
    kept: list[NDArray[np.uint8]] = []
    room = max(spec.frames, _BUFFER_BYTES // int(np.prod(spec.clip_shape[1:])))
    num_grid = 0
    with open_video(path) as video:
        convert = rgb_converter()
        for _, frame in sampled(video, spec):
            num_grid += 1
            if num_grid <= room:
                kept.append(resize_and_crop(convert(frame), spec))
        if num_grid == 0:
            raise VideoError(f"{path}: no frame decodes")
        notes = video.notes()
    wanted = window_indices(num_grid, spec.frames, start)
    notes += _looped(num_grid, wanted, spec)
    if num_grid <= room:
        return DecodedClip(np.stack([kept[index] for index in wanted]), notes)
    kept.clear()
    needed, found = set(wanted.tolist()), {}
    with open_video(path) as video:
        convert = rgb_converter()
        for index, (_, frame) in enumerate(sampled(video, spec)):
            if index in needed:
                found[index] = resize_and_crop(convert(frame), spec)
    return DecodedClip(np.stack([found[index] for index in wanted.tolist()]), notes)


def read_grid(path: str | Path, spec: ClipSpec) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """All grid frames of a video, `[N, H', W', 3]` with the short side resized and nothing cropped, and notes.

    Raises:
        VideoError: The file holds no usable video.
    """
    with open_video(path) as video:
        convert = rgb_converter()
        frames = [resize(convert(frame), spec) for _, frame in sampled(video, spec)]
        if not frames:
            raise VideoError(f"{path}: no frame decodes")
        return np.stack(frames), video.notes()


def iter_windows(source: str | Path, spec: ClipSpec, hop: int, *, threads: int = 0) -> Iterator[Window]:
    """Clips sliding over a whole video in one decoding pass, `hop` grid frames apart; memory holds one window.

    The last window reaches the end of the video even where `hop` does not divide it; a video shorter than a clip
    gives one looped window. A camera never ends.

    Args:
        source: A video file, a URL, a camera ("/dev/video0") or its number ("0").
        spec: Sampling and preprocessing.
        hop: Grid frames between the starts of two windows, at least 1.
        threads: The decoder's; 0 takes every core. Frames are the same.

    Raises:
        VideoError: The source holds no usable video.
    """
    if hop < 1:
        raise InputError(f"hop is {hop}: windows must move by at least 1 grid frame")
    recent: deque[tuple[float, NDArray[np.uint8]]] = deque(maxlen=spec.frames)
    until_next, seen = spec.frames, 0
    with open_video(source, threads=threads) as video:
        convert = rgb_converter()
        for seconds, frame in sampled(video, spec):
            recent.append((seconds, resize_and_crop(convert(frame), spec)))
            seen, until_next = seen + 1, until_next - 1
            if until_next == 0:
                until_next = hop
                yield _window(recent, spec)
    if not seen:
        raise VideoError(f"{public_name(source)}: no frame decodes")
    if seen < spec.frames or until_next != hop:
        yield _window(recent, spec)


def _window(recent: deque[tuple[float, NDArray[np.uint8]]], spec: ClipSpec) -> Window:
    order = window_indices(len(recent), spec.frames, 0)
    return Window(recent[0][0], recent[-1][0], np.stack([recent[index][1] for index in order]))


def write_video(
    path: str | Path,
    frames: Iterable[NDArray[np.uint8]],
    fps: float | Fraction,
    *,
    codec: str = "libx264",
    crf: int = 18,
    gop: int = 12,
    threads: int = 0,
    options: Mapping[str, str] | None = None,
) -> None:
    """Encode RGB frames to a video file; it is written beside and renamed when whole.

    Sides that 4:2:0 cannot hold (odd ones) are encoded 4:4:4.

    Args:
        path: The file; its suffix chooses the container (.mp4, .mkv …).
        frames: uint8 `[N, H, W, 3]`, or any iterable of `[H, W, 3]`.
        fps: Frames per second.
        codec: An FFmpeg encoder.
        crf: Constant quality of libx264 and libx265, 0 (lossless) to 51; other encoders take it in `options`.
        gop: Frames between keyframes.
        threads: Encoder threads; 0 lets the encoder choose.
        options: More encoder options, such as `{"preset": "ultrafast"}`.

    Raises:
        InputError: The encoder or the container is unknown, or there are no frames.
        OSError: The file cannot be written.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part{path.suffix}")
    try:
        quality = {"crf": str(crf)} if codec.startswith("libx") else {}
        with partial.open("wb") as file:
            _encode(file, path, frames, fps, codec, quality | {"threads": str(threads)} | dict(options or {}), gop)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def check_suffix(path: Path, codec: str = "libx264") -> None:
    """Encode two black frames into memory as `write_video` would into `path`.

    Raises:
        InputError: No video of that suffix and codec can be written.
    """
    frame = np.zeros((16, 16, 3), np.uint8)
    _encode(io.BytesIO(), path, [frame, frame], 25, codec, {}, gop=1)


def _encode(
    file: Any,
    path: Path,
    frames: Iterable[NDArray[np.uint8]],
    fps: float | Fraction,
    codec: str,
    options: dict[str, str],
    gop: int,
) -> None:
    import av
    import av.error

    if codec not in av.codecs_available:
        raise InputError(f"{path}: this build of FFmpeg has no encoder {codec!r}; mpeg4 is always there")
    try:
        container = av.open(file, "w", format={".mkv": "matroska"}.get(path.suffix, path.suffix.lstrip(".")))
    except (av.error.FFmpegError, ValueError) as error:
        raise InputError(f"{path}: FFmpeg writes no {path.suffix or 'suffixless'} files; use .mp4 or .mkv") from error
    try:
        with container:
            _mux(container, path, frames, Fraction(fps).limit_denominator(1_000_000), codec, options, gop)
    except av.error.FFmpegError as error:
        if isinstance(error, OSError):  # the disk, not the request
            raise
        raise InputError(f"{path}: cannot be encoded as {codec} in {path.suffix} ({error.strerror})") from error


def _mux(
    container: OutputContainer,
    path: Path,
    frames: Iterable[NDArray[np.uint8]],
    rate: Fraction,
    codec: str,
    options: dict[str, str],
    gop: int,
) -> None:
    """Encode and write every frame; the first one fixes the size."""
    import av
    from av.video.reformatter import VideoReformatter

    reformatter = VideoReformatter()  # one scaler for all frames: encode() would set up a new one for each
    stream: VideoStream | None = None
    for frame in frames:
        if stream is None:
            try:
                stream = cast("VideoStream", container.add_stream(codec, rate=rate, options=options))
            except (ValueError, TypeError) as error:  # TypeError: an encoder of sound
                raise InputError(f"{path}: cannot be encoded as {codec} in {path.suffix} ({error})") from error
            stream.height, stream.width = frame.shape[:2]
            stream.pix_fmt = "yuv420p" if frame.shape[0] % 2 == 0 == frame.shape[1] % 2 else "yuv444p"
            stream.gop_size = gop
        rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        for packet in stream.encode(reformatter.reformat(rgb, format=stream.pix_fmt, threads=1)):
            container.mux(packet)
    if stream is None:
        raise InputError(f"{path}: no frames to write")
    for packet in stream.encode():
        container.mux(packet)
