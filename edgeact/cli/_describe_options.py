"""What the parts of `edgeact describe` share: the network, its features, and where they are computed."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from edgeact.cli._options import parse_options, spec_options
from edgeact.clip import ClipSpec
from edgeact.errors import InputError

if TYPE_CHECKING:
    from edgeact._workers import Elsewhere
    from edgeact.cli._model import Network
    from edgeact.features import Extract

__all__ = [
    "NetworkRecipe",
    "data_options",
    "open_parts",
    "place_options",
    "print_path",
    "take_elsewhere",
    "tell_notes",
    "weights_options",
]


def _together(*options: Any) -> Callable[[Any], Any]:
    def decorate(function: Any) -> Any:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


weights_options = _together(
    click.option("--model", help="A name of `edgeact models`, or package.module:factory."),
    click.option("--checkpoint", metavar="FILE", help="Trained weights; the packaged checkpoint without --model."),
    click.option(
        "--option", "model_options", multiple=True, metavar="NAME=VALUE", help="Option of the model, as width=0.5."
    ),
)

place_options = _together(
    click.option("--workers", type=click.IntRange(1), help="Processes that decode and compute.  [default: every core]"),
    click.option("--scheduler", metavar="ADDRESS", help="Compute on the Dask cluster of this scheduler instead."),
)

# What `fit` and `classify` share.
data_options = _together(
    click.option("--data", required=True, help="Labelled videos; `motion` is the synthetic set."),
    weights_options,
    click.option("--layer", default="fc6", show_default=True, help="The layer whose relu the features are."),
    click.option("--hop", type=click.IntRange(1), help="Frames from clip to clip.  [default: half a clip]"),
    click.option(
        "--order",
        default="average-normalize",
        show_default=True,
        help="Of a video's clips: average-normalize, or normalize-average.",
    ),
    click.option("--skip-corrupt", is_flag=True, help="Skip and list videos that cannot be used."),
    place_options,
    click.option("--html", metavar="FILE", help="Write a page with the plot and the table, too."),
    click.option("--json", "as_json", is_flag=True, help="Print JSON."),
    click.option("--quiet", is_flag=True, help="No progress bars."),
    spec_options,
)


@dataclass(frozen=True, kw_only=True)
class NetworkRecipe:
    """How a worker builds a network up to a layer: from what the command was given.

    Attributes:
        model: `--model`.
        checkpoint: `--checkpoint`, absolute.
        options: Of the model.
        classes: How many, where the weights leave that open.
        spec: Its ClipSpec.
        layer: Where it ends.
    """

    model: str | None
    checkpoint: str | None
    options: Mapping[str, Any]
    classes: int | None
    spec: ClipSpec
    layer: str

    def network(self) -> "Network":
        """The whole network.

        Raises:
            InputError: What this names cannot be used.
        """
        from edgeact.cli._model import find_network

        return find_network(
            name=self.model,
            checkpoint=self.checkpoint,
            options=dict(self.options),
            num_classes=None,
            data=self.classes,
            given=self.spec,
        )

    def build(self) -> "tuple[Extract, str]":
        """The network up to its features, and its digest.

        Raises:
            InputError: What this names cannot be used.
        """
        from edgeact._feature_layer import feature_extractor, feature_network, network_digest

        features = feature_network(self.network().model, self.spec, self.layer)
        return feature_extractor(features, self.spec), network_digest(features)


def take_elsewhere(given: dict[str, Any], recipe: Any, *, videos: int | None = None) -> "Elsewhere | None":
    """From the `place_options`, which are taken out of `given`; None is this process.

    Args:
        recipe: Of the network, for a worker; see `edgeact._feature_job.Recipe`.
        videos: Most there are, where that is known: no more workers are started.
    """
    from edgeact._workers import Elsewhere, cluster, processes

    workers, scheduler = given.pop("workers"), given.pop("scheduler")
    if scheduler is not None:
        if workers is not None:
            raise InputError("--workers are processes of this machine, and --scheduler has its own: give one of them")
        return Elsewhere(recipe, cluster(scheduler))
    count = workers or os.cpu_count() or 1
    count = count if videos is None else min(count, videos)
    return None if count == 1 else Elsewhere(recipe, processes(count))


def open_parts(given: dict[str, Any], *splits: Any) -> tuple[str, list[Any]]:
    """From the `data_options`: the network's name, and its features of these parts of the data."""
    from edgeact.cli._model import count_classes, find_network
    from edgeact.describe import open_features

    quiet, data, model, checkpoint = (given.pop(name) for name in ("quiet", "data", "model", "checkpoint"))
    how = {"layer": given.pop("layer"), "hop": given.pop("hop"), "progress": not quiet}
    how["on_corrupt"] = "skip" if given.pop("skip_corrupt") else "error"
    options = parse_options(given.pop("model_options"))
    place = {name: given.pop(name) for name in ("workers", "scheduler")}
    network = find_network(
        name=model,
        checkpoint=checkpoint,
        options=options,
        num_classes=None,
        data=data,
        given=given,
        progress=not quiet,
    )
    recipe = NetworkRecipe(
        model=model,
        checkpoint=None if checkpoint is None else os.path.abspath(checkpoint),  # noqa: PTH100 (of links, their name)
        options=options,
        classes=None if network.labels is not None else count_classes(data, progress=not quiet),
        spec=network.spec,
        layer=how["layer"],
    )
    how["elsewhere"] = take_elsewhere(place, recipe)
    parts = [open_features(network.model, network.spec, data, split=split, **how) for split in splits]
    tell_notes(network)
    return network.name, parts


def tell_notes(network: "Network") -> None:
    """On stderr: that its weights are not trained, or its ClipSpec is not the checkpoint's."""
    from edgeact._terminal import plain

    for note in network.notes:
        click.echo(f"note: {plain(note)}", err=True)


def print_path(what: str, path: str | None) -> None:
    """A file that was written, as one line however long; nothing of one that was not asked for."""
    from rich.console import Console

    from edgeact._terminal import plain

    if path is not None:
        Console().print(f"{what}  {plain(path)}", soft_wrap=True, highlight=False, markup=False)
