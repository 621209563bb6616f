"""Labelled video folders: which clips there are, on which side of the split, and their decoded frames.

Three layouts are read, the first that fits:

    root/split.csv                       columns path,label,group,split; nothing else is looked for
    root/train|val|test/<class>/*.mp4    the folders are the split; `val` stands in where `test` is missing
    root/<class>/*.mp4                   a hash of the clip's id holds out about a fifth of each class as `test`

`test` is for reporting; training chooses its best epoch on `val`. Where a dataset marks no `val`, about a seventh of
each class's training clips becomes it: whole groups (clips of one scene or person), so that nothing seen is asked.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from edgeact._cache import Decoded, cache_dir, cached
from edgeact._progress import progress_bar
from edgeact.clip import ClipSpec
from edgeact.errors import InputError, UnknownNameError, VideoError
from edgeact.video import read_clip, read_grid

__all__ = ["Sample", "VideoDataset", "cache_dir", "iter_clips", "load_grid", "open_dataset"]

Split = Literal["train", "val", "test", "all"]

_VIDEO_SUFFIXES = {
    *(".3gp", ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf"),
    *(".ogv", ".ts", ".vob", ".webm", ".wmv", ".y4m"),
}
_SPLIT_FOLDERS = ("train", "val", "test")
_VAL_SHARE = 0.15
_COLUMNS = ("path", "label", "group", "split")


@dataclass(frozen=True)
class Sample:
    """One labelled video.

    Attributes:
        id: Its path relative to the dataset's root, with forward slashes: the same on every machine.
        path: Where it is.
        label: Position in the dataset's labels.
    """

    id: str
    path: Path
    label: int


@dataclass(frozen=True)
class VideoDataset:
    """Labelled videos of one split, in the order of their ids."""

    root: Path
    labels: tuple[str, ...]
    samples: tuple[Sample, ...]


@dataclass(frozen=True)
class _Entry:
    """One video before the split is chosen."""

    id: str
    label: str
    group: str
    split: str


def open_dataset(root: str | Path, *, split: Split, labels: Sequence[str] | None = None) -> VideoDataset:
    """List the clips of a labelled video folder (see the module's docstring for the layouts).

    Args:
        root: The folder.
        split: "train", "val" (to choose an epoch by), "test" (held out) or "all".
        labels: The labels of a checkpoint or bundle, which fix the order; None sorts the dataset's own.

    Raises:
        InputError: The folder is no dataset, a class has no clips, or its labels are not those asked for.
    """
    if split not in get_args(Split):
        raise UnknownNameError("split", split, get_args(Split))
    root = Path(root)
    if not root.exists():
        raise InputError(f"{root}: no such folder; give a folder with split.csv or one folder of videos per class")
    if not root.is_dir():
        raise InputError(f"{root}: is a file; give a folder with split.csv or one folder of videos per class")
    entries = _with_val(_read_split_csv(root) if (root / "split.csv").is_file() else _walk(root))
    found = sorted({entry.label for entry in entries})
    names = tuple(labels) if labels is not None else tuple(found)
    _check_labels(root, names, found)
    chosen = sorted((entry for entry in entries if split in (entry.split, "all")), key=lambda entry: entry.id)
    if empty := sorted(set(found) - {entry.label for entry in chosen}):
        hint = "two groups of training clips are needed to hold one out" if split == "val" else "or use 'all'"
        raise InputError(f"{root}: no clips of the class {_some(empty)} in the {split!r} split; add some ({hint})")
    index = {name: position for position, name in enumerate(names)}
    samples = tuple(Sample(entry.id, root / entry.id, index[entry.label]) for entry in chosen)
    return VideoDataset(root, names, samples)


def _some(names: Sequence[str], most: int = 5) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(repr(name) for name in names[:most]) + more


def _check_labels(root: Path, names: tuple[str, ...], found: list[str]) -> None:
    if len(set(names)) != len(names):
        raise InputError(f"labels repeat: {_some(sorted({name for name in names if names.count(name) > 1}))}")
    absent, unknown = sorted(set(names) - set(found)), sorted(set(found) - set(names))
    parts = [f"the model knows {_some(absent)}, which the data lacks"] if absent else []
    parts += [f"the data has {_some(unknown)}, which the model does not know"] if unknown else []
    if parts:
        raise InputError(f"{root}: the labels differ from the model's: {'; '.join(parts)}")


def _read_split_csv(root: Path) -> list[_Entry]:
    file = root / "split.csv"
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            columns = reader.fieldnames or []
            rows = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{file}: not a UTF-8 CSV file ({error})") from error
    if missing := [name for name in _COLUMNS if name not in columns]:
        raise InputError(f"{file}: missing column {_some(missing)}; it needs {','.join(_COLUMNS)}")
    if not rows:
        raise InputError(f"{file}: lists no clips")
    entries = [_entry(file, line, row) for line, row in enumerate(rows, 2)]
    if absent := [entry.id for entry in entries if not (root / entry.id).is_file()]:
        raise InputError(f"{file}: lists {len(absent)} missing of {len(entries)} files: {_some(absent, 3)}")
    ids = [entry.id for entry in entries]
    if len(set(ids)) != len(ids):
        raise InputError(f"{file}: lists {_some(sorted({id for id in ids if ids.count(id) > 1}), 3)} more than once")
    return entries


def _entry(file: Path, line: int, row: dict[str, str | None]) -> _Entry:
    path, label, split = (row.get(name) or "" for name in ("path", "label", "split"))
    if not path or not label:
        raise InputError(f"{file}, line {line}: path and label must not be empty")
    relative = PurePosixPath(path)
    if relative.is_absolute() or ".." in relative.parts or "\\" in path:
        raise InputError(f"{file}, line {line}: {path!r} leaves the folder; paths are relative, with forward slashes")
    if split not in _SPLIT_FOLDERS:
        raise InputError(f"{file}, line {line}: unknown split {split!r}; allowed: {', '.join(_SPLIT_FOLDERS)}")
    return _Entry(relative.as_posix(), label, row.get("group") or path, split)


def _walk(root: Path) -> list[_Entry]:
    """Class folders, or class folders below train/, val/ and test/."""
    folders = _folders(root)
    names = {folder.name for folder in folders}
    if "train" in names and names <= set(_SPLIT_FOLDERS):
        held_out = "test" if "test" in names else "val"
        as_split = {"train": "train", held_out: "test"}
        tops = [(folder, as_split.get(folder.name, folder.name)) for folder in folders]
        return [
            entry for top, split in tops for folder in _folders(top) for entry in _class_entries(root, folder, split)
        ]
    entries = [entry for folder in folders for entry in _hold_out(_class_entries(root, folder, "train"))]
    if not entries:
        raise InputError(f"{root}: no videos; give a folder with split.csv or one folder of videos per class")
    return entries


def _folders(root: Path) -> list[Path]:
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not folders:
        raise InputError(f"{root}: no class folders; give a folder with split.csv or one folder of videos per class")
    return folders


def _class_entries(root: Path, folder: Path, split: str) -> list[_Entry]:
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _VIDEO_SUFFIXES and path.is_file())
    files = [path for path in files if not path.name.startswith(".")]
    if not files:
        raise InputError(f"{folder}: the class {folder.name!r} has no clips; add videos or remove the folder")
    ids = [path.relative_to(root).as_posix() for path in files]
    return [_Entry(id, folder.name, id, split) for id in ids]


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _hold_out(entries: list[_Entry]) -> list[_Entry]:
    """About a fifth of a class as "test", by the hash of each id, so that new clips do not move old ones.

    A class of two clips or more has at least one on each side.
    """
    order = sorted(entries, key=lambda entry: _hash(entry.id))
    fifth = sum(_hash(entry.id)[0] < 51 for entry in order)  # 51 / 256 = 0.2
    count = min(max(fifth, 1), len(order) - 1)
    return [replace(entry, split="test" if i < count else "train") for i, entry in enumerate(order)]


def _with_val(entries: list[_Entry]) -> list[_Entry]:
    """`entries` where some are "val": those marked so, else whole training groups that fit, in the order of hashes."""
    if any(entry.split == "val" for entry in entries):
        return entries
    groups: dict[str, Counter[str]] = {}
    for entry in entries:
        if entry.split == "train":
            groups.setdefault(entry.group, Counter())[entry.label] += 1
    sizes = sum(groups.values(), Counter())
    room = {label: min(max(round(_VAL_SHARE * size), 1), size - 1) for label, size in sizes.items()}
    held_out = set()
    for group in sorted(groups, key=_hash):
        if all(count <= room[label] for label, count in groups[group].items()):
            held_out.add(group)
            room = {label: left - groups[group][label] for label, left in room.items()}
    return [
        replace(entry, split="val") if entry.split == "train" and entry.group in held_out else entry
        for entry in entries
    ]


def load_grid(sample: Sample, spec: ClipSpec, cache: Path | None) -> NDArray[np.uint8]:
    """All grid frames of a clip, `[N, H', W', 3]` uncropped: memory-mapped (read-only) where there is a cache.

    Raises:
        VideoError: The video cannot be used.
    """
    return cached(sample.path, spec, "grid", cache, lambda: read_grid(sample.path, spec))[0]


def _load_clip(sample: Sample, spec: ClipSpec, cache: Path | None) -> Decoded:
    def decode() -> Decoded:
        clip = read_clip(sample.path, spec)
        return clip.frames, clip.notes

    frames, notes = cached(sample.path, spec, "clip", cache, decode)
    return np.array(frames), notes


def iter_clips(
    dataset: VideoDataset,
    spec: ClipSpec,
    *,
    on_corrupt: Literal["skip", "error"] = "error",
    workers: int = 2,
    cache: Path | None,
    progress: bool = False,
    skipped: list[str] | None = None,
    notes: list[str] | None = None,
) -> Iterator[tuple[Sample, NDArray[np.uint8]]]:
    """The middle clip `[T, H, W, 3]` of every video in order, decoded ahead by `workers` threads.

    Args:
        dataset: The clips.
        spec: Sampling and preprocessing.
        on_corrupt: What a video that cannot be used does: "error" raises, "skip" leaves it out.
        workers: Decoding threads, at least 1.
        cache: Folder for decoded clips; None decodes every time.
        progress: Show a bar on stderr.
        skipped: Receives one line for each video left out.
        notes: Receives one line for each remark on a video ("looped: …").

    Raises:
        VideoError: A video cannot be used and `on_corrupt` is "error", or none at all can.
    """
    if on_corrupt not in ("skip", "error"):
        raise UnknownNameError("on_corrupt", on_corrupt, ("skip", "error"))
    if workers < 1:
        raise InputError(f"workers is {workers}: decoding needs at least 1 thread")
    used, last_error = 0, None
    bar = progress_bar("decoding", len(dataset.samples), progress)
    with _decoding(dataset, spec, workers, cache) as results, bar as step:
        for sample, result in results:
            try:
                clip, remarks = result.result()
            except VideoError as error:
                if on_corrupt == "error":
                    raise
                last_error = error
                if skipped is not None:
                    skipped.append(str(error))
            else:
                used += 1
                if notes is not None:
                    notes.extend(f"{sample.id}: {remark}" for remark in remarks)
                yield sample, clip
            step()
    if not used and dataset.samples:
        raise VideoError(f"{dataset.root}: none of {len(dataset.samples)} videos can be used") from last_error


@contextlib.contextmanager
def _decoding(
    dataset: VideoDataset, spec: ClipSpec, workers: int, cache: Path | None
) -> Iterator[Iterator[tuple[Sample, Future[Decoded]]]]:
    """Clips in order while threads decode a few ahead; leaving early drops what has not begun."""
    pool = ThreadPoolExecutor(workers, "edgeact-decode")

    def ahead() -> Iterator[tuple[Sample, Future[Decoded]]]:
        pending: deque[tuple[Sample, Future[Decoded]]] = deque()
        for sample in dataset.samples:
            pending.append((sample, pool.submit(_load_clip, sample, spec, cache)))
            if len(pending) > 2 * workers:
                yield pending.popleft()
        while pending:
            yield pending.popleft()

    try:
        yield ahead()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
