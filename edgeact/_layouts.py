"""Where labelled videos lie, and on which side of the split.

Three layouts are read, the first that fits:

    root/split.csv                       columns path,label,group,split; nothing else is looked for
    root/train|val|test/<class>/*.mp4    the folders are the split; `val` stands in where `test` is missing
    root/<class>/*.mp4                   a hash of the clip's id holds out about a fifth of each class as `test`

`test` is for reporting; training chooses its best epoch on `val`. Where a dataset marks no `val`, about a seventh of
each class's training clips becomes it: whole groups (clips of one scene or person), so that nothing seen is asked.
"""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from edgeact.errors import InputError

__all__ = ["Entry", "read_entries", "some", "video_files"]

_VIDEO_SUFFIXES = {
    *(".3gp", ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf"),
    *(".ogv", ".ts", ".vob", ".webm", ".wmv", ".y4m"),
}
_SPLIT_FOLDERS = ("train", "val", "test")
_VAL_SHARE = 0.15
_COLUMNS = ("path", "label", "group", "split")


@dataclass(frozen=True)
class Entry:
    """One video before the split is chosen."""

    id: str
    label: str
    group: str
    split: str


def read_entries(root: Path) -> list[Entry]:
    """Every video of the folder, on its side of the split.

    Raises:
        InputError: The folder is no dataset.
    """
    return _with_val(_read_split_csv(root) if (root / "split.csv").is_file() else _walk(root))


def some(names: Sequence[str], most: int = 5) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(repr(name) for name in names[:most]) + more


def video_files(folder: Path) -> list[Path]:
    """Every video below `folder`, by its suffix and sorted; hidden files are left out."""
    found = (path for path in folder.rglob("*") if path.suffix.lower() in _VIDEO_SUFFIXES and path.is_file())
    return sorted(path for path in found if not path.name.startswith("."))


def _read_split_csv(root: Path) -> list[Entry]:
    file = root / "split.csv"
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            columns = reader.fieldnames or []
            rows = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{file}: not a UTF-8 CSV file ({error})") from error
    if missing := [name for name in _COLUMNS if name not in columns]:
        raise InputError(f"{file}: missing column {some(missing)}; it needs {','.join(_COLUMNS)}")
    if not rows:
        raise InputError(f"{file}: lists no clips")
    entries = [_entry(file, line, row) for line, row in enumerate(rows, 2)]
    if absent := [entry.id for entry in entries if not (root / entry.id).is_file()]:
        raise InputError(f"{file}: lists {len(absent)} missing of {len(entries)} files: {some(absent, 3)}")
    ids = [entry.id for entry in entries]
    if len(set(ids)) != len(ids):
        raise InputError(f"{file}: lists {some(sorted({id for id in ids if ids.count(id) > 1}), 3)} more than once")
    return entries


def _entry(file: Path, line: int, row: dict[str, str | None]) -> Entry:
    path, label, split = (row.get(name) or "" for name in ("path", "label", "split"))
    if not path or not label:
        raise InputError(f"{file}, line {line}: path and label must not be empty")
    relative = PurePosixPath(path)
    if relative.is_absolute() or ".." in relative.parts or "\\" in path:
        raise InputError(f"{file}, line {line}: {path!r} leaves the folder; paths are relative, with forward slashes")
    if split not in _SPLIT_FOLDERS:
        raise InputError(f"{file}, line {line}: unknown split {split!r}; allowed: {', '.join(_SPLIT_FOLDERS)}")
    return Entry(relative.as_posix(), label, row.get("group") or path, split)


def _walk(root: Path) -> list[Entry]:
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
    return [entry for folder in folders for entry in _hold_out(_class_entries(root, folder, "train"))]


def _folders(root: Path) -> list[Path]:
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not folders:
        raise InputError(f"{root}: no class folders; give a folder with split.csv or one folder of videos per class")
    return folders


def _class_entries(root: Path, folder: Path, split: str) -> list[Entry]:
    files = video_files(folder)
    if not files:
        raise InputError(f"{folder}: the class {folder.name!r} has no clips; add videos or remove the folder")
    ids = [path.relative_to(root).as_posix() for path in files]
    return [Entry(id, folder.name, id, split) for id in ids]


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _hold_out(entries: list[Entry]) -> list[Entry]:
    """About a fifth of a class as "test", by the hash of each id, so that new clips do not move old ones.

    A class of two clips or more has at least one on each side.
    """
    order = sorted(entries, key=lambda entry: _hash(entry.id))
    fifth = sum(_hash(entry.id)[0] < 51 for entry in order)  # 51 / 256 = 0.2
    count = min(max(fifth, 1), len(order) - 1)
    return [replace(entry, split="test" if i < count else "train") for i, entry in enumerate(order)]


def _with_val(entries: list[Entry]) -> list[Entry]:
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
