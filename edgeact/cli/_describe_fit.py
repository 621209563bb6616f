"""`edgeact describe fit`: the descriptor, and what it keeps."""

import json
from typing import TYPE_CHECKING, Any

import click

from edgeact.cli._describe_options import data_options, open_parts, print_path
from edgeact.errors import InputError

if TYPE_CHECKING:
    from edgeact.descriptor import Descriptor
    from edgeact.features import FeatureSet

__all__ = ["fit"]


@click.command("fit")
@data_options
@click.option("--dims", type=int, default=10, show_default=True, help="Numbers of the descriptor.")
@click.option("--out", required=True, metavar="FILE", help="The descriptor, a .safetensors file.")
def fit(dims: int, out: str, html: str | None, as_json: bool, **given: Any) -> None:
    """Fit a descriptor on the training part of labelled videos: PCA of a layer's features.

    Features of finished videos are kept in the cache: stopped, it goes on where it was.
    """
    from edgeact import describe
    from edgeact._describe_page import fit_page
    from edgeact._page import check_page, write_page
    from edgeact.descriptor import check_order
    from edgeact.descriptor_file import check_descriptor_path, save_descriptor

    describe.require_sklearn()
    order = check_order(given.pop("order"))
    if dims < 1:
        raise InputError(f"--dims {dims}: a descriptor has at least 1")
    check_descriptor_path(out)
    page = None if html is None else check_page(html)
    name, (videos,) = open_parts(given, "train")
    found = describe.fit(videos, model_name=name, dims=dims, order=order)
    save_descriptor(out, found)
    if page is not None:
        write_page(page, fit_page(found, videos.skipped))
    if as_json:
        click.echo(json.dumps(_fitted(found, out, videos)))
    else:
        _print_fitted(found, out, videos)
        print_path("page", html)


def _fitted(found: "Descriptor", out: str, videos: "FeatureSet") -> dict[str, Any]:
    fields = {name: getattr(found, name) for name in ("model", "layer", "order", "hop", "videos", "dims", "network")}
    return {
        "descriptor": out,
        **fields,
        "features": len(found.mean),
        "explained": [float(share) for share in found.explained],
        "variances": [float(variance) for variance in found.variances],
        "versions": dict(found.versions),
        "computed": videos.computed,
        "skipped": videos.skipped,
    }


def _print_fitted(found: "Descriptor", out: str, videos: "FeatureSet") -> None:
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
    print_line(console, "·", videos.origin, "dim")
    for line in videos.skipped:
        print_line(console, "·", f"skipped: {line}", "yellow")
    print_path("descriptor", out)
