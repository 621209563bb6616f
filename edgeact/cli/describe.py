"""`edgeact describe`: a network's features as a compact descriptor of a video."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from edgeact.cli._options import parse_options, spec_options
from edgeact.errors import InputError

if TYPE_CHECKING:
    from edgeact.descriptor import Descriptor
    from edgeact.dimensions import Curve

__all__ = ["command"]


def _network_options(function: Any) -> Any:
    """What `fit` and `classify` share: the videos, the network, and how its features are taken."""
    options = [
        click.option("--data", required=True, help="Labelled videos; `motion` is the synthetic set."),
        click.option("--model", help="A name of `edgeact models`, or package.module:factory."),
        click.option("--checkpoint", metavar="FILE", help="Trained weights; the packaged checkpoint without --model."),
        click.option(
            "--option", "model_options", multiple=True, metavar="NAME=VALUE", help="Option of the model, as width=0.5."
        ),
        click.option("--layer", default="fc6", show_default=True, help="The layer whose relu the features are."),
        click.option("--hop", type=click.IntRange(1), help="Frames from clip to clip.  [default: half a clip]"),
        click.option(
            "--order",
            default="average-normalize",
            show_default=True,
            help="Of a video's clips: average-normalize, or normalize-average.",
        ),
        click.option("--skip-corrupt", is_flag=True, help="Skip and list videos that cannot be used."),
        click.option("--html", metavar="FILE", help="Write the plot and the table as a page, too."),
        click.option("--json", "as_json", is_flag=True, help="Print JSON."),
        click.option("--quiet", is_flag=True, help="No progress bars."),
        spec_options,
    ]
    for option in reversed(options):
        function = option(function)
    return function


@click.group("describe")
def command() -> None:
    """Describe videos by a few numbers: fit the descriptor, and see how many numbers it takes."""


@command.command("fit")
@_network_options
@click.option("--dims", type=int, default=10, show_default=True, help="Numbers of the descriptor.")
@click.option("--out", required=True, metavar="FILE", help="The descriptor, a .safetensors file.")
def fit(dims: int, out: str, html: str | None, as_json: bool, **given: Any) -> None:
    """Fit a descriptor on the training part of labelled videos: PCA of a layer's features.

    Features of finished videos are kept in the cache: stopped, it goes on where it was.
    """
    from edgeact import describe
    from edgeact._describe_page import fit_page
    from edgeact._page import check_page, write_page
    from edgeact.descriptor import check_order, save_descriptor

    describe.require_sklearn()
    order = check_order(given.pop("order"))
    if dims < 1:
        raise InputError(f"--dims {dims}: a descriptor has at least 1")
    if Path(out).is_dir():
        raise InputError(f"--out {out} is a folder: give a file, such as {Path(out) / f'pca{dims}.safetensors'}")
    page = None if html is None else check_page(html)
    name, (videos,) = _open(given, "train")
    found = describe.fit(videos, model_name=name, dims=dims, order=order)
    save_descriptor(out, found)
    if page is not None:
        write_page(page, fit_page(found, videos.skipped))
    if as_json:
        click.echo(json.dumps(_fitted(found, out, videos.skipped)))
    else:
        _print_fitted(found, out, videos.skipped)
        _print_path("page", html)


def _open(given: dict[str, Any], *splits: Any) -> tuple[str, list[Any]]:
    """The network's name, and its features of these parts of the data."""
    from edgeact.cli._model import find_network
    from edgeact.describe import open_features

    quiet, data = given.pop("quiet"), given.pop("data")
    how = {"layer": given.pop("layer"), "hop": given.pop("hop"), "progress": not quiet}
    on_corrupt: Literal["skip", "error"] = "skip" if given.pop("skip_corrupt") else "error"
    network = find_network(
        name=given.pop("model"),
        checkpoint=given.pop("checkpoint"),
        options=parse_options(given.pop("model_options")),
        num_classes=None,
        data=data,
        given=given,
        progress=not quiet,
    )
    opened = [
        open_features(network.model, network.spec, data, split=split, on_corrupt=on_corrupt, **how) for split in splits
    ]
    return network.name, opened


def _fitted(found: "Descriptor", out: str, skipped: list[str]) -> dict[str, Any]:
    fields = {name: getattr(found, name) for name in ("model", "layer", "order", "hop", "videos", "dims", "network")}
    return {
        "descriptor": out,
        **fields,
        "features": len(found.mean),
        "explained": [float(share) for share in found.explained],
        "variances": [float(variance) for variance in found.variances],
        "versions": dict(found.versions),
        "skipped": skipped,
    }


def _print_fitted(found: "Descriptor", out: str, skipped: list[str]) -> None:
    """The first components, then the last."""
    from rich.console import Console

    from edgeact._describe_page import VARIANCE_NAMES, variance_rows
    from edgeact._terminal import add_row, new_table, print_line

    console, table = Console(), new_table(*VARIANCE_NAMES)
    for i, row in enumerate(variance_rows(found)):
        if i < 10 or i == found.dims - 1:
            add_row(table, *row)
    console.print(table)
    what = f"{found.dims} of {len(found.mean)} features: relu of {found.layer} of {found.model}, {found.order}"
    print_line(console, "·", f"{what}; {found.videos} videos of the training part", "dim")
    for line in skipped:
        print_line(console, "·", f"skipped: {line}", "yellow")
    _print_path("descriptor", out)


def _print_path(what: str, path: str | None) -> None:
    from rich.console import Console

    from edgeact._terminal import plain

    if path is not None:
        Console().print(f"{what}  {plain(path)}", soft_wrap=True, highlight=False, markup=False)


@command.command("classify")
@_network_options
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
    name, (train, test) = _open(given, "train", "test")
    curve = accuracy_by_dimensions(train, test, dims=tried, order=order)
    if page is not None:
        write_page(page, curve_page(curve, name))
    if as_json:
        click.echo(json.dumps({"model": name, **curve.to_dict()}))
    else:
        _print_curve(curve, name)
        _print_path("page", html)


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
