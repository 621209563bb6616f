"""A whole video through a bundle: labels with scores per window, and the video with the labels drawn."""

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeact._decode import decoded as decoded_frames
from edgeact._decode import open_video, rgb_converter
from edgeact.errors import InputError, MissingDependencyError
from edgeact.runtime import CheckedRunner
from edgeact.video import check_suffix, iter_windows, write_video

__all__ = ["Prediction", "check_save", "classify_video", "save_labelled"]


@dataclass(frozen=True)
class Prediction:
    """One window: its time in seconds, and the best labels with their softmax scores, best first."""

    start_s: float
    end_s: float
    scores: tuple[tuple[str, float], ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON types only."""
        return asdict(self)


def classify_video(
    runner: CheckedRunner, source: str | os.PathLike[str], *, hop: int, top: int = 3
) -> Iterator[Prediction]:
    """Slide over a video or camera, `hop` sampled frames at a time.

    Raises:
        VideoError: The source holds no usable video.
        InputError: `hop` or `top` is less than 1, or the bundle gives descriptors.
    """
    if top < 1:
        raise InputError(f"top is {top}: at least one label is given per window")
    if runner.bundle.reading is not None:
        raise InputError(f"{runner.bundle.path} gives descriptors, which have no labels: run one that classifies")
    for window in iter_windows(os.fspath(source), runner.bundle.spec, hop):
        logits = runner(window.clip[None])[0].astype(np.float64)
        shares = np.exp(logits - logits.max())
        shares /= shares.sum()
        best = np.argsort(-shares, kind="stable")[:top]
        yield Prediction(window.start_s, window.end_s, tuple((runner.labels[i], float(shares[i])) for i in best))


def check_save(path: Path, source: str) -> None:
    """Refuse what `save_labelled` could not do, before a long video is classified.

    Raises:
        MissingDependencyError: Pillow, which draws, is not installed.
        InputError: The source is no file (a camera never ends), `path` is the source itself, no video can be written
            there, or none of its suffix.
    """
    try:
        import PIL  # noqa: F401
    except ImportError as exc:
        raise MissingDependencyError("pillow", "report", "drawing labels on a video") from exc
    if not Path(source).is_file():
        raise InputError(f"--save needs a video file, found {source!r}: record the camera first")
    if path.is_dir():
        raise InputError(f"--save {path} is a folder: give a file, such as {path / 'labelled.mp4'}")
    if path.exists() and path.samefile(source):
        raise InputError(f"--save {path} is the video itself: give another file")
    if not path.parent.is_dir():
        raise InputError(f"--save {path}: the folder {path.parent} does not exist")
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"--save {path}: the folder {path.parent} cannot be written to")
    check_suffix(path)


def save_labelled(path: Path, source: str, predictions: Sequence[Prediction]) -> None:
    """Write `source` to `path` with the label of the window in the upper left corner; see `check_save`."""
    check_save(path, source)
    with open_video(source) as video:
        rate = video.stream.average_rate or 25
        write_video(path, _labelled(video, predictions), rate)


def _labelled(video: Any, predictions: Sequence[Prediction]) -> Iterator[NDArray[np.uint8]]:
    convert, first, current = rgb_converter(), None, 0
    for ticks, frame in decoded_frames(video):
        first = ticks if first is None else first
        seconds = float((ticks - first) * video.stream.time_base)
        # the window whose middle is nearest: each frame gets the label of the clip that is centred on it
        while current + 1 < len(predictions) and _distance(predictions[current + 1], seconds) <= _distance(
            predictions[current], seconds
        ):
            current += 1
        yield _draw(convert(frame), predictions[current])


def _distance(prediction: Prediction, seconds: float) -> float:
    return abs((prediction.start_s + prediction.end_s) / 2 - seconds)


def _draw(frame: NDArray[np.uint8], prediction: Prediction) -> NDArray[np.uint8]:
    from PIL import Image, ImageDraw, ImageFont

    image = Image.fromarray(frame)
    size = max(10, math.ceil(frame.shape[0] / 18))
    draw = ImageDraw.Draw(image, "RGBA")
    font = ImageFont.load_default(size)
    text = "\n".join(f"{label}  {score:.0%}" for label, score in prediction.scores)
    box = draw.multiline_textbbox((size // 2, size // 2), text, font=font)
    draw.rectangle(
        (box[0] - size // 3, box[1] - size // 3, box[2] + size // 3, box[3] + size // 3), fill=(0, 0, 0, 160)
    )
    draw.multiline_text((size // 2, size // 2), text, font=font, fill=(255, 255, 255, 255))
    return np.asarray(image)
