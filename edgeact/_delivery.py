"""What a device is sent to measure a bundle, and how: only what it lacks, from where a copy was cut, checked by hash.

bundle/   the bundle, file by file
source/   edgeact itself, the part that needs no torch: the device measures with the code that judges
data/     with --data: the clips of the bundle's evaluation set, and a split.csv with their labels
"""

import csv
import hashlib
import io
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edgeact._progress import progress_bar
from edgeact._ssh import Connection
from edgeact.bundle import Bundle
from edgeact.data import VideoDataset
from edgeact.errors import DeviceError

__all__ = ["Item", "bundle_items", "data_items", "deliver", "source_items"]

_BLOCK_BYTES = 1 << 20
_SPARE_BYTES = 64 << 20  # compiled source, results, what a runtime caches
_PACKAGES = ("edgeact", "edgeact.runtime", "edgeact.quantize", "edgeact.targets")  # what `import edgeact` loads


@dataclass(frozen=True)
class Item:
    """A file to send: where it is here, or its content."""

    source: Path | bytes
    size: int
    sha256: str

    @classmethod
    def of(cls, source: Path | bytes) -> "Item":
        """Measure a file, or what one shall hold."""
        size = len(source) if isinstance(source, bytes) else source.stat().st_size
        return cls(source, size, _sha256(source, size))


def bundle_items(bundle: Bundle) -> dict[str, Item]:
    """The files of a bundle, by their name on the device."""
    return {f"bundle/{name}": Item.of(bundle.path / name) for name in ("manifest.json", *bundle.manifest["files"])}


def source_items() -> dict[str, Item]:
    """The modules of edgeact that measure, by their name on the device."""
    items = {}
    for package in _PACKAGES:
        spec = find_spec(package)
        assert spec is not None
        assert spec.origin is not None  # its __init__.py
        for file in sorted(Path(spec.origin).parent.iterdir()):
            if file.suffix in (".py", ".json"):
                items[f"source/{package.replace('.', '/')}/{file.name}"] = Item.of(file)
    return items


def data_items(dataset: VideoDataset) -> dict[str, Item]:
    """The clips of `dataset`, by their name on the device, and the split.csv that labels them."""
    items = {f"data/{sample.id}": Item.of(sample.path) for sample in dataset.samples}
    rows = [(sample.id, dataset.labels[sample.label]) for sample in dataset.samples]
    for i, label in enumerate(sorted(set(dataset.labels) - {label for _, label in rows})):
        rows.append((f"unused_{i}.mp4", label))  # a dataset names every label of its bundle; nobody decodes this
        items[f"data/unused_{i}.mp4"] = Item.of(b"")
    table = io.StringIO()
    csv.writer(table).writerows([("path", "label", "group", "split"), *((*row, "", "test") for row in rows)])
    return {**items, "data/split.csv": Item.of(table.getvalue().encode())}


def deliver(
    connection: Connection, items: Mapping[str, Item], *, free: int, extra: int = 0, progress: bool = False
) -> int:
    """Send those of `items` that the device lacks, and return how many bytes that were.

    Args:
        free: Bytes that the device's disk has left.
        extra: Bytes that the measurement will write there.

    Raises:
        DeviceError: The device has no room for them, or other content afterwards.
    """
    there = _hashes(connection, items)
    offsets = {name: _present(item, there.get(name)) for name, item in items.items()}
    missing = {name: item for name, item in items.items() if name not in there or offsets[name] < item.size}
    left = sum(item.size - offsets[name] for name, item in missing.items())
    needed = left + extra + _SPARE_BYTES
    if free < needed:
        raise DeviceError(
            f"{connection.address} has {free / 1e6:.0f} MB left on the disk of its cache, {needed / 1e6:.0f} MB are "
            "needed: make room, or set XDG_CACHE_HOME there"
        )
    _send(connection, missing, offsets, left, progress)
    after = _hashes(connection, items)
    differ = [name for name, item in items.items() if after.get(name) != (item.size, item.sha256)]
    if differ:
        raise DeviceError(
            f"{connection.address} holds other bytes than were sent in {len(differ)} files, first {differ[0]!r}: its "
            "disk or memory is faulty, or the file changed here meanwhile; run it again"
        )
    return left


def _send(
    connection: Connection, items: Mapping[str, Item], offsets: Mapping[str, int], left: int, progress: bool
) -> None:
    """The rest of each of `items` from its offset on, `left` bytes in all, in one stream."""
    steps, done = math.ceil(left / _BLOCK_BYTES), 0
    with progress_bar(f"copying to {connection.address.host} (MiB)", steps, progress) as step:
        for name, item in items.items():
            connection.tell("write", name=name, offset=offsets[name], size=item.size - offsets[name])
            for block in _blocks(item.source, offsets[name], item.size):
                connection.send(block)
                before, done = done, done + len(block)
                for _ in range(math.ceil(before / _BLOCK_BYTES), math.ceil(done / _BLOCK_BYTES)):
                    step()


def _hashes(connection: Connection, items: Mapping[str, Item]) -> dict[str, tuple[int, str]]:
    """Size and sha256 of what the device has of `items`."""
    answer: Any = connection.ask("hash", files=list(items)).get("files")
    try:
        return {str(name): (int(size), str(digest)) for name, (size, digest) in answer.items()}
    except (AttributeError, TypeError, ValueError) as exc:
        raise DeviceError(f"{connection.address} gave hashes that cannot be read: {exc}") from exc


def _present(item: Item, found: tuple[int, str] | None) -> int:
    """How many bytes of `item` the device has, from its start: none where they are others."""
    if found is None or not 0 <= found[0] <= item.size:
        return 0
    return found[0] if _sha256(item.source, found[0]) == found[1] else 0


def _blocks(source: Path | bytes, start: int, end: int) -> Iterator[bytes]:
    """Bytes `start` to `end`, a block at a time; zeros for what a file has lost since it was measured."""
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as stream:
        stream.seek(start)
        for position in range(start, end, _BLOCK_BYTES):
            size = min(_BLOCK_BYTES, end - position)
            yield stream.read(size).ljust(size, b"\0")


def _sha256(source: Path | bytes, size: int) -> str:
    """Of the first `size` bytes."""
    digest = hashlib.sha256()
    for block in _blocks(source, 0, size):
        digest.update(block)
    return digest.hexdigest()
