"""The contact sheet of a search: query and hits as film strips, on one page that needs nothing else.

Shapes: T frames, H, W pixels, 3 = RGB.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeact._film import film_strip
from edgeact._page import render_page
from edgeact._progress import progress_bar
from edgeact.clip import ClipSpec
from edgeact.descriptor_table import Table
from edgeact.errors import VideoError
from edgeact.search import Hit, Query
from edgeact.video import read_clip

__all__ = ["Picture", "folder_of", "picture", "pictures", "sheet", "time_in_words"]

_FRAMES = 8
_HEIGHT_PX = 144  # of a decoded frame: what a screen of two pixels a point shows of a strip
_LARGEST_PX = 2048  # of a frame's short side: a ClipSpec that anyone wrote may ask for any
_SHOWN = 60
_SHORTEST_S = 0.2


@dataclasses.dataclass(frozen=True)
class Picture:
    """Frames `[T, H, W, 3]` of a clip, or why there are none."""

    frames: NDArray[np.uint8] | None
    missing: str = ""


def pictures(table: Table, hits: Sequence[Hit], root: Path | None, *, progress: bool) -> list[Picture]:
    """Those of the first sixty hits.

    Args:
        table: The index.
        hits: Rows of it.
        root: Where its videos lie now; None takes the folder that it names.
        progress: Show a bar on stderr.
    """
    root = folder_of(table, root)
    found = []
    with progress_bar("pictures", len(hits[:_SHOWN]), progress) as step:
        for hit in hits[:_SHOWN]:
            times = float(table.start_s[hit.row]), float(table.end_s[hit.row])
            found.append(picture(root, table.ids[hit.row], *times, table.fields.spec))
            step()
    return found


def folder_of(table: Table, root: Path | None) -> Path | None:
    """Where its videos lie: `root` if that is given, else the folder that the table names."""
    return root or (None if table.fields.root is None else Path(table.fields.root))


def picture(root: Path | None, id: str, start_s: float, end_s: float, spec: ClipSpec) -> Picture:
    """Eight frames spread over a clip: the part of them that the network sees, in more pixels.

    Args:
        root: The folder that `id` is relative to; None where it is a path of its own.
        id: It may come from anyone: what leaves `root` is not read.
        start_s: In seconds from the video's first frame.
        end_s: Likewise.
        spec: What the network sees.
    """
    relative = PurePosixPath(id)
    if root is not None and (relative.is_absolute() or ".." in relative.parts):
        return Picture(None, f"{id} leaves the folder of videos")
    path = Path(id) if root is None else root / relative
    rate = _FRAMES / max(end_s - start_s, _SHORTEST_S)  # so that the last of them stands before the end
    larger = min(max(1.0, _HEIGHT_PX / spec.crop_height), _LARGEST_PX / spec.short_side)
    sizes = {name: max(1, round(getattr(spec, name) * larger)) for name in ("short_side", "crop_height", "crop_width")}
    shown = dataclasses.replace(spec, frames=_FRAMES, frame_stride=1, sample_fps=rate, **sizes)
    try:
        if not path.is_file():
            return Picture(None, f"{path}: no such file; --videos names the folder where the videos lie now")
        return Picture(read_clip(path, shown, round(start_s * rate)).frames)
    except (VideoError, OSError) as exc:  # OSError: a name too long, a folder that may not be entered
        return Picture(None, str(exc))


def time_in_words(start_s: float, end_s: float) -> str:
    """As a player shows it: 1:02.5 – 1:03.0."""
    tenths = [round(10 * seconds) for seconds in (start_s, end_s)]
    return " – ".join(f"{count // 600}:{count % 600 / 10:04.1f}" for count in tenths)


def sheet(
    table: Table, query: Query, hits: Sequence[Hit], shown: Picture, found: Sequence[Picture], notes: Sequence[str]
) -> str:
    """The page.

    Raises:
        MissingDependencyError: jinja2 is not installed.
    """
    fields, labels = table.fields, table.labels
    cards = []
    for rank, (hit, own) in enumerate(zip(hits, found, strict=False), 1):
        label = None if labels is None else labels[hit.row]
        times = float(table.start_s[hit.row]), float(table.end_s[hit.row])
        kind = "" if query.label is None else "gained" if label == query.label else "lost"
        cards.append(_card(table.ids[hit.row], times, label, own, rank=rank, kind=kind, cosine=hit.cosine))
    same = sum(card["kind"] == "gained" for card in cards)
    lead = "By the cosine of their descriptors, which is 1 for the same direction."
    if query.label is not None and labels is not None:
        lead += f" {same} of {len(cards)} are of the query's class, {query.label}."
    if len(cards) < len(hits):
        notes = (*notes, f"the first {len(cards)} of {len(hits)} hits are shown: --json has them all")
    what = f"{len(table):,} {fields.per}s · {fields.dims} numbers each: {fields.layer} of {fields.model}"
    return render_page(
        "_sheet.html",
        query=_card(query.id, (query.start_s, query.end_s), query.label, shown),
        hits=cards,
        sub=f"{what}, {fields.computed_by}",
        lead=lead,
        notes=notes,
    )


def _card(
    id: str,
    times: tuple[float, float],
    label: str | None,
    own: Picture,
    *,
    rank: int | str = "",
    kind: str = "",
    cosine: float | None = None,
) -> dict[str, Any]:
    return {
        "id": id,
        "time": time_in_words(*times),
        "label": label,
        "strip": [] if own.frames is None else film_strip(own.frames),
        "missing": own.missing,
        "rank": rank,
        "kind": kind,
        "cosine": cosine,
        "bar": 0 if cosine is None else round(100 * max(cosine, 0.0), 1),
    }
