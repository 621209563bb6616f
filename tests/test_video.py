"""Decoding: every file must give what a plain sequential decode gives, however little of it is read."""

import time
from fractions import Fraction

import av
import numpy as np
import pytest

from edgeact import video
from edgeact.clip import ClipSpec, crop_center, resize, resize_and_crop, window_indices
from edgeact.errors import InputError, VideoError
from edgeact.video import iter_windows, read_clip, read_grid, write_video

SPEC = ClipSpec(frames=6, frame_stride=2, short_side=48, crop_height=40, crop_width=40)


def scene(frames, height=64, width=80, seed=0):
    """Smooth random frames that all differ."""
    cells = np.random.default_rng(seed).integers(0, 256, (frames, 4, 4, 3), dtype=np.uint8)
    spec = ClipSpec(short_side=min(height, width), crop_height=1, crop_width=1)
    square = np.stack([resize(cell, spec) for cell in cells])
    return np.tile(square, (1, -(-height // square.shape[1]), -(-width // square.shape[2]), 1))[:, :height, :width]


def encode(path, frames, *, codec="libx264", pts=None, pix_fmt="yuv420p", gop=12, rotation=None, options=None):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=24, options=options or {})
        stream.height, stream.width, stream.pix_fmt, stream.gop_size = *frames.shape[1:3], pix_fmt, gop
        if pts is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        if rotation:
            stream.set_display_rotation(rotation)
        ticks = pts if pts is not None else range(len(frames))
        for tick, rgb in zip(ticks, frames, strict=True):
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
            frame.pts, frame.time_base = tick, Fraction(1, 24 if pts is None else 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def plain(path):
    """All frames and their times in seconds by plain PyAV."""
    with av.open(str(path), metadata_errors="ignore") as container:
        frames = list(container.decode(video=0))
    images = [np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90)) for frame in frames]
    if frames[0].pts is None or container.format.name == "avi":  # no timestamps, or guesses that B-frames defeat
        return images, [Fraction(index, 24) for index in range(len(frames))], Fraction(1, 1000)
    times = [(frame.pts - frames[0].pts) * frame.time_base for frame in frames]
    return images, times, min(frames[0].time_base, Fraction(1, 1000))


def plain_grid(path, spec):
    images, times, slack = plain(path)
    if spec.sample_fps is None:
        return images[:: spec.frame_stride]
    grid, index = [], 0
    while (t := index / Fraction(spec.sample_fps)) <= times[-1] + slack:
        grid.append(images[max(i for i, shown in enumerate(times) if shown <= t + slack)])
        index += 1
    return grid


VFR = np.cumsum([0, *np.random.default_rng(3).choice([20, 41, 42, 90, 200], 59)]).tolist()
FILES = {
    "bframes.mp4": {"gop": 250, "options": {"bf": "3", "x264-params": "b-pyramid=normal"}},
    "opengop.mp4": {"gop": 10, "options": {"x264-params": "open-gop=1:bframes=3:keyint=10:min-keyint=5"}},
    "opengop.mkv": {"gop": 10, "options": {"x264-params": "open-gop=1:bframes=3:keyint=10:min-keyint=5"}},
    "refresh.mp4": {"options": {"x264-params": "intra-refresh=1:keyint=12"}},
    "vfr.mp4": {"pts": VFR},
    "vfr.mkv": {"pts": VFR},
    "late.mkv": {"pts": [1234 + 42 * i for i in range(60)]},
    "odd.mkv": {"size": (61, 83), "pix_fmt": "yuv444p"},
    "mpeg4.avi": {"codec": "mpeg4"},
    "packed.avi": {"codec": "mpeg4", "options": {"bf": "2"}},
    "x264.avi": {"options": {"bf": "2"}},
    "vp8.webm": {"codec": "libvpx", "options": {"auto-alt-ref": "1", "lag-in-frames": "10", "deadline": "realtime"}},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}},
    "transport.ts": {"options": {"bf": "2"}},
    "raw.h264": {},
    "mjpeg.mov": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
    "left.mp4": {"rotation": 90},
    "right.mp4": {"rotation": -90},
    "over.mp4": {"rotation": 180},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for name, how in FILES.items():
        size = how.get("size", (64, 80))
        encode(folder / name, scene(60, *size), **{key: value for key, value in how.items() if key != "size"})
    return folder


@pytest.mark.parametrize("fps", [None, 7.0, 24.0, 60.0])
@pytest.mark.parametrize("name", FILES)
def test_equals_a_plain_sequential_decode(folder, name, fps):
    if name == "raw.h264" and fps:
        pytest.skip("an elementary stream has no timestamps to compare")
    spec = ClipSpec(frames=6, frame_stride=3, sample_fps=fps, short_side=48, crop_height=40, crop_width=40)
    expected = plain_grid(folder / name, spec)
    grid, notes = read_grid(folder / name, spec)
    assert notes == ()
    np.testing.assert_array_equal(grid, np.stack([resize(image, spec) for image in expected]))
    for start in (None, 0, len(expected) - 6, len(expected) - 2):
        wanted = window_indices(len(expected), spec.frames, start)
        clip = read_clip(folder / name, spec, start)
        np.testing.assert_array_equal(clip.frames, np.stack([resize_and_crop(expected[i], spec) for i in wanted]))
        assert clip.notes == (
            () if start != len(expected) - 2 else (f"looped: {len(grid)} grid frames for a clip of 6",)
        )


def test_rotation_turns_the_picture_upright(tmp_path):
    frames = np.zeros((4, 64, 96, 3), np.uint8)
    frames[:, :32, :48] = (255, 0, 0)  # red at the top left
    encode(tmp_path / "turned.mp4", frames, rotation=-90)  # a player turns it clockwise
    grid, _ = read_grid(tmp_path / "turned.mp4", SPEC)
    assert grid.shape[1:3] == (72, 48)
    assert grid[0, 18, 36, 0] > 200  # now at the top right
    assert grid[0, 18, 12, 0] < 50


def test_only_the_needed_part_is_decoded(tmp_path, monkeypatch):
    encode(tmp_path / "long.mp4", scene(200), gop=10)
    seen = []
    true_decoded = video.decoded
    monkeypatch.setattr(
        video, "decoded", lambda opened: (seen.append(pair[0]) or pair for pair in true_decoded(opened))
    )
    read_clip(tmp_path / "long.mp4", SPEC)
    assert len(seen) < 30


def test_memory_bound_fallback_decodes_twice(tmp_path, monkeypatch):
    path = encode(tmp_path / "a.avi", scene(60), codec="mpeg4")
    expected = read_clip(path, SPEC).frames
    monkeypatch.setattr(video, "_BUFFER_BYTES", 0)
    np.testing.assert_array_equal(read_clip(path, SPEC).frames, expected)


def test_short_video_loops(tmp_path):
    path = encode(tmp_path / "short.mp4", scene(7))
    clip = read_clip(path, SPEC)
    grid = crop_center(read_grid(path, SPEC)[0], SPEC)
    assert clip.notes == ("looped: 4 grid frames for a clip of 6",)
    np.testing.assert_array_equal(clip.frames, grid[[0, 1, 2, 3, 0, 1]])


@pytest.mark.parametrize(
    ("suffix", "message"), [(".mp4", r"of 60 frames decode"), (".avi", "of 60 frames"), (".mkv", " s decode")]
)
def test_truncated_file_gives_what_decodes(tmp_path, suffix, message):
    path = encode(tmp_path / f"cut{suffix}", scene(60), gop=10, options={"bf": "2"})
    if suffix == ".mp4":
        move_index_to_front(path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])
    clip = read_clip(path, SPEC)
    assert clip.frames.shape == SPEC.clip_shape
    assert "truncated: " in clip.notes[0]
    assert message in clip.notes[0]
    grid, notes = read_grid(path, SPEC)
    assert 8 <= len(grid) < 30
    assert notes[0] == clip.notes[0]


def move_index_to_front(path):
    whole = path.with_name("whole.mp4")
    with av.open(str(path)) as source, av.open(str(whole), "w", options={"movflags": "faststart"}) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    whole.replace(path)


def test_metadata_that_is_not_utf8(tmp_path):
    path = tmp_path / "latin.mkv"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "XXXXXXXX"
        stream = container.add_stream("libx264", rate=24)
        stream.height, stream.width = 64, 80
        for rgb in scene(12):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        container.mux(stream.encode())
    path.write_bytes(path.read_bytes().replace(b"XXXXXXXX", b"caf\xe9 \xff\xfe!"))
    with pytest.raises(UnicodeDecodeError):
        av.open(str(path))
    assert read_clip(path, SPEC).frames.shape == SPEC.clip_shape


def sound_only(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 44100), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def header_only(path):
    encode(path, scene(30))
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"mdat") + 4] + bytes(len(data) - data.index(b"mdat") - 4))


def unknown_codec(path):
    encode(path, scene(30))
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzzz"))


def undecodable_packets(path):
    encode(path, scene(30), codec="mpeg4")  # its headers are in the container: the stream opens
    data = path.read_bytes()
    begin, end = data.index(b"mdat") + 4, data.index(b"moov") - 4
    path.write_bytes(data[:begin] + bytes(end - begin) + data[end:])


BROKEN = {
    "absent.mp4": (lambda path: None, "no such file"),
    "folder.mp4": (lambda path: path.mkdir(), "is a folder"),
    "zero.mp4": (lambda path: path.touch(), r"empty \(0 bytes\)"),
    "text.mp4": (lambda path: path.write_text("hello, this is no video\n" * 40), "not a video that can be read"),
    "noise.mp4": (lambda path: path.write_bytes(np.random.default_rng(0).bytes(5000)), "not a video that can be read"),
    "sound.mp4": (sound_only, r"no video stream \(streams found: audio\)"),
    "header.mp4": (header_only, "not a video that can be read"),
    "codec.mp4": (unknown_codec, "no decoder for its video stream in this build of FFmpeg"),
    "packets.mp4": (undecodable_packets, "no frame decodes"),
}


@pytest.mark.parametrize(
    "read", [lambda p: read_clip(p, SPEC), lambda p: read_grid(p, SPEC), lambda p: list(iter_windows(p, SPEC, 2))]
)
@pytest.mark.parametrize("name", BROKEN)
def test_unusable_file_is_one_line_with_its_name(tmp_path, capfd, name, read):
    make, message = BROKEN[name]
    make(tmp_path / name)
    with pytest.raises(VideoError, match=message) as caught:
        read(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("camera", ["/dev/video987", "987"])
def test_absent_camera(camera):
    with pytest.raises(VideoError, match=f"{camera}: "):
        next(iter_windows(camera, SPEC, 1))


def test_a_protocol_that_ffmpeg_does_not_know():
    with pytest.raises(VideoError, match=r"nosuch://x: cannot be decoded \(Protocol not found\)"):
        read_clip("nosuch://x", SPEC)


def test_windows_slide_to_the_end(tmp_path):
    path = encode(tmp_path / "a.mp4", scene(40))
    grid = crop_center(read_grid(path, SPEC)[0], SPEC)  # 20 grid frames, 1/12 s apart
    windows = list(iter_windows(path, SPEC, 4))
    starts = [0, 4, 8, 12, 14]
    assert [round(window.start_s * 12) for window in windows] == starts
    assert [round(window.end_s * 12) for window in windows] == [start + 5 for start in starts]
    for window, start in zip(windows, starts, strict=True):
        np.testing.assert_array_equal(window.clip, grid[start : start + 6])


def test_windows_hop_that_divides_and_short_video(tmp_path):
    path = encode(tmp_path / "a.mp4", scene(20))
    assert [round(window.start_s * 12) for window in iter_windows(path, SPEC, 2)] == [0, 2, 4]
    short = encode(tmp_path / "short.mp4", scene(5))
    (window,) = iter_windows(str(short), SPEC, 2)
    np.testing.assert_array_equal(window.clip, read_clip(short, SPEC).frames)


@pytest.mark.parametrize(
    ("call", "message"),
    [(lambda: next(iter_windows("a", SPEC, 0)), "hop is 0"), (lambda: read_clip("a", SPEC, -1), "start is -1")],
)
def test_bad_arguments(call, message):
    with pytest.raises(InputError, match=message):
        call()


@pytest.mark.parametrize(("name", "size"), [("a.mp4", (64, 80)), ("a.mkv", (61, 83)), ("a.avi", (64, 80))])
def test_write_video(tmp_path, capfd, name, size):
    frames = scene(10, *size)
    write_video(tmp_path / name, frames, 30000 / 1001, crf=4)
    images, times, _ = plain(tmp_path / name)
    assert np.abs(np.stack(images).astype(int) - frames).mean() < 4
    assert name == "a.avi" or float(times[-1]) == pytest.approx(9 * 1001 / 30000, abs=1e-3)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("name", "frames", "how", "message"),
    [
        ("a.mp4", [], {}, "no frames to write"),
        ("a.mp4", scene(1), {"codec": "h265x"}, "no encoder 'h265x'"),
        ("a.docx", scene(1), {}, "FFmpeg writes no .docx files"),
        ("a.mp4", scene(1), {"codec": "aac"}, r"cannot be encoded as aac in \.mp4"),
        ("a.webm", scene(1), {}, r"cannot be encoded as libx264 in \.webm \('webm' format does not support"),
        ("a.mp4", scene(1), {"options": {"preset": "x"}}, r"as libx264 in \.mp4 \(Invalid argument\)"),
    ],
)
def test_write_video_refuses_and_leaves_nothing(tmp_path, name, frames, how, message):
    with pytest.raises(InputError, match=message):
        write_video(tmp_path / name, frames, 24, **how)
    assert not list(tmp_path.iterdir())


def test_full_disk_is_an_oserror_and_leaves_nothing(tmp_path, full_disk):
    noise = np.random.default_rng(0).integers(0, 255, (40, 64, 64, 3), dtype=np.uint8)
    with full_disk(), pytest.raises(OSError, match="too large"):
        write_video(tmp_path / "a.mp4", noise, 24)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_no_slower_than_plain_decoding(tmp_path):
    path = encode(tmp_path / "a.mp4", scene(120, 240, 426), options={"bf": "2"})
    spec, ratios = ClipSpec(), []
    for _ in range(7):
        begin = time.perf_counter()
        with av.open(str(path)) as container:
            for frame in container.decode(video=0):
                frame.to_ndarray(format="rgb24")
        middle = time.perf_counter()
        read_clip(path, spec)
        ratios.append((time.perf_counter() - middle) / (middle - begin))
    assert np.median(ratios) < 1.1
