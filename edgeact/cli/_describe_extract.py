"""`edgeact describe extract`: videos, or a camera as it goes, to a table of descriptors."""

import contextlib
import json
import os
from typing import TYPE_CHECKING, Any

import click

from edgeact.cli._describe_options import NetworkRecipe, place_options, take_elsewhere, tell_notes, weights_options
from edgeact.cli._options import parse_options
from edgeact.errors import InputError

if TYPE_CHECKING:
    from edgeact.extract import Describer

__all__ = ["extract", "take_describer"]


@click.command("extract")
@click.argument("source")
@click.option("--out", required=True, metavar="FILE", help="The table of descriptors, .parquet or .npz.")
@click.option("--descriptor", metavar="FILE", help="Of `edgeact describe fit`, for the network below in PyTorch.")
@weights_options
@click.option("--bundle", metavar="DIR", help="Or a bundle of `edgeact export --descriptor`, by its own runtime.")
@click.option(
    "--per", type=click.Choice(["clip", "video"]), default="clip", show_default=True, help="What a row is of."
)
@click.option("--hop", type=click.IntRange(1), help="Frames from clip to clip.  [default: the descriptor's]")
@click.option("--seconds", type=click.FloatRange(0, min_open=True), help="Of a camera or stream: stop after so many.")
@click.option("--skip-corrupt", is_flag=True, help="End with 0 though some videos cannot be used.")
@place_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--quiet", is_flag=True, help="No progress bars.")
def extract(source: str, out: str, as_json: bool, quiet: bool, **given: Any) -> int:
    """Write a descriptor for each clip of SOURCE, or for each video.

    SOURCE is a folder of videos, a .txt that lists them, a video, a camera or a URL. A camera goes on until ^C.

    Videos that cannot be used are listed, and the exit status is then 1. Features of finished videos are kept in the
    cache: stopped, it goes on where it was.
    """
    from edgeact._decode import public_name
    from edgeact._sources import find_videos, is_live
    from edgeact.descriptor_table import check_table_path, read_table, write_table
    from edgeact.extract import extract_live, extract_videos, open_videos

    check_table_path(out)
    skip, seconds, per = given.pop("skip_corrupt"), given.pop("seconds"), given.pop("per")
    if is_live(source):
        if given["workers"] is not None or given["scheduler"] is not None:
            raise InputError(f"{source} is read as it comes, by one process: leave --workers and --scheduler out")
        describer, _ = take_describer(given, live=True)
        _until_stopped(
            lambda: extract_live(out, source, describer, hop=given["hop"], per=per, seconds=seconds),
            f"describing {public_name(source)}; ^C ends it",
            shown=not quiet,
        )
        videos, table = None, read_table(out)
    else:
        if seconds is not None:
            raise InputError(f"--seconds is of a camera or stream, and {source} is none: leave it out")
        dataset = find_videos(source)
        describer, recipe = take_describer(given, live=False)
        elsewhere = take_elsewhere(given, recipe, videos=len(dataset.samples))
        how = {"hop": given["hop"], "elsewhere": elsewhere, "on_corrupt": "skip", "progress": not quiet}
        videos = open_videos(dataset, describer, **how)
        table = extract_videos(videos, describer, per=per)
        write_table(out, table)
    found = {"table": out, "rows": len(table), "videos": len(set(table.ids)), **table.fields.to_dict()}
    skipped = [] if videos is None else videos.skipped
    if as_json:
        computed = None if videos is None else videos.computed
        click.echo(json.dumps(found | {"computed": computed, "skipped": skipped}))
    else:
        _print(found, skipped, None if videos is None else videos.origin)
    return 1 if skipped and not skip else 0


def _until_stopped(record: Any, what: str, *, shown: bool) -> None:
    """^C is the way to end a camera; what was seen is written."""
    from edgeact._progress import waiting
    from edgeact.cli import interrupt_heard

    try:
        with waiting(what, shown=shown), contextlib.suppress(KeyboardInterrupt):
            record()
    finally:
        interrupt_heard()


def take_describer(given: dict[str, Any], *, live: bool) -> "tuple[Describer, Any]":
    """From --bundle, or --descriptor and the `weights_options`: the network that describes, and its recipe for workers.

    Raises:
        InputError: Neither or both were given, or cannot be used.
    """
    from edgeact.extract import BundleRecipe, by_bundle

    bundle, descriptor = given.pop("bundle"), given.pop("descriptor")
    weights = {name: given.pop(name) for name in ("model", "checkpoint", "model_options")}
    if bundle is not None:
        if descriptor is not None or any(weights.values()):
            raise InputError("--bundle holds network and descriptor: leave --descriptor, --checkpoint and --model out")
        return by_bundle(bundle, live=live), BundleRecipe(os.path.abspath(bundle))  # noqa: PTH100 (of links, their name)
    if descriptor is None:
        raise InputError("say what describes: --descriptor FILE with its --checkpoint or --model, or --bundle DIR")
    return _by_descriptor(descriptor, weights, live=live)


def _by_descriptor(file: str, weights: dict[str, Any], *, live: bool) -> "tuple[Describer, NetworkRecipe]":
    from edgeact.cli._model import require_torch
    from edgeact.descriptor_file import load_descriptor
    from edgeact.extract import by_network

    require_torch()
    descriptor, checkpoint = load_descriptor(file), weights["checkpoint"]
    recipe = NetworkRecipe(
        model=weights["model"],
        checkpoint=None if checkpoint is None else os.path.abspath(checkpoint),  # noqa: PTH100 (of links, their name)
        options=parse_options(weights["model_options"]),
        classes=len(descriptor.labels),
        spec=descriptor.spec,
        layer=descriptor.layer,
    )
    network = recipe.network()
    describer = by_network(network.model, network.name, descriptor, live=live)
    tell_notes(network)
    return describer, recipe


def _print(found: dict[str, Any], skipped: list[str], origin: str | None) -> None:
    from rich.console import Console

    from edgeact._terminal import plain, print_line

    console = Console()
    what = f"{found['dims']} numbers per {found['per']}, relu of {found['layer']} of {found['model']}"
    count = f"{found['rows']} rows from {found['videos']} video" + "s" * (found["videos"] != 1)
    print_line(console, "·", f"{count}; {what}, {found['computed_by']}", "dim")
    if origin is not None:
        print_line(console, "·", origin, "dim")
    for line in skipped:
        print_line(console, "·", f"skipped: {line}", "yellow")
    console.print(f"descriptors  {plain(found['table'])}", soft_wrap=True, highlight=False, markup=False)
