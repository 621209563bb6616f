"""Nearest neighbours in a table of descriptors: those with the highest cosine.

    table ─► unit vectors ─► faiss index, built in memory ─► rows by cosine ─► distinct moments: hits

An index is built anew each time, and none is read from a file: faiss parses one in C++ and trusts it, and building the
exact one takes less time than reading the table does.

Shapes: N rows, M queries, d dimensions.
"""

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeact.descriptor import unit
from edgeact.descriptor_table import Table
from edgeact.errors import InputError, MissingDependencyError

__all__ = ["Hit", "Index", "Query", "query_of_id", "require_faiss", "search"]

# Of the approximate index: a million rows of 10 numbers fall into 1,000 cells, of which 31 are searched; that finds
# 99.99 % of the ten nearest. HNSW (16 links, efSearch 32) took nine times as long to build and found 95 %.
_ROWS_PER_CELL = 39  # fewer, and k-means places a cell by too few rows: faiss warns
_CELLS_PER_SEARCHED = 32
_LEAST_SEARCHED = 8
_SAMPLED_PER_CELL = 64  # of the rows, for k-means
_RECALL_QUERIES = 1000
_CLOSE_NAMES = 20_000  # ids that are compared with an unknown one
_LEAST_FETCHED = 64


@dataclass(frozen=True, kw_only=True)
class Hit:
    """One clip or video of the table.

    Attributes:
        row: Its place in the table.
        cosine: With the query.
    """

    row: int
    cosine: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Query:
    """What is looked for.

    Attributes:
        id: In the table, or the path of a video.
        start_s: In seconds from the video's first frame.
        end_s: Likewise.
        descriptor: `[d]`.
        own: Rows of the table that are the query itself, and so no hits.
        label: Its class, where that is known.
    """

    id: str
    start_s: float
    end_s: float
    descriptor: NDArray[np.float64]
    own: frozenset[int] = frozenset()
    label: str | None = None


class Index:
    """The descriptors `[N, d]` of a table, exactly or approximately searchable.

    Args:
        descriptors_Nd: Of any length; their directions count.
        approximate: In cells around √N means (faiss's IVF: Jégou 2011), of which the nearest 1/32 are searched.

    Raises:
        MissingDependencyError: faiss is not installed.
    """

    def __init__(self, descriptors_Nd: NDArray[Any], *, approximate: bool = False) -> None:
        faiss = require_faiss()
        self.approximate = approximate
        self._rows_Nd = unit(descriptors_Nd).astype(np.float32)
        dims = self._rows_Nd.shape[1]
        self._index = exact = faiss.IndexFlatIP(dims)
        if approximate:
            self._cells = max(1, min(math.isqrt(len(self)), len(self) // _ROWS_PER_CELL))
            self._index = faiss.IndexIVFFlat(exact, dims, self._cells, faiss.METRIC_INNER_PRODUCT)
            self._means = exact  # faiss holds no reference of its own
            self._index.cp.max_points_per_centroid = _SAMPLED_PER_CELL
            self._index.train(self._rows_Nd)
        self._index.add(self._rows_Nd)

    def __len__(self) -> int:
        return len(self._rows_Nd)

    def nearest(self, queries_Md: NDArray[Any], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Cosines and rows, `[M, k]` each, best first; the row -1 where an approximate index found no more.

        Args:
            queries_Md: Of any length.
            k: From 1 to N.
        """
        if self.approximate:
            few = max(_LEAST_SEARCHED, self._cells // _CELLS_PER_SEARCHED)
            self._index.nprobe = min(self._cells, max(few, 1 + 4 * k * self._cells // len(self)))
        cosines, rows = self._index.search(unit(queries_Md).astype(np.float32), min(k, len(self)))
        return cosines, rows

    def recall(self, k: int, seed: int = 0) -> float:
        """Share of the exact k nearest that this index finds, of up to a thousand of its own rows, drawn at random."""
        chosen = np.random.default_rng(seed).choice(len(self), min(_RECALL_QUERIES, len(self)), replace=False)
        queries = self._rows_Nd[np.sort(chosen)]
        exact, found = Index(self._rows_Nd).nearest(queries, k)[1], self.nearest(queries, k)[1]
        return float((exact[:, :, None] == found[:, None, :]).any(2).mean())


def require_faiss() -> Any:
    """The module.

    Raises:
        MissingDependencyError: It is not installed.
    """
    try:
        import faiss
    except ImportError as exc:
        raise MissingDependencyError("faiss-cpu", "describe", "searching descriptors") from exc
    return faiss


def query_of_id(table: Table, id: str, *, at_s: float | None = None) -> Query:
    """The descriptor of a video in the table: of the row at `at_s`, or the average of all its rows.

    Raises:
        InputError: There is no such video, or it has no row at that time.
    """
    rows = [row for row, name in enumerate(table.ids) if name == id]
    if not rows:
        raise InputError(f"{id!r} is no id of the index{_closest(id, table.ids)}")
    if at_s is not None:
        first, last = table.start_s[rows].min(), table.end_s[rows].max()
        if not first <= at_s <= last:
            raise InputError(f"{id} has no row at {at_s:g} s: its rows cover {first:g} to {last:g} s")
        middles = (table.start_s[rows] + table.end_s[rows]) / 2
        rows = [rows[int(np.abs(middles - at_s).argmin())]]
    return Query(
        id=id,
        start_s=float(table.start_s[rows].min()),
        end_s=float(table.end_s[rows].max()),
        descriptor=unit(table.descriptors[rows]).mean(0),
        own=frozenset(rows),
        label=None if table.labels is None else table.labels[rows[0]],
    )


def _closest(id: str, ids: Sequence[str]) -> str:
    """The ids most like one that is none, in words."""
    names = list(dict.fromkeys(ids))
    holding = [name for name in names if id in name][:3]
    close = holding or difflib.get_close_matches(id, names[:_CLOSE_NAMES], n=3, cutoff=0.5)
    hint = f": did you mean {' or '.join(map(repr, close))}?" if close else f", whose first is {names[0]!r}"
    return f"{hint} ({len(names):,} ids)"


def search(index: Index, table: Table, query: Query, k: int) -> tuple[list[Hit], int]:
    """The k rows most like the query, and how many more were left out since they overlap a better one in its video.

    Hits are distinct moments: neither the query's own rows nor rows that overlap them are among them.

    Raises:
        InputError: The query has other dimensions than the table.
    """
    if query.descriptor.shape != (table.fields.dims,):
        raise InputError(f"the query has {len(query.descriptor)} numbers, the rows of the index {table.fields.dims}")
    fetched = max(_LEAST_FETCHED, 4 * k) + len(query.own)
    while True:
        cosines, rows = (found[0].tolist() for found in index.nearest(query.descriptor[None], fetched))
        hits, skipped = _distinct(table, query, cosines, rows, k)
        if len(hits) == k or fetched >= len(table):
            return hits, skipped
        fetched *= 4


def _distinct(
    table: Table, query: Query, cosines: Sequence[float], rows: Sequence[int], k: int
) -> tuple[list[Hit], int]:
    """The first k of these rows that overlap no better one, and how many before the last of them do."""
    times: dict[str, list[tuple[float, float]]] = {}
    for row in query.own:
        times.setdefault(table.ids[row], []).append((table.start_s[row], table.end_s[row]))
    hits: list[Hit] = []
    skipped = 0
    for cosine, row in zip(cosines, rows, strict=True):
        if row < 0 or row in query.own:
            continue
        start, end, taken = table.start_s[row], table.end_s[row], times.setdefault(table.ids[row], [])
        if any(start <= other_end and other_start <= end for other_start, other_end in taken):
            skipped += 1
            continue
        taken.append((start, end))
        hits.append(Hit(row=row, cosine=min(cosine, 1.0)))
        if len(hits) == k:
            break
    return hits, skipped
