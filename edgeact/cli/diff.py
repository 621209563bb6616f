"""`edgeact diff`: what changed between two bundles or devices, clip by clip."""

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console

    from edgeact.diff import Diff

__all__ = ["command"]

_ROWS_SHOWN = 20

Row = tuple[str, str, str, str]


@click.command("diff")
@click.argument("a")
@click.argument("b")
@click.option("--bundle", metavar="DIR", help="The bundle that results are of, for labels, where neither side is it.")
@click.option("--min-sqnr", "min_sqnr_db", type=float, metavar="DB", help="Lowest SQNR of B's logits against A's.")
@click.option(
    "--min-agreement", type=float, metavar="SHARE", help="Lowest share of clips with the same answer.  [default: *]"
)
@click.option("--max-drop", "max_drop_pt", type=float, metavar="PT", help="Most top-1 points B may lose.  [default: *]")
@click.option("--max-slower", type=float, metavar="X", help="Highest ratio of B's latency to A's, as 1.1.")
@click.option("--json", "as_json", is_flag=True, help="Print the comparison as JSON.")
def command(a: str, b: str, bundle: str | None, as_json: bool, **limits: float | None) -> int:
    """Compare B with A on the same clips: bundles (folders) or the results.json of devices (files).

    Exits with 1 when B falls short of a limit, with 2 when the two cannot be compared.

    * The stricter of the gates that the bundles store; nothing is judged unasked where neither is a bundle.
    """
    from edgeact.diff import Limits, diff

    found = diff(a, b, bundle=bundle, limits=Limits(**limits))
    if as_json:
        click.echo(json.dumps(found.to_dict()))
    else:
        from rich.console import Console

        _print(found, Console())
    return 0 if found.held else 1


def _print(found: "Diff", console: "Console") -> None:
    """The verdict, both sides with the figures, what flipped, and which kernels differ."""
    from rich.text import Text

    from edgeact._terminal import print_line

    judged = any(limit is not None for limit in vars(found.limits).values())
    held = ("✓ held", "bold green") if judged else ("compared, no limits", "bold")
    console.print(Text.assemble(held if found.held else ("✗ fell short", "bold red"), "  ", ("B against A", "bold")))
    for failure in found.failures:
        print_line(console, "✗", failure, "red")
    for mark, name, ran_on in zip("AB", (found.a, found.b), found.ran_on, strict=True):
        print_line(console, mark, f"{name} ({ran_on})", "")
    _print_rows(console, ("", "A", "B", ""), list(_figures(found)))
    _print_rows(console, ("clip that flips", "label", "A", "B"), _flips(found))
    _print_rows(console, ("kernel", "A", "B", ""), _kernels(found))
    for note in found.notes:
        print_line(console, "·", note, "dim")


def _print_rows(console: "Console", header: Row, rows: Sequence[Row]) -> None:
    from edgeact._terminal import add_row, new_table, print_line

    if not rows:
        return
    table = new_table(*header)
    for row in rows[:_ROWS_SHOWN]:
        add_row(table, *row)
    console.print(table)
    if len(rows) > _ROWS_SHOWN:
        print_line(console, "·", f"{len(rows) - _ROWS_SHOWN} more: --json lists every one", "dim")


def _figures(found: "Diff") -> Iterator[Row]:
    from edgeact._format import db, mb, ms, p_value, pct, signed
    from edgeact.parity import NotMeasured

    yield "clips", "", f"{found.clips:,}", f"of the {found.clips_of} set"
    if isinstance(found.top1, NotMeasured):
        yield "top-1", "", "", f"not measured: {found.top1.not_measured}"
    else:
        low, high = found.top1.drop_ci95_pt
        drop = f"drop {signed(found.top1.drop_pt)} pt, 95 % {signed(low)} … {signed(high)}"
        yield "top-1", pct(found.top1.a), pct(found.top1.b), drop
        gained = f"{found.top1.lost} lost, {found.top1.gained} gained"
        yield "", "", "", f"{gained}, McNemar p {p_value(found.top1.mcnemar_p)}"
    yield "agreement", "", pct(found.agreement), f"{len(found.flips):,} flip"
    yield "SQNR", "", db(found.sqnr_db), f"max abs {found.max_abs:.2g}, cosine {found.cosine:.7f}"
    for name, quantity, written in (("latency p50", found.latency_ms, ms), ("size", found.size_mb, mb)):
        if isinstance(quantity, NotMeasured):
            yield name, "", "", f"not measured: {quantity.not_measured}"
        else:
            yield name, written(quantity.a), written(quantity.b), f"{quantity.ratio:.2f}×"
    yield from _placement(found)


def _placement(found: "Diff") -> Iterator[Row]:
    from edgeact.parity import NotMeasured

    placement = found.placement
    if isinstance(placement, NotMeasured):
        yield "placement", "", "", f"not measured: {placement.not_measured}"
        return
    for name, (a, b), remark in (
        ("placement", placement.accelerated_ops, " · ".join(sorted({*placement.kinds}))),
        ("fall back", placement.fallback_ops, ""),
    ):
        yield name, f"{a:,} ops", f"{b:,} ops", remark
    for sign, ops in (("new", placement.fallback_appeared), ("gone", placement.fallback_disappeared)):
        if ops:
            yield "", "", "", f"{sign}: " + ", ".join(ops[:5]) + (" …" if len(ops) > 5 else "")


def _flips(found: "Diff") -> list[Row]:
    return [(flip.clip, flip.label or "–", flip.a, flip.b) for flip in found.flips]


def _kernels(found: "Diff") -> list[Row]:
    from edgeact.parity import NotMeasured

    if isinstance(found.placement, NotMeasured):
        return []
    words = {(False, True): "appeared", (True, False): "gone", (True, True): ""}
    return [(kernel, str(a), str(b), words[a != 0, b != 0]) for kernel, (a, b) in found.placement.kernels.items()]
