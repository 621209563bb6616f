"""`edgeact describe classify`: accuracy against the numbers that are kept."""

import json
from typing import TYPE_CHECKING, Any

import click

from edgeact.cli._describe_options import data_options, open_parts, print_path
from edgeact.errors import InputError

if TYPE_CHECKING:
    from edgeact.dimensions import Curve

__all__ = ["classify"]


@click.command("classify")
@data_options
@click.option("--dims", help="Dimensions to try, with commas.  [default: 2,5,10,20,50,100,500]")
def classify(dims: str | None, html: str | None, as_json: bool, **given: Any) -> None:
    """Accuracy of a linear SVM on the test part against the numbers kept, beside what knows less.

    The PCA and the SVM see the training part alone.
    """
    from edgeact import describe
    from edgeact._describe_page import curve_page
    from edgeact._page import check_page, write_page
    from edgeact.descriptor import check_order
    from edgeact.dimensions import DIMENSIONS, accuracy_by_dimensions

    describe.require_sklearn()
    order = check_order(given.pop("order"))
    if dims is not None and not all(part.isdecimal() and int(part) > 0 for part in dims.split(",")):
        raise InputError(f"--dims {dims!r}: write numbers of at least 1 with commas, as 2,10,50")
    tried = DIMENSIONS if dims is None else tuple(sorted({int(part) for part in dims.split(",")}))
    page = None if html is None else check_page(html)
    name, (train, test) = open_parts(given, "train", "test")
    curve = accuracy_by_dimensions(train, test, dims=tried, order=order)
    if page is not None:
        write_page(page, curve_page(curve, name))
    if as_json:
        click.echo(json.dumps({"model": name, **curve.to_dict()}))
    else:
        _print_curve(curve, name)
        print_path("page", html)


def _print_curve(curve: "Curve", model: str) -> None:
    from rich.console import Console

    from edgeact._describe_page import ROW_NAMES, accuracy_row
    from edgeact._terminal import add_row, new_table, print_line

    console, table = Console(), new_table(*ROW_NAMES)
    for row in curve.rows:
        add_row(table, *accuracy_row(row))
    console.print(table)
    for remark in curve.remarks(model):
        print_line(console, "·", remark, "dim")
