"""What is sent, and that a copy goes on from where it was cut."""

import csv
import os
from dataclasses import replace
from pathlib import Path

import pytest
from ssh_server import Server

from edgeact import _delivery
from edgeact._address import Address
from edgeact._delivery import Item, data_items, deliver, source_items
from edgeact._progress import tell_progress
from edgeact._ssh import Connection
from edgeact.data import Sample, VideoDataset, open_dataset
from edgeact.errors import DeviceError

FREE = 1 << 40
LARGE = os.urandom(3 << 20)
ITEMS = {"bundle/large": Item.of(LARGE), "bundle/a/small": Item.of(b"small"), "bundle/empty": Item.of(b"")}


def opened(server: Server, name: str) -> Connection:
    connection = Connection(Address("device"), ssh_config=server.config)
    connection.ask("open", name=name)
    return connection


def test_only_what_differs_is_sent(server: Server) -> None:
    told = []
    with opened(server, "delivery") as connection, tell_progress(lambda *line: told.append(line)):
        assert deliver(connection, ITEMS, free=FREE, progress=True) == (3 << 20) + 5
        assert told == [("copying to device (MiB)", done, 4) for done in range(5)]
        folder = server.cache / "device" / "delivery"
        assert (folder / "bundle" / "large").read_bytes() == LARGE
        assert (folder / "bundle" / "empty").read_bytes() == b""
        assert deliver(connection, ITEMS, free=FREE) == 0
        (folder / "bundle" / "large").write_bytes(LARGE[: 1 << 20])  # cut
        (folder / "bundle" / "a" / "small").write_bytes(b"smart")  # damaged
        (folder / "bundle" / "old" / "er").mkdir(parents=True)
        (folder / "bundle" / "old" / "module.py").write_bytes(b"of another version")
        assert deliver(connection, ITEMS, free=FREE) == (2 << 20) + 5
        assert not (folder / "bundle" / "old").exists()
        (folder / "bundle" / "large").write_bytes(b"x" + LARGE[1 : 1 << 20])  # not its beginning
        (folder / "bundle" / "a" / "small").write_bytes(b"small and more")
        assert deliver(connection, ITEMS, free=FREE) == (3 << 20) + 5
        assert (folder / "bundle" / "large").read_bytes() == LARGE
        connection.ask("remove")
    assert not server.cache.exists()


def test_a_full_disk_is_told_before(server: Server) -> None:
    with opened(server, "disk") as connection:
        with pytest.raises(DeviceError, match=r"device has 70 MB left on the disk of its cache, 75 MB are needed"):
            deliver(connection, ITEMS, free=70_000_000, extra=5_000_000)
        connection.ask("remove")


def test_other_bytes_afterwards_are_an_error(server: Server) -> None:
    with opened(server, "faulty") as connection:
        lying = ITEMS | {"bundle/small": replace(Item.of(b"small"), sha256="0" * 64)}
        with pytest.raises(DeviceError, match="other bytes than were sent in 1 files, first 'bundle/small'"):
            deliver(connection, lying, free=FREE)
        connection.ask("remove")


def test_a_file_that_shrinks_meanwhile(server: Server, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"long")
    item = Item.of(tmp_path / "f")
    (tmp_path / "f").write_bytes(b"lo")
    with opened(server, "shrinks") as connection:
        with pytest.raises(DeviceError, match="or the file changed here meanwhile"):
            deliver(connection, {"bundle/f": item}, free=FREE)
        connection.ask("remove")


@pytest.mark.parametrize("answer", [{}, {"files": [1]}, {"files": {"a": 3}}, {"files": {"a": ["x", "y"]}}])
def test_hashes_that_are_none(monkeypatch: pytest.MonkeyPatch, server: Server, answer: dict[str, object]) -> None:
    with Connection(Address("device"), ssh_config=server.config) as connection:
        monkeypatch.setattr(connection, "ask", lambda do, **how: answer)
        with pytest.raises(DeviceError, match="gave hashes that cannot be read"):
            deliver(connection, ITEMS, free=FREE)


def test_a_device_that_claims_more_than_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _delivery._present(ITEMS["bundle/empty"], (7, "x")) == 0
    assert _delivery._present(ITEMS["bundle/empty"], (-1, "x")) == 0


def test_the_source_is_what_measures() -> None:
    sources = source_items()
    for name in ("_agent", "measure", "runtime/openvino", "quantize/__init__", "targets/__init__"):
        assert f"source/edgeact/{name}.py" in sources
    assert not [name for name in sources if "/cli/" in name or "/packaged/" in name or "/lowering/" in name]
    assert sum(item.size for item in sources.values()) < 1_000_000


def test_clips_go_with_their_labels(tmp_path: Path) -> None:
    (tmp_path / "here" / "of, class").mkdir(parents=True)
    (tmp_path / "here" / "of, class" / "ä.mp4").write_bytes(b"video")
    sample = Sample("of, class/ä.mp4", tmp_path / "here" / "of, class" / "ä.mp4", 1)
    items = data_items(VideoDataset(tmp_path, ("first", "of, class"), (sample,)))
    for name, item in items.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(item.source if isinstance(item.source, bytes) else item.source.read_bytes())
    there = open_dataset(tmp_path / "data", split="all", labels=("first", "of, class"))
    assert [(one.id, one.label) for one in there.samples] == [("of, class/ä.mp4", 1), ("unused_0.mp4", 0)]
    assert (tmp_path / "data" / "of, class" / "ä.mp4").read_bytes() == b"video"
    with (tmp_path / "data" / "split.csv").open(newline="", encoding="utf-8") as table:
        assert [row["split"] for row in csv.DictReader(table)] == ["test", "test"]
