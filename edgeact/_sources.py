"""What a user names when asked for videos: a folder, a list, one file, or what goes on as it is seen."""

import os
from collections import Counter
from pathlib import Path

from edgeact._layouts import some, video_files
from edgeact.data import Sample, VideoDataset, open_dataset
from edgeact.errors import InputError

__all__ = ["find_videos", "is_live"]

_UNLABELLED = -1


def is_live(source: str) -> bool:
    """Whether it is a camera (its number or device) or a URL: read once, as it comes."""
    return "://" in source or source.isdecimal() or source.startswith("/dev/video")


def find_videos(source: str | os.PathLike[str]) -> VideoDataset:
    """The videos of a folder and of those in it, of a .txt with one path a line, or one video.

    Ids are paths relative to the folder, or to the deepest folder that holds all videos of a list. Labels are known
    where the folder has a split.csv; then its videos are those that are listed there.

    Raises:
        InputError: There are none, the list cannot be read, or names a video twice, or a name is not Unicode.
    """
    path = Path(os.path.abspath(source))  # of links, the name that was given  # noqa: PTH100
    if path.is_dir():
        if (path / "split.csv").is_file():
            return open_dataset(path, split="all")
        return _unlabelled(path, video_files(path), f"{source}: no videos in this folder, nor in those below it")
    if not path.exists():
        raise InputError(f"{source}: no such file or folder; give videos, a .txt that lists them, a camera or a URL")
    if path.suffix.lower() != ".txt":
        return _unlabelled(path.parent, [path], "")
    return _listed(path)


def _listed(file: Path) -> VideoDataset:
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as exc:
        raise InputError(f"{file}: not a list of videos: it is no UTF-8 text ({exc})") from exc
    if any("\0" in line for line in lines):
        raise InputError(f"{file}: not a list of videos: it holds binary data")
    paths = [Path(os.path.abspath(file.parent / line.strip())) for line in lines if line.strip()]  # noqa: PTH100
    twice = [str(path) for path, count in Counter(paths).items() if count > 1]
    if twice:
        raise InputError(f"{file}: lists {some(twice, 3)} more than once")
    if paths and not any(path.exists() for path in paths):
        raise InputError(
            f"{file}: none of its {len(paths)} files exists, as {paths[0]}; paths are relative to the list's folder"
        )
    root = Path(os.path.commonpath([path.parent for path in paths])) if paths else file.parent
    return _unlabelled(root, paths, f"{file}: lists no videos; write one path a line")


def _unlabelled(root: Path, paths: list[Path], if_none: str) -> VideoDataset:
    if not paths:
        raise InputError(if_none)
    odd = [str(path) for path in paths if not _is_unicode(path.relative_to(root))]
    if odd:  # what no table can hold, told before hours of work
        raise InputError(f"{root}: names of videos that are not UTF-8: {some(odd, 3)}; rename them")
    samples = (Sample(path.relative_to(root).as_posix(), path, _UNLABELLED) for path in paths)
    return VideoDataset(root, (), tuple(sorted(samples, key=lambda sample: sample.id)))


def _is_unicode(path: Path) -> bool:
    """Python holds other bytes of a name as lone surrogates."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True
