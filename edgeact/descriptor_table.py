"""The file of descriptors: one row for each clip or video, and what they are of.

.parquet      columns id (string), start_s, end_s (double), descriptor (fixed-size list of d floats) and, where known,
              label (string); the fields as JSON in the schema's metadata, `edgeact-descriptors`
.npz          ids, start_s, end_s, descriptors, labels (where known), fields: the same JSON; numpy alone reads it

Files may come from anyone: they are parsed and checked, and nothing is unpickled. Shapes: N rows, d dimensions.
"""

import dataclasses
import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from edgeact.clip import ClipSpec
from edgeact.descriptor import Order, check_order
from edgeact.errors import InputError, MissingDependencyError, UnknownNameError

__all__ = ["SUFFIXES", "Fields", "Per", "Table", "check_table_path", "read_table", "write_table"]

Per = Literal["clip", "video"]
SUFFIXES = (".parquet", ".npz")

_VERSION = 1
_LONGEST_S = 1e10  # 300 years; a file that anyone wrote may claim more than its pictures could be counted by
_KEY = b"edgeact-descriptors"


@dataclass(frozen=True, kw_only=True)
class Fields:
    """What the descriptors of a table are of. Two tables compare where `descriptor` is the same.

    Attributes:
        root: The folder that ids are relative to; None where they are sources of their own, such as a camera.
        per: What one row is of.
        descriptor: `Descriptor.digest`: the projection, and the network, ClipSpec and hop that it was fitted with.
        network: sha256 of the network up to `layer`.
        model: Its name.
        layer: The layer whose relu was projected.
        order: See `edgeact.descriptor.Reading`.
        hop: Sampled frames from the start of one clip to that of the next.
        spec: How a video became clips.
        dims: Numbers d of a descriptor.
        computed_by: "PyTorch", or target and precision of a bundle, as "openvino int8".
    """

    root: str | None
    per: Per
    descriptor: str
    network: str
    model: str
    layer: str
    order: Order
    hop: int
    spec: ClipSpec
    dims: int
    computed_by: str

    def to_dict(self) -> dict[str, Any]:
        """JSON types only."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)} | {"spec": self.spec.to_dict()}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Fields":
        """From a file, which may come from anyone.

        Raises:
            InputError: It is malformed.
        """
        try:
            texts = {name: str(fields[name]) for name in ("descriptor", "network", "model", "layer", "computed_by")}
            found = cls(
                root=None if fields["root"] is None else str(fields["root"]),
                per=fields["per"],
                order=check_order(fields["order"]),
                hop=int(fields["hop"]),
                spec=ClipSpec.from_dict(fields["spec"]),
                dims=int(fields["dims"]),
                **texts,
            )
        except (LookupError, TypeError, ValueError, OverflowError) as exc:
            raise InputError(f"its fields are malformed: {exc}") from exc
        if found.per not in get_args(Per):
            raise InputError(f"its rows are per {found.per!r}, not per clip or video")
        if found.dims < 1 or found.hop < 1:
            raise InputError(f"its fields are malformed: {found.dims} dims, hop {found.hop}")
        return found


@dataclass(frozen=True, kw_only=True, eq=False)
class Table:
    """Descriptors of clips or videos, checked.

    Attributes:
        ids: The video `[N]` of each row: its path relative to `fields.root`, with forward slashes.
        start_s: `[N]`, in seconds from the video's first frame.
        end_s: `[N]`.
        descriptors: `[N, d]`.
        fields: What they are of.
        labels: The class `[N]` of each row; None where that is not known.

    Raises:
        InputError: Its parts do not fit one another, or hold values that are not finite, times that no video has, or
            names that are not Unicode.
    """

    ids: tuple[str, ...]
    start_s: NDArray[np.float64]
    end_s: NDArray[np.float64]
    descriptors: NDArray[np.float32]
    fields: Fields
    labels: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        n = len(self.ids)
        if not n:
            raise InputError("it holds no descriptors")
        for name, kind, width in (
            ("start_s", "float64", ()),
            ("end_s", "float64", ()),
            ("descriptors", "float32", (self.fields.dims,)),
        ):
            array = getattr(self, name)
            if array.dtype != kind or array.shape != (n, *width):
                raise InputError(f"{name} is {array.dtype} {array.shape}, not {kind} {(n, *width)}")
            if not np.isfinite(array).all():
                raise InputError(f"{name} holds values that are not finite (NaN or infinity)")
        if self.labels is not None and len(self.labels) != n:
            raise InputError(f"{len(self.labels)} labels for {n} rows")
        wrong = ~((self.start_s >= 0) & (self.start_s <= self.end_s) & (self.end_s <= _LONGEST_S))
        if wrong.any():
            row = int(wrong.argmax())
            raise InputError(f"row {row} is of {self.start_s[row]:g} to {self.end_s[row]:g} s, which no video has")
        for name in ("ids", "labels"):
            try:
                "".join(getattr(self, name) or ()).encode()
            except UnicodeEncodeError as exc:
                raise InputError(f"{name} hold text that is not Unicode ({exc.reason})") from exc

    def __len__(self) -> int:
        return len(self.ids)


def check_table_path(path: str | os.PathLike[str]) -> Path:
    """Refuse a file that `write_table` could not write, before hours of work.

    Raises:
        InputError: Its suffix is unknown, it is a folder, or its folder is missing or cannot be written to.
        MissingDependencyError: pyarrow, which Parquet needs, is not installed.
    """
    file = Path(path)
    _check_suffix(file)
    if file.is_dir():
        raise InputError(f"{file} is a folder: give a file, such as {file / 'descriptors.npz'}")
    if not file.parent.is_dir():
        raise InputError(f"{file}: the folder {file.parent} does not exist")
    if not os.access(file.parent, os.W_OK):
        raise InputError(f"{file}: the folder {file.parent} cannot be written to")
    return file


def write_table(path: str | os.PathLike[str], table: Table) -> None:
    """Write `table`, by the suffix of `path`: beside it first, and renamed when whole.

    Raises:
        InputError, MissingDependencyError: As `check_table_path`.
        OSError: The disk is full.
    """
    file = check_table_path(path)
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        (_write_parquet if file.suffix == ".parquet" else _write_npz)(partial, table)
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def read_table(path: str | os.PathLike[str]) -> Table:
    """Read what `write_table` wrote; nothing in it is executed.

    Raises:
        InputError: No such file, or it is no table of descriptors, damaged, or its parts do not fit one another.
        MissingDependencyError: pyarrow, which Parquet needs, is not installed.
    """
    file = Path(path)
    _check_suffix(file)
    if not file.is_file():
        raise InputError(f"{file} " + ("is a folder" if file.is_dir() else "does not exist"))
    try:
        return (_read_parquet if file.suffix == ".parquet" else _read_npz)(file)
    except Exception as exc:  # zipfile and pyarrow raise anything, by the kind of damage
        raise InputError(f"{file} is no table of descriptors: {exc}; `edgeact describe extract` writes one") from exc


def _check_suffix(file: Path) -> None:
    if file.suffix not in SUFFIXES:
        raise UnknownNameError("suffix of a file of descriptors", file.suffix, SUFFIXES)
    if file.suffix == ".parquet":
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError as exc:
            raise MissingDependencyError("pyarrow", "describe", "a file .parquet, not .npz,") from exc


def _write_parquet(file: Path, table: Table) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = np.ascontiguousarray(table.descriptors).reshape(-1)
    columns = {
        "id": pa.array(table.ids, pa.string()),
        "start_s": pa.array(table.start_s),
        "end_s": pa.array(table.end_s),
        "descriptor": pa.FixedSizeListArray.from_arrays(pa.array(rows), table.fields.dims),
    }
    if table.labels is not None:
        columns["label"] = pa.array(table.labels, pa.string())
    stored = pa.table(columns).replace_schema_metadata({_KEY: _to_json(table.fields)})
    pq.write_table(stored, file, use_dictionary=[name for name in ("id", "label") if name in columns])


def _read_parquet(file: Path) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    stored = pq.read_table(file, partitioning=None)
    metadata = stored.schema.metadata or {}
    if _KEY not in metadata:
        raise InputError(f"its metadata lacks {_KEY.decode()}")
    fields = _from_json(metadata[_KEY])
    names = ["id", "start_s", "end_s", "descriptor"] + ["label"] * ("label" in stored.column_names)
    kinds = [pa.string(), pa.float64(), pa.float64(), pa.list_(pa.float32(), fields.dims), pa.string()]
    for name, kind in zip(names, kinds, strict=False):
        column = stored.column(name)
        if column.type != kind or column.null_count:
            raise InputError(f"column {name} is {column.type} with {column.null_count} nulls, not {kind} without")
    descriptors = [chunk.flatten().to_numpy() for chunk in stored.column("descriptor").chunks]
    return Table(
        ids=tuple(stored.column("id").to_pylist()),
        start_s=stored.column("start_s").to_numpy(),
        end_s=stored.column("end_s").to_numpy(),
        descriptors=np.concatenate([np.empty(0, np.float32), *descriptors]).reshape(-1, fields.dims),
        fields=fields,
        labels=tuple(stored.column("label").to_pylist()) if "label" in names else None,
    )


def _write_npz(file: Path, table: Table) -> None:
    labels: dict[str, Any] = {} if table.labels is None else {"labels": np.array(table.labels)}
    with file.open("wb") as stream:
        np.savez_compressed(  # numpy gives every text the room of the longest one
            stream,
            ids=np.array(table.ids),
            start_s=table.start_s,
            end_s=table.end_s,
            descriptors=table.descriptors,
            fields=np.array(_to_json(table.fields)),
            **labels,
        )


def _read_npz(file: Path) -> Table:
    if not zipfile.is_zipfile(file):  # numpy would take it for a pickle, and tell how to load that
        raise InputError("it is damaged, or no .npz")
    with file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
        return Table(
            ids=_texts(arrays["ids"]),
            start_s=arrays["start_s"],
            end_s=arrays["end_s"],
            descriptors=arrays["descriptors"],
            fields=_from_json(str(arrays["fields"])),
            labels=_texts(arrays["labels"]) if "labels" in arrays else None,
        )


def _texts(array: NDArray[Any]) -> tuple[str, ...]:
    if array.dtype.kind != "U" or array.ndim != 1:
        raise InputError(f"ids or labels are {array.dtype} {array.shape}, not text [N]")
    return tuple(array.tolist())


def _to_json(fields: Fields) -> str:
    return json.dumps({"version": _VERSION, **fields.to_dict()})


def _from_json(text: str | bytes) -> Fields:
    found = json.loads(text)
    if found["version"] != _VERSION:
        raise InputError(f"it has version {found['version']!r}, this edgeact reads {_VERSION}")
    return Fields.from_dict(found)
