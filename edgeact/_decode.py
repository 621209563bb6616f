"""PyAV, wrapped: open a video, its frames in display order, the grid they are sampled on.

Everything here works on an open container; `edgeact.video` is the public face.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeact.clip import ClipSpec
from edgeact.errors import VideoError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

__all__ = [
    "Opened",
    "Timeline",
    "decoded",
    "grid_of",
    "open_video",
    "packet_timeline",
    "public_name",
    "rgb_converter",
    "sampled",
]

# Containers and codecs in which one packet is one shown frame, so that packets alone tell the timeline. Elsewhere
# (VP8's hidden frames, packed B-frames in AVI, fields in transport streams) every frame is decoded.
_TRUSTED_FORMATS = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"}
_TRUSTED_CODECS = {"h264", "hevc", "vp9", "av1", "mpeg4", "mjpeg"}
# Containers round timestamps to their tick (1 ms in Matroska); a frame this little after a grid time counts as shown.
_TOLERANCE_S = Fraction(1, 1000)
_SILENCE_S = 30  # of a stream, whose reading nothing else ends: ^C is heard when a read returns


@dataclass
class Opened:
    """An open video, and what is learnt of its health while it is decoded."""

    name: str
    container: InputContainer
    stream: VideoStream
    frames: int = 0
    discarded: int = 0
    damaged: bool = False
    seconds: float = 0.0
    end_s: float = 0.0

    @property
    def time_base(self) -> Fraction:
        return self.stream.time_base or Fraction(1, 90000)

    @property
    def nominal_ticks(self) -> int:
        """Ticks between two frames where timestamps are missing."""
        rate = self.stream.average_rate or self.stream.guessed_rate or Fraction(25)
        return max(1, round(1 / (rate * self.time_base)))

    def cut_short(self, end_s: float) -> float | None:
        """The duration the header promises, in seconds, where frames that end at `end_s` clearly fall short of it.

        Only asked of files that do not count their frames and hold no other stream, which could be longer.
        """
        if self.stream.frames or len(self.container.streams) > 1 or not self.container.duration:
            return None
        whole_s = self.container.duration / 1e6
        return whole_s if end_s < 0.9 * whole_s - 3 * float(self.nominal_ticks * self.time_base) else None

    def notes(self) -> tuple[str, ...]:
        """What is missing, after every frame was decoded."""
        expected = self.stream.frames - self.discarded
        if self.frames < expected:
            return (f"truncated: {self.frames} of {expected} frames decode",)
        end_s = max(self.seconds, self.end_s)  # Matroska counts from zero, not from its first frame
        if (whole_s := self.cut_short(end_s)) is not None:
            return (f"truncated: {end_s:.2f} of {whole_s:.2f} s decode",)
        return ("damaged: packets that do not decode were left out",) if self.damaged else ()


@dataclass(frozen=True)
class Timeline:
    """Display times of all frames, from packets alone: and the packets to seek to.

    Attributes:
        pts: Display time of each frame in ticks of the stream's time base, ascending.
        keys: `(pts, dts)` of every keyframe, ascending.
    """

    pts: NDArray[np.int64]
    keys: tuple[tuple[int, int], ...]


def _reason(error: BaseException) -> str:
    return str(getattr(error, "strerror", None) or error)


@contextlib.contextmanager
def _av_errors(name: str) -> Iterator[None]:
    """Turn what PyAV raises into one VideoError line that names the file."""
    import av.error

    try:
        yield
    except FileNotFoundError as error:
        raise VideoError(f"{name}: no such file or device") from error
    except av.error.ExitError as error:
        raise VideoError(f"{name}: nothing came for {_SILENCE_S} s") from error
    except av.error.InvalidDataError as error:
        raise VideoError(f"{name}: not a video that can be read ({_reason(error)})") from error
    except av.error.FFmpegError as error:
        raise VideoError(f"{name}: cannot be decoded ({_reason(error)})") from error


def _camera(source: str) -> str | None:
    if source.isdecimal():
        return f"/dev/video{source}"
    return source if source.startswith("/dev/video") else None


def _open_container(source: str) -> Any:
    """A camera, a URL or a file; a file can open no network address and no other protocol."""
    import av

    if camera := _camera(source):
        return av.open(camera, format="v4l2", metadata_errors="ignore")
    if "://" in source:
        return av.open(source, metadata_errors="ignore", timeout=_SILENCE_S)
    path = Path(source)
    if path.is_dir():
        raise VideoError(f"{source}: is a folder, a video file is needed")
    if path.exists() and path.stat().st_size == 0:
        raise VideoError(f"{source}: the file is empty (0 bytes)")
    whitelist = {"protocol_whitelist": "file"}
    return av.open(str(path.absolute()), metadata_errors="ignore", container_options=whitelist)


def public_name(source: str | Path) -> str:
    """A source in words: without the password that its URL may hold."""
    return re.sub(r"(?<=://)[^/]*@", "", str(source))


@contextlib.contextmanager
def open_video(source: str | Path, *, threads: int = 0) -> Iterator[Opened]:
    """Open a video file, URL or camera for decoding on so many threads; 0 takes every core.

    Raises:
        VideoError: It is missing, empty, no video, or what the body decodes from it fails.
    """
    from av.stream import Disposition

    name = public_name(source)
    with _av_errors(name), _open_container(str(source)) as container:
        streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
        if not streams:
            kinds = ", ".join(sorted({s.type for s in container.streams})) or "none"
            raise VideoError(f"{name}: no video stream (streams found: {kinds})")
        if streams[0].codec_context is None:
            raise VideoError(f"{name}: no decoder for its video stream in this build of FFmpeg")
        streams[0].thread_type = "AUTO"
        streams[0].codec_context.thread_count = threads
        yield Opened(name, container, streams[0])


def _packets(video: Opened) -> Iterator[Any]:
    """Packets and the final flush; a container that breaks off ends the packets, and says so in `damaged`."""
    import av.error

    try:
        yield from video.container.demux(video.stream)
    except (av.error.InvalidDataError, av.error.EOFError, av.error.OSError):
        video.damaged = True
        yield None


def decoded(video: Opened) -> Iterator[tuple[int, VideoFrame]]:
    """All frames that decode from here on, in display order, each with its time in ticks (never going back).

    A frame whose timestamp is missing or not later than the one before follows it by the nominal interval.
    """
    import av.error

    last: int | None = None
    first: int | None = None
    constant_rate = video.container.format.name == "avi"  # no timestamps; FFmpeg's guesses do not suit B-frames
    for packet in _packets(video):
        if packet is not None and packet.is_corrupt:
            video.damaged = True
            continue
        try:
            frames = video.stream.codec_context.decode(packet)
        except av.error.InvalidDataError:
            video.damaged = True
            continue
        video.discarded += bool(packet is not None and packet.is_discard)
        for frame in frames:
            ticks = frame.pts if frame.pts is not None else frame.dts
            if last is None:
                ticks = ticks or 0
            elif constant_rate or ticks is None or ticks <= last:
                ticks = last + video.nominal_ticks
            last, first = ticks, ticks if first is None else first
            video.frames += 1
            video.end_s = float((ticks + video.nominal_ticks) * video.time_base)
            video.seconds = video.end_s - float(first * video.time_base)
            yield ticks, frame


def packet_timeline(video: Opened) -> Timeline | None:
    """The timeline by demuxing alone (no decoding); None where packets do not tell it beyond doubt."""
    if video.container.format.name not in _TRUSTED_FORMATS or video.stream.codec_context.name not in _TRUSTED_CODECS:
        return None
    pts: list[int] = []
    keys: list[tuple[int, int]] = []
    for packet in _packets(video):
        if packet is None or packet.is_corrupt or packet.is_discard:
            return None
        if packet.size == 0 and packet.pts is None:  # the flush at the end
            continue
        if packet.pts is None:
            return None
        pts.append(packet.pts)
        if packet.is_keyframe:  # Matroska stores no decoding times, and seeks by display time
            keys.append((packet.pts, packet.pts if packet.dts is None else packet.dts))
    if not keys or len(set(pts)) != len(pts) or len(pts) < video.stream.frames or min(pts) < keys[0][0]:
        return None
    if video.cut_short(float((max(pts) + video.nominal_ticks) * video.time_base)) is not None:
        return None
    return Timeline(np.sort(np.asarray(pts, np.int64)), tuple(sorted(keys)))


def _slack(time_base: Fraction) -> Fraction:
    """Ticks, at most one, by which rounding may have made a frame late."""
    return min(Fraction(1), _TOLERANCE_S / time_base)


def _grid_ticks(first: int, index: int, spec: ClipSpec, time_base: Fraction) -> int:
    """Latest display time, in ticks, that counts as shown at grid position `index` (by time)."""
    assert spec.sample_fps is not None
    return first + math.floor(index / Fraction(spec.sample_fps) / time_base + _slack(time_base))


def grid_of(pts_N: NDArray[np.int64], spec: ClipSpec, time_base: Fraction) -> NDArray[np.int64]:
    """Which frame each grid position shows, as positions in `pts_N`: every k-th, or the one on display at i / fps."""
    if spec.sample_fps is None:
        return np.arange(0, len(pts_N), spec.frame_stride, dtype=np.int64)
    first, last = int(pts_N[0]), int(pts_N[-1])
    positions = math.floor((last - first + _slack(time_base)) * time_base * Fraction(spec.sample_fps))
    times = [_grid_ticks(first, index, spec, time_base) for index in range(positions + 1)]
    return np.searchsorted(pts_N, np.asarray(times, np.int64), side="right").astype(np.int64) - 1


def sampled(video: Opened, spec: ClipSpec) -> Iterator[tuple[float, VideoFrame]]:
    """Grid frames in one sequential pass, with their time in seconds from the first frame; equal to `grid_of`.

    A grid time shows the last frame before it, so a frame is held back until the next one has come:

        time   |----|----|----|--
        frames A     B  C      D
        grid   A    A    C    C
    """
    index = 0
    held: tuple[int, VideoFrame] | None = None
    first = 0
    for ticks, frame in decoded(video):
        if held is None:
            first = ticks
        if spec.sample_fps is None:
            if (video.frames - 1) % spec.frame_stride == 0:
                yield float((ticks - first) * video.time_base), frame
        elif held is not None:
            while _grid_ticks(first, index, spec, video.time_base) < ticks:
                yield index / spec.sample_fps, held[1]
                index += 1
        held = ticks, frame
    if held is not None and spec.sample_fps is not None:
        last = (held[0] - first + _slack(video.time_base)) * video.time_base
        while index <= last * Fraction(spec.sample_fps):
            yield index / spec.sample_fps, held[1]
            index += 1


def rgb_converter() -> Callable[[VideoFrame], NDArray[np.uint8]]:
    """A function from a decoded frame to upright RGB `[H, W, 3]`, all frames in the size of the first.

    One scaler serves all frames: `frame.to_ndarray("rgb24")` would set up a new one for each.
    """
    from av.video.reformatter import VideoReformatter

    reformatter = VideoReformatter()
    size: list[int] = []

    def convert(frame: VideoFrame) -> NDArray[np.uint8]:
        size[:] = size or [frame.width, frame.height]
        rgb: NDArray[np.uint8] = reformatter.reformat(
            frame, width=size[0], height=size[1], format="rgb24", threads=1
        ).to_ndarray()  # type: ignore[assignment]
        # The display matrix turns counter-clockwise, as numpy does.
        return np.rot90(rgb, round(frame.rotation / 90)) if frame.rotation else rgb

    return convert
