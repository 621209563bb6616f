"""`edgeact describe search`: what is like a clip, a video or a file, among the descriptors of a table."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeact.cli._describe_extract import take_describer
from edgeact.cli._describe_options import print_path, weights_options
from edgeact.errors import CheckpointError, InputError

if TYPE_CHECKING:
    from edgeact._sheet import Picture
    from edgeact.descriptor_table import Table
    from edgeact.extract import Describer
    from edgeact.search import Hit, Index, Query

__all__ = ["search"]


@click.command("search")
@click.argument("query")
@click.option("--index", "index_file", required=True, metavar="FILE", help="Descriptors of `edgeact describe extract`.")
@click.option(
    "--at", "at_s", type=float, metavar="SECONDS", help="The query's clip at that time.  [default: all of it]"
)
@click.option("-k", "k", type=click.IntRange(1), default=10, show_default=True, help="Hits.")
@click.option("--approximate", is_flag=True, help="Search the nearest cells alone (IVF): for many queries.")
@click.option("--recall", is_flag=True, help="With --approximate: measure how much of the exact answer it finds.")
@click.option("--bundle", metavar="DIR", help="Of a query that is a file: the bundle that describes it.")
@click.option(
    "--descriptor", metavar="FILE", help="Likewise: the descriptor, with the network that it was fitted with."
)
@weights_options
@click.option("--videos", metavar="DIR", help="Where the index's videos lie.  [default: where they lay]")
@click.option("--html", metavar="FILE", help="Write a contact sheet of the query and the hits.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--quiet", is_flag=True, help="No progress bars.")
def search(
    query: str,
    index_file: str,
    at_s: float | None,
    k: int,
    approximate: bool,
    recall: bool,
    videos: str | None,
    html: str | None,
    as_json: bool,
    quiet: bool,
    **given: Any,
) -> None:
    """Find what is most like QUERY, by the cosine of descriptors.

    QUERY is an id of the index, or a video file, which --bundle, or --descriptor with --checkpoint, describes. Hits are
    distinct moments: what overlaps the query or a better hit is left out.
    """
    from edgeact._page import check_page, write_page
    from edgeact._sheet import folder_of, picture, pictures, sheet
    from edgeact.descriptor_table import read_table
    from edgeact.search import Index, require_faiss
    from edgeact.search import search as nearest

    require_faiss()
    if recall and not approximate:
        raise InputError("--recall measures what --approximate loses: give that too")
    if videos is not None and not Path(videos).is_dir():
        raise InputError(f"--videos {videos} is no folder")
    page = None if html is None else check_page(html)
    table = read_table(index_file)
    wanted, file = _query(query, table, index_file, at_s, given, progress=not quiet)
    index = Index(table.descriptors, approximate=approximate)
    hits, overlapping = nearest(index, table, wanted, k)
    notes = _notes(table, wanted, hits, k, overlapping, index, recall)
    found: list[Picture] = []
    if page is not None:
        root = None if videos is None else Path(videos)
        times = (wanted.start_s, wanted.end_s)
        where = (None, str(file)) if file is not None else (folder_of(table, root), wanted.id)
        shown = picture(*where, *times, table.fields.spec)
        found = pictures(table, hits, root, progress=not quiet)
        notes += [f"no picture of {name}: {why}" for name, why in _without(wanted, shown, table, hits, found).items()]
        write_page(page, sheet(table, wanted, hits, shown, found, notes))
    if as_json:
        click.echo(json.dumps(_found(table, wanted, hits, index_file, index, notes)))
    else:
        _print(table, wanted, hits, notes, html)


def _query(
    query: str, table: "Table", index_file: str, at_s: float | None, given: dict[str, Any], *, progress: bool
) -> "tuple[Query, Path | None]":
    """What QUERY means, and the file that it is, if it is one."""
    from edgeact.search import query_of_id

    describing = given["bundle"] is not None or given["descriptor"] is not None
    file = Path(query)
    if query in set(table.ids) or not (describing or file.is_file()):
        if describing:
            raise InputError(f"{query!r} is an id of the index, whose descriptor is known: leave out what describes it")
        return query_of_id(table, query, at_s=at_s), None
    if not file.is_file():
        raise InputError(f"{query}: no such file, and no id of {index_file}")
    if file.suffix.lower() == ".txt":
        raise InputError(f"{query} is a list, and a query is one video: search for each of them")
    if not describing:
        raise InputError(
            f"{query} is a file, and no id of {index_file}: give what describes it, --bundle, or --descriptor with the "
            "network that it was fitted with"
        )
    return _described(file, table, index_file, at_s, take_describer(given, live=False)[0], progress=progress), file


def _described(
    file: Path, table: "Table", index_file: str, at_s: float | None, describer: "Describer", *, progress: bool
) -> "Query":
    """The query that a video is, computed as the rows of the index were."""
    from edgeact._sources import find_videos
    from edgeact.extract import extract_videos, open_videos
    from edgeact.search import query_of_id

    own, other = table.fields, describer.fields
    for name in ("dims", "network", "descriptor", "order", "spec"):
        if getattr(own, name) != getattr(other, name):
            one, two = (_shortened(getattr(fields, name)) for fields in (own, other))
            raise CheckpointError(
                f"{index_file} holds descriptors of another {name}: {one}, what describes {file} has {two}; give what "
                "the index was extracted with, or extract it again"
            )
    seen = open_videos(find_videos(file), describer, hop=own.hop, progress=progress)
    described = extract_videos(seen, describer, per=own.per)
    query = query_of_id(described, described.ids[0], at_s=at_s)
    same = _rows_of(table, file)
    label = table.labels[min(same)] if same and table.labels is not None else None
    return dataclasses.replace(query, id=file.name, own=same, label=label, computed_by=other.computed_by)


def _rows_of(table: "Table", file: Path) -> frozenset[int]:
    """Those of the index that are of this very file."""
    if table.fields.root is None:
        return frozenset()
    root = Path(table.fields.root)
    paths = (path for path in (file.absolute(), file.resolve()) if path.is_relative_to(root))
    ids = {path.relative_to(root).as_posix() for path in paths}
    return frozenset(row for row, id in enumerate(table.ids) if id in ids)


def _shortened(value: object) -> str:
    """Digests are told by their first digits."""
    return value[:12] if isinstance(value, str) and len(value) == 64 else str(value)


def _notes(
    table: "Table", query: "Query", hits: "list[Hit]", k: int, overlapping: int, index: "Index", recall: bool
) -> list[str]:
    from edgeact._format import pct

    notes = []
    if len(hits) < k:
        notes.append(f"{k} hits were asked for, and there are {len(hits)} distinct moments beside the query")
    if query.computed_by not in (None, table.fields.computed_by):
        notes.append(f"the query is described by {query.computed_by}, the index by {table.fields.computed_by}")
    if overlapping:
        notes.append(f"{overlapping} rows that overlap the query or a better hit are left out")
    if index.approximate:
        depth = max(1, min(k, len(table) - 1))  # others than the row that asks
        told = f"finds {pct(index.recall(depth))} of the exact {depth} nearest" if recall else "--recall measures it"
        notes.append(f"approximate: {told}")
    if query.descriptor @ query.descriptor < 1e-12:
        notes.append("the query's descriptor is zero: its cosine with anything is 0")
    return notes


def _without(
    query: "Query", shown: "Picture", table: "Table", hits: "list[Hit]", found: "list[Picture]"
) -> dict[str, str]:
    """The videos that have no picture, and why."""
    every = [(query.id, shown), *((table.ids[hit.row], own) for hit, own in zip(hits, found, strict=False))]
    return {name: own.missing for name, own in every if own.frames is None}


def _found(
    table: "Table", query: "Query", hits: "list[Hit]", index_file: str, index: "Index", notes: list[str]
) -> dict[str, Any]:
    """For `--json`."""
    return {
        "query": {"id": query.id, "start_s": query.start_s, "end_s": query.end_s, "label": query.label},
        "index": {"file": index_file, "rows": len(table), "approximate": index.approximate, **table.fields.to_dict()},
        "hits": [
            {
                "rank": rank,
                "id": table.ids[hit.row],
                "start_s": float(table.start_s[hit.row]),
                "end_s": float(table.end_s[hit.row]),
                "cosine": hit.cosine,
                "label": None if table.labels is None else table.labels[hit.row],
            }
            for rank, hit in enumerate(hits, 1)
        ],
        "notes": notes,
    }


def _print(table: "Table", query: "Query", hits: "list[Hit]", notes: list[str], html: str | None) -> None:
    from rich.console import Console

    from edgeact._sheet import time_in_words
    from edgeact._terminal import add_row, new_table, print_line

    console = Console()
    rows = new_table("", "time", "cosine", "id", "label")
    for rank, hit in enumerate(hits, 1):
        times = time_in_words(float(table.start_s[hit.row]), float(table.end_s[hit.row]))
        label = "" if table.labels is None else table.labels[hit.row]
        add_row(rows, rank, times, f"{hit.cosine:.4f}", table.ids[hit.row], label)
    console.print(rows)
    what = f"{query.id}, {time_in_words(query.start_s, query.end_s)}" + (f", {query.label}" if query.label else "")
    print_line(console, "·", f"looked for: {what}", "dim")
    print_line(console, "·", f"among {len(table):,} {table.fields.per}s of {len(set(table.ids)):,} videos", "dim")
    for note in notes:
        print_line(console, "·", note, "yellow" if note.startswith("no picture") else "dim")
    print_path("sheet", html)
