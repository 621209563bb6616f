"""The file of descriptors: what is written is read, and what is damaged is refused."""

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from edgeact.clip import ClipSpec
from edgeact.descriptor_table import SUFFIXES, Fields, Table, read_table, write_table
from edgeact.errors import InputError, MissingDependencyError, UnknownNameError

FIELDS = Fields(
    root="/videos",
    per="clip",
    descriptor="d" * 64,
    network="a" * 64,
    model="c3d",
    layer="fc6",
    order="average-normalize",
    hop=8,
    spec=ClipSpec(frames=16),
    dims=3,
    computed_by="PyTorch",
)
IDS = ("a/1.mp4", "a/1.mp4", "b/größer 2.mp4")


def _table(**changes: Any) -> Table:
    rows = np.random.default_rng(0).standard_normal((3, 3)).astype(np.float32)
    times = {"start_s": np.array([0.0, 0.5, 0.0]), "end_s": np.array([1.0, 1.5, 0.1])}
    return Table(**{"ids": IDS, "descriptors": rows, "fields": FIELDS, **times, **changes})


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("labels", [None, ("x", "x", "y")])
def test_what_was_written_is_read(tmp_path: Path, suffix: str, labels: tuple[str, ...] | None) -> None:
    file, table = tmp_path / f"t{suffix}", _table(labels=labels)
    write_table(file, table)
    found = read_table(file)
    assert (found.ids, found.labels, found.fields, len(found)) == (IDS, labels, FIELDS, 3)
    for name in ("start_s", "end_s", "descriptors"):
        np.testing.assert_array_equal(getattr(found, name), getattr(table, name), strict=True)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_other_programs_read_both(tmp_path: Path) -> None:
    table = _table()
    write_table(tmp_path / "t.parquet", table)
    rows = pq.read_table(tmp_path / "t.parquet").to_pylist()
    assert rows[2]["id"] == IDS[2]
    np.testing.assert_array_equal(np.float32(rows[2]["descriptor"]), table.descriptors[2])
    write_table(tmp_path / "t.npz", table)
    with np.load(tmp_path / "t.npz") as arrays:
        assert json.loads(str(arrays["fields"]))["model"] == "c3d"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ids": IDS[:2]}, r"start_s is float64 \(3,\), not float64 \(2,\)"),
        ({"ids": ()}, "holds no descriptors"),
        ({"end_s": np.array([0, 1, 2])}, "end_s is int64"),
        ({"end_s": np.array([0, 1, np.inf])}, "end_s holds values that are not finite"),
        ({"descriptors": np.zeros((3, 4), np.float32)}, r"descriptors is float32 \(3, 4\), not float32 \(3, 3\)"),
        ({"descriptors": np.full((3, 3), np.nan, np.float32)}, "descriptors holds values that are not finite"),
        ({"labels": ("x",)}, "1 labels for 3 rows"),
        ({"start_s": np.array([0.0, -1.0, 0.0])}, "row 1 is of -1 to 1.5 s, which no video has"),
        ({"start_s": np.array([0.0, 0.0, 0.2])}, "row 2 is of 0.2 to 0.1 s"),
        ({"end_s": np.array([1e300, 1.5, 0.1])}, r"row 0 is of 0 to 1e\+300 s"),
        ({"ids": ("a", "b\udcff", "c")}, "ids hold text that is not Unicode"),
        ({"labels": ("a", "b", "\ud800")}, "labels hold text that is not Unicode"),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        _table(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "has version 2, this edgeact reads 1"),
        ({"order": "none"}, "unknown order 'none'"),
        ({"per": "frame"}, "per 'frame', not per clip or video"),
        ({"dims": -1}, "-1 dims, hop 8"),
        ({"spec": {"frames": 0}}, "its fields are malformed"),
        ({"dims": 4}, "descriptors?"),
    ],
)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_fields_of_anyone_are_refused(tmp_path: Path, suffix: str, changes: dict[str, Any], message: str) -> None:
    text = json.dumps({"version": 1, **FIELDS.to_dict(), **changes})
    file = tmp_path / f"t{suffix}"
    write_table(file, _table())
    if suffix == ".npz":
        with np.load(file) as arrays:
            stored = dict(arrays)
        np.savez(file, **stored | {"fields": np.array(text)})
    else:
        pq.write_table(pq.read_table(file).replace_schema_metadata({"edgeact-descriptors": text}), file)
    with pytest.raises(InputError, match=f"{file.name} is no table of descriptors: .*{message}"):
        read_table(file)


def test_columns_of_anyone_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "t.parquet"
    write_table(file, _table())
    stored = pq.read_table(file)
    for changed, message in (
        (stored.drop_columns("id"), "id"),
        (stored.set_column(0, "id", pa.array([1, 2, 3])), "column id is int64"),
        (stored.set_column(0, "id", pa.array(["a", None, "b"])), "with 1 nulls"),
        (stored.replace_schema_metadata({}), "its metadata lacks edgeact-descriptors;"),
    ):
        pq.write_table(changed, file)
        with pytest.raises(InputError, match=message):
            read_table(file)
    np.savez(tmp_path / "t.npz", ids=np.array([{"a": 1}], object))
    np.savez(tmp_path / "u.npz", ids=np.array([1, 2, 3]))
    (tmp_path / "v.npz").write_bytes(b"not numpy's")
    with (tmp_path / "w.npz").open("wb") as stream:
        np.save(stream, np.zeros(3))
    for name, message in (
        ("t", "allow_pickle"),
        ("u", "ids or labels are int64"),
        ("v", "damaged, or no .npz"),
        ("w", "damaged, or no .npz"),
    ):
        with pytest.raises(InputError, match=f"{name}.npz is no table of descriptors: .*{message}"):
            read_table(tmp_path / f"{name}.npz")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_damage_is_an_error_in_a_line(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"t{suffix}"
    write_table(file, _table())
    whole, generator = file.read_bytes(), np.random.default_rng(0)
    for _ in range(200):
        damaged = bytearray(whole)
        for place in generator.integers(0, len(whole), 3):
            damaged[place] ^= int(generator.integers(1, 256))
        file.write_bytes(damaged[: len(whole) if generator.random() < 0.7 else int(generator.integers(len(whole)))])
        with contextlib.suppress(InputError):
            assert np.isfinite(read_table(file).descriptors).all()


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = _table()
    with pytest.raises(UnknownNameError, match=r"unknown suffix of a file of descriptors '.csv'.*allowed: .npz"):
        write_table(tmp_path / "t.csv", table)
    (tmp_path / "d.npz").mkdir()
    with pytest.raises(InputError, match=r"d.npz is a folder: give a file"):
        write_table(tmp_path / "d.npz", table)
    with pytest.raises(InputError, match=r"d.npz is a folder"):
        read_table(tmp_path / "d.npz")
    with pytest.raises(InputError, match=r"t.npz does not exist"):
        read_table(tmp_path / "t.npz")
    with pytest.raises(InputError, match=r"the folder .*missing does not exist"):
        write_table(tmp_path / "missing" / "t.npz", table)
    with monkeypatch.context() as patch:
        patch.setattr("os.access", lambda *_: False)
        with pytest.raises(InputError, match="cannot be written to"):
            write_table(tmp_path / "t.npz", table)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(MissingDependencyError, match=r"edgeact\[describe\]"):
        write_table(tmp_path / "t.parquet", table)


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "t.npz"
    write_table(file, _table())

    def full(stream: Any, **arrays: Any) -> None:
        stream.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("numpy.savez_compressed", full)
    with pytest.raises(OSError, match="No space left"):
        write_table(file, _table(ids=("x", "y", "z")))
    assert read_table(file).ids == IDS
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_fields_are_fixed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        FIELDS.dims = 4
